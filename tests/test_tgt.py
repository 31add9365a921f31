"""TGT: a step against its closed form, and what a user without ratings gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import Rows, random_ratings, rating_config, write_ratings

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.rating_recommender import RatingBatch, Tables
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

NAMES = ["books", "films"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tgt")
    write_ratings(folder / "mini", random_ratings())
    return folder


def tgt(root, **settings):
    """An untrained TGT on its split, without biases unless they are asked for."""
    return build(rating_config(root, NAMES, "TGT", **{"biases": False, **settings}))


def fit(experiment) -> None:
    CrossDomainTrainer(experiment.config, experiment.model, "nowhere").fit(
        experiment.split, None, verbose=False, saved=False
    )


def tables(experiment) -> Tables:
    """What has been learned."""
    model = experiment.model
    return model.augment(experiment.split).tables[model.domain]


def step(experiment, batch: RatingBatch, lr: float, shift=None) -> None:
    """One step of SGD on a batch, with the users' vectors moved if there is a shift."""
    model = experiment.model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)
    rows = None if shift is None else model.user_rows(batch) + shift
    sum(model.factorization_loss(batch, rows)).backward()
    optimizer.step()
    optimizer.zero_grad()


# -- one step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_step_on_one_rating_is_the_closed_form(root, biases, weight):
    """u += 2 lr (e v - λ u), v += 2 lr (e u - λ v), at the old u; a bias b += 2 lr (e - λ b)."""
    experiment = tgt(root, biases=biases, pretrain_reg_weight=weight, init_std=1.0)
    lr, user, item = 0.05, int(experiment.split.overlapping[0]), 3
    batch = RatingBatch(torch.tensor([user]), torch.tensor([item]), torch.tensor([4.0]), 1)
    step(experiment, batch, lr)  # biases start at zero: a first step makes them something
    old = tables(experiment)
    step(experiment, batch, lr)
    new = tables(experiment)
    u, v, b_u, b_i = old.user[user], old.item[item], old.user_bias[user], old.item_bias[item]
    e = 4.0 - (old.mean + b_u + b_i + u @ v)
    torch.testing.assert_close(new.user[user], u + 2 * lr * (e * v - weight * u))
    torch.testing.assert_close(new.item[item], v + 2 * lr * (e * u - weight * v))
    assert bool(b_u) == biases and (old.mean > 3) == biases
    if biases:
        torch.testing.assert_close(new.user_bias[user], b_u + 2 * lr * (e - weight * b_u))
        torch.testing.assert_close(new.item_bias[item], b_i + 2 * lr * (e - weight * b_i))
    # Rows that the batch does not touch stay as they are.
    for before, after, row in ((old.user, new.user, user), (old.item, new.item, item)):
        assert (before != after).any(1).nonzero().flatten().tolist() == [row]


def test_a_step_at_moved_vectors_moves_user_and_item_from_there(root):
    """SMF: with e' = r - ⟨u + δ, v⟩, u += 2 lr (e' v - λ u) and v += 2 lr (e' (u + δ) - λ v)."""
    experiment = tgt(root, pretrain_reg_weight=0.3, init_std=1.0, embedding_size=2)
    lr, user, item, shift = 0.05, int(experiment.split.overlapping[0]), 3, torch.tensor([[0.5, -1.0]])
    batch = RatingBatch(torch.tensor([user]), torch.tensor([item]), torch.tensor([4.0]), 1)
    old = tables(experiment)
    step(experiment, batch, lr, shift)
    new = tables(experiment)
    u, v, moved = old.user[user], old.item[item], old.user[user] + shift[0]
    e = 4.0 - moved @ v
    torch.testing.assert_close(new.user[user], u + 2 * lr * (e * v - 0.3 * u))
    torch.testing.assert_close(new.item[item], v + 2 * lr * (e * moved - 0.3 * v))


def test_loss_and_penalty_by_hand(root):
    for reduction, n in (("sum", 1), ("mean", 2)):
        experiment = tgt(root, pretrain_reg_weight=0.5, init_std=1.0, pretrain_reduction=reduction)
        one, other = experiment.split.overlapping[:2].tolist()
        batch = RatingBatch(torch.tensor([one, other]), torch.tensor([3, 4]), torch.tensor([4.0, 1.0]), 1)
        learned = tables(experiment)
        u, v = learned.user[[one, other]], learned.item[[3, 4]]
        loss = experiment.model.factorization_loss(batch)
        errors = torch.tensor([4.0, 1.0]) - (u * v).sum(1)
        assert loss.error.item() == pytest.approx(float(errors.square().sum()) / n, rel=1e-5)
        assert loss.penalty.item() == pytest.approx(
            0.5 * float(u.square().sum() + v.square().sum()) / n, rel=1e-5
        )


# -- training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [False, True])
def test_held_out_users_keep_the_vectors_they_started_with(root, biases):
    experiment = tgt(root, biases=biases)
    before = tables(experiment)
    fit(experiment)
    after, split = tables(experiment), experiment.split
    held_out = np.unique(np.concatenate([split.test.user, split.valid.user]))
    assert torch.equal(before.user[held_out], after.user[held_out])
    assert not after.user_bias[held_out].any()
    assert (before.user[split.overlapping] != after.user[split.overlapping]).any(1).all()
    assert biases == bool(after.user_bias[split.overlapping].any())


def test_the_sum_at_a_step_size_is_the_mean_at_as_many_times_that(root):
    found = []
    n = len(tgt(root).split.train[1])
    for reduction, lr in (("sum", 0.01), ("mean", 0.01 * n), ("mean", 0.01)):
        experiment = tgt(
            root,
            pretrain_reduction=reduction,
            pretrain_learning_rate=lr,
            pretrain_batch_size=n,
            pretrain_valid_ratio=0.0,
            pretrain_epochs=5,
        )
        start = tables(experiment)
        fit(experiment)
        found.append(tables(experiment))
    for name in ("user", "item"):
        by_sum, by_mean, small = (getattr(learned, name) for learned in found)
        torch.testing.assert_close(by_sum, by_mean, rtol=1e-4, atol=1e-5)
        assert (by_sum - getattr(start, name)).norm() > 20 * (small - getattr(start, name)).norm()


def test_ratings_of_rank_two_are_learned_exactly_and_a_mean_does_not_train(tmp_path):
    rng = np.random.default_rng(0)
    users, rows = rng.uniform(0.8, 1.8, (60, 2)), dict[str, Rows]()
    for name in NAMES:
        items = rng.uniform(0.8, 1.8, (40, 2))
        rows[name] = [
            (f"u{u:02d}", f"{name[0]}{i}", float(users[u] @ items[i])) for u in range(60) for i in range(40)
        ]
    write_ratings(tmp_path / "mini", rows)
    errors = {}
    for reduction, epochs in (("sum", 60), ("mean", 20)):
        experiment = tgt(
            tmp_path,
            factorized="source",
            embedding_size=4,
            pretrain_reduction=reduction,
            pretrain_epochs=epochs,
            pretrain_valid_ratio=0.0,
            pretrain_reg_weight=0.0,
            rating_range=[0, 10],
        )
        fit(experiment)
        learned, split = tables(experiment), experiment.split
        ratings = split.train[split.source]
        assert len(ratings) == 60 * 40
        item = ratings.item - int(split.item_offset[split.source])
        product = (learned.user[ratings.user] * learned.item[item]).sum(1).numpy()
        errors[reduction] = float(np.sqrt(np.square(product - ratings.rating).mean()))
    assert errors["sum"] < 0.05
    assert errors["mean"] > 2


def test_early_stopping_looks_at_the_domains_own_ratings(root):
    """No validation user can: the phase has a measure of its own, and without held-out ratings none."""
    (phase,) = tgt(root).model.phases()
    assert phase.validated and phase.validate.__name__ == "validation_error" and phase.name == "pretrain"
    (phase,) = tgt(root, pretrain_valid_ratio=0.0).model.phases()
    assert not phase.validated


# -- users without ratings -----------------------------------------------------------------------------------


def test_an_untrained_vector_predicts_next_to_nothing(root):
    """The TGT of the papers' tables: its error is about the mean rating."""
    experiment = tgt(root, pretrain_epochs=20)
    fit(experiment)
    predicted, rating = experiment.predict("test"), experiment.split.test.rating
    assert np.abs(predicted).mean() < 0.6
    mae = experiment.table("test")["films"]["cold"]["mae"]
    assert mae == pytest.approx(rating.mean(), rel=0.1)
    learned, split = tables(experiment), experiment.split
    item = split.test.item - int(split.item_offset[split.target])
    product = (learned.user[split.test.user] * learned.item[item]).sum(1).numpy()
    assert predicted == pytest.approx(product, abs=1e-5)


def test_the_mean_of_the_trained_users_can_stand_in(root):
    experiment = tgt(root, pretrain_epochs=20, cold_user="mean")
    fit(experiment)
    learned, split = tables(experiment), experiment.split
    mean = learned.user[np.unique(split.train[split.target].user)].mean(0)
    item = split.test.item - int(split.item_offset[split.target])
    assert experiment.predict("test") == pytest.approx((learned.item[item] @ mean).numpy(), abs=1e-5)
    assert experiment.table("test")["films"]["cold"]["mae"] < 1.5


def test_with_biases_it_is_an_item_mean(root):
    experiment = tgt(root, biases=True, pretrain_epochs=20)
    fit(experiment)
    learned, split = tables(experiment), experiment.split
    item = split.test.item - int(split.item_offset[split.target])
    predicted = experiment.predict("test")
    assert predicted == pytest.approx((learned.mean + learned.item_bias[item]).numpy(), abs=1e-5)
    floors = [
        experiment.table("test", experiment.floor(name))["films"]["cold"]["mae"]
        for name in ("GlobalMean", "ItemMean")
    ]
    mae = experiment.table("test", predicted)["films"]["cold"]["mae"]
    assert mae < floors[0] and mae == pytest.approx(floors[1], rel=0.05)


def test_the_papers_form_has_no_penalty(root):
    experiment = build(rating_config(root, NAMES, "TGT", config_files="TGT_paper"))
    batch = next(iter(experiment.model.batches(np.random.default_rng(0))))
    loss = experiment.model.factorization_loss(batch)
    assert loss.penalty == 0 and loss.error > 0
    assert not experiment.model.has_biases


def test_ratings_of_the_source_are_for_stages_alone(root):
    experiment = tgt(root, factorized="source")
    with pytest.raises(CDRError, match="factorized=source is for stages of other models"):
        experiment.check()
