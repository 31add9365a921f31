"""EMCDR for next items: factors, the mappings between them, and who is scored by what, on data of all kinds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_models
import torch
from small_models import emcdr_users, fit_emcdr, make_emcdr, questions
from support import load_written, random_domains

from recbole_cdr_ext.data.instances import Batch, make_batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation import ranking
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics
from recbole_cdr_ext.model.next_item.emcdr import EMCDR
from recbole_cdr_ext.registry.models import get_model
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.split import TrainingData

ready = small_models.ready_emcdr


def tables(model) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items() if not name.startswith("maps")}


# -- factors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["BPR", "MF"])
def test_the_loss_of_the_factors_by_hand(tmp_path, form):
    _, model = make_emcdr(
        tmp_path, embedding_size=2, latent_factor_model=form, reg_weight=0.5, train_neg_num=2
    )
    first = model.item_offsets[1]
    with torch.no_grad():
        model.users[1].weight[3] = torch.tensor([1.0, 2.0])
        for item, vector in enumerate([(3.0, 0.0), (0.0, 1.0), (1.0, -1.0)]):
            model.items[1].weight[item] = torch.tensor(vector)
    fields = {"user_id": [3], "item_id": [first], "neg_item_id": [[first + 1, first + 2]]}
    loss = model.factor_loss(Batch({name: torch.tensor(x) for name, x in fields.items()}, 1, 2))
    # Scores: 3 of the item, 2 and −1 of the negatives.
    bpr = (math.log(1 + math.exp(2 - 3)) + math.log(1 + math.exp(-1 - 3))) / 2
    squares = (1 - 3) ** 2 + (2**2 + 1) / 2
    assert loss.error.item() == pytest.approx(bpr if form == "BPR" else squares)
    assert loss.l2.item() == pytest.approx(0.5 * (5 + 9 + (1 + 2) / 2))


def test_an_epoch_holds_each_training_pair_once_and_negatives_the_user_never_touched_in_training(ready):
    loaded, model = ready
    events = loaded.split.train_events
    trained = set(zip(events.user.tolist(), events.item.tolist(), strict=True))
    seen, drawn = [], []
    for k in (0, 1):
        for epoch in (0, 1):
            batches = list(model.pair_batches(k, np.random.default_rng(epoch)))
            assert {batch.target_domain for batch in batches} == {k}
            users = torch.cat([batch.users for batch in batches])
            items, negatives = (
                torch.cat([batch[name] for batch in batches]).view(-1) for name in ("item_id", "neg_item_id")
            )
            own = model.item_slice(k)
            assert ((negatives >= own.start) & (negatives < own.stop)).all()
            drawn.append(negatives.tolist())
            assert not trained & set(zip(users.tolist(), negatives.tolist(), strict=True))
        seen += zip(users.tolist(), items.tolist(), strict=True)
    assert len(seen) == len(set(seen)) and set(seen) == trained
    assert drawn[0] != drawn[1]


def test_each_phase_learns_its_own_part(ready):
    _, model = ready
    learns = {p.name: {name for name, _ in model.parameters_of(p)} for p in model.phases()}
    of_map = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert list(learns) == ["factors_books", "factors_films", "map_to_books", "map_to_films"]
    for k, name in enumerate(model.domain_names):
        assert learns[f"factors_{name}"] == {f"users.{k}.weight", f"items.{k}.weight"}
        assert learns[f"map_to_{name}"] == {f"maps.{k}.{part}" for part in of_map}


@pytest.mark.parametrize("mode", ["uni20", "full"])
def test_factors_are_validated_by_ndcg_of_warm_users(tmp_path, mode):
    rows = random_domains(n_users=200)
    loaded, model = make_emcdr(
        tmp_path, rows, cold_start_ratio=0.5, eval_args={"mode": mode}, train_batch_size=512
    )
    metrics, split = RankingMetrics(loaded.config), loaded.split
    popularity = ranking.popularity_scores(split)
    fit_emcdr(model, split)
    for k in (0, 1):
        warm = (split.valid.domain == k) & model.trained[k].numpy()[split.valid.user]
        assert 0 < warm.sum() < (split.valid.domain == k).sum(), "there are cold ones too"
        instances = split.valid.take(warm)
        candidates = model._sampler.candidates(instances, mode)
        ranks = ranking.evaluate(
            model,
            instances,
            candidates,
            CrossDomainLoader(loaded.config, instances, model),
            popularity,
            loaded.config,
        )
        expected = metrics.per_instance(ranks.rank)["ndcg@10"].mean()
        assert model.warm_ndcg(k) == pytest.approx(expected, abs=1e-6)
        assert expected > 0


# -- mappings ------------------------------------------------------------------------------------------------


class Watched(EMCDR):
    """Remembers its tables as the first mapping phase finds them."""

    found = None

    def start_epoch(self, phase, epoch):
        if phase.name.startswith("map_to") and self.found is None:
            self.found = tables(self)


@pytest.mark.parametrize("mapping", ["mlp", "linear"])
def test_mapping_phases_leave_the_tables_bit_for_bit(tmp_path, mapping):
    loaded, model = make_emcdr(tmp_path, cls=Watched, mapping=mapping)
    start, maps = tables(model), [p.clone() for p in model.maps.parameters()]
    fit_emcdr(model, loaded.split)
    assert not any(torch.equal(start[name], model.found[name]) for name in start)
    assert all(torch.equal(model.found[name], now) for name, now in tables(model).items())
    assert all(not torch.equal(old, new) for old, new in zip(maps, model.maps.parameters(), strict=True))


class MapsOnly(EMCDR):
    def phases(self):
        return super().phases()[2:]


def test_a_linear_mapping_finds_a_rotation(tmp_path):
    long = {"epochs": 100, "map_learning_rate": 0.05, "stopping_step": 100, "map_batch_size": 200}
    loaded, model = make_emcdr(tmp_path, random_domains(n_users=120), MapsOnly, mapping="linear", **long)
    turn = torch.linalg.qr(torch.randn(8, 8))[0]
    with torch.no_grad():
        model.users[1].weight.normal_()
        model.users[0].weight.copy_(model.users[1].weight @ turn.T)
    assert model.map_error(0, model._held_out).mean() > 1
    fit_emcdr(model, loaded.split)
    for k, matrix in enumerate((turn, turn.T)):
        assert model.map_error(k, model._held_out).mean() < 1e-3
        torch.testing.assert_close(model.maps[k].weight.detach(), matrix, atol=0.01, rtol=0)


def test_the_penalty_on_the_linear_mapping_is_one_users_share(tmp_path):
    _, model = make_emcdr(tmp_path, embedding_size=2, mapping="linear", map_reg_weight=0.6)
    users = model._fit[:2]
    with torch.no_grad():
        model.maps[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        model.users[1].weight[users] = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        model.users[0].weight[users] = torch.tensor([[4.0, 1.0], [0.0, 1.0]])
    # f(1, 0) = (1, 3), off by (3, 2); f(0, 2) = (4, 8), off by (4, 7).
    loss = model.map_loss(questions(users, 0))
    assert loss.item() == pytest.approx((9 + 4 + 16 + 49) / 2 + 0.6 / len(model._fit) * (1 + 4 + 9 + 16))


@pytest.mark.parametrize("least", [1, 4])
def test_who_fits_the_mapping(tmp_path, least):
    loaded, model = make_emcdr(tmp_path, map_min_items=least, map_validation=0.25)
    events = loaded.split.train_events
    pairs = {(u, i, d) for u, i, d in zip(events.user, events.item, events.domain, strict=True)}
    counts = np.zeros((2, model.n_users), int)
    for user, _, domain in pairs:
        counts[domain, user] += 1
    expected = set(np.flatnonzero((counts >= least).all(0)).tolist())
    fitting, held_out = model._fit.tolist(), model._held_out.tolist()
    assert set(fitting) | set(held_out) == expected and not set(fitting) & set(held_out)
    assert len(held_out) == round(0.25 * len(expected)) > 0
    batches = list(model.overlap_batches(0, np.random.default_rng(0)))
    assert sorted(torch.cat([batch.users for batch in batches]).tolist()) == sorted(fitting)
    error = (model.maps[1](model.users[0](model._held_out)) - model.users[1](model._held_out)).square().sum(1)
    assert model.fit_of_held_out(1) == pytest.approx(-error.mean().item())


# -- who is scored by what -----------------------------------------------------------------------------------


def test_warm_users_are_scored_as_by_plain_bpr(ready):
    loaded, model = ready
    root = Path(loaded.config["data_root"])
    other = load_written(root, loaded.dataset.domains, "BPR", embedding_size=8)
    plain_class = get_model("BPR")
    plain = plain_class(other.config, other.data).eval()
    with torch.no_grad():
        for k, wrapped in enumerate(plain.wrapped):
            wrapped.user_embedding.weight.copy_(model.users[k].weight)
            wrapped.item_embedding.weight[1:] = model.items[k].weight
    for k in (0, 1):
        batch = questions(np.flatnonzero(model.trained[k]), k)
        assert plain.can_score(batch).all()
        torch.testing.assert_close(model.score(batch), plain.score(batch))


def test_a_cold_users_scores_come_from_the_other_domains_vector(ready):
    loaded, model = ready
    for target in (0, 1):
        batch = questions(emcdr_users(model)[f"cold in {target}"], target)
        assert len(batch)
        assert (
            loaded.split.train_events.domain[np.isin(loaded.split.train_events.user, batch.users)] != target
        ).all()
        model.zero_grad()
        model.score(batch).square().sum().backward()
        own, source = (model.users[k].weight.grad[batch.users] for k in (target, 1 - target))
        assert not own.any() and source.abs().sum(1).min() > 0
        expected = model.maps[target](model.users[1 - target](batch.users))
        torch.testing.assert_close(model.encode(batch), expected)
    model.zero_grad()


@pytest.mark.parametrize("map_users", ["cold", "overlap"])
def test_who_gets_the_mapped_vector(tmp_path, map_users):
    _, model = make_emcdr(tmp_path, map_users=map_users)
    users = emcdr_users(model)["both"]
    for target in (0, 1):
        batch = questions(users, target)
        own, mapped = (
            model.users[target](batch.users),
            model.maps[target](model.users[1 - target](batch.users)),
        )
        assert torch.equal(model.encode(batch), mapped if map_users == "overlap" else own)
        only = questions(emcdr_users(model)[f"cold in {1 - target}"], target)  # users of the target alone
        assert torch.equal(model.encode(only), model.users[target](only.users))


def test_a_user_without_training_items_gets_the_mean_vector(ready):
    _, model = ready
    assert not model.trained[:, 0].any(), "padding is nobody"
    for target in (0, 1):
        mean = model.users[target].weight[model.trained[target]].mean(0)
        torch.testing.assert_close(model.encode(questions([0], target))[0], mean)


def test_cold_users_find_the_items_of_their_topic(tmp_path):
    """What a user takes follows from a topic; sixteen users show it in one domain only."""
    rng = np.random.default_rng(0)
    rows = {"books": [], "films": []}
    for user in range(160):
        topic = user % 4
        for name in rows:
            if user >= 128 and (user < 144) == (name == "books"):
                continue
            for when, item in enumerate(rng.permutation(8)[:6]):
                rows[name].append((f"u{user}", f"{name[0]}{topic}{item}", 10.0 * when + (name == "films")))
    settings = {"embedding_size": 16, "epochs": 20, "learning_rate": 0.03, "map_learning_rate": 0.02}
    loaded, model = make_emcdr(
        tmp_path, rows, split="leave_one_out", reg_weight=0.01, train_batch_size=256, **settings
    )
    fit_emcdr(model, loaded.split)
    for target in (0, 1):
        users = range(128, 144) if target == 0 else range(144, 160)
        batch = questions([loaded.user(f"u{user}") for user in users], target)
        assert not model.trained[target][batch.users].any()
        best = model.score(batch).topk(8).indices + model.item_offsets[target]
        tokens = loaded.dataset.item_token(best.numpy().reshape(-1)).reshape(16, 8)
        right = [token[1] == str(user % 4) for user, row in zip(users, tokens, strict=True) for token in row]
        assert np.mean(right) > 0.95


# -- what every model must do --------------------------------------------------------------------------------


def test_32_users_are_learned_by_heart(tmp_path):
    rows = random_domains(n_users=32, n_items=60)
    settings = {
        "embedding_size": 32,
        "epochs": 40,
        "learning_rate": 0.05,
        "map_learning_rate": 0.01,
        "eval_step": 0,
        "reg_weight": 0.0,
    }
    loaded, model = make_emcdr(tmp_path, rows, split="leave_one_out", **settings)
    trainer = fit_emcdr(model, loaded.split)
    for name in ("factors_books", "factors_films", "map_to_books", "map_to_films"):
        losses = [np.sum(entry["loss"]) for entry in trainer.history if entry["phase"] == name]
        assert losses[-1] < 0.5 * losses[0]
    for k in (0, 1):
        user, item = (torch.from_numpy(column) for column in model._pairs[k])
        scores, item = model.score(questions(user, k)).detach(), item - model.item_offsets[k]
        own = scores.gather(1, item.unsqueeze(1))
        for u in user.unique():  # the user's other items are no mistakes
            mine = user == u
            scores[mine.nonzero(), item[mine]] = -torch.inf
        assert ((scores >= own).sum(1) < 10).float().mean() > 0.95


def test_swapping_the_domains_with_their_parameters_swaps_the_scores(tmp_path):
    rows = random_domains()
    first, model = make_emcdr(tmp_path / "first", rows)
    second, swapped = make_emcdr(tmp_path / "second", {name: rows[name] for name in ("films", "books")})
    users = [f"u{u}" for u in range(60)]
    here = torch.tensor([first.user(token) for token in users])
    there = torch.tensor([second.user(token) for token in users])
    items = {}
    with torch.no_grad():
        for k, name in enumerate(first.dataset.domains):
            tokens = first.dataset.item_token(np.arange(*model.item_offsets[k : k + 2]))
            items[k] = torch.tensor(
                [second.id_of(name, token) - swapped.item_offsets[1 - k] for token in tokens]
            )
            swapped.users[1 - k].weight[there] = model.users[k].weight[here]
            swapped.items[1 - k].weight[items[k]] = model.items[k].weight
            swapped.maps[1 - k].load_state_dict(model.maps[k].state_dict())
        # The splits' draws differ with the order of the domains: the same users are made known.
        swapped.trained.zero_()
        swapped.trained[:, there] = model.trained[:, here].flip(0)
        for k in (0, 1):
            scores, other = model.score(questions(here, k)), swapped.score(questions(there, 1 - k))
            torch.testing.assert_close(other[:, items[k]], scores)


def test_scores_depend_on_nothing_but_the_user(ready):
    """Not on the rest of the batch, on padding, on targets or on how often one asks."""
    loaded, model = ready
    test = loaded.split.test
    for k in (0, 1):
        rows = np.flatnonzero(test.domain == k)
        batch = make_batch(test, rows, max_length=20)
        with torch.no_grad():
            scores = model.score(batch)
            assert torch.equal(scores, model.score(batch)) and torch.isfinite(scores).all()
            padded = {f"history_{j}": torch.nn.functional.pad(batch.history(j), (3, 0)) for j in (0, 1)}
            for changed in (padded, {"item_id": torch.zeros_like(batch.targets)}):
                assert torch.equal(scores, model.score(batch.with_fields(**changed)))
            for row in range(len(batch)):
                torch.testing.assert_close(
                    model.score(batch.rows(torch.tensor([row]))), scores[row : row + 1]
                )
            candidates = torch.randint(*model.item_offsets[k : k + 2], (len(batch), 5))
            picked = scores.gather(1, candidates - model.item_offsets[k])
            torch.testing.assert_close(model.score(batch, candidates), picked)


def test_weights_are_all_there_is_to_save_and_follow_from_the_seed(ready, tmp_path):
    loaded, model = ready
    torch.manual_seed(1)
    other = EMCDR(loaded.config, loaded.data).eval()
    batch = questions(np.arange(model.n_users), 0)
    assert not torch.equal(other.score(batch), model.score(batch))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.score(batch), model.score(batch))
    loaded, again = make_emcdr(tmp_path)
    fit_emcdr(again, loaded.split)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())


# -- data that lack something, and bad settings --------------------------------------------------------------


def test_without_overlapping_users_there_are_factors_alone(tmp_path, caplog):
    rows = random_domains()
    apart = {name: [(f"{name}-{u}", i, t) for u, i, t in rows[name]] for name in rows}
    loaded, model = make_emcdr(tmp_path, apart, split="leave_one_out")
    assert "no mapping" in caplog.text
    assert [phase.name for phase in model.phases()] == ["factors_books", "factors_films"]
    fit_emcdr(model, loaded.split)
    batch = questions(emcdr_users(model)["cold in 0"], 0)
    torch.testing.assert_close(model.encode(batch), model.mean_user(0).expand(len(batch), -1))
    assert torch.isfinite(model.score(batch)).all()


def test_users_of_one_domain_train_its_factors(tmp_path):
    _, model = make_emcdr(tmp_path)
    alone = emcdr_users(model)["cold in 1"]
    assert len(alone) and np.isin(alone, model._pairs[0][0]).all()
    assert not np.isin(model._fit.numpy(), alone).any()


def test_how_many_have_no_vector_is_said(tmp_path, caplog):
    loaded, model = make_emcdr(tmp_path)
    caplog.clear()
    events = loaded.split.train_events
    gone = loaded.split.test.user[0]
    split = replace(loaded.split, train_events=events.take(events.user != gone))
    EMCDR(loaded.config, TrainingData.of(loaded.dataset, split))
    asked = np.concatenate([loaded.split.valid.user, loaded.split.test.user])
    assert f"{(asked == gone).sum()} of {len(asked)} held-out instances" in caplog.text
    assert model.trained[:, gone].any()


def test_a_domain_without_validation_keeps_its_last_epoch(tmp_path):
    loaded, _ = make_emcdr(tmp_path)
    valid = loaded.split.valid
    split = replace(loaded.split, valid=valid.take(valid.domain == 1))
    model = EMCDR(loaded.config, TrainingData.of(loaded.dataset, split))
    assert [phase.validate.func.__name__ if phase.validated else "" for phase in model.phases()] == [
        "",
        "warm_ndcg",
        "fit_of_held_out",
        "fit_of_held_out",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_factor_model": "SVD"}, "latent_factor_model='SVD' should be one of BPR, MF"),
        ({"mapping": "cubic"}, "mapping='cubic' should be one of mlp, linear"),
        ({"map_users": "all"}, "map_users='all' should be one of cold, overlap"),
        ({"map_min_items": 0}, "map_min_items=0 should be at least 1"),
        ({"map_batch_size": 0}, "map_batch_size=0 should be at least 1"),
        ({"reg_weight": -1.0}, "reg_weight=-1.0 should be at least 0"),
        ({"map_learning_rate": 0.0}, "map_learning_rate=0.0 should be above 0"),
        ({"map_validation": 1.0}, "map_validation=1.0 should be at least 0 and below 1"),
        ({"train_on_histories": False}, "train_on_histories=False leaves held-out users without"),
        ({"biases": True}, "Unknown setting 'biases'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(CDRError) as caught:
        CDRConfig("EMCDR", "food_kitchen", config_dict=settings)
    assert message in str(caught.value)
