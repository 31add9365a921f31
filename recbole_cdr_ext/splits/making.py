"""Making a split: drawn by whatever the settings name, put together, and audited for leaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset, data_key
from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.registry.splits import get_split
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.audit import audit_ratings, audit_split
from recbole_cdr_ext.splits.interaction_split import PARTS, Split
from recbole_cdr_ext.splits.keys import RATING_SPLIT_KEYS, SPLIT_KEYS
from recbole_cdr_ext.splits.maker import InteractionSplitMaker, RatingSplitMaker, SplitMaker
from recbole_cdr_ext.splits.rating_split import RatingSplit
from recbole_cdr_ext.splits.user_items import UserItems


def make_split(config: CDRConfig, dataset: CrossDomainDataset) -> Split:
    """Returns the instances of a dataset as ``config["split"]`` draws them, audited for leaks.

    Raises:
        CDRError: the split does not fit the data, leaves a part empty, or leaks.
    """
    maker = get_split(config["split"])
    if not issubclass(maker, InteractionSplitMaker):
        raise _other_task(config, maker, "next_item")
    report: dict[str, object] = dict(dataset.report)
    parts = maker().draw(config, dataset, report)
    instances = {name: _finish(getattr(parts, name), dataset.token_key, name, report) for name in PARTS}
    for name in PARTS:
        if len(instances[name]) == 0:
            raise CDRError(
                f"split={config['split']} leaves no {name} instance of {dataset}. "
                f"Check split_ratio, overlap_ratio, density and the filters: {report}"
            )
    events = dataset.events
    split = Split(
        name=config["split"],
        leaky=maker.leaky,
        layout=maker.layout,
        train_events=parts.train_events,
        touched=UserItems.of(events.user, events.item, dataset.user_num),
        thresholds=parts.thresholds,
        n_users=dataset.user_num,
        item_offset=dataset.item_offset,
        token_key=dataset.token_key,
        ordered=dataset.order != "none",
        train_targets=config["train_targets"],
        fingerprint=data_key(dataset.fingerprint, *(f"{key}={config[key]}" for key in SPLIT_KEYS)),
        report=report,
        test_items=parts.test_items,
        train=instances["train"],
        valid=instances["valid"],
        test=instances["test"],
    )
    report.update(audit_split(split, time_respecting=parts.time_respecting, fail=not split.leaky))
    return split


def make_rating_split(config: CDRConfig, dataset: CrossDomainDataset) -> RatingSplit:
    """Returns the ratings of a dataset as ``config["split"]`` draws them, audited for leaks.

    Raises:
        CDRError: the split does not fit the data, or leaks.
    """
    maker = get_split(config["split"])
    if not issubclass(maker, RatingSplitMaker):
        raise _other_task(config, maker, "rating")
    report: dict[str, object] = dict(dataset.report)
    parts = maker().draw(config, dataset, report)
    lowest, highest = config["rating_range"]
    split = RatingSplit(
        name=config["split"],
        leaky=maker.leaky,
        layout=maker.layout,
        source=parts.source,
        target=parts.target,
        train={parts.source: parts.source_ratings, parts.target: parts.target_ratings},
        valid=parts.valid,
        test=parts.test,
        overlapping=parts.overlapping,
        n_users=dataset.user_num,
        item_offset=dataset.item_offset,
        token_key=dataset.token_key,
        rating_range=(float(lowest), float(highest)),
        fingerprint=data_key(dataset.fingerprint, *(f"{key}={config[key]}" for key in RATING_SPLIT_KEYS)),
        report=report,
    )
    known = split.known_items(split.target)
    for part in ("valid", "test"):
        item = split.part(part).item - dataset.item_offset[split.target]
        report[f"{part} ratings of items without a training rating"] = int((~known[item]).sum())
    report.update(audit_ratings(split, fail=not split.leaky))
    return split


def _other_task(config: CDRConfig, maker: type[SplitMaker], task: str) -> CDRError:
    return CDRError(
        f"split={config['split']} does not serve task={task}: {maker.__name__} is for {maker.task}."
    )


# -- what the splits of interactions end with ----------------------------------------------------------------------


def _finish(instances: Instances, token_key: np.ndarray, part: str, report: dict[str, object]) -> Instances:
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
