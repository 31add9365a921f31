"""Quick settings, search spaces and prepared sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field
from toy_models import ToyMLP

from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.settings.declaration import Settings
from recbole_cdr_ext.tuning import sweep
from recbole_cdr_ext.tuning.sweep import DEFAULTS, prepare

ROOT = Path(__file__).parents[1]
QUICK = {
    "data_path": str(ROOT / "dataset_atomic"), "epochs": 4, "train_targets": "last", "train_batch_size": 128,
    "eval_args": {"mode": "uni50"},
}  # fmt: skip
LEARNING_RATES = "learning_rate: {choice: [0.01, 0.003]}\n"


class TroubledSettings(Settings):
    """What goes wrong."""

    trouble: str | None = Field(None, description="none, raises, memory or nan.")


class Troubled(ToyMLP):
    """Learns, or does not, as its setting ``trouble`` says."""

    settings_class = TroubledSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.trouble = config["trouble"]

    def calculate_loss(self, interaction):
        """Returns the loss, unless there is trouble."""
        loss = super().calculate_loss(interaction)
        if self.trouble == "raises":
            raise ValueError("this one\nraises")
        if self.trouble == "memory":
            raise MemoryError
        return loss * float("nan") if self.trouble == "nan" else loss


@pytest.fixture
def quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {**QUICK, "cache_dir": str(tmp_path / "cache")}


def space_file(tmp_path, text=LEARNING_RATES):
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def prepared(tmp_path, quick, model=ToyMLP, space=LEARNING_RATES, dataset="toy", **options):
    options = {
        **DEFAULTS,
        "search": "grid",
        "out": str(tmp_path / "sweep"),
        "space": space_file(tmp_path, space),
        **options,
    }
    made = prepare(model, dataset, options, None, quick)
    made.folder.mkdir(exist_ok=True)
    return made


def score_of_run(folder, model):
    """The validation score of a run with best.yaml alone."""
    quiet = {"show_progress": False, "tensorboard": False, "save_instances": False, "torch_threads": 1}
    return run_recbole_cdr(model, "toy", [str(folder / sweep.BEST)], quiet)["best_valid_score"]
