"""The repository: its types protect, its pages say what the code says, and its wheel works without a checkout."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

import recbole_cdr_ext

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "recbole_cdr_ext"


# -- sizes ---------------------------------------------------------------------------------------------------------


def tracked(*patterns: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_files_and_functions_fit_on_a_few_screens():
    for path in tracked("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                assert node.end_lineno - first < 60, f"{path}: {node.name}"


# They name nothing: docs/names.md says what to write instead.
EMPTY_WORDS = {"found", "own", "asked", "given", "made", "kept"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_names_are_nouns(path):
    stored = {
        getattr(node, "id", None) or getattr(node, "arg", None) or getattr(node, "name", None) or node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.arg | ast.FunctionDef | ast.ClassDef)
        or (isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store))
    }
    assert not {name.strip("_") for name in stored} & EMPTY_WORDS


def test_the_repository_is_one_of_source():
    assert len(tracked()) < 450
    binary = [path for path in tracked() if b"\0" in path.read_bytes()[:8000]]
    assert len(binary) <= 60


# -- types ---------------------------------------------------------------------------------------------------------


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


# -- pages ---------------------------------------------------------------------------------------------------------
PAGES = sorted(page for where in ("*.md", "docs/**/*.md", "results/**/*.md") for page in ROOT.glob(where))


def test_every_next_item_model_has_a_page_that_is_up_to_date():
    script = ROOT / "docs" / "model_pages.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(<?([^)>#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_of_a_model_is_found_from_the_list():
    listed = set(
        re.findall(r"\(models/(\w+)\.md\)", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
    )
    assert listed == {page.stem for page in (ROOT / "docs" / "models").glob("*.md")}


def navigation() -> list[str]:
    """The pages that mkdocs.yml names, in order."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    entries = yaml.safe_load(text[text.index("\nnav:") :])["nav"]

    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in pages(part)]

    return pages(entries)


def test_the_site_shows_every_page_once():
    named = navigation()
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    pages += (ROOT / "docs").rglob("*.md")
    assert sorted(named) == sorted(page.relative_to(ROOT).as_posix() for page in pages)


def test_the_api_shows_modules_that_exist():
    for page in (ROOT / "docs" / "api").glob("*.md"):
        modules = re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert modules
        for module in modules:
            assert importlib.util.find_spec(module), f"{page.name}: {module}"


@pytest.mark.slow
def test_the_site_links_lead_where_those_of_the_repository_lead(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"""<(?:script|link)[^>]+(?:src|href)=["']?https?:""", text), page.name
        for target in re.findall(r'(?:href|src)="([^"#?:]+)[^":]*"', text):
            assert target.startswith("/") or (page.parent / unquote(target)).exists(), f"{page}: {target}"
    for source in ROOT.glob("results/**/*.md"):
        shown = (tmp_path / source.relative_to(ROOT)).with_suffix(".html").read_text(encoding="utf-8")
        tables = re.findall(r"^\|-+", source.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(re.findall("<table", shown)) == len(tables), source  # those in folded parts as well


def test_the_walks_name_what_there_is():
    """What docs/architecture.md calls `module:function` is there."""
    names = re.findall(
        r"`([a-z_.0-9]+:[\w.]+)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    )
    assert len(names) > 20
    for name in names:
        assert pkgutil.resolve_name(f"recbole_cdr_ext.{name}"), name


def test_the_rooms_of_the_page_hold_the_files_that_it_names():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) > 15
    for room, what in rows:
        for name in re.findall(r"`(\w+\.py)`", what):
            assert list((PACKAGE / room).rglob(name)), f"{room}: {name}"


def test_the_layers_of_the_page_are_those_that_are_checked():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = [
        re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, re.MULTILINE)
    ]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers")
    order = {room: height for height, layer in enumerate(layers) for room in re.findall(r"\w+", layer)}
    rooms = [room for row in shown for room in row]
    assert sorted(rooms) == sorted(order)
    assert [order[room] for room in rooms] == sorted(order[room] for room in rooms)


# -- the wheel -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built from a copy so that no build folder is left in the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("recbole_cdr_ext", "properties"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "*.md"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_all_files_of_the_package_and_of_properties(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT).as_posix() for path in files_in(ROOT / "recbole_cdr_ext")}
    properties = {
        f"recbole_cdr_ext/{path.relative_to(ROOT).as_posix()}" for path in files_in(ROOT / "properties")
    }
    assert properties
    assert "recbole_cdr_ext/py.typed" in package
    assert package - names == set()
    assert properties - names == set()
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "properties"))]


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_setup_cfg_lists_every_package():
    setuptools = pytest.importorskip("setuptools")
    rooms = setuptools.find_packages(str(ROOT), include=["recbole_cdr_ext", "recbole_cdr_ext.*"])
    options = setup_cfg()["options"]
    assert options["packages"].split() == sorted([*rooms, "recbole_cdr_ext.properties"])
    folders = {path.parent for path in (ROOT / "recbole_cdr_ext").rglob("*.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == set(rooms)


def test_the_wheel_works_outside_of_the_checkout(wheel, tmp_path):
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    code = (
        "import sys; from recbole_cdr_ext.cli.main import main;"
        "from recbole_cdr_ext.settings.reading import properties_dir;"
        "from recbole_cdr_ext.settings.reading import find_config_file;"
        "print(properties_dir()); print(find_config_file('properties/model/I2VAE_paper.yaml'));"
        "sys.exit(main(['run', '--help', '--model=I2VAE']) or main(['prepare', 'toy', '--data_path=data']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert str(installed / "recbole_cdr_ext" / "properties") in done.stdout
    assert (tmp_path / "data" / "toy" / "books.inter").is_file()


def test_the_wheel_has_the_command(wheel):
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "recbole-cdr = recbole_cdr_ext.cli.main:main" in archive.read(name).decode()


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_normal(name): version for name, version in pairs}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def setup_cfg() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def test_constraints_pin_what_make_installs():
    extras = setup_cfg()["options.extras_require"]
    shared = re.search(r"^recbole_cdr_ext\[(.+)\]$", extras["dev"], re.MULTILINE)
    assert shared
    assert {*shared[1].split(","), "dev"} == set(extras)
    required = "\n".join([setup_cfg()["options"]["install_requires"], *extras.values()])
    names = {re.match(r"[\w-]+", line)[0] for line in required.splitlines() if line and line[0] != "#"}
    assert {name for name in names if _normal(name) not in pinned()} == {"recbole_cdr_ext"}


def test_constraints_suit_every_machine():
    """No build of one machine (torch's +cpu), and torch for make's own line."""
    assert all(re.fullmatch(r"[\w.]+", version) for version in pinned().values())
    assert "torch" in pinned()


def test_commands_need_nothing_that_only_unix_has():
    code = (
        "import sys; sys.modules['fcntl'] = None; sys.modules['resource'] = None\n"
        "import recbole_cdr_ext.runs.run, recbole_cdr_ext.cli.main, recbole_cdr_ext.tuning.sweep\n"
        "import recbole_cdr_ext.reports.report\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == recbole_cdr_ext.__version__
    assert citation["title"] == setup_cfg()["metadata"]["name"]
