"""What every model of ratings must do, and what no model could do without learning a mapping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import random_ratings, rating_config, write_ratings

from recbole_cdr_ext.registry.models import list_models
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.tasks.rating import FLOORS

NAMES = ["books", "films"]
FLOOR_NAMES = [floor.__name__ for floor in FLOORS]
MODELS = [info.name for info in list_models() if info.task == "rating" and info.name not in FLOOR_NAMES]
BRIDGES = [name for name in MODELS if name not in ("TGT", "CMF")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_ratings(folder / "mini", random_ratings(n_users=90))
    return folder


def test_all_baselines_are_there():
    assert set(MODELS) >= {"TGT", "CMF", "EMCDR", "SSCDR", "CLCDR", "PTUPCDR", "TMCDR", "SCDR"}


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_runs_in_both_forms_and_both_directions(root, model, biases):
    source = "films" if biases else "books"
    config = rating_config(root, NAMES, model, biases=biases, source=source, run_id=f"{model}{biases}")
    result = run_recbole_cdr(model, "mini", config_dict=config.to_dict())
    (cells,) = result["test"].values()
    assert cells["cold"]["n"] > 0 and np.isfinite([cells["cold"]["mae"], cells["cold"]["rmse"]]).all()


@pytest.mark.parametrize("model", BRIDGES)
def test_without_vectors_every_bridge_is_the_biases_alone(root, model):
    experiment = build(rating_config(root, NAMES, model, embedding_size=0, pretrain_sharpness="none"))
    floor = build(rating_config(root, NAMES, "BiasOnly"))
    assert np.array_equal(experiment.predict("test"), floor.predict("test"))
    assert experiment.model.phases() == []


@pytest.mark.parametrize("model", BRIDGES)
def test_bridges_share_their_vectors(root, model):
    """Equal settings of pre-training give equal tables, whichever bridge asks first."""
    first = build(rating_config(root, NAMES, "EMCDR")).model
    other = build(rating_config(root, NAMES, model, pretrain_sharpness="none")).model
    for name in ("target_items", "target_users", "source_items", "mapped_bias"):
        assert torch.equal(getattr(first, name), getattr(other, name)), name


@pytest.mark.parametrize("model", MODELS)
def test_one_higher_in_the_target_is_one_higher_in_every_prediction(tmp_path, model):
    data, found = random_ratings(n_users=60), []
    for shift in (0.0, 1.0):
        films = [(u, i, r + shift) for u, i, r in data["films"]]
        write_ratings(tmp_path / str(shift) / "mini", {"books": data["books"], "films": films})
        config = rating_config(tmp_path / str(shift), NAMES, model, rating_range=[1, 6])
        found.append(build(config).predict("test"))
    assert found[1] - found[0] == pytest.approx(1.0, abs=1e-4)


# -- a pair of domains with a known mapping --------------------------------------------------------------

NOISE = 0.5


def low_rank(n_users: int = 120, n_items: int = 160, per_user: int = 150, seed: int = 0):
    """Ratings ⟨u, v⟩ + noise of rank 3 in both domains, the target's users being A u with a fixed matrix A."""
    rng = np.random.default_rng(seed)
    user = rng.uniform(0.5, 1.5, (n_users, 3))
    matrix = np.array([[0.9, 0.2, 0.1], [0.1, 0.8, 0.3], [0.3, 0.1, 0.8]])
    # Items that stress one direction each, so that taste matters and not only the level.
    items = [rng.dirichlet(np.full(3, 0.3), n_items) * 3 for _ in NAMES]
    rows = {}
    for name, vectors, items_of in zip(NAMES, (user, user @ matrix.T), items, strict=True):
        rows[name] = []
        for u in range(n_users):
            for i in rng.choice(n_items, per_user, replace=False):
                rows[name].append(
                    (f"u{u:03d}", f"{name[0]}{i}", float(vectors[u] @ items_of[i] + rng.normal(0, NOISE)))
                )
    return rows


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("low_rank")
    write_ratings(folder / "mini", low_rank())
    return folder


def rmse_of(known, model, **settings):
    """Returns the cold-start RMSE of a model, and that of the floors."""
    given = {
        "beta": 0.2, "rating_range": [-5, 15], "biases": False, "embedding_size": 3, "pretrain_reg_weight": 0.003,
        "pretrain_learning_rate": 0.005, "pretrain_batch_size": 128, "pretrain_epochs": 60,
        "pretrain_stopping_step": 8, **settings,
    }  # fmt: skip
    config = rating_config(known, NAMES, model, run_id=f"known-{model}", **given)
    result = run_recbole_cdr(model, "mini", config_dict=config.to_dict())
    floors = {name: table["films"]["cold"]["rmse"] for name, table in result["floors"].items()}
    return result["test"]["films"]["cold"]["rmse"], floors


def test_emcdr_recovers_a_known_mapping(known):
    """Within 5 % of the noise: nothing is left but what a finite number of noisy ratings hides."""
    rmse, floors = rmse_of(known, "EMCDR", mapping="linear", epochs=300, learning_rate=0.5, stopping_step=15)
    assert rmse < 1.05 * NOISE
    assert min(floors.values()) > 1.2 * NOISE


@pytest.mark.parametrize("model", [name for name in MODELS if name not in ("TGT", "EMCDR")])
def test_every_model_that_transfers_beats_the_item_mean(known, model):
    rmse, floors = rmse_of(known, model, epochs=40, stopping_step=10, pretrain_sharpness="none")
    assert rmse < 0.97 * floors["ItemMean"]
