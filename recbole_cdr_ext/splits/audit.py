"""Proof that what is asked cannot be looked up: checks that run after every split and every augmentation.

A *held-out pair* is a (user, item token) of a validation or test target. Tokens are compared, not ids, since one
token in two domains is the same thing. The checks cost a few sorts, so they are always on.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.splits.split import RatingSplit, Split, recall_rates


class LeakError(CDRError):
    """A held-out target can be reached from what a model is given."""


def held_out_pairs(split: Split) -> np.ndarray:
    """Returns the sorted (user, token) keys of the validation and test targets."""
    return np.unique(np.concatenate([_pairs(split, p.user, p.target) for p in (split.valid, split.test)]))


def audit_split(split: Split, *, time_respecting: bool, fail: bool = True) -> dict[str, int]:
    """Checks training data and histories; returns what was counted (all zero, or it raised).

    Args:
        split: what to check.
        time_respecting: whether other domains' histories, too, must end at the target's time.
        fail: raise at the first kind of leak; False only counts, for splits known to leak.

    Raises:
        LeakError: a held-out pair is among the training events, in a training instance's target or history, or in
            its own instance's history; or a history goes beyond its target's time.
    """
    secret = held_out_pairs(split)
    events = split.train_events
    held_out = (split.valid, split.test)
    counts = {
        "leak: held-out pairs among training interactions": _hits(
            secret, _pairs(split, events.user, events.item)
        ),
        "leak: held-out pairs as training targets": _hits(
            secret, _pairs(split, split.train.user, split.train.target)
        ),
        "leak: held-out pairs in training histories": _hits(secret, _history_pairs(split, split.train)),
        "leak: targets in their own instance's history": sum(_own_target_hits(split, p) for p in held_out),
        "leak: history items later than their target": (
            sum(_late(p, time_respecting) for p in (split.train, *held_out)) if split.ordered else 0
        ),
    }
    return _judge(counts, fail)


def audit_ratings(split: RatingSplit, *, fail: bool = True) -> dict[str, int]:
    """Checks the ratings that train; returns what was counted (all zero, or it raised).

    Raises:
        LeakError: a held-out user has a training rating in the target domain, or a held-out (user, item token) pair
            is among the training ratings of any domain.
    """
    span = int(split.token_key.max()) + 1
    held_out = [split.valid, split.test]
    secret = np.unique(
        np.concatenate([p.user.astype(np.int64) * span + split.token_key[p.item] for p in held_out])
    )
    users = np.unique(np.concatenate([p.user for p in held_out]))
    train = split.train.values()
    pairs = np.concatenate([p.user.astype(np.int64) * span + split.token_key[p.item] for p in train])
    return _judge(
        {
            "leak: held-out pairs among training ratings": _hits(secret, pairs),
            "leak: held-out users with training ratings in the target domain": _hits(
                users, split.train[split.target].user
            ),
            "leak: users both validated and tested": len(np.intersect1d(held_out[0].user, held_out[1].user)),
            "leak: held-out users among those the mapping learns from": _hits(users, split.overlapping),
        },
        fail,
    )


def audit_edges(
    split: Split, user: np.ndarray, item: np.ndarray, what: str, *, fail: bool = True
) -> dict[str, int]:
    """Checks the (user, item) pairs that something was made from: a graph's edges, a recall's mask.

    Raises:
        LeakError: a held-out pair is among them.
    """
    hits = _hits(held_out_pairs(split), _pairs(split, user, item))
    return _judge({f"leak: held-out pairs in {what}": hits}, fail)


def audit_recalled(split: Split, *, tolerance: float = 6.0, fail: bool = True) -> dict[str, int]:
    """Checks the pseudo-sequences of a split whose instances hold recalled items.

    A recalled item must be of the target's domain and not in the history. And targets must be recalled about as
    often for held-out instances as for training ones (each sequence's last): far more often means that the answers
    were looked up, never at all means that they were masked, which tells a model what the answer is not.

    Args:
        tolerance: how many standard errors the recall rates may differ by, if one is twice the other too.

    Raises:
        LeakError: one of these is violated.
    """
    counts: dict[str, int] = {}
    for name in ("train", "valid", "test"):
        part = split.part(name)
        assert part.recalled is not None
        low = split.item_offset[part.domain][:, None]
        high = split.item_offset[part.domain + 1][:, None]
        real = part.recalled > 0
        wrong = real & ((part.recalled < low) | (part.recalled >= high))
        counts[f"leak: recalled items of another domain ({name})"] = int(wrong.sum())
        counts[f"leak: recalled items that stand in the history ({name})"] = _recalled_from_history(part)
    rates = recall_rates(split)
    suspicious = _rates_differ(rates["train"], rates["held-out"], tolerance)
    counts["leak: targets recalled at another rate for held-out users"] = int(suspicious)
    return _judge(counts, fail)


def audit_candidates(
    split: Split, instances: Instances, blocks: Iterable[tuple[np.ndarray, np.ndarray]], *, fail: bool = True
) -> dict[str, int]:
    """Checks ranking candidates: none but the target may be an item that the user ever touched.

    Args:
        blocks: iterable of (rows, candidates (B, C) with the target in column 0).

    Raises:
        LeakError: a negative is an item the user touched, of another domain, or the target itself.
    """
    span = np.int64(split.item_offset[-1])
    touched = np.repeat(np.arange(split.n_users), np.diff(split.touched.indptr)) * span + split.touched.items
    false = foreign = 0
    for rows, candidates in blocks:
        negatives = candidates[:, 1:]
        real = negatives > 0
        false += int(np.isin(instances.user[rows][:, None] * span + negatives, touched)[real].sum())
        low, high = split.item_offset[instances.domain[rows]], split.item_offset[instances.domain[rows] + 1]
        foreign += int(((negatives < low[:, None]) | (negatives >= high[:, None]))[real].sum())
    return _judge(
        {"leak: candidates that the user touched": false, "leak: candidates of another domain": foreign}, fail
    )


def _rates_differ(first: tuple[int, int], second: tuple[int, int], tolerance: float) -> bool:
    (a, n), (b, m) = first, second
    if not n or not m:
        return n != m  # one side has pseudo-sequences, the other none
    pooled = (a + b) / (n + m)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    low, high = sorted((a / n, b / m))
    return bool(error > 0 and high - low > tolerance * error and high > 2 * low)


def _pairs(split: Split, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    pairs: np.ndarray = user.astype(np.int64) * (int(split.token_key.max()) + 1) + split.token_key[item]
    return pairs


def _hits(secret: np.ndarray, pairs: np.ndarray) -> int:
    return int(np.isin(secret, pairs).sum())


def _history_pairs(split: Split, instances: Instances) -> np.ndarray:
    """Returns the pairs that any history of these instances holds: the union of their ranges, without walking each."""
    pool = instances.pool
    depth = np.zeros(len(pool.item) + 1, np.int64)
    np.add.at(depth, instances.start.ravel(), 1)
    np.add.at(depth, instances.stop.ravel(), -1)
    covered = np.cumsum(depth[:-1]) > 0
    return _pairs(split, pool.user[covered], pool.item[covered])


def _flat_histories(instances: Instances, domain: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns all history items of one domain as (row, pool position) pairs."""
    length = instances.lengths[:, domain]
    row = np.repeat(np.arange(len(instances)), length)
    place = (
        np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length) + instances.start[row, domain]
    )
    return row, place


def _own_target_hits(split: Split, instances: Instances) -> int:
    hits = 0
    for k in range(split.n_domains):
        row, place = _flat_histories(instances, k)
        same = split.token_key[instances.pool.item[place]] == split.token_key[instances.target[row]]
        hits += int(same.sum())
    return hits


def _late(instances: Instances, all_domains: bool) -> int:
    """Returns how many histories have a last item after the target."""
    late = 0
    for k in range(instances.start.shape[1]):
        some = instances.lengths[:, k] > 0
        if not all_domains:
            some &= instances.domain == k
        last = instances.pool.time[instances.stop[some, k] - 1]
        late += int((last > instances.time[some]).sum())
    return late


def _recalled_from_history(instances: Instances) -> int:
    assert instances.recalled is not None
    span = np.int64(max(instances.pool.item.max(initial=0), instances.recalled.max(initial=0)) + 1)
    hits = 0
    for k in range(instances.start.shape[1]):
        row, place = _flat_histories(instances, k)
        in_target = instances.domain[row] == k
        seen = row[in_target] * span + instances.pool.item[place[in_target]]
        recalled = np.arange(len(instances))[:, None] * span + instances.recalled
        hits += int(np.isin(recalled[instances.recalled > 0], seen).sum()) if in_target.any() else 0
    return hits


def _judge(counts: dict[str, int], fail: bool) -> dict[str, int]:
    leaks = {what: count for what, count in counts.items() if count}
    if leaks and fail:
        listed = "; ".join(f"{what.removeprefix('leak: ')}: {count}" for what, count in leaks.items())
        raise LeakError(f"The data leak what is to be predicted. {listed}. Nothing was trained.")
    return counts
