"""DASL against its equations, written out plainly; symmetric, blind to padding, able to learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import small_models
import torch
from small_models import (
    SMALL_DASL,
    build_dasl,
    dasl_batches,
    dasl_training_loader,
    train_dasl,
    without_other,
    without_own,
)
from support import load, random_domains

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item import dasl
from recbole_cdr_ext.model.next_item.dasl import _Head

ready = small_models.ready_dasl


# -- the equations --------------------------------------------------------------------------------------------------


def plain_score(model, x, user, own, cross, item):
    """One candidate of one instance, one step and one layer at a time."""
    here, there = model.trained[x, user], model.trained[1 - x, user]
    matrix = model.map if x == 0 else model.map.T
    u, b_u = torch.zeros(model.user_size), torch.zeros(())
    if here:
        u, b_u = model.user_embedding[x].weight[user], model.user_bias[x, user]
    elif there:
        u = matrix @ model.user_embedding[1 - x].weight[user]
    states = []
    for domain, history in ((x, own), (1 - x, cross)):
        gru = model.gru[domain]
        cell = torch.nn.GRUCell(gru.input_size, gru.hidden_size)
        cell.load_state_dict({k.removesuffix("_l0"): v for k, v in gru.state_dict().items()})
        h = torch.zeros(1, gru.hidden_size)
        for i in history:
            h = cell(torch.cat([model.item_embedding.weight[i], u]).unsqueeze(0), h)
            states.append(h[0])
    attention, g = model.attention[x], torch.zeros(model.gru[0].hidden_size)
    if states:
        logits = [attention.weight(torch.tanh(attention.inner(s))) for s in states]
        total = sum(logit.exp() for logit in logits)
        g = sum(logit.exp() / total * s for logit, s in zip(logits, states, strict=True))

    def normalised(norm, v):
        return (v - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias

    head = model.head[x]
    mean = torch.cat([g, u])
    inputs = torch.cat(
        [normalised(head.norm_user, mean), normalised(head.norm_item, model.item_embedding.weight[item])]
    )
    hidden = torch.cat([head.of_user.weight, head.of_item.weight], 1) @ inputs + head.of_user.bias
    for layer in head.layers:
        hidden = layer.weight @ torch.sigmoid(hidden) + layer.bias
    return hidden[0] + model.item_bias[item] + b_u


@torch.no_grad()
def test_scores_are_the_equations(ready):
    loaded, split, model = ready
    kinds = set()
    for batch in dasl_batches(loaded, split, model):
        x, span = batch.target_domain, model.item_slice(batch.target_domain)
        scores = model.score(batch)
        assert scores.shape == (len(batch), span.stop - span.start)
        for row in range(len(batch)):
            user = int(batch.users[row])
            own, cross = ([int(i) for i in batch.history(k)[row] if i] for k in (x, 1 - x))
            kinds.add((bool(own), bool(cross), *model.trained[[x, 1 - x], user].tolist()))
            for item in (span.start, span.start + 7, span.stop - 1):
                expected = plain_score(model, x, user, own, cross, item)
                torch.testing.assert_close(scores[row, item - span.start], expected)
    # Warm users, users of one domain, and cold ones with a mapped vector were all among them.
    assert {(True, True, True, True), (True, False, True, False), (False, True, False, True)} <= kinds


@torch.no_grad()
def test_candidates_and_blocks(ready, monkeypatch):
    loaded, split, model = ready
    batch = dasl_batches(loaded, split, model)[0]
    span = model.item_slice(batch.target_domain)
    every = model.score(batch)
    asked = torch.randint(span.start, span.stop, (len(batch), 9))
    found = model.score(batch, asked)
    torch.testing.assert_close(found, every.gather(1, asked - span.start))
    asked[:, -2:] = 0
    torch.testing.assert_close(model.score(batch, asked)[:, :-2], found[:, :-2])
    monkeypatch.setattr(dasl, "_PAIRS", 2 * len(batch))
    torch.testing.assert_close(model.score(batch), every)
    torch.testing.assert_close(model.score(batch, asked)[:, :-2], found[:, :-2])


@pytest.mark.parametrize("training", [True, False])
def test_the_split_head_is_the_whole_one(training):
    """One batch-norm over the concatenation [g; U[u]; E[i]] of all pairs, one first layer."""
    torch.manual_seed(0)
    head = _Head(6, 4, 3, [5], dropout=0.0).train(training)
    g, u, items = torch.randn(7, 6), torch.randn(7, 3), torch.randn(7, 2, 4)
    pairs = torch.cat([torch.cat([g, u], 1).unsqueeze(1).expand(-1, 2, -1), items], 2).view(14, 13)
    norm = torch.nn.BatchNorm1d(13).train(training)
    with torch.no_grad():
        for part, columns in ((head.norm_user, slice(0, 9)), (head.norm_item, slice(9, 13))):
            for name in ("weight", "bias", "running_mean", "running_var"):
                value = torch.rand(len(getattr(part, name)))
                getattr(part, name).copy_(value)
                getattr(norm, name)[columns] = value
    first = torch.cat([head.of_user.weight, head.of_item.weight], 1)
    hidden = torch.sigmoid(norm(pairs) @ first.T + head.of_user.bias)
    expected = head.layers[0](hidden).view(7, 2)
    torch.testing.assert_close(head(head.user_side(g, u), head.item_side(items)), expected)


def test_loss_by_hand(tmp_path):
    _, _, model = build_dasl(tmp_path, embedding_size=4, map_weight=0.5, orthogonality_weight=0.01)
    with torch.no_grad():
        model.map.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        model.trained[:] = False
        model.trained[0, [1, 2, 3]] = True
        model.trained[1, [1, 2]] = True
        model.user_embedding[0].weight[1:4] = torch.tensor([[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]])
        model.user_embedding[1].weight[1:4] = torch.tensor([[1.0, 0.0], [0.0, 5.0], [9.0, -9.0]])
    # User 1: M (1, 0) = (0, 2) against (3, 4); Mᵀ (3, 4) = (8, 3) against (1, 0).
    # User 2: M (0, 5) = (5, 0) against (1, 0); Mᵀ (1, 0) = (0, 1) against (0, 5). User 3 has one domain.
    first = 2 - 4 / 5 - 8 / math.sqrt(8**2 + 3**2)
    users = torch.tensor([1, 2, 3, 1])  # a user counts once, however many instances there are
    assert model.map_error(users).item() == pytest.approx((first + 0) / 2)
    # MᵀM = diag(4, 1)
    assert model.orthogonality().item() == pytest.approx(3**2)
    low = model.item_offsets[0]
    batch = Batch(
        {
            "user_id": users,
            "item_id": torch.tensor([low, low + 1, low + 2, low + 3]),
            "neg_item_id": low + torch.tensor([[4, 5], [6, 7], [8, 9], [4, 6]]),
            "history_0": torch.tensor([[0, low + 4], [low, low], [0, 0], [0, low]]),
            "history_1": torch.zeros(4, 1, dtype=torch.long),
        },
        target_domain=0,
        n_domains=2,
    )
    terms = model.calculate_loss(batch)  # in evaluation mode scores and loss have the same statistics
    scores = model.score(batch, torch.cat([batch.targets.unsqueeze(1), batch.negatives], 1)).tolist()
    expected = [-math.log(1 / (1 + math.exp(-row[0]))) for row in scores]
    expected += [-math.log(1 - 1 / (1 + math.exp(-s))) for row in scores for s in row[1:]]
    assert terms.bce.item() == pytest.approx(sum(expected) / 12, rel=1e-5)
    assert terms.map.item() == pytest.approx(0.5 * first / 2)
    assert terms.orthogonality.item() == pytest.approx(0.01 * 9)
    assert model.map_error(torch.tensor([3])).item() == 0  # nobody with both: no term, not NaN


def test_the_target_reaches_no_user_side_tensor(ready):
    loaded, split, model = ready
    batch = dasl_batches(loaded, split, model)[0]
    other = batch.with_fields(item_id=torch.full_like(batch.targets, 1))
    for one, two in zip(model._user_side(batch), model._user_side(other), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(model.score(batch), model.score(other))
    for batch in dasl_batches(loaded, split, model, "train"):
        assert not (batch.own_history == batch.targets.unsqueeze(1)).any()


# -- attention ------------------------------------------------------------------------------------------------------


def test_attention_weights_sum_to_one_over_the_real_steps(ready):
    _, _, model = ready
    real = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()
    weight = model.attention[0](torch.randn(3, 4, 16), real)
    torch.testing.assert_close(weight.sum(1), torch.tensor([1.0, 1.0, 0.0]))
    assert not weight[~real].any() and (weight[real] > 0).all()


@pytest.mark.parametrize("attend_cross", [True, False])
def test_what_the_other_domain_adds(tmp_path, attend_cross):
    """Without ``attend_cross`` it scales g and does no more."""
    loaded, split, model = build_dasl(tmp_path, attend_cross=attend_cross)
    batch = next(b for b in dasl_batches(loaded, split, model) if b.target_domain == 0)
    rows = batch.own_history.any(1) & batch.history(1).any(1)
    batch = batch.rows(rows)
    user = model.user_vectors(0, batch.users)
    one, two = (model.preference(b, user) for b in (batch, without_other(batch)))
    assert not torch.allclose(one, two)
    parallel = torch.cosine_similarity(one, two) > 1 - 1e-5
    assert not parallel.any() if attend_cross else parallel.all()
    cold = model.preference(without_own(batch), user)
    assert cold.any(1).all() if attend_cross else not cold.any()


# -- users ----------------------------------------------------------------------------------------------------------


def test_trained_users(ready):
    _, split, model = ready
    events = split.train_events
    for x in (0, 1):
        assert set(model.trained[x].nonzero().flatten().tolist()) == set(events.user[events.domain == x])


@pytest.mark.parametrize("x", [0, 1])
def test_a_cold_users_own_row_is_not_used(ready, x):
    """Nor is its bias; and who is unknown in both domains has neither vector nor bias."""
    loaded, split, model = ready
    batch = next(b for b in dasl_batches(loaded, split, model) if b.target_domain == x)
    cold = ~model.trained[x, batch.users] & model.trained[1 - x, batch.users]
    assert cold.any()
    batch = batch.rows(cold)
    model.zero_grad()
    model.score(batch).sum().backward()
    assert not model.user_embedding[x].weight.grad.any() and not model.user_bias.grad.any()
    touched = model.user_embedding[1 - x].weight.grad.any(1).nonzero().flatten()
    assert touched.tolist() == sorted(batch.users.tolist())
    assert model.map.grad.any()
    model.zero_grad()
    unknown = batch.with_fields(user_id=torch.zeros_like(batch.users))
    assert not model.user_vectors(x, unknown.users).any()
    model.score(unknown).sum().backward()
    assert not any(table.weight.grad.any() for table in model.user_embedding)
    model.zero_grad()


def test_without_user_vectors_the_user_does_not_matter(tmp_path):
    loaded, split, model = build_dasl(tmp_path, user_embedding=False, train_on_histories=False)
    assert not any(name.startswith(("user", "map")) for name in model.state_dict())
    for batch in dasl_batches(loaded, split, model):
        assert torch.equal(model.score(batch), model.score(batch.with_fields(user_id=batch.users * 0)))
        assert torch.isfinite(model.score(without_own(without_other(batch)))).all()
    losses = train_dasl(loaded, split, model, 10)
    assert losses[-1] < losses[0]


def test_users_that_training_does_not_know(tmp_path):
    with pytest.raises(CDRError, match="train_on_histories=False leaves"):
        build_dasl(tmp_path, train_on_histories=False)
    # With overlap_ratio below 1 the histories of held-out users with both domains do not train: here, everybody's.
    both = {
        name: [row for row in rows if int(row[0][1:]) % 5 != 4] for name, rows in random_domains().items()
    }
    with pytest.raises(CDRError, match="Set user_embedding=False"):
        build_dasl(tmp_path, both, overlap_ratio=0.5)


def test_swapping_the_domains_swaps_the_scores(tmp_path):
    rows = random_domains()
    (one, split, model), (two, _, twin) = (
        build_dasl(tmp_path / place, domains, split="leave_one_out")
        for place, domains in (("a", rows), ("b", dict(reversed(rows.items()))))
    )
    permutation = torch.zeros(model.n_items, dtype=torch.long)
    for k in (0, 1):
        ids = np.arange(*one.dataset.item_offset[k : k + 2])
        permutation[ids] = torch.from_numpy(two.dataset.item_ids(1 - k, list(one.dataset.item_token(ids))))
    names = one.dataset.id2token("user_id", range(model.n_users))
    users = torch.from_numpy(two.dataset.token2id("user_id", names))
    back = torch.argsort(users)
    state = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if name in ("item_embedding.weight", "item_bias"):
            value = value[torch.argsort(permutation)]
        elif name == "map":
            value = value.T
        elif name == "user_bias":
            value = value.flip(0)[:, back]
        else:
            parts[1] = str(1 - int(parts[1]))
            value = value[back] if parts[0] == "user_embedding" else value
        state[".".join(parts)] = value
    twin.load_state_dict(state)
    for batch in dasl_batches(one, split, model, "valid"):
        fields = {**batch.interaction, "user_id": users[batch.users]}
        for k in (0, 1):
            fields[f"history_{1 - k}"] = permutation[batch.history(k)]
        swapped = Batch(fields, 1 - batch.target_domain, 2)
        items = permutation[torch.arange(*model.item_offsets[batch.target_domain :][:2])]
        expected = twin.score(swapped)[:, items - twin.item_offsets[1 - batch.target_domain]]
        torch.testing.assert_close(model.score(batch), expected)


@torch.no_grad()
def test_padding_rows_and_repetition(ready):
    loaded, split, model = ready
    for batch in dasl_batches(loaded, split, model):
        whole = model.score(batch)
        assert torch.equal(model.score(batch), whole)
        padded = {f"history_{k}": torch.nn.functional.pad(batch.history(k), (3, 0)) for k in (0, 1)}
        torch.testing.assert_close(model.score(batch.with_fields(**padded)), whole)
        alone = torch.cat([model.score(batch.rows(torch.tensor([i]))) for i in range(len(batch))])
        torch.testing.assert_close(alone, whole)


def test_weights_alone_decide_the_scores(ready, tmp_path):
    loaded, split, model = ready
    _, _, twin = build_dasl(tmp_path, seed=1)
    twin.load_state_dict(model.state_dict())
    for batch in dasl_batches(loaded, split, model):
        assert torch.equal(model.score(batch), twin.score(batch))


def test_edges_of_the_data(ready):
    """A batch of one instance, none with both domains, none with any history."""
    loaded, split, model = ready
    model.train()
    for batch in list(dasl_training_loader(loaded, split, model))[:4]:
        single = ~model.trained[:, batch.users].all(0)
        for edge in (batch.rows(torch.tensor([0])), batch.rows(single), without_own(without_other(batch))):
            model.zero_grad()
            terms = model.calculate_loss(edge)
            sum(terms).backward()
            assert all(torch.isfinite(term) for term in terms)
            assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    model.eval()


def test_without_overlapping_users(tmp_path):
    rows = random_domains(n_users=80)
    alone = {name: [r for r in rows[name] if int(r[0][1:]) % 2 == k] for k, name in enumerate(rows)}
    loaded, split, model = build_dasl(tmp_path, alone)
    assert not model.trained.all(0).any()
    losses = train_dasl(loaded, split, model, 8)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize("settings", [{}, {"user_embedding": False}])
def test_it_learns_its_training_targets_by_heart(tmp_path, settings):
    loaded, split, model = build_dasl(
        tmp_path,
        random_domains(n_users=32, n_items=40),
        split="leave_one_out",
        train_targets="last",
        train_neg_num=4,
        **{"embedding_size": 32, **settings},
    )
    train_dasl(loaded, split, model, 100, lr=1e-2)  # a batch per domain: 200 steps
    hits = total = 0
    for batch in dasl_batches(loaded, split, model, "train"):
        local = batch.targets - model.item_offsets[batch.target_domain]
        hits += int((model.score(batch).topk(10).indices == local.unsqueeze(1)).any(1).sum())
        total += len(batch)
    assert hits / total > 0.95


def test_the_map_becomes_orthogonal(tmp_path):
    loaded, split, model = build_dasl(tmp_path, train_batch_size=16)
    before = model.orthogonality().item()
    steps = len(train_dasl(loaded, split, model, -(-200 // len(dasl_training_loader(loaded, split, model)))))
    assert steps >= 200
    assert model.orthogonality().item() < before / 10


def planted(n_users=120, seed=0):
    """Each user has one of two topics, which decides the half of the items that they touch in both domains."""
    rng = np.random.default_rng(seed)
    rows = {"books": [], "films": []}
    for u in range(n_users):
        for name, of in rows.items():
            for item in rng.choice(10, 5, replace=False) + 10 * (u % 2):
                of.append((f"u{u}", f"{name[0]}{item}", float(rng.integers(0, 10**6))))
    return rows


def test_cold_users_are_ranked_by_what_the_other_domain_shows(tmp_path):
    loaded, split, model = build_dasl(
        tmp_path, planted(), cold_start_ratio=1.0, time_respecting=False, train_batch_size=64
    )
    train_dasl(loaded, split, model, 12, lr=1e-2)
    shares = []
    for part in ("valid", "test"):
        for batch in dasl_batches(loaded, split, model, part):
            assert not batch.own_history.any() and batch.history(1 - batch.target_domain).any()
            topic = [int(t[1:]) % 2 for t in loaded.dataset.id2token("user_id", batch.users)]
            best = model.score(batch).topk(5).indices + model.item_offsets[batch.target_domain]
            for row, items in zip(topic, best, strict=True):
                tokens = loaded.dataset.item_token(items.numpy())
                shares += [int(token[1:]) // 10 == row for token in tokens]
    assert np.mean(shares) > 0.95


@pytest.mark.parametrize(
    "settings",
    [
        {"embedding_size": 15},
        {"dropout": 1.0},
        {"map_weight": -0.1},
        {"orthogonality_weight": -1.0},
        {"attention_size": 0},
        {"train_neg_num": 0},
        {"mlp_hidden_size": []},
        {"mlp_hidden_size": [8, 0]},
    ],
)
def test_settings_that_cannot_be_are_one_clear_error(tmp_path, settings):
    with pytest.raises(CDRError, match=next(iter(settings))):
        load(tmp_path, random_domains(n_users=10), model="DASL", **{**SMALL_DASL, **settings})
