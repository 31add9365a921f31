"""CMF: one user table, two item tables, and what each domain's ratings do to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import random_ratings, rating_config, write_ratings

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.rating.cmf import JointRatings
from recbole_cdr_ext.model.rating_recommender import RatingBatch, whole_batch
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

NAMES = ["books", "films"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cmf")
    write_ratings(folder / "mini", random_ratings())
    return folder


def cmf(root, model="CMF", **settings):
    return build(rating_config(root, NAMES, model, **settings))


def trained(root, **settings):
    experiment = cmf(root, **settings)
    trainer = CrossDomainTrainer(experiment.config, experiment.model, root)
    trainer.fit(experiment.split, None, experiment.validate, verbose=False, saved=False)
    return experiment


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [True, False])
def test_no_weight_on_the_source_with_the_batches_of_tgt_is_tgt(root, biases):
    """The factor 2 of the weights is taken back by half the step, both exact in binary."""
    alone = cmf(root, "TGT", biases=biases, pretrain_valid_ratio=0.0).model
    joint = cmf(root, biases=biases, source_weight=0.0).model
    n = joint.n_source_items
    with torch.no_grad():
        joint.user_vectors.weight.copy_(alone.user_vectors.weight)
        joint.item_table.weight[n:] = alone.item_table.weight
    start = joint.item_table.weight.detach().clone()
    steps = [
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
        for model, lr in ((alone, 0.01), (joint, 0.005))
    ]
    for seed in range(3):
        for batch in alone.batches(np.random.default_rng(seed)):
            both = JointRatings(batch.user, batch.item + n, batch.rating, batch.target_domain)
            for step, loss in zip(
                steps, (alone.factorization_loss(batch), joint.calculate_loss(both)), strict=True
            ):
                step.zero_grad()
                sum(loss).backward()
                step.step()
    assert torch.equal(joint.user_vectors.weight, alone.user_vectors.weight)
    assert torch.equal(joint.item_table.weight[n:], alone.item_table.weight)
    assert torch.equal(joint.item_bias.weight[n:], alone.item_bias.weight)
    assert torch.equal(joint.user_bias.weight, alone.user_bias.weight)
    assert not torch.equal(alone.item_table.weight, start[n:]) and torch.equal(
        joint.item_table.weight[:n], start[:n]
    )


def test_rows_of_the_source_count_nothing_without_weight(root):
    model = cmf(root, source_weight=0.0).model
    batch = model._train
    target = batch.item >= model.n_source_items
    gradients = []
    for rows in (batch, batch.take(target)):
        model.zero_grad()
        sum(model.calculate_loss(rows)).backward()
        gradients.append([p.grad.to_dense() for p in model.parameters()])
    for whole, part in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, part)


def test_loss_and_gradient_by_hand(root):
    """One rating 4 of each domain by one user, w = 3/4, λ = 1/2: weights 2 · 3/4 and 2 · 1/4."""
    model = cmf(root, embedding_size=2, source_weight=0.75, pretrain_reg_weight=0.5).model
    place = model.n_source_items + 5
    with torch.no_grad():
        model.means.copy_(torch.tensor([3.0, 2.0]))
        model.user_vectors.weight[7] = torch.tensor([1.0, 2.0])
        model.user_bias.weight[7] = 0.25
        model.item_table.weight[3], model.item_bias.weight[3] = torch.tensor([0.5, 0.0]), -0.25
        model.item_table.weight[place], model.item_bias.weight[place] = torch.tensor([0.0, 0.5]), 0.5
    loss = model.calculate_loss(
        JointRatings(torch.tensor([7, 7]), torch.tensor([3, place]), torch.tensor([4.0, 4.0]), 1)
    )
    # e_s = 4 - (3 + 1/4 - 1/4 + 1/2) = 1/2, e_t = 4 - (2 + 1/4 + 1/2 + 1) = 1/4
    assert float(loss.error.detach()) == pytest.approx(1.5 * 1 / 4 + 0.5 * 1 / 16)
    # ‖u‖² = 5, ‖v‖² = 1/4 each, b_u² = 1/16, b_i² = 1/16 and 1/4
    source, target = 5 + 1 / 4 + 1 / 16 + 1 / 16, 5 + 1 / 4 + 1 / 16 + 1 / 4
    assert float(loss.penalty.detach()) == pytest.approx(0.5 * (1.5 * source + 0.5 * target))
    sum(loss).backward()
    # Σ weight (-2 e v + 2 λ u)
    by_hand = torch.tensor(
        [1.5 * (-2 * 1 / 2 * 0.5 + 1.0) + 0.5 * 1.0, 1.5 * 2.0 + 0.5 * (-2 * 1 / 4 * 0.5 + 2.0)]
    )
    torch.testing.assert_close(model.user_vectors.weight.grad.to_dense()[7], by_hand)
    bias = 1.5 * (-2 * 1 / 2 + 0.25) + 0.5 * (-2 * 1 / 4 + 0.25)
    assert float(model.user_bias.weight.grad.to_dense()[7]) == pytest.approx(bias)


def test_a_step_leaves_the_rows_of_others_alone(root):
    model = cmf(root).model
    batch = next(iter(model.batches(np.random.default_rng(0)))).take(slice(0, 4))
    before = [p.detach().clone() for p in model.parameters()]
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    sum(model.calculate_loss(batch)).backward()
    assert all(p.grad.is_sparse for p in model.parameters())
    step.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        changed = set((parameter != old).any(1).nonzero().flatten().tolist())
        ids = batch.user if len(parameter) == model.n_users else batch.item
        assert changed == set(ids.tolist())


def test_batches_hold_every_rating_of_both_domains_once(root):
    experiment = cmf(root, train_batch_size=32)
    split, model = experiment.split, experiment.model
    batches = list(model.batches(np.random.default_rng(0)))
    mixed = [0 < (b.item < model.n_source_items).float().mean() < 1 for b in batches[:-1]]
    assert all(mixed)
    parts = (torch.cat([getattr(b, name) for b in batches]).tolist() for name in ("user", "item", "rating"))
    seen = sorted(zip(*parts, strict=True))
    shift = {split.source: 0, split.target: model.n_source_items}
    wanted = sorted(
        (int(u), int(i) - int(split.item_offset[k]) + shift[k], float(r))
        for k in shift
        for u, i, r in zip(split.train[k].user, split.train[k].item, split.train[k].rating, strict=True)
    )
    assert seen == wanted


# -- who learns from what ----------------------------------------------------------------------------------------------


def test_a_cold_user_is_learned_from_the_source_alone(root):
    fresh, experiment = cmf(root), trained(root)
    split, model = experiment.split, experiment.model
    cold = torch.from_numpy(np.unique(split.test.user))
    assert not np.isin(cold.numpy(), split.train[split.target].user).any()
    target = model._train.take(model._train.item >= model.n_source_items)
    model.zero_grad()
    sum(model.calculate_loss(target)).backward()
    assert not model.user_vectors.weight.grad.to_dense()[cold].any()
    moved = model.user_vectors.weight != fresh.model.user_vectors.weight
    assert moved[cold].all() and (model.user_bias.weight[cold] != 0).all()
    # The padding user has no rating anywhere.
    assert not moved[0].any()


N_USERS, N_ITEMS = 80, {"books": 90, "films": 30}


def toy(folder, *, shuffled: bool):
    """Both domains' ratings are 3 + b_u + ⟨u, v⟩ and noise, of the same users or of users who swapped u and b_u.

    Returns:
        All ratings of films, (N_USERS, N_ITEMS), and which of them are in the file; what is not was seen by no model.
    """
    rng = np.random.default_rng(0)
    vectors, bias = rng.normal(0, 0.6, (N_USERS, 2)), rng.normal(0, 0.5, (N_USERS, 1))
    ratings, known, rows = {}, {}, {}
    for name, share in (("books", 0.8), ("films", 0.5)):
        who = rng.permutation(N_USERS) if shuffled and name == "films" else np.arange(N_USERS)
        shape = (N_USERS, N_ITEMS[name])
        ratings[name] = (
            3 + bias[who] + vectors[who] @ rng.normal(0, 0.6, (2, shape[1])) + rng.normal(0, 0.2, shape)
        )
        known[name] = rng.random(shape) < share
        places = zip(*known[name].nonzero(), strict=True)
        rows[name] = [(f"u{u:02d}", f"{name[0]}{i:02d}", float(ratings[name][u, i])) for u, i in places]
    write_ratings(folder / "mini", rows)
    return ratings["films"], known["films"]


@pytest.mark.parametrize("shuffled", [False, True])
def test_users_who_are_the_same_in_both_domains_transfer(tmp_path, shuffled):
    ratings, known = toy(tmp_path, shuffled=shuffled)
    settings = {"rating_range": [-9, 15], "beta": 0.5, "embedding_size": 2}
    joint = trained(tmp_path, epochs=30, learning_rate=0.02, **settings)
    # Tokens are sorted, so user u has the id u + 1 and item i the place i.
    assert joint.dataset.user_num == N_USERS + 1 and joint.dataset.n_domain_items(1) == N_ITEMS["films"]

    def rmse(experiment, users) -> float:
        user, item = (~known).nonzero()
        asked = np.isin(user + 1, users)
        user, item = user[asked], item[asked]
        batch = RatingBatch(torch.from_numpy(user + 1), torch.from_numpy(item), torch.zeros(len(user)), 1)
        with torch.no_grad():
            error = experiment.model.predict(batch).numpy() - ratings[user, item]
        return float(np.sqrt(np.mean(error**2)))

    cold, warm = rmse(joint, joint.split.test.user), rmse(joint, joint.split.overlapping)
    tgt = rmse(trained(tmp_path, model="TGT", pretrain_epochs=10, **settings), joint.split.test.user)
    if shuffled:
        assert cold > tgt
    else:
        assert cold < 1.1 * warm and cold < 0.4 * tgt


# -- predictions -------------------------------------------------------------------------------------------------------


def test_predictions_are_the_shared_user_with_the_targets_items(root):
    experiment = trained(root)
    model, batch = experiment.model, experiment.batch("test")
    known = model.known_items[batch.item]
    assert known.sum() > 20
    place = batch.item + model.n_source_items
    with torch.no_grad():
        own = model.means[1] + model.user_bias.weight[batch.user, 0] + model.item_bias.weight[place, 0]
        own += (model.user_vectors.weight[batch.user] * model.item_table.weight[place]).sum(1)
        torch.testing.assert_close(model.predict(batch)[known], own[known])
        unknown = model.known_items.clone()
        model.known_items[:] = False
        fallback = model.target_mean + model.user_bias.weight[batch.user, 0]
        torch.testing.assert_close(model.predict(batch), fallback)
        model.known_items.copy_(unknown)
    train = experiment.split.train
    assert model.means.tolist() == pytest.approx([train[k].rating.mean() for k in (0, 1)])
    assert trained(root, biases=False).model.means.tolist() == [0, 0]


def test_without_vectors_the_biases_alone_learn(root):
    experiment = trained(root, embedding_size=0)
    model, batch = experiment.model, experiment.batch("test")
    assert (model.user_bias.weight[batch.user] != 0).all()
    rows = torch.zeros(len(batch), 0)
    with torch.no_grad():
        torch.testing.assert_close(model.rate(batch), model.rate_from(rows, batch))
        place = batch.item + model.n_source_items
        sums = model.means[1] + (model.user_bias.weight[batch.user] + model.item_bias.weight[place]).sum(1)
        torch.testing.assert_close(model.rate(batch), sums)


@pytest.mark.parametrize(("domain", "shift"), [("films", 1.0), ("books", 0.0)])
def test_a_constant_on_all_ratings_of_a_domain_moves_its_mean_alone(tmp_path, domain, shift):
    data = random_ratings()
    found = []
    for extra in (0.0, 1.0):
        moved = {n: [(u, i, r + extra * (n == domain)) for u, i, r in rows] for n, rows in data.items()}
        write_ratings(tmp_path / "mini", moved)
        experiment = trained(tmp_path, rating_range=[1, 6])
        found.append(experiment.predict("test"))
    assert found[1] - found[0] == pytest.approx(shift, abs=1e-5)


def test_what_test_users_gave_does_not_enter(tmp_path):
    data = random_ratings()
    write_ratings(tmp_path / "mini", data)
    first = trained(tmp_path, rating_range=[0, 1e6])
    held_out = set(first.dataset.id2token("user_id", np.unique(first.split.test.user)))
    data["films"] = [(u, i, 1e6 if u in held_out else r) for u, i, r in data["films"]]
    write_ratings(tmp_path / "mini", data)
    second = trained(tmp_path, rating_range=[0, 1e6])
    assert second.split.test.rating.min() == 1e6
    assert np.array_equal(first.predict("test"), second.predict("test"))


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_worst_user_vectors_can_be_looked_at(root):
    plain, sharp, zero = (
        trained(root, **s).model.user_vectors.weight
        for s in ({}, {"sharpness": "pgd", "rho": 0.1}, {"sharpness": "pgd", "rho": 0.0})
    )
    assert torch.equal(plain, zero) and not torch.equal(plain, sharp)


def test_learners_that_need_dense_gradients_get_them(root):
    before = cmf(root).model.user_vectors.weight.detach().clone()
    after = trained(root, learner="adam", reduction="mean").model.user_vectors.weight
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"source_weight": 1.5}, "source_weight=1.5"),
        ({"weight_decay": 0.1}, "pretrain_reg_weight"),
        ({"backbone": "LightGCN"}, "backbone=LightGCN"),
    ],
)
def test_settings_that_make_no_sense_are_refused(root, settings, says):
    with pytest.raises(CDRError, match=says):
        rating_config(root, NAMES, "CMF", **settings)


def test_the_papers_form_can_be_run(root):
    experiment = trained(root, config_files="CMF_paper")
    assert not experiment.model.has_biases and experiment.config["source_weight"] == 0.5
    whole = whole_batch(experiment.split.test, int(experiment.split.item_offset[1]), 1)
    assert torch.isfinite(experiment.model.predict(whole)).all()
