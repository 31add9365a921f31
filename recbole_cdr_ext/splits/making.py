"""Who is trained on, who is asked about, and what each may know: the three splits and the user groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset, Events, data_key
from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.data.timeline import Timeline
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.splits.audit import audit_split
from recbole_cdr_ext.splits.interaction_split import PARTS, Split
from recbole_cdr_ext.splits.keys import SPLIT_KEYS
from recbole_cdr_ext.splits.user_items import UserItems


def make_split(config, dataset: CrossDomainDataset) -> Split:
    """Splits a dataset as ``config['split']`` says, and audits the result for leaks.

    Raises:
        CDRError: the split does not fit the data, leaves a part empty, or leaks.
    """
    name = config["split"]
    maker = {"user": _user_split, "leave_one_out": _leave_one_out, "published": _published}[name]
    report: dict[str, object] = dict(dataset.report)
    parts, train_events, thresholds = maker(config, dataset, report)
    finished = {p: _finish(parts[p], dataset.token_key, p, report) for p in PARTS}
    for part in PARTS:
        if len(finished[part]) == 0:
            raise CDRError(
                f"split={name} leaves no {part} instance of {dataset}. "
                f"Check split_ratio, overlap_ratio, density and the filters: {report}"
            )
    events = dataset.events
    split = Split(
        name=name,
        train_events=train_events,
        touched=UserItems.of(events.user, events.item, dataset.user_num),
        thresholds=thresholds,
        n_users=dataset.user_num,
        item_offset=dataset.item_offset,
        token_key=dataset.token_key,
        ordered=dataset.order != "none",
        train_targets=config["train_targets"],
        fingerprint=_fingerprint(config, dataset),
        report=report,
        test_items=_test_items(dataset) if name == "published" else None,
        train=finished["train"],
        valid=finished["valid"],
        test=finished["test"],
    )
    respecting = name == "leave_one_out" or (name == "user" and _time_respecting(config, dataset))
    report.update(audit_split(split, time_respecting=respecting, fail=name != "published"))
    dataset.split = split
    return split


def _fingerprint(config, dataset: CrossDomainDataset) -> str:
    return data_key(dataset.fingerprint, *(f"{key}={config[key]}" for key in SPLIT_KEYS))


# -- the default: users fall into parts --------------------------------------------------------------------------


def _user_split(
    config, dataset: CrossDomainDataset, report: dict
) -> tuple[dict[str, Instances], Events, list[int]]:
    events, n_domains = dataset.events, dataset.n_domains
    rng = np.random.default_rng(int(config["split_seed"]))
    counts = np.zeros((dataset.user_num, n_domains), np.int64)
    np.add.at(counts, (events.user, events.domain), 1)
    overlapping = (counts > 0).sum(1) >= 2
    part = _draw_parts(np.unique(events.user), dataset.user_num, config["split_ratio"], rng)
    cold_domain = _draw_cold(part, counts, float(config["cold_start_ratio"]), rng)
    removed = _draw_removed(part, overlapping, float(config["overlap_ratio"]), rng)
    report["users in train / valid / test"] = [int((part == p).sum()) for p in range(3)]
    report["overlapping users in train / valid / test"] = [
        int((overlapping & (part == p)).sum()) for p in range(3)
    ]
    report["cold-start users in valid / test"] = [
        int(((cold_domain >= 0) & (part == p)).sum()) for p in (1, 2)
    ]

    last = np.zeros(len(events), bool)
    last[Timeline(events, dataset.user_num - 1, n_domains).last_of_blocks()] = True
    hidden = (cold_domain[events.user] == events.domain) & ~last
    thinned = ~last & (rng.random(len(events)) >= float(config["density"]))
    report["interactions hidden from cold-start users"] = int(hidden.sum())
    report["interactions thinned away (density)"] = int((thinned & ~hidden).sum())
    report["overlapping training users removed (overlap_ratio)"] = int(removed.sum())

    timeline = Timeline(
        events.take(~(hidden | thinned | removed[events.user])), dataset.user_num - 1, n_domains
    )
    kept = timeline.events
    # Held-out users are asked about the last item of each domain; cold-start users of the one they lost.
    asked = np.zeros(len(kept), bool)
    asked[timeline.last_of_blocks()] = True
    asked &= part[kept.user] > 0
    asked &= (cold_domain[kept.user] < 0) | (cold_domain[kept.user] == kept.domain)
    timeline, asked = _without_held_out_tokens(timeline, asked, dataset, report)
    kept, rank = timeline.events, np.arange(len(timeline.events))
    respecting = _time_respecting(config, dataset)
    others = "ties" if respecting else "whole"
    withheld = None
    earliest = np.full(dataset.user_num, len(kept))
    if dataset.order == "none":
        # Without an order no history item is later than a target, so the other domains' targets are taken out.
        withheld = np.zeros(len(timeline.block_start), bool)
        withheld[timeline.block[asked]] = True
    else:
        np.minimum.at(earliest, kept.user[asked], rank[asked])

    learns = part[kept.user] == 0
    if config["train_on_histories"]:
        told = (part[kept.user] > 0) & ~asked & (rank < earliest[kept.user])
        if float(config["overlap_ratio"]) < 1:
            told &= ~overlapping[kept.user]
        learns |= told
    targets = np.flatnonzero(learns) if config["train_targets"] == "all" else timeline.last_of_blocks(learns)
    parts = {
        "train": timeline.instances(
            targets, others=others, limit=earliest[kept.user[targets]], withheld=withheld
        )
    }
    for index, name in ((1, "valid"), (2, "test")):
        ranks = rank[asked & (part[kept.user] == index)]
        parts[name] = timeline.instances(ranks, others=others, withheld=withheld)
    # Of all training users, so that the groups of test users are the same whatever overlap_ratio leaves.
    in_training = events.take((part[events.user] == 0) & ~thinned)
    return parts, kept.take(learns), _thresholds(in_training.sequence, in_training.domain, n_domains)


def _without_held_out_tokens(
    timeline: Timeline, held_out: np.ndarray, dataset: CrossDomainDataset, report: dict
) -> tuple[Timeline, np.ndarray]:
    """Takes out what says a target's token in another domain: the same thing under a second id.

    Args:
        held_out: (m,) non-zero for the target events, which stay.
    """
    events, span = timeline.events, int(dataset.token_key.max()) + 1
    pair = events.user.astype(np.int64) * span + dataset.token_key[events.item]
    double = np.isin(pair, pair[held_out != 0]) & (held_out == 0)
    report["interactions of held-out users with a target's token removed"] = int(double.sum())
    if not double.any():
        return timeline, held_out
    return Timeline(events.take(~double), dataset.user_num - 1, dataset.n_domains), held_out[~double]


def _draw_parts(users: np.ndarray, n_users: int, ratio, rng: np.random.Generator) -> np.ndarray:
    """Returns 0 (train), 1 (valid) or 2 (test) for each user."""
    shares = np.asarray(ratio, float) / np.sum(ratio)
    cut = np.round(np.cumsum(shares)[:2] * len(users)).astype(int)
    part = np.zeros(n_users, np.int64)
    shuffled = rng.permutation(users)
    part[shuffled[cut[0] : cut[1]]], part[shuffled[cut[1] :]] = 1, 2
    return part


def _draw_cold(part: np.ndarray, counts: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Returns, per user, the domain whose history is withheld everywhere, or -1."""
    cold = np.full(len(part), -1)
    present = counts > 0
    for index in (1, 2):
        candidates = rng.permutation(np.flatnonzero((part == index) & (present.sum(1) >= 2)))
        chosen = candidates[: round(ratio * len(candidates))]
        draw = np.where(present[chosen], rng.random((len(chosen), counts.shape[1])), -1)
        cold[chosen] = draw.argmax(1)
    return cold


def _draw_removed(
    part: np.ndarray, overlapping: np.ndarray, ratio: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns the mask of overlapping training users that ``overlap_ratio`` takes out."""
    candidates = rng.permutation(np.flatnonzero((part == 0) & overlapping))
    removed = np.zeros(len(part), bool)
    removed[candidates[round(ratio * len(candidates)) :]] = True
    return removed


def _time_respecting(config, dataset: CrossDomainDataset) -> bool:
    asked = config["time_respecting"]
    if asked and dataset.order == "none":
        raise CDRError(
            f"time_respecting=True needs an order, and dataset '{dataset.dataset_name}' says order: none. "
            "Leave time_respecting unset."
        )
    return dataset.order != "none" if asked is None else bool(asked)


def _thresholds(sequence: np.ndarray, domain: np.ndarray, n_domains: int) -> list[int]:
    """The long-tail thresholds: the floor of the mean of the shortest 80 % of the history lengths.

    A sequence of n interactions of a domain has a history of n - 1, as its last one is a target.
    """
    out = []
    for k in range(n_domains):
        own = sequence[domain == k]
        lengths = np.sort(np.unique(own, return_counts=True)[1] - 1)
        lengths = lengths[lengths >= 1]
        shortest = lengths[: int(0.8 * len(lengths))]
        out.append(int(shortest.mean()) if len(shortest) else 0)
    return out


# -- leave one out -----------------------------------------------------------------------------------------------


def _leave_one_out(
    config, dataset: CrossDomainDataset, report: dict
) -> tuple[dict[str, Instances], Events, list[int]]:
    if dataset.order == "none":
        raise CDRError(
            f"split=leave_one_out asks for each user's last interaction, and dataset '{dataset.dataset_name}' says "
            "order: none. Use split=user."
        )
    events = dataset.events
    stops = np.append(np.flatnonzero(np.diff(events.sequence)) + 1, len(events))
    lengths = np.diff(np.append(0, stops))
    long_enough = lengths >= 3
    report["users with fewer than three interactions (all of them train)"] = int((~long_enough).sum())
    place = np.zeros(len(events), np.int8)
    place[stops[long_enough] - 1], place[stops[long_enough] - 2] = 2, 1
    timeline = Timeline(events, dataset.user_num - 1, dataset.n_domains)
    timeline, place = _without_held_out_tokens(timeline, place, dataset, report)
    events, rank = timeline.events, np.arange(len(timeline.events))
    learns, valid, test = place == 0, rank[place == 1], rank[place == 2]
    targets = rank[learns] if config["train_targets"] == "all" else timeline.last_of_blocks(learns)
    # A user's held-out interactions stand behind all that trains, and "strict" looks at nothing behind a target.
    parts = {
        name: timeline.instances(ranks, others="strict")
        for name, ranks in (("train", targets), ("valid", valid), ("test", test))
    }
    trained = events.take(learns)
    return parts, trained, _thresholds(trained.sequence, trained.domain, dataset.n_domains)


# -- the published rows ------------------------------------------------------------------------------------------


def _published(
    config, dataset: CrossDomainDataset, report: dict
) -> tuple[dict[str, Instances], Events, list[int]]:
    rows, n_domains = dataset.rows, dataset.n_domains
    assert rows is not None
    timeline = Timeline(dataset.events, len(rows.user), n_domains)
    last = timeline.last_of_blocks()
    sequence = timeline.events.sequence[last]
    targets = last[timeline.events.domain[last] == rows.target_domain[sequence]]
    is_test = rows.is_test[timeline.events.sequence[targets]]
    report["published rows in train / test file"] = [int((~rows.is_test).sum()), int(rows.is_test.sum())]
    report["published rows without an item of their target's domain"] = len(rows.user) - len(targets)
    held_out = np.random.default_rng(int(config["split_seed"])).permutation(np.flatnonzero(is_test))
    half = len(held_out) // 2
    learns = ~rows.is_test[timeline.events.sequence]
    train = np.flatnonzero(learns) if config["train_targets"] == "all" else targets[~is_test]
    parts = {
        name: timeline.instances(np.sort(ranks), others="whole")
        for name, ranks in (
            ("train", train), ("valid", targets[held_out[:half]]), ("test", targets[held_out[half:]])
        )
    }  # fmt: skip
    trained = timeline.events.take(learns)
    thresholds = _thresholds(trained.sequence, trained.domain, n_domains)
    _, first = np.unique(trained.user * np.int64(dataset.item_num) + trained.item, return_index=True)
    return parts, trained.take(np.sort(first)), thresholds


def _test_items(dataset: CrossDomainDataset) -> np.ndarray:
    """The mask of the items that any row of the test file holds: the authors' pool of candidates."""
    mask = np.zeros(dataset.item_num, bool)
    mask[dataset.events.item[dataset.rows.is_test[dataset.events.sequence]]] = True
    return mask


# -- what all splits end with ------------------------------------------------------------------------------------


def _finish(instances: Instances, token_key: np.ndarray, part: str, report: dict) -> Instances:
    """Takes the target's own token out of the other domains' histories, then drops instances without a history."""
    instances, removed = _without_target_token(instances, token_key)
    report[f"{part}: context items equal to the target removed"] = removed
    some = instances.lengths.sum(1) > 0
    report[f"{part}: instances without any history dropped"] = int((~some).sum())
    return instances.take(some)


def _without_target_token(instances: Instances, token_key: np.ndarray) -> tuple[Instances, int]:
    pool, n_domains = instances.pool, instances.start.shape[1]
    span = int(token_key.max()) + 1
    wanted = instances.user.astype(np.int64) * span + token_key[instances.target]
    # Only users who hold a target's token elsewhere need a look: few, found with one set operation.
    shared = np.bincount(token_key[1:])[token_key[pool.item]]
    held = pool.user.astype(np.int64) * span + token_key[pool.item]
    suspects = np.flatnonzero(np.isin(wanted, held[shared > 1]))
    start, stop = instances.start.copy(), instances.stop.copy()
    pieces, size, removed = [], len(pool.item), 0
    for row in suspects:
        for k in range(n_domains):
            place = np.arange(start[row, k], stop[row, k])
            keep = place[token_key[pool.item[place]] != token_key[instances.target[row]]]
            if len(keep) < len(place):
                removed += len(place) - len(keep)
                pieces.append(keep)
                start[row, k], stop[row, k] = size, size + len(keep)
                size += len(keep)
    if pieces:
        pool = pool.extended(pool.take(np.concatenate(pieces)))
    return replace(instances, start=start, stop=stop, pool=pool), removed
