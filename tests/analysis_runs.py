"""Saved runs to analyse, and the command that analyses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_cdr_ext.analysis.bridges import ratings_of
from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.pages.figures import require
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.serving.recommendation import load_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folder of runs on toy: SCDR; EMCDR, a matrix without biases; TGT; and SCDR on another split."""
    require()  # imported once, in no test's time
    folder = tmp_path_factory.mktemp("analysis")
    shared = {
        "task": "rating", "show_progress": False, "tensorboard": False, "use_gpu": False, "epochs": 2,
        "pretrain_epochs": 2, "seed": 1, "state": "ERROR", "data_path": str(ROOT / "dataset_atomic"),
        "checkpoint_dir": str(folder / "saved"), "cache_dir": str(folder / "cache"),
    }  # fmt: skip
    own = {
        "sharp": ("SCDR", {}),
        "linear": ("EMCDR", {"mapping": "linear", "biases": False}),
        "cold": ("TGT", {}),
        "split": ("SCDR", {"split_seed": 7}),
    }
    for name, (model, settings) in own.items():
        run_recbole_cdr(model, "toy", config_dict={**shared, **settings, "run_id": name})
    return folder / "saved"


@pytest.fixture
def sharp(saved):
    return load_model(saved / "sharp")


@pytest.fixture
def linear(saved):
    """An experiment whose ratings are ⟨W u, v⟩, and of every third item the mean."""
    experiment = load_model(saved / "linear")
    experiment.model.known_items[::3] = False
    return experiment


def in_numpy(experiment):
    """Returns u (B, d), g = Wᵀ v (B, d), ratings (B,), and which items are known, of a linear run's test ratings."""
    model, batch = experiment.model, ratings_of(experiment, "test")
    weight = model.mapping.weight.detach().double().numpy()
    user = model.source_users.weight.detach().double().numpy()[batch.user]
    item = model.target_items.double().numpy()[batch.item]
    return user, item @ weight, batch.rating.double().numpy(), model.known_items.numpy()[batch.item]


def analyse(kind: str, saved: Path, out: Path, *words: str) -> int:
    return main(
        ["analyse", kind, f"--checkpoint_dir={saved}", f"--out={out}", "--show_progress=False", *words]
    )


def check_figures(out: Path, kind: str, *texts: str) -> None:
    """Checks that the image is one, not blank, and that the page names what it shows."""
    from matplotlib.image import imread

    image = imread(out / f"{kind}.png")
    assert min(image.shape[:2]) > 300
    assert image[..., :3].std() > 0.02
    page = (out / f"{kind}.html").read_text(encoding="utf-8")
    for text in texts:
        assert json.dumps(text)[1:-1] in page  # as plotly writes it
    assert not list(out.glob(".*"))
