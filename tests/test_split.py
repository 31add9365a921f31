"""Splits, groups and the leak audit, on data small enough to check by eye and on data large enough to matter."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support import load, random_domains

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.splits.audit import (
    LeakError,
    audit_candidates,
    audit_edges,
    audit_recalled,
    audit_split,
    held_out_pairs,
)
from recbole_cdr_ext.splits.maker import long_tail_thresholds
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.splits.split import UserItems, groups, recall_rates


def tokens(loaded, items) -> list[str]:
    return list(loaded.dataset.item_token(items))


def held_out_of(loaded, user: str):
    """(part, row) of every held-out instance of a user, by domain name."""
    found = {}
    for part in (loaded.split.valid, loaded.split.test):
        for row in np.flatnonzero(part.user == loaded.user(user)):
            found[loaded.dataset.domains[part.domain[row]]] = (part, row)
    return found


ONE_USER_EACH = {"split_ratio": [0.4, 0.3, 0.3], "cold_start_ratio": 0.0}


@pytest.fixture
def timed(tmp_path):
    """Ten users alike: books at 1, 3, 5 and films at 2, 4, 6."""
    books = [(f"u{u}", f"b{i}", t) for u in range(10) for i, t in enumerate((1, 3, 5))]
    films = [(f"u{u}", f"f{i}", t) for u in range(10) for i, t in enumerate((2, 4, 6))]

    def make(**settings):
        fractions = {} if "split" in settings else ONE_USER_EACH
        return load(tmp_path, {"books": books, "films": films}, **fractions, **settings)

    return make


def test_user_split_asks_for_the_last_item_and_ends_histories_at_its_time(timed):
    loaded = timed()
    user = loaded.dataset.id2token("user_id", loaded.split.test.user[0])
    found = held_out_of(loaded, user)
    part, row = found["books"]
    assert tokens(loaded, [part.target[row]]) == ["b2"]
    assert tokens(loaded, part.history(row, 0)) == ["b0", "b1"]
    assert tokens(loaded, part.history(row, 1)) == ["f0", "f1"]  # at 2 and 4; 6 is later than the target's 5
    part, row = found["films"]
    assert tokens(loaded, part.history(row, 0)) == ["b0", "b1", "b2"]


def test_ignoring_time_shows_the_whole_other_domain(timed):
    loaded = timed(time_respecting=False)
    part, row = held_out_of(loaded, loaded.dataset.id2token("user_id", loaded.split.test.user[0]))["books"]
    assert tokens(loaded, part.history(row, 1)) == ["f0", "f1", "f2"]


def test_held_out_users_train_on_what_they_did_before_the_earlier_target(timed):
    for train_on_histories, expected in ((True, {"b0", "b1", "f0", "f1"}), (False, set())):
        loaded = timed(train_on_histories=train_on_histories)
        events = loaded.split.train_events
        mine = events.user == loaded.split.test.user[0]
        assert set(tokens(loaded, events.item[mine])) == expected


def test_train_targets_last_and_all(timed):
    last, every = timed(train_targets="last"), timed(train_targets="all")
    trained = set(
        last.split.train_events.user[last.split.train_events.time == 6]
    )  # only training users reach 6
    for user in trained:
        assert (last.split.train.user == user).sum() == 2
        assert (every.split.train.user == user).sum() == 5  # six events, the first without any history
    rows = np.flatnonzero(every.split.train.user == next(iter(trained)))
    seen = {
        tokens(every, [every.split.train.target[r]])[0]: (
            tokens(every, every.split.train.history(r, 0)),
            tokens(every, every.split.train.history(r, 1)),
        )
        for r in rows
    }
    assert seen["f1"] == (["b0", "b1"], ["f0"])
    assert seen["b1"] == (["b0"], ["f0"])


def test_cold_start_users_lose_one_domain_everywhere(tmp_path):
    loaded = load(tmp_path, random_domains(n_users=200), cold_start_ratio=0.5)
    split, n_cold = loaded.split, 0
    for part in (split.valid, split.test):
        for row in np.flatnonzero(groups(split, part)["cold"]):
            user, domain = part.user[row], part.domain[row]
            mine = split.train_events.user == user
            if (part.user == user).sum() > 1:
                continue  # cold by nature: a single interaction in that domain
            n_cold += 1
            assert not (split.train_events.domain[mine] == domain).any()
            # Its hidden items are touched all the same: they never become negatives.
            event = loaded.dataset.events
            whole = event.item[(event.user == user) & (event.domain == domain)]
            _, touched = split.touched.rows(np.array([user]))
            assert set(whole) <= set(touched)
    assert n_cold >= 10


def test_order_none_asks_for_random_items_and_shuffles(tmp_path):
    rows = {"books": [(f"u{u}", f"b{i}", i) for u in range(200) for i in range(5)]}
    rows["films"] = [(f"u{u}", f"f{i}", i) for u in range(200) for i in range(5)]
    loaded = load(tmp_path, rows, order="none", cold_start_ratio=0.0)
    books = loaded.split.test.domain == 0
    asked = set(tokens(loaded, loaded.split.test.target[books]))
    assert asked == {"b0", "b1", "b2", "b3", "b4"}
    firsts = {tokens(loaded, loaded.split.test.history(r, 0))[0] for r in np.flatnonzero(books)}
    assert len(firsts) == 5
    # The other domain's target is withheld: four of five remain.
    assert set(loaded.split.test.lengths[books, 1]) == {4}


def test_leave_one_out(timed):
    loaded = timed(split="leave_one_out")
    split = loaded.split
    assert len(split.test) == len(split.valid) == 10
    assert set(tokens(loaded, split.test.target)) == {"f2"}
    assert set(tokens(loaded, split.valid.target)) == {"b2"}
    assert tokens(loaded, split.test.history(0, 0)) == [
        "b0",
        "b1",
        "b2",
    ]  # the validation target is history now
    assert tokens(loaded, split.valid.history(0, 1)) == ["f0", "f1"]
    assert set(tokens(loaded, split.train_events.item)) == {"b0", "b1", "f0", "f1"}


def test_leave_one_out_refuses_data_without_an_order(timed):
    with pytest.raises(CDRError, match="leave_one_out"):
        timed(split="leave_one_out", order="none")


def test_density_thins_histories_and_keeps_targets(tmp_path):
    rows = random_domains(n_users=200)
    full, thin = load(tmp_path / "a", rows), load(tmp_path / "b", rows, density=0.25)
    assert set(zip(thin.split.test.user, thin.split.test.target, strict=True)) <= set(
        zip(full.split.test.user, full.split.test.target, strict=True)
    )
    assert thin.split.test.lengths.sum() < 0.4 * full.split.test.lengths.sum()
    assert len(thin.split.train_events) < 0.6 * len(full.split.train_events)


def test_overlap_ratio_removes_overlapping_training_users_and_keeps_the_test(tmp_path):
    rows = random_domains(n_users=200)
    full, none = load(tmp_path / "a", rows), load(tmp_path / "b", rows, overlap_ratio=0.0)
    assert (full.split.test.target == none.split.test.target).all()
    events = none.split.train_events
    domains_of = {u: len(set(events.domain[events.user == u])) for u in np.unique(events.user)}
    assert set(domains_of.values()) == {1}
    assert any(
        len(set(full.split.train_events.domain[full.split.train_events.user == u])) == 2
        for u in range(1, 200)
    )


def test_overlap_ratio_leaves_the_groups_of_test_users(tmp_path):
    """Users of both domains have the long histories: thresholds without them would be others."""
    rows = {
        name: [(f"u{u}", f"{name}{u % 7}-{i}", 10 * i + k) for u in users for i in range(2 + (u < 60) * 8)]
        for k, (name, users) in enumerate(
            {"books": range(160), "films": (*range(60), *range(160, 260))}.items()
        )
    }
    full, none = load(tmp_path / "a", rows), load(tmp_path / "b", rows, overlap_ratio=0.0)
    assert none.split.thresholds == full.split.thresholds
    assert max(full.split.thresholds) > 1  # what the single-domain users alone would give
    a, b = (groups(of.split, of.split.test) for of in (full, none))
    assert all((a[name] == b[name]).all() for name in a)


def test_target_token_is_removed_from_the_other_domain(tmp_path):
    rows = {
        "books": [(f"u{u}", i, t) for u in range(30) for i, t in (("same", 1), ("b1", 2), ("b2", 3))],
        "films": [(f"u{u}", i, t) for u in range(30) for i, t in (("f1", 4), ("f2", 5), ("same", 6))],
    }
    loaded = load(tmp_path, rows, cold_start_ratio=0.0)
    films = np.flatnonzero(loaded.split.test.domain == 1)
    assert len(films)
    for row in films:
        assert tokens(loaded, [loaded.split.test.target[row]]) == ["same"]
        assert tokens(loaded, loaded.split.test.history(row, 0)) == ["b1", "b2"]
    assert (
        loaded.split.report["interactions of held-out users with a target's token removed"] == 6
    )  # three and three held-out users


def test_groups_and_threshold(tmp_path):
    # Training users with 2, 3, 4, 5, 11 books: histories 1, 2, 3, 4, 10; the shortest 80 % have a mean of 10/4.
    sequence = np.repeat(np.arange(5), [2, 3, 4, 5, 11])
    events = SimpleNamespace(sequence=sequence, domain=np.zeros(len(sequence), int))
    assert long_tail_thresholds(events, 1) == [int(10 / 4)]
    loaded = load(tmp_path, random_domains(n_users=200))
    part, masks = loaded.split.test, groups(loaded.split, loaded.split.test)
    own, other = part.own_length, part.lengths.sum(1) - part.own_length
    assert not (masks["tailed"] & masks["cold"]).any()
    assert (other[masks["cold"]] > 0).all() and (own[masks["cold"]] == 0).all()
    assert (own[masks["tailed"]] >= 1).all()
    assert (own[masks["tailed"]] <= np.array(loaded.split.thresholds)[part.domain[masks["tailed"]]]).all()


def test_one_seed_one_split(tmp_path):
    rows = random_domains()
    same, other = load(tmp_path / "a", rows, seed=1), load(tmp_path / "b", rows, seed=2)
    assert (same.split.test.target == other.split.test.target).all(), "seed must not touch the split"
    assert same.split.fingerprint == other.split.fingerprint
    moved = load(tmp_path / "c", rows, split_seed=7)
    assert moved.split.fingerprint != same.split.fingerprint
    assert list(moved.split.test.user) != list(same.split.test.user)


# -- the audit finds what is planted ------------------------------------------------------------------------------


@pytest.fixture
def clean(tmp_path):
    return load(tmp_path, random_domains(n_users=200), train_targets="last")


def recalled(split, seed=0):
    rng = np.random.default_rng(seed)
    from recbole_cdr_ext.data.instances import random_recall

    return replace(
        split,
        **{
            p: replace(split.part(p), recalled=random_recall(split.part(p), split.item_offset, 5, rng))
            for p in ("train", "valid", "test")
        },
    )


def test_no_leak_is_found_where_there_is_none(clean):
    assert all(v == 0 for k, v in clean.split.report.items() if k.startswith("leak"))
    events = clean.split.train_events
    audit_edges(clean.split, events.user, events.item, "the graph's edges")
    audit_recalled(recalled(clean.split))


def test_a_planted_training_interaction_is_found(clean):
    split = clean.split
    events = split.train_events
    item, user = events.item.copy(), events.user.copy()
    user[0], item[0] = split.test.user[0], split.test.target[0]
    leaking = replace(split, train_events=replace(events, user=user, item=item))
    with pytest.raises(LeakError, match="among training interactions: 1"):
        audit_split(leaking, time_respecting=True)


def test_a_target_in_a_training_history_is_found(clean):
    split, test = clean.split, clean.split.test
    row = int(np.flatnonzero(test.own_length > 0)[0])
    spot = np.flatnonzero(split.train.user == test.user[row])
    assert len(spot), "the user trains on part of the history"
    pool, train = split.train.pool, split.train
    extra = replace(
        pool,
        item=np.append(pool.item, test.target[row]),
        user=np.append(pool.user, test.user[row]),
        order=np.append(pool.order, 0),
        time=np.append(pool.time, 0.0),
    )
    start, stop = train.start.copy(), train.stop.copy()
    start[spot[0], test.domain[row]], stop[spot[0], test.domain[row]] = len(pool.item), len(pool.item) + 1
    leaking = replace(split, train=replace(train, start=start, stop=stop, pool=extra))
    with pytest.raises(LeakError, match="in training histories: 1"):
        audit_split(leaking, time_respecting=True)


def test_a_target_in_its_own_history_is_found(clean):
    split, test = clean.split, clean.split.test
    stop = test.stop.copy()
    stop[np.arange(len(test)), test.domain] += test.own_length > 0  # one too far: the target itself
    leaking = replace(split, test=replace(test, stop=stop))
    with pytest.raises(LeakError, match="own instance's history"):
        audit_split(leaking, time_respecting=True)


def test_a_history_beyond_its_target_is_found(clean):
    late = replace(clean.split.test, time=clean.split.test.time - 1e9)
    with pytest.raises(LeakError, match="later than their target"):
        audit_split(replace(clean.split, test=late), time_respecting=True)


def test_a_planted_graph_edge_is_found(clean):
    split = clean.split
    user = np.append(split.train_events.user, split.valid.user[3])
    item = np.append(split.train_events.item, split.valid.target[3])
    with pytest.raises(LeakError, match="the graph's edges: 1"):
        audit_edges(split, user, item, "the graph's edges")


def test_planted_pseudo_sequences_are_found(clean):
    split = recalled(clean.split)
    looked_up = split.test.recalled.copy()
    looked_up[:, 0] = split.test.target
    with pytest.raises(LeakError, match="another rate"):
        audit_recalled(replace(split, test=replace(split.test, recalled=looked_up)))
    row = int(np.flatnonzero(split.test.own_length > 0)[0])
    seen = split.test.recalled.copy()
    seen[row, 0] = split.test.history(row, int(split.test.domain[row]))[0]
    with pytest.raises(LeakError, match=r"stand in the history \(test\): 1"):
        audit_recalled(replace(split, test=replace(split.test, recalled=seen)))
    foreign = split.train.recalled.copy()
    foreign[0, 0] = split.item_offset[1] if split.train.domain[0] == 0 else 1
    with pytest.raises(LeakError, match=r"another domain \(train\): 1"):
        audit_recalled(replace(split, train=replace(split.train, recalled=foreign)))


@pytest.mark.parametrize("parts", [("train",), ("valid", "test")])
def test_pseudo_sequences_on_one_side_alone_are_found(clean, parts):
    """What training never saw says something at the test, and the other way round."""
    split = recalled(clean.split)
    none = {p: replace(split.part(p), recalled=np.zeros_like(split.part(p).recalled)) for p in parts}
    with pytest.raises(LeakError, match="another rate"):
        audit_recalled(replace(split, **none))


def test_masking_the_targets_out_of_the_recall_is_found(clean):
    """Never recalling a held-out target tells a model what the answer is not."""
    split = recalled(clean.split)
    for part in ("train", "valid", "test"):
        hits = split.part(part).recalled == split.part(part).target[:, None]
        assert hits.any()
    masked = {}
    for part in ("valid", "test"):
        items = split.part(part).recalled.copy()
        items[items == split.part(part).target[:, None]] = 0
        masked[part] = replace(split.part(part), recalled=items)
    leaking = replace(split, **masked)
    assert recall_rates(leaking)["held-out"][0] == 0
    with pytest.raises(LeakError, match="another rate"):
        audit_recalled(leaking, tolerance=3)


def test_planted_candidates_are_found(clean):
    split = clean.split
    candidates = CrossDomainSampler(split, 1).candidates(split.test, "uni5")
    audit_candidates(split, split.test, candidates.blocks())
    rows, block = next(iter(candidates.blocks()))
    row = int(np.flatnonzero(split.test.own_length > 0)[0])
    block = block.copy()
    block[row, 2] = split.test.history(row, int(split.test.domain[row]))[0]
    with pytest.raises(LeakError, match="that the user touched: 1"):
        audit_candidates(split, split.test, [(rows, block)])


def test_held_out_pairs_compare_tokens_not_ids(tmp_path):
    rows = random_domains(n_users=40)
    rows["films"] = [
        (u, i.replace("f", "b"), t) for u, i, t in rows["films"]
    ]  # one set of tokens in both domains
    loaded = load(tmp_path, rows)
    split, test = loaded.split, loaded.split.test
    twin = {
        t: i
        for i, t in enumerate(loaded.dataset.item_token(np.arange(loaded.dataset.item_num)))
        if i >= split.item_offset[1]
    }
    row = int(np.flatnonzero(test.domain == 0)[0])
    token = str(loaded.dataset.item_token(test.target[row]))
    assert len(held_out_pairs(split)) <= len(split.valid) + len(split.test)
    with pytest.raises(LeakError):
        audit_edges(split, test.user[[row]], np.array([twin[token]]), "edges")


def test_user_items():
    pairs = UserItems.of(np.array([2, 0, 2, 2]), np.array([5, 1, 3, 5]), 4)
    row, item = pairs.rows(np.array([2, 1, 0]))
    assert list(zip(row, item, strict=True)) == [(0, 3), (0, 5), (2, 1)]
