"""What batches are made from: training negatives, ranking candidates, and whole sequences."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recbole.sampler import Sampler
from support import load, random_domains

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.sequences import (
    TrainingSequences,
    behind_the_others,
    first_of_token,
    next_items,
    with_start,
)
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import Gaussian, kl
from recbole_cdr_ext.model.parts.losses import (
    sampled_softmax_loss_of_several,
    softmax_loss,
    softmax_loss_of_several,
)
from recbole_cdr_ext.splits.audit import audit_candidates
from recbole_cdr_ext.splits.sampler import CrossDomainSampler


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(tmp_path_factory.mktemp("data"), random_domains(n_users=150, n_items=60))


def test_negatives_are_of_the_domain_and_never_trained_on(loaded):
    split, sampler = loaded.split, CrossDomainSampler(loaded.split)
    assert isinstance(sampler, Sampler)
    trained = set(zip(split.train_events.user, split.train_events.item, strict=True))
    for k in (0, 1):
        users = np.repeat(np.unique(split.train.user), 20)
        drawn = sampler.negatives(users, k, 7, np.random.default_rng(0))
        assert drawn.shape == (len(users), 7)
        assert drawn.min() >= split.item_offset[k] and drawn.max() < split.item_offset[k + 1]
        assert not any((u, i) in trained for u, row in zip(users, drawn, strict=True) for i in row)


def test_negatives_are_uniform_over_what_is_left(loaded):
    split, sampler = loaded.split, CrossDomainSampler(loaded.split)
    user = int(split.train.user[0])
    drawn = sampler.negatives(np.full(4000, user), 0, 10, np.random.default_rng(1)).ravel()
    mine = split.train_events.item[(split.train_events.user == user) & (split.train_events.domain == 0)]
    allowed = np.setdiff1d(np.arange(*split.item_offset[:2]), mine)
    counts = np.bincount(drawn, minlength=split.item_offset[1])[allowed]
    expected = len(drawn) / len(allowed)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < len(allowed) + 5 * np.sqrt(2 * len(allowed))


def test_recboles_interface_keeps_its_order(loaded):
    split, sampler = loaded.split, CrossDomainSampler(loaded.split)
    users, items = split.train_events.user[:50], split.train_events.item[:50]
    drawn = sampler.sample_by_user_ids(users, items, 3).numpy().reshape(3, 50)
    domain = split.train_events.domain[:50]
    assert (drawn >= split.item_offset[domain]).all() and (drawn < split.item_offset[domain + 1]).all()


def test_a_user_with_every_item_gets_one_clear_error(tmp_path):
    rows = random_domains(n_users=40, n_items=10, length=4)
    rows["books"] += [("glutton", f"b{i}", float(i)) for i in range(10)]
    loaded = load(tmp_path, rows, split="leave_one_out")
    sampler = CrossDomainSampler(loaded.split)
    everything = np.full(5, loaded.user("glutton"))
    # The last two of the ten are held out, so there are two to draw; with these trained on, there are none.
    sampler.negatives(everything, 0, 1, np.random.default_rng(0))
    sampler._trained_pairs = np.sort(
        np.append(sampler._trained_pairs, everything[0] * sampler.item_num + np.arange(1, 11))
    )
    with pytest.raises(CDRError, match="no negative"):
        sampler.negatives(everything, 0, 1, np.random.default_rng(0))


def test_a_user_with_nearly_every_item_gets_the_candidates_there_are(tmp_path):
    rows = random_domains(n_users=40, n_items=40, length=4)
    rows["books"] += [("glutton", f"b{i}", float(i)) for i in range(33)]
    loaded = load(tmp_path, rows, split="leave_one_out")
    test, user = loaded.split.test, loaded.user("glutton")
    candidates = CrossDomainSampler(loaded.split, 3).candidates(test, "uni10")
    (row,) = np.flatnonzero((test.user == user) & (test.domain == 0))
    assert candidates.counts[row] == 40 - 33 + 1
    for rows_, block in candidates.blocks():
        for place, ids in zip(rows_, block, strict=True):
            real = ids[ids > 0]
            assert len(set(real)) == len(real) == candidates.counts[place]


@pytest.mark.parametrize("mode", ["uni5", "pop5", "uni40", "uni999", "pop999"])
def test_candidates_are_distinct_and_untouched(loaded, mode):
    split = loaded.split
    candidates = CrossDomainSampler(split, 3).candidates(split.test, mode)
    audit_candidates(split, split.test, candidates.blocks())
    for rows, block in candidates.blocks():
        assert (block[:, 0] == split.test.target[rows]).all()
        for row, ids in zip(rows, block, strict=True):
            real = ids[ids > 0]
            assert len(set(real)) == len(real) == candidates.counts[row]
    asked = int(mode[3:])
    if asked == 999:
        assert set(candidates.reduced) == {0, 1}  # sixty items: all of them are ranked, and that is said
        touched = {u: set(split.touched.rows(np.array([u]))[1]) for u in np.unique(split.test.user)}
        for row in range(len(split.test)):
            low, high = (
                split.item_offset[split.test.domain[row]],
                split.item_offset[split.test.domain[row] + 1],
            )
            left = set(range(low, high)) - touched[split.test.user[row]]
            assert candidates.counts[row] == len(left) + 1
    else:
        assert candidates.reduced == {} and (candidates.counts == asked + 1).all()


def test_candidates_depend_on_their_seed_alone(loaded):
    split = loaded.split
    first, same, other = (
        CrossDomainSampler(split, s).candidates(split.test, "uni5").block(np.arange(9)) for s in (1, 1, 2)
    )
    assert (first == same).all() and (first != other).any()


def test_large_catalogues_are_sampled_uniformly_without_replacement(tmp_path):
    rows = random_domains(n_users=60, n_items=30)
    rows["books"] += [(f"filler{i // 3}", f"x{i}", float(i)) for i in range(600)]
    loaded = load(tmp_path, rows, split="leave_one_out")
    split = loaded.split
    assert np.diff(split.item_offset)[0] > 4 * 50  # large enough for the rejection sampler
    drawn = []
    for seed in range(60):
        candidates = CrossDomainSampler(split, seed).candidates(split.test, "uni50")
        block = candidates.block(np.flatnonzero(split.test.domain == 0)[:10])
        assert all(len(set(row)) == 51 for row in block)
        drawn.append(block[:, 1:].ravel())
    counts = np.bincount(np.concatenate(drawn), minlength=split.item_offset[1])[1:]
    fillers = counts[[loaded.id_of("books", f"x{i}") - 1 for i in range(600)]]
    expected = fillers.mean()
    assert ((fillers - expected) ** 2 / expected).sum() < 600 + 5 * np.sqrt(1200)


def test_popular_candidates_are_popular(loaded):
    split = loaded.split
    popularity = np.bincount(split.train_events.item, minlength=split.item_offset[-1])
    uniform, popular = (
        CrossDomainSampler(split, 0).candidates(split.test, mode).block(np.arange(len(split.test)))[:, 1:]
        for mode in ("uni5", "pop5")
    )
    assert popularity[popular].mean() > 1.05 * popularity[uniform].mean()


def test_full_mode_masks_what_was_touched_but_not_the_target(loaded):
    split = loaded.split
    candidates = CrossDomainSampler(split).candidates(split.test, "full")
    rows = np.arange(len(split.test))
    row, local = candidates.touched(rows)
    item = local + split.item_offset[split.test.domain[row]]
    assert not (item == split.test.target[row]).any()
    n_items = np.diff(split.item_offset)[split.test.domain]
    assert (n_items - np.bincount(row, minlength=len(rows)) == candidates.counts).all()


def test_an_unknown_mode_is_one_clear_error(loaded):
    with pytest.raises(CDRError, match="uni999"):
        CrossDomainSampler(loaded.split).candidates(loaded.split.test, "uniform")


def test_a_pool_restricts_the_negatives(loaded):
    split = loaded.split
    pool = np.zeros(split.item_offset[-1], bool)
    pool[::2] = True
    for mode in ("uni5", "pop5", "uni999"):
        candidates = CrossDomainSampler(split, 1).candidates(split.test, mode, pool)
        audit_candidates(split, split.test, candidates.blocks())
        for rows, block in candidates.blocks():
            assert pool[block[:, 1:][block[:, 1:] > 0]].all()
            assert ((block > 0).sum(1) == candidates.counts[rows]).all()


def test_candidates_that_find_no_room_are_one_clear_error(loaded, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # A page of a sparse file that the disk has no room for ends the program by a signal, so the room is taken first.
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CDRError, match=r"need .* MiB in .*No space left.* TMPDIR"):
        CrossDomainSampler(loaded.split).candidates(loaded.split.test, "uni9")


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
    sequences = TrainingSequences(held, max_length=4, target_mask=np.isin(held.item, (1, 5, 11, 12)))
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
