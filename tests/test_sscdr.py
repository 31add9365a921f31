"""SSCDR: what it adds to EMCDR, and that it is EMCDR without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import random_ratings, rating_config, write_ratings
from test_emcdr import NAMES, bridge_on, fit, normal_tables, same, weights

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.rating.sscdr import SourcePairs, liked, neighbourhood
from recbole_cdr_ext.model.rating_recommender import Tables
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.splits.split import Ratings


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sscdr")
    write_ratings(folder / "mini", random_ratings())
    return folder


def one_batch(model, seed: int = 0):
    """All overlapping users with a drawn pair, as one batch."""
    model._batch_size = 10**6
    (batch,) = model.user_batches(np.random.default_rng(seed))
    return batch


# -- without what it adds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("mapping", ["mlp", "linear"])
def test_without_weight_and_hops_it_is_emcdr_bit_for_bit(root, biases, mapping):
    found = {}
    for name, settings in (
        ("EMCDR", {}),
        ("SSCDR", {"unsupervised_weight": 0.0}),
        ("weighted", {"unsupervised_weight": 0.25}),
    ):
        model_name = "SSCDR" if name == "weighted" else name
        config = rating_config(
            root, NAMES, model_name, biases=biases, mapping=mapping, epochs=4, train_batch_size=8, **settings
        )
        experiment = build(config)
        trainer = fit(experiment.model, experiment.split, experiment.validate)
        scores = [entry["valid_score"] for entry in trainer.history]
        found[name] = weights(experiment.model), scores, experiment.predict("test")
    assert same(found["EMCDR"][0], found["SSCDR"][0])
    assert found["EMCDR"][1] == found["SSCDR"][1]
    assert np.array_equal(found["EMCDR"][2], found["SSCDR"][2])
    assert not np.array_equal(found["EMCDR"][2], found["weighted"][2])


def test_drawing_pairs_leaves_the_order_of_users_alone(root):
    emcdr, _ = bridge_on(root, "EMCDR", train_batch_size=8)
    sscdr, _ = bridge_on(root, "SSCDR", train_batch_size=8)
    batches = [list(model.user_batches(np.random.default_rng(3))) for model in (emcdr, sscdr)]
    assert [b.user.tolist() for b in batches[0]] == [b.user.tolist() for b in batches[1]]


# -- the losses ----------------------------------------------------------------------------------------------


def test_hinge_by_hand(root):
    """f the identity, u^t at 0, m 1: squared distances 1 and 5 give 0 and no gradient, 1 and 1 give 1."""

    def tables(split):
        source, target = normal_tables(split, split.source, 2), normal_tables(split, split.target, 2)
        source.item[0] = torch.tensor([1.0, 0.0])
        source.item[1] = torch.tensor([1.0, 2.0])
        source.item[2] = torch.tensor([0.0, -1.0])
        return {split.source: source, split.target: replace(target, user=0 * target.user)}

    model, _ = bridge_on(root, "SSCDR", 2, tables=tables, mapping="linear")
    with torch.no_grad():
        model.mapping.weight.copy_(torch.eye(2))
    batch = one_batch(model).take(slice(0, 3))

    def hinge(positive, negative, paired=(True, True, True)):
        pairs = {"positive": positive, "negative": negative, "paired": paired}
        return model.distance_hinge(replace(batch, **{k: torch.tensor(v) for k, v in pairs.items()}))

    far = hinge([0, 0, 0], [1, 1, 1])
    assert far.tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad(far.sum(), model.mapping.weight)
    assert not gradient.any()
    assert hinge([0, 0, 1], [2, 1, 0]).tolist() == [1, 0, 1 + 5 - 1]
    # Who has no pair adds nothing; and the mean is over all users, as for L_S.
    unpaired = replace(
        batch,
        positive=torch.tensor([0, 0, 1]),
        negative=torch.tensor([2, 1, 0]),
        paired=torch.tensor([True, True, False]),
    )
    loss = model.semi_supervised_loss(unpaired)
    assert loss.unsupervised.item() == pytest.approx(0.25 * (1 + 0 + 0) / 3)
    assert loss.supervised.item() == pytest.approx(model.embedding_loss(unpaired).item())
    assert loss.supervised.item() == pytest.approx(model.source_rows(batch).square().mean().item())


def test_source_items_teach_the_mapping(root):
    """L_U's gradient is that of source items: u^s has none, and none of their tokens is in the target."""
    model, split = bridge_on(root, "SSCDR")
    batch = one_batch(model)
    parameters = list(model.mapping.parameters())

    def gradient():
        loss = model.semi_supervised_loss(batch)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss.unsupervised, parameters)])

    before = gradient()
    assert before.norm() > 1e-3
    shared = np.intersect1d(
        split.token_key[split.train[split.source].item], split.token_key[split.shared_ratings().item]
    )
    assert not len(shared)
    with torch.no_grad():
        model.source_users.weight.zero_()
    assert torch.equal(gradient(), before)
    with torch.no_grad():
        model.source_items[batch.positive[batch.paired]] += 1
    assert not torch.allclose(gradient(), before)


def test_moved_vectors_move_the_supervised_loss_alone(root):
    model, _ = bridge_on(root, "SSCDR")
    batch = one_batch(model)
    here, there = (model.semi_supervised_loss(batch, model.source_rows(batch) + shift) for shift in (0, 1))
    assert here.supervised != there.supervised and here.unsupervised == there.unsupervised


# -- the pairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [False, True])
def test_pairs_are_liked_and_never_rated_and_all_of_them_come(root, biases):
    model, split = bridge_on(root, "SSCDR", biases=biases)
    ratings, offset = split.train[split.source], split.item_offset[split.source]
    item = ratings.item - offset
    likes = liked(ratings, item, split, split.tables[split.source] if biases else None)
    draws = [model.pairs.draw(np.random.default_rng(seed)) for seed in range(400)]
    positives, negatives = (np.stack([draw[k] for draw in draws]) for k in (0, 1))
    known = set(item.tolist())
    n_unpaired = 0
    for place, user in enumerate(split.overlapping):
        mine = ratings.user == user
        wanted = set(item[mine & likes].tolist())
        paired = {bool(draw[2][place]) for draw in draws}
        assert paired == {bool(wanted)}
        if not wanted:
            n_unpaired += 1
            continue
        assert set(positives[:, place].tolist()) == wanted
        assert set(negatives[:, place].tolist()) == known - set(item[mine].tolist())
    assert n_unpaired < len(split.overlapping)
    assert biases or n_unpaired


def test_pairs_are_drawn_uniformly_and_where_there_is_nothing_to_draw_there_is_no_pair():
    user = np.array([2, 2, 2, 5, 5, 5, 5, 9, 1])
    item = np.array([0, 4, 7, 0, 3, 4, 7, 3, 8])
    likes = np.array([True, True, False, True, True, True, True, False, True])
    # Items 0, 3, 4, 7, 8 were rated; user 9 likes nothing, user 11 rated nothing.
    pairs = SourcePairs(np.array([2, 5, 9, 11]), user, item, likes)
    draws = [pairs.draw(np.random.default_rng(seed)) for seed in range(4000)]
    assert {tuple(draw[2]) for draw in draws} == {(True, True, False, False)}
    positives, negatives = (np.stack([draw[k] for draw in draws]) for k in (0, 1))
    for drawn, expected in (
        (positives[:, 0], {0, 4}),
        (negatives[:, 0], {3, 8}),
        (positives[:, 1], {0, 3, 4, 7}),
        (negatives[:, 1], {8}),
    ):
        found, counts = np.unique(drawn, return_counts=True)
        assert set(found) == expected
        assert counts == pytest.approx(len(draws) / len(expected), rel=0.1)
    # One who has rated everything has nothing to be far from.
    everything = SourcePairs(np.array([2]), np.array([2, 2]), np.array([3, 6]), np.array([True, True]))
    assert not everything.draw(np.random.default_rng(0))[2].any()
    nothing = SourcePairs(np.array([2]), np.array([2, 4]), np.array([3, 6]), np.array([False, False]))
    assert not nothing.draw(np.random.default_rng(0))[2].any()


def test_each_epoch_draws_anew_and_pairs_stay_with_their_users(root):
    model, split = bridge_on(root, "SSCDR", train_batch_size=8)
    epochs = [list(model.user_batches(np.random.default_rng(seed))) for seed in (0, 0, 1)]
    first, again, other = (torch.cat([b.positive for b in batches]) for batches in epochs)
    assert torch.equal(first, again) and not torch.equal(first, other)
    source = split.train[split.source]
    history = set(zip(source.user.tolist(), source.item.tolist(), strict=True))
    offset = int(split.item_offset[split.source])
    n = 0
    for batch in epochs[0]:
        for user, positive, negative, paired in zip(
            batch.user.tolist(),
            batch.positive.tolist(),
            batch.negative.tolist(),
            batch.paired.tolist(),
            strict=True,
        ):
            if paired:
                n += 1
                assert (user, positive + offset) in history and (user, negative + offset) not in history
    assert n > 5


def test_what_a_user_likes(root):
    _, split = bridge_on(root, "SSCDR")
    # User 1's mean is 4.5, user 2's is 2: 4 is not enough for the one, and not too little for the other.
    user, rating = np.array([1, 1, 1, 2, 2, 2]), np.array([4, 4.5, 5, 1, 1, 4], np.float32)
    item = np.array([0, 1, 2, 0, 1, 2])
    ratings = Ratings(user, item + int(split.item_offset[split.source]), rating)
    assert liked(ratings, item, split, None).tolist() == [False, True, True, False, False, True]
    assert liked(
        Ratings(user, item, 2 * rating), item, replace(split, rating_range=(2, 10)), None
    ).tolist() == [False, True, True, False, False, True]
    # With biases, what is above mean + user bias + item bias.
    tables = Tables(
        torch.zeros(split.n_users, 1),
        torch.zeros(3, 1),
        torch.zeros(split.n_users).index_fill(0, torch.tensor([1]), 1.0),
        torch.tensor([0.0, 0.5, -2.0]),
        3.0,
    )
    # Levels: 4, 4.5, 2 for user 1; 3, 3.5, 1 for user 2.
    assert liked(ratings, item, split, tables).tolist() == [False, False, True, False, False, True]


# -- the neighbourhood ---------------------------------------------------------------------------------------


def test_neighbourhoods_by_hand():
    """u0 - i0 - u1 - i1, and u2 alone."""
    tables = Tables(
        torch.tensor([[1.0], [2.0], [7.0]]), torch.tensor([[4.0], [8.0]]), torch.zeros(3), torch.zeros(2), 0.0
    )
    user, item = np.array([0, 1, 1]), np.array([0, 0, 1])
    own, rest = neighbourhood(user, item, tables, 1)
    assert own.flatten().tolist() == pytest.approx([1 / 2, 1 / 3, 1])
    assert rest.flatten().tolist() == pytest.approx([4 / 2, (4 + 8) / 3, 0])
    # One hop: u0 5/2, u1 14/3, i0 (4 + 1 + 2) / 3, i1 (8 + 2) / 2.
    own, rest = neighbourhood(user, item, tables, 2)
    mean = own * tables.user + rest
    assert mean.flatten().tolist() == pytest.approx([(5 / 2 + 7 / 3) / 2, (14 / 3 + 7 / 3 + 5) / 3, 7])
    assert own.flatten().tolist() == pytest.approx([(1 / 2 + 1 / 3) / 2, (1 / 3 + 1 / 3 + 1 / 2) / 3, 1])


@pytest.mark.parametrize("hops", [1, 2])
def test_the_own_share_is_what_the_users_vector_moves(root, hops):
    """The tables are changed at one user, and everything is computed again."""
    _, split = bridge_on(root, "SSCDR")
    ratings, table = split.train[split.source], split.tables[split.source]
    item = ratings.item - int(split.item_offset[split.source])
    own, rest = neighbourhood(ratings.user, item, table, hops)
    user = int(split.overlapping[0])
    moved = table.user.clone()
    moved[user] += 1
    own_after, rest_after = neighbourhood(ratings.user, item, replace(table, user=moved), hops)
    before, after = own * table.user + rest, own_after * moved + rest_after
    assert torch.allclose(after[user] - before[user], own[user].expand(3), atol=1e-5)
    assert torch.allclose(rest_after[user], rest[user], atol=1e-5)
    others = (after - before).abs().sum(1) > 1e-6
    assert others[user] and (others.sum() > 1) == (hops == 2)


@pytest.mark.parametrize("hops", [1, 2])
def test_hops_change_what_is_mapped_in_training_and_in_prediction(root, hops):
    model, split = bridge_on(root, "SSCDR", hops=hops)
    plain, _ = bridge_on(root, "SSCDR")
    assert same(weights(model.mapping), weights(plain.mapping))
    ratings = split.train[split.source]
    own, rest = neighbourhood(
        ratings.user, ratings.item - int(split.item_offset[split.source]), split.tables[split.source], hops
    )
    batch = one_batch(model)
    rows = model.source_rows(batch)
    assert torch.equal(rows, split.tables[split.source].user[batch.user])
    mapped = plain.mapping(own[batch.user] * rows + rest[batch.user])
    assert torch.allclose(model.bridged(rows, batch.user), mapped)
    loss = (mapped - model.target_users[batch.user]).square().mean()
    assert model.semi_supervised_loss(batch).supervised.item() == pytest.approx(loss.item())
    product = (mapped * model.target_items[batch.item]).sum(1)
    assert torch.allclose(model.rate(batch), product, atol=1e-6)
    assert not torch.allclose(model.rate(batch), plain.rate(batch), atol=1e-2)


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hops": 3}, "hops=3 should be 0, 1 or 2"),
        ({"unsupervised_weight": -1.0}, "unsupervised_weight=-1.0 should be at least 0"),
        ({"margin": -0.5}, "margin=-0.5 should be at least 0"),
    ],
)
def test_bad_settings_are_one_clear_error(root, settings, message):
    with pytest.raises(CDRError, match=message):
        rating_config(root, NAMES, "SSCDR", **settings)


def test_the_papers_form_aggregates(root):
    config = rating_config(root, NAMES, "SSCDR", config_files="SSCDR_paper")
    experiment = build(config)
    assert experiment.model.hops == 2 and not experiment.model.has_biases
    assert np.isfinite(experiment.predict("test")).all()


def test_sharpness_works_on_it(root):
    found = []
    for sharpness, rho in (("none", 0.1), ("pgd", 0.0), ("pgd", 0.5)):
        model, split = bridge_on(root, "SSCDR", hops=1, sharpness=sharpness, rho=rho)
        fit(model, split)
        found.append(weights(model))
    assert same(found[0], found[1]) and not same(found[0], found[2])
