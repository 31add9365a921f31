"""DASL against its equations, written out plainly, and whom it scores by what."""

from __future__ import annotations

import math

import dasl_model
import pytest
import torch
from dasl_model import batches, build, train, without_other, without_own
from support import random_domains

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item import dasl
from recbole_cdr_ext.model.next_item.dasl import _Head

ready = dasl_model.ready


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
    for batch in batches(loaded, split, model):
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
    batch = batches(loaded, split, model)[0]
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
    _, _, model = build(tmp_path, embedding_size=4, map_weight=0.5, orthogonality_weight=0.01)
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
    batch = batches(loaded, split, model)[0]
    other = batch.with_fields(item_id=torch.full_like(batch.targets, 1))
    for one, two in zip(model._user_side(batch), model._user_side(other), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(model.score(batch), model.score(other))
    for batch in batches(loaded, split, model, "train"):
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
    loaded, split, model = build(tmp_path, attend_cross=attend_cross)
    batch = next(b for b in batches(loaded, split, model) if b.target_domain == 0)
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
    batch = next(b for b in batches(loaded, split, model) if b.target_domain == x)
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
    loaded, split, model = build(tmp_path, user_embedding=False, train_on_histories=False)
    assert not any(name.startswith(("user", "map")) for name in model.state_dict())
    for batch in batches(loaded, split, model):
        assert torch.equal(model.score(batch), model.score(batch.with_fields(user_id=batch.users * 0)))
        assert torch.isfinite(model.score(without_own(without_other(batch)))).all()
    losses = train(loaded, split, model, 10)
    assert losses[-1] < losses[0]


def test_users_that_training_does_not_know(tmp_path):
    with pytest.raises(CDRError, match="train_on_histories=False leaves"):
        build(tmp_path, train_on_histories=False)
    # With overlap_ratio below 1 the histories of held-out users with both domains do not train: here, everybody's.
    both = {
        name: [row for row in rows if int(row[0][1:]) % 5 != 4] for name, rows in random_domains().items()
    }
    with pytest.raises(CDRError, match="Set user_embedding=False"):
        build(tmp_path, both, overlap_ratio=0.5)
