"""SCDR: what its two phases change and leave alone, and what sharpness does to them."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from support import random_ratings, rating_config, write_ratings

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.serving.recommendation import load_model, recommend
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.optimisation import learning_parameters, settings_of
from recbole_cdr_ext.trainer.sharpness import PGD
from recbole_cdr_ext.trainer.stages import run_table_stages
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

NAMES = ["books", "films"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scdr")
    write_ratings(folder / "mini", random_ratings(n_users=90))
    return folder


def run(root, run_id, **settings):
    """Runs SCDR; returns (result, final weights)."""
    config = rating_config(root, NAMES, run_id=run_id, **settings).to_dict()
    result = run_recbole_cdr("SCDR", "mini", config_dict=config)
    _, states = checkpoint.load(root / "saved" / run_id / checkpoint.MODEL, model="SCDR")
    return result, states["model"]


def trained(root, model="SCDR", **settings):
    """Returns the experiment before its training, and after it."""
    config = rating_config(root, NAMES, model, **settings)
    experiment = build(config)
    before = {name: tensor.clone() for name, tensor in experiment.model.state_dict().items()}
    folder = root / f"{model}-{abs(hash(str(sorted(settings.items()))))}"
    folder.mkdir(exist_ok=True)
    trainer = CrossDomainTrainer(config, experiment.model, folder, data=experiment.split.fingerprint)
    trainer.fit(experiment.split, None, experiment.validate)
    return experiment, before, trainer


# -- the whole run -----------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_should(root, capsys):
    result, _ = run(root, "whole", beta=0.4)
    assert set(result["test"]) == {"films"} and set(result["test"]["films"]) == {"cold"}
    cell = result["test"]["films"]["cold"]
    assert set(cell) == {"n", "mae", "rmse"} and cell["n"] > 0 and 0 < cell["mae"] < cell["rmse"] < 3
    assert (result["task"], result["source"], result["target"], result["beta"]) == (
        "rating",
        "books",
        "films",
        0.4,
    )
    assert set(result["floors"]) == {"GlobalMean", "ItemMean", "ItemMeanUserBias", "BiasOnly"}
    printed = capsys.readouterr().out
    assert "books -> films, beta=0.4" in printed
    for name in ("SCDR", *result["floors"]):
        assert name in printed
    assert f"{cell['mae']:.4f}" in printed


def test_a_saved_run_predicts_again_and_recommends_nothing(root):
    run(root, "saved-run")
    experiment = load_model(root / "saved" / "saved-run")
    frame = pd.read_parquet(root / "saved" / "saved-run" / "instances.parquet")
    assert experiment.predict("test") == pytest.approx(frame[frame.part == "test"].prediction.to_numpy())
    with pytest.raises(CDRError, match="SCDR predicts ratings and ranks no items"):
        recommend(experiment, ["u001"])


def test_the_other_direction(root):
    result, _ = run(root, "back", source="films", target="books")
    assert set(result["test"]) == {"books"}


def test_an_interrupted_run_ends_as_an_unbroken_one(root, monkeypatch):
    _, unbroken = run(root, "unbroken", epochs=4, stopping_step=10)
    original, calls = CrossDomainTrainer._valid_epoch, []

    def interrupting(self, *args, **kwargs):
        calls.append(self.model)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CrossDomainTrainer, "_valid_epoch", interrupting)
    with pytest.raises(KeyboardInterrupt, match="--resume="):
        run(root, "broken", epochs=4, stopping_step=10)
    monkeypatch.undo()
    run_recbole_cdr(
        config_dict={"resume": "broken", "checkpoint_dir": str(root / "saved"), "show_progress": False}
    )
    _, states = checkpoint.load(root / "saved" / "broken" / checkpoint.MODEL, model="SCDR")
    assert all(torch.equal(unbroken[name], states["model"][name]) for name in unbroken)


# -- sharpness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [True, False])
def test_no_steps_or_no_radius_equal_no_sharpness_bit_for_bit(root, biases):
    shared = {"biases": biases, "pretrain_sharpness": "none"}
    _, plain = run(root, f"plain{biases}", sharpness="none", **shared)
    for name, settings in {"steps": {"pgd_steps": 0}, "radius": {"rho": 0.0}}.items():
        _, same = run(root, f"{name}{biases}", sharpness="pgd", **settings, **shared)
        assert all(torch.equal(plain[key], same[key]) for key in plain)
    _, other = run(root, f"sharp{biases}", sharpness="pgd", **shared)
    assert not torch.equal(plain["mapping.0.weight"], other["mapping.0.weight"])


def test_no_steps_in_both_phases_is_the_mapping_without_sharpness(root):
    """Table VII's row: k = 0 in pre-training and mapping."""
    none = {"pretrain_sharpness": "none", "sharpness": "none"}
    _, plain = run(root, "neither", **none)
    _, zero = run(root, "zero", pretrain_sharpness="pgd", pretrain_pgd_steps=0, pgd_steps=0)
    assert all(torch.equal(plain[key], zero[key]) for key in plain)
    _, minus = run(root, "minus", pretrain_sharpness="none")  # SCDR-
    assert not torch.equal(plain["mapping.0.weight"], minus["mapping.0.weight"])
    assert torch.equal(plain["target_items"], minus["target_items"])
    _, full = run(root, "full")
    assert not torch.equal(full["target_items"], minus["target_items"])


@pytest.mark.parametrize("kind", ["sam", "asam"])
def test_weights_can_be_moved_instead_of_rows(root, kind):
    _, plain = run(root, f"unmoved-{kind}", sharpness="none")
    _, moved = run(root, f"moved-{kind}", sharpness=kind, rho=0.1)
    assert not torch.equal(plain["mapping.0.weight"], moved["mapping.0.weight"])


@pytest.mark.parametrize("biases", [True, False])
def test_gradient_in_closed_form_is_autograds(root, biases):
    experiment, _, _ = trained(root, biases=biases)
    model, batch = experiment.model.double(), experiment.batch("test")
    batch = replace(batch, rating=batch.rating.double())
    rows = (model.source_rows(batch) + 0.1).detach().requires_grad_()
    (expected,) = torch.autograd.grad((batch.rating - model.rate_from(rows, batch)).square().sum(), rows)
    assert expected.abs().max() > 0.01
    assert torch.allclose(model.rating_gradient(batch, rows.detach()), expected)
    ball = PGD(0.25, 5)
    loss = lambda moved: (batch.rating - model.rate_from(moved, batch)).square().mean()  # noqa: E731
    known = ball.worst(rows.detach(), loss, lambda moved: model.rating_gradient(batch, moved))
    assert torch.allclose(known, ball.worst(rows.detach(), loss))


def test_rho_follows_the_bias_form_unless_it_is_given(root):
    def rho(**settings):
        return dict(build(rating_config(root, NAMES, **settings)).model.phases()[0].settings)["rho"]

    assert (rho(biases=True), rho(biases=False), rho(rho=0.7)) == (0.25, 0.05, 0.7)


# -- what learns -------------------------------------------------------------------------------------------------------


def test_the_mapping_phase_moves_the_overlapping_users_rows_and_nothing_else(root):
    experiment, before, _ = trained(root)
    after, split = experiment.model.state_dict(), experiment.split
    learns = np.zeros(split.n_users, bool)
    learns[split.overlapping] = True
    moved = (after["source_users.weight"] != before["source_users.weight"]).any(1).numpy()
    assert np.array_equal(moved, learns)
    for name in before:
        if not name.startswith(("mapping.", "source_users.")):
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["mapping.2.bias"], after["mapping.2.bias"])


def test_source_users_can_be_kept(root):
    experiment, before, _ = trained(root, learn_source_users=False)
    assert torch.equal(before["source_users.weight"], experiment.model.source_users.weight)


def test_a_cold_user_is_mapped_from_the_pretrained_vector(root):
    experiment, before, _ = trained(root)
    model, batch = experiment.model, experiment.batch("test")
    rows = before["source_users.weight"][batch.user]
    product = (model.mapping(rows) * model.target_items[batch.item]).sum(1)
    expected = (
        model.target_mean + model.target_item_bias[batch.item] + model.mapped_bias[batch.user] + product
    )
    known = model.known_items[batch.item].numpy()
    assert known.any()
    assert experiment.predict("test")[known] == pytest.approx(expected.detach().numpy()[known], rel=1e-5)


def test_a_factorisation_step_touches_the_rows_of_its_batch_alone(root):
    config = rating_config(root, NAMES, "TGT", pretrain_sharpness="pgd", pretrain_batch_size=3)
    experiment = build(config)
    model = experiment.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (phase,) = model.phases()
    batch = next(iter(model.batches(np.random.default_rng(0))))
    trainer = CrossDomainTrainer(config, model, root, data="d")
    trainer._where, trainer._sharpness = "here", trainer_sharpness(trainer, phase)
    trainer.optimizer = trainer._build_optimizer(
        params=learning_parameters(phase, model), learner="sgd", learning_rate=0.01, weight_decay=0.0
    )
    trainer._rows_of = model.user_rows
    trainer._update(model.factorization_loss, batch, 0)
    touched = {"user": set(batch.user.tolist()), "item": set(batch.item.tolist())}
    found = 0
    for name, tensor in model.state_dict().items():
        if tensor.dim() != 2:
            continue
        moved = set(torch.nonzero((tensor != before[name]).any(1)).flatten().tolist())
        assert moved == touched["item" if "item" in name else "user"], name
        found += 1
    assert found == 4


def trainer_sharpness(trainer, phase):
    from recbole_cdr_ext.trainer import sharpness

    return sharpness.make(settings_of(phase, trainer.config), [], names_rows=True)


# -- biases ------------------------------------------------------------------------------------------------------------


def test_target_ratings_one_higher_shift_every_prediction_by_one(tmp_path):
    data = random_ratings(n_users=90)
    found = []
    for shift in (0.0, 1.0):
        films = [(u, i, r + shift) for u, i, r in data["films"]]
        write_ratings(tmp_path / str(shift) / "mini", {"books": data["books"], "films": films})
        experiment, _, _ = trained(tmp_path / str(shift), rating_range=[1, 6])
        found.append(experiment.predict("test"))
    assert found[1] - found[0] == pytest.approx(1.0, abs=1e-4)


def test_source_ratings_all_higher_change_nothing(tmp_path):
    data = random_ratings(n_users=90)
    found = []
    for shift in (0.0, 1.0):
        books = [(u, i, r + shift) for u, i, r in data["books"]]
        write_ratings(tmp_path / str(shift) / "mini", {"books": books, "films": data["films"]})
        experiment, _, _ = trained(tmp_path / str(shift), rating_range=[1, 6])
        found.append(experiment.predict("test"))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_without_vectors_it_is_the_biases_alone(root):
    experiment = build(rating_config(root, NAMES, embedding_size=0))
    floor = build(rating_config(root, NAMES, "BiasOnly"))
    assert experiment.model.phases() == []
    assert np.array_equal(experiment.predict("test"), floor.predict("test"))


@pytest.mark.parametrize("bias_map", ["ratings", "biases", "identity"])
def test_mapped_biases_are_the_least_squares_line(root, bias_map):
    model = build(rating_config(root, NAMES, bias_map=bias_map))
    split, experiment, model = model.split, model, model.model
    # The same stages again: they come from the cache.
    tables = run_table_stages(experiment.config, experiment.dataset, split, type(model)).tables
    source, target = tables[split.source], tables[split.target]
    rows = split.shared_ratings()
    if bias_map == "ratings":
        x = source.user_bias[rows.user].numpy()
        y = rows.rating - target.mean - target.item_bias[rows.item - split.item_offset[split.target]].numpy()
    else:
        x, y = (t.user_bias[split.overlapping].numpy() for t in (source, target))
    slope, offset = (1.0, 0.0) if bias_map == "identity" else np.polyfit(x.astype(float), y.astype(float), 1)
    assert model.mapped_bias.numpy() == pytest.approx(slope * source.user_bias.numpy() + offset, abs=1e-5)


# -- what does not train -----------------------------------------------------------------------------------------------


def test_a_diverging_setting_stops_with_what_to_mend(root):
    with pytest.raises(CDRError) as error:
        run(
            root, "diverging", biases=False, rho_pretrain=5.0, pretrain_reg_weight=0.0, pretrain_epochs=60,
            pretrain_learning_rate=0.3, pretrain_stopping_step=60,
        )  # fmt: skip
    text = str(error.value)
    for fact in (
        "not finite",
        "reduction: sum",
        "learning rate: 0.3",
        "rho: 5 (pgd, 5 steps",
        "median length of the rows",
    ):
        assert fact in text


def test_collapsed_items_are_said(root, caplog):
    with caplog.at_level(logging.WARNING):
        build(rating_config(root, NAMES, init_std=0.001, cache_dir=str(root / "collapse")))
    assert "collapsed" in caplog.text and "rho_pretrain" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build(rating_config(root, NAMES, init_std=0.1, cache_dir=str(root / "collapse")))
    assert "collapsed" not in caplog.text


# -- learners -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd", "adagrad", "rmsprop"])
def test_any_dense_learner_trains_the_mapping_and_gradients_can_be_clipped(root, learner):
    short = {"epochs": 1, "pretrain_epochs": 1, "show_progress": False}
    settings = rating_config(root, NAMES, learner=learner, clip_grad_norm={"max_norm": 0.1}, **short)
    experiment = build(settings)
    CrossDomainTrainer(experiment.config, experiment.model, root).fit(experiment.split, saved=False)
    assert np.isfinite(experiment.predict("test")).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learner": "sparse_adam"}, "learner=sparse_adam trains no mapping"),
        ({"weight_decay": 0.1}, "weight_decay=0.1 has no effect on SCDR: set pretrain_reg_weight"),
    ],
)
def test_what_a_mapping_is_not_trained_with_is_refused(root, settings, said):
    with pytest.raises(CDRError, match=said):
        rating_config(root, NAMES, **settings)
