"""CLCDR's contrastive losses; and what every model of ratings must do, and none could without learning a mapping."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import random_ratings, rating_config, write_ratings
from test_emcdr import NAMES, bridge_on, fit, normal_tables, same, weights

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.bridge import Bridge
from recbole_cdr_ext.model.rating_recommender import RatingBatch
from recbole_cdr_ext.registry.models import list_models
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.tasks.rating import FLOORS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clcdr")
    write_ratings(folder / "mini", random_ratings(n_users=90))
    return folder


def one_batch(model, n: int = 40) -> RatingBatch:
    return next(iter(model.shared_batches(np.random.default_rng(0)))).take(slice(0, n))


def identity(model):
    """f(u) = u."""
    model.mapping = torch.nn.Identity()
    return model


def ratings_of(model, pairs, rating=5.0) -> RatingBatch:
    user, item = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    return RatingBatch(user, item, torch.full((len(user),), rating), model.target)


# -- without what it adds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [False, True])
def test_without_weights_it_is_the_plain_bridge_bit_for_bit(root, biases):
    found = {}
    for name, cls, weight in (("plain", Bridge, 0.1), ("without", None, 0.0), ("with", None, 0.1)):
        settings = {"biases": biases, "train_batch_size": 32, "epochs": 3}
        model, split = bridge_on(root, "CLCDR", cls=cls, user_weight=weight, item_weight=weight, **settings)
        trainer = fit(model, split)
        losses = [np.atleast_1d(entry["loss"])[0] for entry in trainer.history]
        found[name] = weights(model.mapping), losses
    assert same(found["plain"][0], found["without"][0]) and found["plain"][1] == found["without"][1]
    assert not same(found["plain"][0], found["with"][0])


def test_the_terms_are_weighted_and_logged_by_name(root):
    model, split = bridge_on(root, "CLCDR", user_weight=0.5, item_weight=0.25)
    batch = one_batch(model)
    rows = model.source_rows(batch)
    loss = model.contrastive_loss(batch)
    assert loss._fields == ("rating", "users", "items")
    assert loss.rating.item() == model.calculate_loss(batch).item()
    assert loss.users.item() == pytest.approx(0.5 * model.user_loss(batch, rows).item())
    assert loss.items.item() == pytest.approx(0.25 * model.item_loss(batch, rows).item())
    assert len(fit(model, split).history[0]["loss"]) == 3


# -- L_uu ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5])
def test_equal_vectors_cannot_be_told_apart(root, n):
    def tables(split):
        return {
            k: replace(t, user=torch.ones_like(t.user))
            for k in (split.source, split.target)
            for t in [normal_tables(split, k, 3)]
        }

    model, split = bridge_on(root, "CLCDR", tables=tables)
    batch = ratings_of(identity(model), [(u, 0) for u in split.overlapping[:n].tolist()])
    assert model.user_loss(batch, model.source_rows(batch)).item() == pytest.approx(math.log(n), rel=1e-5)


def test_parallel_and_orthogonal_vectors_are_told_apart_and_exchanged_ones_are_not(root):
    def tables(split):
        source, target = normal_tables(split, split.source, 3), normal_tables(split, split.target, 3)
        a, b, c = split.overlapping[:3].tolist()
        for scale, user in zip((2.0, 0.5, 1.0), (a, b, c), strict=True):
            target.user[user] = torch.eye(3)[(a, b, c).index(user)]
            source.user[user] = scale * target.user[user]
        return {split.source: source, split.target: target}

    model, split = bridge_on(root, "CLCDR", tables=tables, temperature=0.05)
    batch = ratings_of(identity(model), [(u, 0) for u in split.overlapping[:3].tolist()])
    rows = model.source_rows(batch)
    assert model.user_loss(batch, rows).item() == pytest.approx(2 * math.exp(-1 / 0.05), abs=1e-7)
    # Each is nearest to another one: cosines 0 where they should be 1, and the other way round.
    assert model.user_loss(batch, rows.roll(1, 0)).item() == pytest.approx(1 / 0.05, rel=1e-5)


def test_user_loss_is_that_of_a_loop_over_distinct_users(root):
    model, _ = bridge_on(root, "CLCDR")
    batch = one_batch(model)
    assert len(batch.user.unique()) < len(batch)
    rows = model.source_rows(batch)
    # Rows of one user may be moved apart; the first of them stands for the user.
    seen = set()
    for place, user in enumerate(batch.user.tolist()):
        rows[place] += 0.0 if user not in seen else 1.0
        seen.add(user)
    users = sorted(seen)
    mapped = [model.mapping(model.source_users.weight[u]).detach() for u in users]
    targets = [model.target_users[u] for u in users]
    total = 0.0
    for k in range(len(users)):
        for anchor, others in ((mapped[k], targets), (targets[k], mapped)):
            cosines = torch.stack([torch.cosine_similarity(anchor, other, 0) for other in others]) / 0.2
            total += float(torch.logsumexp(cosines, 0) - cosines[k]) / 2
    assert model.user_loss(batch, rows).item() == pytest.approx(total / len(users), rel=1e-5)
    model.mean_reduction = False
    assert model.user_loss(batch, rows).item() == pytest.approx(total, rel=1e-5)


# -- L_ui ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [False, True])
def test_item_loss_is_that_of_a_loop(root, biases):
    model, split = bridge_on(root, "CLCDR", biases=biases)
    batch, shared = one_batch(model), split.shared_ratings()
    rated = set(
        zip(
            shared.user.tolist(),
            (shared.item - split.item_offset[split.target]).tolist(),
            strict=True,
        )
    )
    means = {u: shared.rating[shared.user == u].mean() for u in split.overlapping}
    losses, masked = [], 0
    for user, item, rating in zip(
        batch.user.tolist(), batch.item.tolist(), batch.rating.tolist(), strict=True
    ):
        level = float(model.base_rating(ratings_of(model, [(user, item)])))
        if rating <= level if biases else rating < max(4, means[user]):
            continue
        mapped = model.mapping(model.source_users.weight[user]).detach()
        others = [i for i in set(batch.item.tolist()) if i == item or (user, i) not in rated]
        masked += len(set(batch.item.tolist())) - len(others)
        cosines = {i: torch.cosine_similarity(mapped, model.target_items[i], 0) / 0.2 for i in others}
        losses.append(float(torch.logsumexp(torch.stack(list(cosines.values())), 0) - cosines[item]))
    assert 0 < len(losses) < len(batch) and masked
    expected = sum(losses) / len(losses)
    assert model.item_loss(batch, model.source_rows(batch)).item() == pytest.approx(expected, rel=1e-5)


def test_two_rows_of_one_user_are_not_each_others_negatives(root):
    model, split = bridge_on(root, "CLCDR")
    shared = split.shared_ratings()
    offset = int(split.item_offset[split.target])
    user = int(split.overlapping[0])
    first, second = (shared.item[shared.user == user][:2] - offset).tolist()
    other, third = next(
        (int(u), int(i) - offset)
        for u, i in zip(shared.user, shared.item, strict=True)
        if u != user and i not in shared.item[shared.user == user]
    )

    def losses(pairs):
        batch = ratings_of(model, pairs)
        rows = model.source_rows(batch)
        return model.user_loss(batch, rows).item(), model.item_loss(batch, rows).item()

    assert losses([(user, first), (user, second)]) == (0, 0)
    # One item that she has not rated is a negative of both of her rows.
    mapped = model.mapping(model.source_users.weight[user]).detach()

    def cosine(item):
        return float(torch.cosine_similarity(mapped, model.target_items[item], 0)) / 0.2

    of_user = [math.log1p(math.exp(cosine(third) - cosine(item))) for item in (first, second)]
    of_other = losses([(user, first), (user, second), (other, third)])[1] * 3 - sum(of_user)
    anchor = model.mapping(model.source_users.weight[other]).detach()
    unrated = {i for i in (first, second) if not model.has_rated(torch.tensor([other]), torch.tensor([i]))}
    cosines = [torch.cosine_similarity(anchor, model.target_items[i], 0) / 0.2 for i in (third, *unrated)]
    assert of_other == pytest.approx(float(torch.logsumexp(torch.stack(cosines), 0) - cosines[0]), abs=1e-4)


def test_who_has_rated_what(root):
    model, split = bridge_on(root, "CLCDR")
    shared = split.shared_ratings()
    item = shared.item - split.item_offset[split.target]
    expected = np.zeros((split.n_users, len(model.target_items)), bool)
    expected[shared.user, item] = True
    found = model.has_rated(torch.arange(split.n_users), torch.arange(len(model.target_items)))
    assert np.array_equal(found.numpy(), expected)


def test_a_batch_in_which_nobody_likes_anything_has_no_item_loss(root):
    model, split = bridge_on(root, "CLCDR")
    batch = ratings_of(model, [(u, 0) for u in split.overlapping[:3].tolist()], rating=1.0)
    loss = model.contrastive_loss(batch)
    assert loss.items == 0 and loss.users > 0
    sum(loss).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.mapping.parameters())


def test_a_users_mean_can_be_more_than_four(root):
    model, split = bridge_on(root, "CLCDR")
    rows = split.train[split.target]
    user = next(u for u in split.overlapping if rows.rating[rows.user == u].mean() > 4)
    mean = rows.rating[rows.user == user].mean()
    batch = ratings_of(model, [(int(user), 0)] * 3)
    batch = replace(batch, rating=torch.tensor([4.0, float(mean), 5.0]))
    assert model.likes(batch).tolist() == [False, True, True]


# -- both ----------------------------------------------------------------------------------------------------


def test_cosines_leave_the_length_free_and_ratings_do_not(root):
    model, _ = bridge_on(root, "CLCDR")
    batch = one_batch(model)
    before = model.contrastive_loss(batch)
    with torch.no_grad():
        model.mapping[2].weight.mul_(3)
    after = model.contrastive_loss(batch)
    assert after.users.item() == pytest.approx(before.users.item(), rel=1e-5)
    assert after.items.item() == pytest.approx(before.items.item(), rel=1e-5)
    assert after.rating.item() != pytest.approx(before.rating.item(), rel=1e-2)


def test_source_vectors_of_overlapping_users_learn_if_they_should(root):
    for learns in (False, True):
        model, split = bridge_on(root, "CLCDR", learn_source_users=learns, learning_rate=0.1)
        before = model.source_users.weight.clone()
        fit(model, split)
        moved = (model.source_users.weight != before).any(1).nonzero().flatten()
        assert moved.tolist() == (split.overlapping.tolist() if learns else [])


def test_the_worst_rows_can_be_looked_at(root):
    found = []
    for sharpness, rho in (("none", 0.1), ("pgd", 0.0), ("pgd", 0.5)):
        model, split = bridge_on(root, "CLCDR", sharpness=sharpness, rho=rho)
        fit(model, split)
        found.append(weights(model))
    assert same(found[0], found[1]) and not same(found[0], found[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 should be above 0"),
        ({"user_weight": -1.0}, "user_weight=-1.0 should be at least 0"),
        ({"item_weight": -0.5}, "item_weight=-0.5 should be at least 0"),
    ],
)
def test_bad_settings_are_one_clear_error(root, settings, message):
    with pytest.raises(CDRError, match=message):
        rating_config(root, NAMES, "CLCDR", **settings)


def test_the_papers_form_learns_source_vectors(root):
    experiment = build(rating_config(root, NAMES, "CLCDR", config_files="CLCDR_paper"))
    assert experiment.model.source_users.weight.requires_grad and not experiment.model.has_biases
    fit(experiment.model, experiment.split, experiment.validate)
    assert np.isfinite(experiment.predict("test")).all()


DOMAINS = ["books", "films"]
FLOOR_NAMES = [floor.__name__ for floor in FLOORS]
MODELS = [info.name for info in list_models() if info.task == "rating" and info.name not in FLOOR_NAMES]
BRIDGES = [name for name in MODELS if name not in ("TGT", "CMF")]


@pytest.fixture(scope="module")
def rating_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_ratings(folder / "mini", random_ratings(n_users=90))
    return folder


def test_all_baselines_are_there():
    assert set(MODELS) >= {"TGT", "CMF", "EMCDR", "SSCDR", "CLCDR", "PTUPCDR", "TMCDR", "SCDR"}


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_runs_in_both_forms_and_both_directions(rating_root, model, biases):
    source = "films" if biases else "books"
    config = rating_config(
        rating_root, DOMAINS, model, biases=biases, source=source, run_id=f"{model}{biases}"
    )
    result = run_recbole_cdr(model, "mini", config_dict=config.to_dict())
    (cells,) = result["test"].values()
    assert cells["cold"]["n"] > 0 and np.isfinite([cells["cold"]["mae"], cells["cold"]["rmse"]]).all()


@pytest.mark.parametrize("model", BRIDGES)
def test_without_vectors_every_bridge_is_the_biases_alone(rating_root, model):
    experiment = build(
        rating_config(rating_root, DOMAINS, model, embedding_size=0, pretrain_sharpness="none")
    )
    floor = build(rating_config(rating_root, DOMAINS, "BiasOnly"))
    assert np.array_equal(experiment.predict("test"), floor.predict("test"))
    assert experiment.model.phases() == []


@pytest.mark.parametrize("model", BRIDGES)
def test_bridges_share_their_vectors(rating_root, model):
    """Equal settings of pre-training give equal tables, whichever bridge asks first."""
    first = build(rating_config(rating_root, DOMAINS, "EMCDR")).model
    other = build(rating_config(rating_root, DOMAINS, model, pretrain_sharpness="none")).model
    for name in ("target_items", "target_users", "source_items", "mapped_bias"):
        assert torch.equal(getattr(first, name), getattr(other, name)), name


@pytest.mark.parametrize("model", MODELS)
def test_one_higher_in_the_target_is_one_higher_in_every_prediction(tmp_path, model):
    data, found = random_ratings(n_users=60), []
    for shift in (0.0, 1.0):
        films = [(u, i, r + shift) for u, i, r in data["films"]]
        write_ratings(tmp_path / str(shift) / "mini", {"books": data["books"], "films": films})
        config = rating_config(tmp_path / str(shift), DOMAINS, model, rating_range=[1, 6])
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
    items = [rng.dirichlet(np.full(3, 0.3), n_items) * 3 for _ in DOMAINS]
    rows = {}
    for name, vectors, items_of in zip(DOMAINS, (user, user @ matrix.T), items, strict=True):
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
    config = rating_config(known, DOMAINS, model, run_id=f"known-{model}", **given)
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
