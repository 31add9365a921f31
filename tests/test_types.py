"""The types protect: a misspelt attribute is found before anything runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "recbole_cdr_ext"

MISSPELT = """
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.next_item.i2vae import I2VAE
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer


def use(
    dataset: CrossDomainDataset, config: CDRConfig, model: I2VAE, trainer: CrossDomainTrainer, batch: Batch
) -> None:
    print(dataset.domians)
    print(config.fingerprnt())
    print(model.item_vector(0))
    print(trainer.epoch_run)
    print(batch.target_domian)
    print(dataset.domains, config.fingerprint(), model.item_vectors(0), trainer.epochs_run, batch.target_domain)
"""


def test_misspelt_attributes_of_dataset_config_model_trainer_and_batch_are_five_errors(tmp_path):
    file = tmp_path / "misspelt.py"
    file.write_text(MISSPELT, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if "No module named mypy" in done.stderr:
        pytest.skip("mypy is not installed")
    errors = [line for line in done.stdout.splitlines() if "misspelt.py" in line and "error:" in line]
    names = [re.findall(r'has no attribute "(\w+)"', error) for error in errors]
    assert names == [["domians"], ["fingerprnt"], ["item_vector"], ["epoch_run"], ["target_domian"]], (
        done.stdout
    )


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_public_function_returns_anything(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    untold = [
        node.name
        for node in functions
        if not node.name.startswith("_") and (node.returns is None or ast.unparse(node.returns) == "Any")
    ]
    assert untold == []
