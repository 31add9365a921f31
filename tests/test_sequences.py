"""Whole training sequences: what a window holds, and one pass against a pass per position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.sequences import (
    TrainingSequences,
    behind_the_others,
    first_of_token,
    next_items,
    with_start,
)
from recbole_cdr_ext.model.parts.layers import Gaussian, kl
from recbole_cdr_ext.model.parts.losses import (
    sampled_softmax_loss_of_several,
    softmax_loss,
    softmax_loss_of_several,
)


def events(lengths: list[int]) -> Events:
    """Sequences of these lengths; items count up from 1, so an event's successor is the next number."""
    n = sum(lengths)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    zero = np.zeros(n)
    return Events(sequence + 1, np.arange(1, n + 1), np.arange(n) % 2, zero, zero, sequence)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_each_position_but_the_first_is_a_target_once(size):
    held = events([1, 2, 7, 4, 11])
    sequences = TrainingSequences(held, max_length=4)
    targets = []
    for part in sequences.parts(size, np.random.default_rng(0)):
        batch = sequences.batch(part)
        real = batch["event"] >= 0
        assert torch.equal(real, batch.items != 0) and torch.equal(real, batch.targets != 0)
        assert torch.equal(real.long().argmin(1) == 0, real.all(1) | ~real[:, 0])  # padding is on the right
        assert torch.equal(batch.targets[real], batch.items[real] + 1)
        assert torch.equal(batch["event"][real] + 1, batch.targets[real])
        owner = held.sequence[batch["event"].numpy()]
        assert all(len(set(row[r])) == 1 for row, r in zip(owner, real.numpy(), strict=True))
        targets += batch.targets[real].tolist()
    firsts = {1, 2, 4, 11, 15}
    assert sorted(targets) == [i for i in range(1, 26) if i not in firsts]
    assert len(sequences) == len(targets)


def test_a_long_sequence_is_cut_from_its_end():
    sequences = TrainingSequences(events([10]), max_length=4)
    read = sorted(row[row != 0].tolist() for row in sequences.batch(np.arange(3)).items)
    assert read == [[1], [2, 3, 4, 5], [6, 7, 8, 9]]


def test_a_mask_leaves_its_events_alone():
    held = events([6, 6])
    sequences = TrainingSequences(held, max_length=5, mask=held.domain == 0)
    batch = sequences.batch(np.arange(2))
    assert batch.items.tolist() == [[1, 3], [7, 9]]
    assert batch.targets.tolist() == [[3, 5], [9, 11]]
    assert batch["event"].tolist() == [[2, 4], [8, 10]]


def test_windows_without_a_target_that_is_asked_for_are_left_out():
    held = events([10, 1, 3])
    sequences = TrainingSequences(held, max_length=4, asked=np.isin(held.item, (1, 5, 11, 12)))
    batch = sequences.batch(np.arange(1))
    assert batch.items.tolist() == [[2, 3, 4, 5]]  # 1, 11 and 12 are nobody's target
    assert len(sequences) == 4


def test_parts_are_the_seeds_and_of_similar_length():
    sequences = TrainingSequences(events([2, 9] * 50), max_length=20)
    one, again, other = (sequences.parts(60, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=False))
    assert sum(len(set((sequences.batch(p).targets != 0).sum(1).tolist())) > 1 for p in one) <= 1


def test_softmax_loss_is_cross_entropy_in_value_and_gradient(monkeypatch):
    monkeypatch.setattr("recbole_cdr_ext.model.parts.losses._BLOCK", 64)  # several blocks
    vectors = torch.randn(23, 6, dtype=torch.double, requires_grad=True)
    items = torch.randn(17, 6, dtype=torch.double, requires_grad=True)
    target = torch.randint(0, 17, (23,))
    found = 3 * softmax_loss(vectors, items, target)
    expected = 3 * F.cross_entropy(vectors @ items.T, target)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, (vectors, items)),
        torch.autograd.grad(expected, (vectors, items)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(softmax_loss(vectors, items, target), expected / 3)


def test_without_an_order_a_domain_stands_behind_the_others():
    sequence = np.repeat([0, 1, 2], [9, 1, 2])
    domain = np.array([0, 1, 0, 2, 1, 0, 1, 0, 0, 0, 1, 2])
    zero = np.zeros(12)
    held = Events(sequence + 1, np.arange(1, 13), domain, zero, zero, sequence)

    def moved(domain, max_length):
        found = behind_the_others(held, domain, max_length)
        assert np.array_equal(found.domain, held.domain[found.item - 1])
        assert np.array_equal(found.user, held.user[found.item - 1])
        edge = np.flatnonzero(np.diff(found.sequence)) + 1
        return [part.tolist() for part in np.split(found.item, edge)]

    assert moved(0, 9) == [[2, 5, 7, 4, 1, 3, 6, 8, 9], [10]]
    assert moved(0, 2) == [[5, 7, 4, 8, 9], [5, 7, 4, 3, 6], [5, 7, 4, 1], [10]]
    assert moved(2, 2) == [[8, 9, 5, 7, 4], [11, 12]]


def test_a_start_makes_first_and_single_events_targets():
    held = with_start(events([1, 2, 7]), token=99)
    assert held.item.tolist() == [99, 1, 99, 2, 3, 99, *range(4, 11)]
    assert held.domain.tolist()[:6] == [-1, 0, -1, 1, 0, -1]
    assert held.sequence.tolist() == [0] * 2 + [1] * 3 + [2] * 8
    sequences = TrainingSequences(held, max_length=4)
    targets = sequences.batch(np.arange(len(sequences._start))).targets
    assert sorted(targets[targets != 0].tolist()) == list(range(1, 11))


def test_next_items_are_those_of_the_sequence_and_domain():
    held = events([5, 4])  # domains: 0 1 0 1 0 | 1 0 1 0
    expected = [
        [1, 3, 5],
        [2, 4, 0],
        [3, 5, 0],
        [4, 0, 0],
        [5, 0, 0],
        [6, 8, 0],
        [7, 9, 0],
        [8, 0, 0],
        [9, 0, 0],
    ]
    assert next_items(held, 3).tolist() == expected
    assert next_items(held.take(np.zeros(0, int)), 3).shape == (0, 3)


@pytest.mark.parametrize("columns", [1, 3])
def test_sampled_softmax_of_several_is_the_mean_over_each_rows_targets(columns):
    vectors = torch.randn(9, 6, requires_grad=True)
    items = torch.randn(17, 6, requires_grad=True)
    targets = torch.randint(0, 17, (9, 3))
    targets[2:, 2], targets[5:, 1] = -1, -1
    targets = targets[:, :columns]
    torch.manual_seed(3)
    found = sampled_softmax_loss_of_several(vectors, items, targets, 11)
    torch.manual_seed(3)
    drawn, rows = torch.randint(17, (11,)).tolist(), []
    for vector, row in zip(vectors, targets.tolist(), strict=True):
        others = [items[i] @ vector for i in drawn if i not in row]
        own = [items[i] @ vector for i in row if i >= 0]
        rows.append(torch.stack([-torch.stack([s, *others]).log_softmax(0)[0] for s in own]).mean())
    truth = torch.stack(rows).mean()
    torch.testing.assert_close(found, truth)
    for a, b in zip(
        torch.autograd.grad(found, (vectors, items)),
        torch.autograd.grad(truth, (vectors, items)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_row_whose_own_targets_are_all_that_was_drawn_has_no_loss_and_no_gradient():
    vectors, items = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4)
    loss = sampled_softmax_loss_of_several(vectors, items, torch.tensor([[0, 1], [1, 0]]), 5)
    loss.backward()
    assert loss.item() == 0
    assert not vectors.grad.any()


def test_softmax_loss_of_several_is_the_mean_over_each_rows_targets():
    vectors = torch.randn(9, 6, dtype=torch.double, requires_grad=True)
    items = torch.randn(17, 6, dtype=torch.double, requires_grad=True)
    targets = torch.randint(0, 17, (9, 3))
    targets[2:, 2], targets[5:, 1] = -1, -1
    log_p = (vectors @ items.T).log_softmax(1)
    expected = -torch.stack([log_p[i, t[t >= 0]].mean() for i, t in enumerate(targets)]).mean()
    for found, truth in (
        (softmax_loss_of_several(vectors, items, targets), expected),
        (
            softmax_loss_of_several(vectors, items, targets[:, :1]),
            F.cross_entropy(vectors @ items.T, targets[:, 0]),
        ),
    ):
        torch.testing.assert_close(found, truth)
        for a, b in zip(
            torch.autograd.grad(found, (vectors, items), retain_graph=True),
            torch.autograd.grad(truth, (vectors, items), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_a_thing_under_two_ids_is_read_once():
    held = events([4, 3])  # items 1 2 3 4 | 5 6 7
    token_key = np.array([0, 1, 2, 1, 2, 9, 9, 3])  # 3 is 1, 4 is 2, 6 is 5
    assert first_of_token(held, token_key).tolist() == [True, True, False, False, True, False, True]
    nothing_shared = np.arange(8)
    assert first_of_token(held, nothing_shared).all()
    items = {
        int(item)
        for part in TrainingSequences(held, 4, first_of_token(held, token_key)).parts(
            9, np.random.default_rng(0)
        )
        for item in TrainingSequences(held, 4, first_of_token(held, token_key))
        .batch(part)["target_seq"]
        .flatten()
    }
    assert items == {2, 7}


@pytest.mark.parametrize("n_items", [30, 5000])
def test_in_mixed_precision_products_are_rounded_and_sums_are_not(n_items):
    torch.manual_seed(0)
    vectors, items = torch.randn(600, 16, requires_grad=True), torch.randn(n_items, 16, requires_grad=True)
    target = torch.randint(n_items, (600,))
    single = torch.autograd.grad(softmax_loss(vectors, items, target), (vectors, items))
    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax_loss(vectors, items, target)
        assert softmax_loss(vectors.bfloat16(), items.bfloat16(), target).dtype == torch.float32
    mixed = torch.autograd.grad(loss, (vectors, items))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, softmax_loss(vectors, items, target), rtol=1e-3, atol=0)
    for one, other in zip(mixed, single, strict=True):
        assert 0 < (one - other).norm() < 0.02 * other.norm()


def test_in_mixed_precision_the_kl_is_not_rounded():
    mean, logvar = 0.05 * torch.randn(200, 64), 0.05 * torch.randn(200, 64)
    half = kl(Gaussian(mean.bfloat16(), logvar.bfloat16()))
    exact = kl(Gaussian(mean.bfloat16().double(), logvar.bfloat16().double()))
    torch.testing.assert_close(half.double(), exact, rtol=1e-4, atol=0)
