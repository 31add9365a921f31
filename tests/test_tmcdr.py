"""TMCDR: episodes, the inner step, and the gradient through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import random_ratings, rating_config, write_ratings
from torch import nn

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.rating.tmcdr import TMCDR, Episode
from recbole_cdr_ext.model.rating_recommender import RatingBatch, Tables
from recbole_cdr_ext.runs.experiment import build, load_data
from recbole_cdr_ext.splits.split import TrainingData
from recbole_cdr_ext.trainer.sharpness import PGD
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

NAMES = ["books", "films"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tmcdr")
    write_ratings(folder / "mini", random_ratings())
    return folder


def made(root, *, size=4, **settings) -> TMCDR:
    """A model on vectors from N(0, 1), so that every part of a prediction counts."""
    config = rating_config(root, NAMES, "TMCDR", **settings)
    dataset, split = load_data(config)
    draw = torch.Generator().manual_seed(0)
    for k in (split.source, split.target):
        n = dataset.n_domain_items(k)
        vectors = (torch.randn(rows, size, generator=draw) for rows in (dataset.user_num, n))
        biases = (torch.randn(rows, generator=draw) / 3 for rows in (dataset.user_num, n))
        split = split.with_tables(k, Tables(*vectors, *biases, 3.0 + k))
    torch.manual_seed(0)
    return TMCDR(config, TrainingData.of(dataset, split))


def trained(root, **settings):
    experiment = build(rating_config(root, NAMES, "TMCDR", **settings))
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    trainer = CrossDomainTrainer(experiment.config, experiment.model, root)
    trainer.fit(experiment.split, None, experiment.validate, verbose=False, saved=False)
    return experiment, before


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.mapping.parameters()]


# -- episodes ----------------------------------------------------------------------------------------------------------


def test_no_user_is_in_both_groups_of_an_episode(root):
    model = made(root, train_batch_size=40)
    n_mixed = 0
    for seed in range(5):
        episodes = list(model.episodes(np.random.default_rng(seed)))
        assert len(episodes) == len(model.episodes(np.random.default_rng(seed)))
        for episode in episodes:
            inner, outer = (set(episode.take(m).user.tolist()) for m in (episode.adapts, ~episode.adapts))
            assert not inner & outer
            assert len(outer) - len(inner) in (0, 1)
            n_mixed += len(episode) > len(inner | outer)
        rows = [torch.cat([getattr(e, name) for e in episodes]).tolist() for name in ("user", "item")]
        every = list(zip(model._shared.user.tolist(), model._shared.item.tolist(), strict=True))
        assert sorted(zip(*rows, strict=True)) == sorted(every)
    assert n_mixed > 5  # users have several rows of a batch


def test_episodes_are_drawn_anew_each_epoch_and_follow_the_seed(root):
    model = made(root)

    def groups(seed):
        (episode,) = model.episodes(np.random.default_rng(seed))
        return frozenset(episode.take(episode.adapts).user.tolist())

    assert groups(1) == groups(1) and len({groups(seed) for seed in range(6)}) == 6


def test_one_user_makes_no_episode(root):
    """Neither the learner nor pgd gets anything to follow."""
    model = made(root)
    own = model._shared.take(model._shared.user == model._shared.user[0])
    episode = Episode(own.user, own.item, own.rating, 1, torch.zeros(len(own), dtype=torch.bool))
    rows = model.source_rows(episode).requires_grad_()
    loss = model.episode_loss(episode, rows)
    loss.backward()
    assert loss.item() == 0 and not rows.grad.any()
    assert all(not p.grad.any() for p in model.mapping.parameters())


# -- the two steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [True, False])
def test_without_an_inner_step_it_is_the_plain_mapping_on_the_second_group(root, biases):
    settings = {"train_batch_size": 40, "biases": biases}
    meta, plain = made(root, inner_learning_rate=0.0, **settings), made(root, **settings)
    steps = [torch.optim.SGD(model.mapping.parameters(), lr=0.1) for model in (meta, plain)]
    for episode in meta.episodes(np.random.default_rng(0)):
        losses = meta.episode_loss(episode), plain.calculate_loss(episode.take(~episode.adapts))
        assert torch.equal(*losses)
        for step, loss in zip(steps, losses, strict=True):
            step.zero_grad()
            loss.backward()
            step.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(meta), weights(plain), strict=True))
    assert not torch.equal(weights(meta)[0], weights(made(root, **settings))[0])


def by_hand(w, a, c, rate, *, second: bool):
    """θ' and the outer gradient for f(u) = W u and one rating r of ⟨W u, v⟩ per group; a, c are (u, v, r).

    ∇ℓ(W) = -2 (r - vᵀ W u) v uᵀ, and the Hessian of ℓ(·; A) takes X to 2 (vᵀ X u) v uᵀ.
    """

    def slope(weight, u, v, r):
        return -2 * (r - v @ weight @ u) * torch.outer(v, u)

    adapted = w - rate * slope(w, *a)
    outer = slope(adapted, *c)
    if second:
        u, v, _ = a
        outer = outer - rate * 2 * (v @ outer @ u) * torch.outer(v, u)
    return adapted, outer


def test_the_gradient_goes_through_the_inner_step(root):
    found = {}
    for first_order in (False, True):
        model = made(root, size=2, biases=False, inner_learning_rate=0.3, first_order=first_order).double()
        model.mapping = nn.Linear(2, 2, bias=False).double()
        w = torch.tensor([[0.5, -1.0], [0.25, 2.0]], dtype=torch.double)
        with torch.no_grad():
            model.mapping.weight.copy_(w)
        users, items, ratings = torch.tensor([3, 4]), torch.tensor([1, 2]), torch.tensor([4.0, 2.0]).double()
        a, c = (
            (model.source_users.weight[users[i]], model.target_items[items[i]], ratings[i]) for i in (0, 1)
        )
        episode = Episode(users, items, ratings, 1, torch.tensor([True, False]))
        adapted = model.adapted(model.source_rows(episode)[:1], episode.take(episode.adapts))
        loss = model.episode_loss(episode)
        loss.backward()
        wanted, gradient = by_hand(w, a, c, 0.3, second=not first_order)
        torch.testing.assert_close(adapted["weight"], wanted)
        assert float(loss.detach()) == pytest.approx(float((ratings[1] - c[1] @ wanted @ c[0]) ** 2))
        torch.testing.assert_close(model.mapping.weight.grad, gradient)
        found[first_order] = gradient
    assert (found[True] - found[False]).abs().max() > 0.1


def test_the_gradient_of_the_mlp_against_finite_differences(root):
    model = made(root, inner_learning_rate=0.1, mapping_hidden_size=3).double()
    (episode,) = model.episodes(np.random.default_rng(0))
    model.episode_loss(episode).backward()
    weight = model.mapping[0].weight
    for place in ((0, 0), (1, 2), (2, 3)):
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += step
            sides.append(float(model.episode_loss(episode).detach()))
            with torch.no_grad():
                weight[place] -= step
        assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(float(weight.grad[place]), rel=1e-5)


def test_cold_users_are_mapped_by_the_weights_and_not_by_the_last_inner_step(root):
    model = made(root, inner_learning_rate=0.5)
    (episode,) = model.episodes(np.random.default_rng(0))
    before = weights(model)
    cold = RatingBatch(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]), torch.zeros(3), 1)
    with torch.no_grad():
        rated = model.predict(cold)
        hidden = torch.tanh(model.source_users.weight[cold.user] @ before[0].T + before[1])
        mapped = hidden @ before[2].T + before[3]
        own = model.base_rating(cold) + (mapped * model.target_items[cold.item]).sum(1)
    torch.testing.assert_close(rated, own)
    model.episode_loss(episode).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    with torch.no_grad():
        assert torch.equal(model.predict(cold), rated)
    adapted = model.adapted(model.source_rows(episode), episode)
    assert (adapted["0.weight"] - before[0]).abs().max() > 1e-3


@pytest.mark.parametrize("first_order", [False, True])
def test_the_worst_vectors_can_be_looked_at(root, first_order):
    """The groups are the batch's own, so its loss is the same however often it is asked for."""
    model = made(root, first_order=first_order)
    (episode,) = model.episodes(np.random.default_rng(0))
    rows = model.source_rows(episode)
    losses = [model.episode_loss(episode).detach() for _ in range(2)]
    assert torch.equal(*losses)
    delta = PGD(0.1, 3).worst(rows, lambda moved: model.episode_loss(episode, moved))
    assert model.episode_loss(episode, rows + delta) > losses[0]
    # The rows of U_a reach the loss through the inner step alone.
    assert bool(delta[episode.adapts].any()) != first_order and delta[~episode.adapts].any()


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [True, False])
def test_only_the_mapping_learns(root, biases):
    experiment, before = trained(root, biases=biases, eval_step=0)
    after = experiment.model.state_dict()
    for name in before:
        assert torch.equal(after[name], before[name]) != name.startswith("mapping."), name


def test_a_mapping_is_learned_that_serves_cold_users(tmp_path):
    """Ratings are ⟨A u^s, v^t⟩: cold users' errors must be small against the spread of their ratings."""
    rng = np.random.default_rng(0)
    n_users, n_items, size = 80, 20, 3
    vectors, items, a = (rng.normal(0, s, (n, size)) for n, s in ((n_users, 0.7), (n_items, 1), (size, 0.5)))
    given = vectors @ a.T @ items.T
    rows = {
        "books": [(f"u{u:02d}", "b0", 1.0) for u in range(n_users)],
        "films": [
            (f"u{u:02d}", f"f{i:02d}", float(given[u, i])) for u in range(n_users) for i in range(n_items)
        ],
    }
    write_ratings(tmp_path / "mini", rows)
    settings = {"biases": False, "rating_range": [-99, 99], "learning_rate": 0.1, "epochs": 20}
    config = rating_config(tmp_path, NAMES, "TMCDR", train_batch_size=64, **settings)
    dataset, split = load_data(config)
    padded = torch.cat([torch.zeros(1, size), torch.from_numpy(vectors).float()])
    none = torch.zeros(n_users + 1)
    split = split.with_tables(0, Tables(padded, torch.zeros(1, size), none, torch.zeros(1), 0.0))
    split = split.with_tables(
        1, Tables(padded, torch.from_numpy(items).float(), none, torch.zeros(n_items), 0.0)
    )
    torch.manual_seed(0)
    model = TMCDR(config, TrainingData.of(dataset, split))
    CrossDomainTrainer(config, model, tmp_path).fit(split, verbose=False, saved=False)
    item = torch.from_numpy(split.test.item - split.item_offset[1])
    batch = RatingBatch(torch.from_numpy(split.test.user), item, torch.from_numpy(split.test.rating), 1)
    with torch.no_grad():
        assert (model.predict(batch) - batch.rating).square().mean() < 0.05 * batch.rating.var()


@pytest.mark.parametrize(("domain", "shift"), [("films", 1.0), ("books", 0.0)])
def test_a_constant_on_all_ratings_of_a_domain_moves_its_mean_alone(tmp_path, domain, shift):
    data, found = random_ratings(), []
    for extra in (0.0, 1.0):
        moved = {n: [(u, i, r + extra * (n == domain)) for u, i, r in rows] for n, rows in data.items()}
        write_ratings(tmp_path / "mini", moved)
        found.append(trained(tmp_path, rating_range=[1, 6])[0].predict("test"))
    assert found[1] - found[0] == pytest.approx(shift, abs=1e-5)


def test_settings_are_checked_and_the_papers_form_can_be_run(root):
    with pytest.raises(CDRError, match="inner_learning_rate=-1"):
        rating_config(root, NAMES, "TMCDR", inner_learning_rate=-1.0)
    paper = trained(root, config_files="TMCDR_paper")[0]
    assert paper.config["learner"] == "adam" and not paper.model.has_biases
    assert np.isfinite(paper.predict("test")).all()
