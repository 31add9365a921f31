"""Making splits: what a maker of splits is, what makers draw with, and the audited split that settings ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset, Events, data_key
from recbole_cdr_ext.data.instances import Instances, Timeline
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.registry.splits import get_split
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.audit import audit_ratings, audit_split
from recbole_cdr_ext.splits.split import PARTS, Ratings, RatingSplit, Split, UserItems

SPLIT_KEYS = (
    "split", "split_seed", "split_ratio", "cold_start_ratio", "overlap_ratio", "density", "time_respecting",
    "train_on_histories", "train_targets", "task", *("val_interval", "user_inter_num_interval"),
    "item_inter_num_interval", "domain_settings", "domains", "order",
)  # fmt: skip

RATING_SPLIT_KEYS = (
    "split", "split_seed", "beta", "source", "target", "domains", "task", "rating_range", "val_interval",
    "user_inter_num_interval", "item_inter_num_interval", "domain_settings",
)  # fmt: skip


class SplitMaker(ABC):
    """Says who is trained on, who is asked about, and what each may know.

    A split is a class derived from :class:`InteractionSplitMaker` or :class:`RatingSplitMaker`, by the task that it
    serves; it is called by its name in the registry (:mod:`recbole_cdr_ext.registry.splits`). It gives ``draw``, which
    gets the settings and a dataset, leaves both as they are, and returns the parts. What follows is the same for
    all: the parts are put together, and the result goes through the leak audit, whatever made it. A held-out
    (user, item token) that can be reached from what trains is an error before any training.

    Rules:
        Ids are the dataset's. One token in two domains is one thing (``dataset.token_key``): an interaction with
        another item of a held-out target's token is held out as well, or taken out.
        Where time means something, a target's history in its own domain ends before it.
        All randomness comes from ``config["split_seed"]``: the same settings and data give the same split.

    Class attributes:
        task: the task that it serves.
        leaky: True for splits that are known to leak: the audit counts, and the counts stand in log and result.
        needs_order: whether data that say ``order: none`` are refused.
        layout: the layout of prepared data that it reads: "users", or "rows" for published instances.
        averages_repeats: whether a user's several interactions with an item become one with their mean rating; else
            the first one stands.
        without_effect: settings that it doesn't read, which a user therefore can't set.
    """

    task: ClassVar[str]
    leaky: ClassVar[bool] = False
    needs_order: ClassVar[bool] = False
    layout: ClassVar[str] = "users"
    averages_repeats: ClassVar[bool] = False
    without_effect: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class InteractionParts:
    """What an :class:`InteractionSplitMaker` draws.

    Attributes:
        train, valid, test: instances, as :meth:`Timeline.instances` makes them. Items with the target's token in a
            history are taken out afterwards, and instances without any history dropped.
        train_events: every interaction that a model may learn from.
        thresholds: per domain, the longest history that counts as long-tailed.
        time_respecting: whether the histories in other domains, too, end at the target's time; then that is audited.
        test_items: (item_num,) mask of a second, smaller pool of candidates for the test part; None: there is none.
    """

    train: Instances
    valid: Instances
    test: Instances
    train_events: Events
    thresholds: list[int]
    time_respecting: bool = True
    test_items: np.ndarray | None = None


class InteractionSplitMaker(SplitMaker):
    """Draws the instances of the next-item task."""

    task = "next_item"

    @abstractmethod
    def draw(
        self, config: CDRConfig, dataset: CrossDomainDataset, report: dict[str, object]
    ) -> InteractionParts:
        """Returns the parts.

        Args:
            report: gets what was drawn, hidden and removed, counted; it stands in the log and in the result.

        Raises:
            CDRError: the settings do not fit the data.
        """


@dataclass(frozen=True)
class RatingParts:
    """What a :class:`RatingSplitMaker` draws.

    Attributes:
        source, target: indices of the two domains.
        source_ratings, target_ratings: what trains.
        valid, test: the target ratings that are asked for.
        overlapping: (o,) training users with ratings in both domains, ascending.
    """

    source: int
    target: int
    source_ratings: Ratings
    target_ratings: Ratings
    valid: Ratings
    test: Ratings
    overlapping: np.ndarray


class RatingSplitMaker(SplitMaker):
    """Draws the ratings of the rating task."""

    task = "rating"
    averages_repeats = True

    @abstractmethod
    def draw(self, config: CDRConfig, dataset: CrossDomainDataset, report: dict[str, object]) -> RatingParts:
        """Returns the parts; as :meth:`InteractionSplitMaker.draw`."""


# -- what several makers draw alike ----------------------------------------------------------------------------------


def without_held_out_tokens(
    timeline: Timeline, held_out: np.ndarray, dataset: CrossDomainDataset, report: dict[str, object]
) -> tuple[Timeline, np.ndarray]:
    """Takes out what says a target's token in another domain: the same thing under a second id.

    Args:
        held_out: (m,) non-zero for the target events, which stay.

    Returns:
        The timeline of the events that are left, and ``held_out`` of these.
    """
    events, span = timeline.events, int(dataset.token_key.max()) + 1
    pair = events.user.astype(np.int64) * span + dataset.token_key[events.item]
    double = np.isin(pair, pair[held_out != 0]) & (held_out == 0)
    report["interactions of held-out users with a target's token removed"] = int(double.sum())
    if not double.any():
        return timeline, held_out
    return Timeline(events.take(~double), dataset.user_num - 1, dataset.n_domains), held_out[~double]


def long_tail_thresholds(events: Events, n_domains: int) -> list[int]:
    """Returns, per domain, the floor of the mean of the shortest 80 % of the history lengths.

    A sequence of n interactions of a domain has a history of n - 1, as its last one is a target.
    """
    thresholds = []
    for k in range(n_domains):
        sequences = events.sequence[events.domain == k]
        lengths = np.sort(np.unique(sequences, return_counts=True)[1] - 1)
        lengths = lengths[lengths >= 1]
        shortest = lengths[: int(0.8 * len(lengths))]
        thresholds.append(int(shortest.mean()) if len(shortest) else 0)
    return thresholds


# -- the audited split that settings ask for --------------------------------------------------------------------------


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
    target_pairs = instances.user.astype(np.int64) * span + token_key[instances.target]
    # Only users who hold a target's token elsewhere need a look: few, found with one set operation.
    shared = np.bincount(token_key[1:])[token_key[pool.item]]
    history_pairs = pool.user.astype(np.int64) * span + token_key[pool.item]
    suspects = np.flatnonzero(np.isin(target_pairs, history_pairs[shared > 1]))
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
