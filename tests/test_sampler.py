"""Training negatives and ranking candidates."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from recbole.sampler.sampler import Sampler
from support import load, random_domains

from recbole_cdr_ext.errors import CDRError
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
