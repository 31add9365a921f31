"""EMCDR for next items: who is scored by what, on data of all kinds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import emcdr_model
import numpy as np
import pytest
import torch
from emcdr_model import asking, fit, make, who
from support import load_written, random_domains

from recbole_cdr_ext.data.instances import make_batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.emcdr import EMCDR
from recbole_cdr_ext.registry.models import get_model
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import TrainingData

ready = emcdr_model.ready


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
        batch = asking(np.flatnonzero(model.trained[k]), k)
        assert plain.can_score(batch).all()
        torch.testing.assert_close(model.score(batch), plain.score(batch))


def test_a_cold_users_scores_come_from_the_other_domains_vector(ready):
    loaded, model = ready
    for target in (0, 1):
        batch = asking(who(model)[f"cold in {target}"], target)
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
    _, model = make(tmp_path, map_users=map_users)
    users = who(model)["both"]
    for target in (0, 1):
        batch = asking(users, target)
        own, mapped = (
            model.users[target](batch.users),
            model.maps[target](model.users[1 - target](batch.users)),
        )
        assert torch.equal(model.encode(batch), mapped if map_users == "overlap" else own)
        only = asking(who(model)[f"cold in {1 - target}"], target)  # users of the target alone
        assert torch.equal(model.encode(only), model.users[target](only.users))


def test_a_user_without_training_items_gets_the_mean_vector(ready):
    _, model = ready
    assert not model.trained[:, 0].any(), "padding is nobody"
    for target in (0, 1):
        mean = model.users[target].weight[model.trained[target]].mean(0)
        torch.testing.assert_close(model.encode(asking([0], target))[0], mean)


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
    loaded, model = make(
        tmp_path, rows, split="leave_one_out", reg_weight=0.01, train_batch_size=256, **settings
    )
    fit(model, loaded.split)
    for target in (0, 1):
        users = range(128, 144) if target == 0 else range(144, 160)
        batch = asking([loaded.user(f"u{user}") for user in users], target)
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
    loaded, model = make(tmp_path, rows, split="leave_one_out", **settings)
    trainer = fit(model, loaded.split)
    for name in ("factors_books", "factors_films", "map_to_books", "map_to_films"):
        losses = [np.sum(entry["loss"]) for entry in trainer.history if entry["phase"] == name]
        assert losses[-1] < 0.5 * losses[0]
    for k in (0, 1):
        user, item = (torch.from_numpy(column) for column in model._pairs[k])
        scores, item = model.score(asking(user, k)).detach(), item - model.item_offsets[k]
        own = scores.gather(1, item.unsqueeze(1))
        for u in user.unique():  # the user's other items are no mistakes
            mine = user == u
            scores[mine.nonzero(), item[mine]] = -torch.inf
        assert ((scores >= own).sum(1) < 10).float().mean() > 0.95


def test_swapping_the_domains_with_their_parameters_swaps_the_scores(tmp_path):
    rows = random_domains()
    first, model = make(tmp_path / "first", rows)
    second, swapped = make(tmp_path / "second", {name: rows[name] for name in ("films", "books")})
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
            scores, other = model.score(asking(here, k)), swapped.score(asking(there, 1 - k))
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
    batch = asking(np.arange(model.n_users), 0)
    assert not torch.equal(other.score(batch), model.score(batch))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.score(batch), model.score(batch))
    loaded, again = make(tmp_path)
    fit(again, loaded.split)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())


# -- data that lack something, and bad settings --------------------------------------------------------------


def test_without_overlapping_users_there_are_factors_alone(tmp_path, caplog):
    rows = random_domains()
    apart = {name: [(f"{name}-{u}", i, t) for u, i, t in rows[name]] for name in rows}
    loaded, model = make(tmp_path, apart, split="leave_one_out")
    assert "no mapping" in caplog.text
    assert [phase.name for phase in model.phases()] == ["factors_books", "factors_films"]
    fit(model, loaded.split)
    batch = asking(who(model)["cold in 0"], 0)
    torch.testing.assert_close(model.encode(batch), model.mean_user(0).expand(len(batch), -1))
    assert torch.isfinite(model.score(batch)).all()


def test_users_of_one_domain_train_its_factors(tmp_path):
    _, model = make(tmp_path)
    alone = who(model)["cold in 1"]
    assert len(alone) and np.isin(alone, model._pairs[0][0]).all()
    assert not np.isin(model._fit.numpy(), alone).any()


def test_how_many_have_no_vector_is_said(tmp_path, caplog):
    loaded, model = make(tmp_path)
    caplog.clear()
    events = loaded.split.train_events
    gone = loaded.split.test.user[0]
    split = replace(loaded.split, train_events=events.take(events.user != gone))
    EMCDR(loaded.config, TrainingData.of(loaded.dataset, split))
    asked = np.concatenate([loaded.split.valid.user, loaded.split.test.user])
    assert f"{(asked == gone).sum()} of {len(asked)} held-out instances" in caplog.text
    assert model.trained[:, gone].any()


def test_a_domain_without_validation_keeps_its_last_epoch(tmp_path):
    loaded, _ = make(tmp_path)
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
