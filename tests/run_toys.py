"""Configurations of toy data, a run that takes a second, and models for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field
from toy_models import ToyMLP

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import Stage
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import Settings, Size


def configure(*argv: str, model="I2VAE", dataset="toy", **settings) -> CDRConfig:
    return CDRConfig(model, dataset, config_dict=settings, argv=argv)


def refusal(*argv: str, **settings) -> str:
    with pytest.raises(CDRError) as caught:
        configure(*argv, **settings)
    return str(caught.value)


DATA = Path(__file__).parents[1] / "dataset_atomic"
WHAT_IT_COMPUTES = (
    "best_valid_score",
    "valid",
    "test",
    "popularity",
    "fallback",
    "stopped",
    "epochs_run",
    "notes",
)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a run that takes a second, and writes into the test's own folder only."""
    monkeypatch.chdir(tmp_path)
    return {
        "data_path": str(DATA),
        "checkpoint_dir": str(tmp_path / "saved"),
        "cache_dir": str(tmp_path / "cache"),
        "show_progress": False,
        "tensorboard": False,
        "torch_threads": 1,
        "epochs": 2,
        "train_targets": "last",
        "train_batch_size": 128,
        "eval_args": {"mode": "uni50"},
    }


def go(settings, model=ToyMLP, **more):
    return run_recbole_cdr(model, "toy", config_dict={**settings, **more})


class StagedSettings(Settings):
    """What Staged reads besides."""

    pseudo_length: Size = Field(20, description="Recalled items per user.")


class Staged(ToyMLP):
    """Has LightGCN-PSG run before it, and reads what that recalled."""

    needs_pseudo = True
    settings_class = StagedSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.pseudo_length = int(config["pseudo_length"])

    @classmethod
    def stages(cls, config):
        """One stage of one epoch."""
        return [Stage("LightGCNPSG", {"epochs": 1, "embedding_size": 8})]

    def score(self, batch, candidates=None):
        """Returns scores that depend on the recalled items."""
        return super().score(batch.with_fields(history_0=batch.pseudo), candidates)
