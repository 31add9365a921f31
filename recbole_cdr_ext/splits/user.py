"""Split ``user``: whole users are held out, and asked about the last item of each domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Instances, Timeline
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.maker import (
    InteractionParts,
    InteractionSplitMaker,
    long_tail_thresholds,
    without_held_out_tokens,
)


class UserSplit(InteractionSplitMaker):
    """Users fall into training, validation and test at random; some held-out ones lose a domain's history."""

    def draw(
        self, config: CDRConfig, dataset: CrossDomainDataset, report: dict[str, object]
    ) -> InteractionParts:
        """Draws the users' parts, then hides and thins, then holds out."""
        events = dataset.events
        rng = np.random.default_rng(int(config["split_seed"]))
        users = _draw_users(config, dataset, rng, report)
        timeline, thinned = _thin(config, dataset, users, rng, report)
        held_out = _held_out(timeline, users)
        timeline, held_out = without_held_out_tokens(timeline, held_out, dataset, report)
        respecting = is_time_respecting(config, dataset)
        train, learns, withheld = _training(config, dataset, users, timeline, held_out)
        part_of_event, rank = users.part[timeline.events.user], np.arange(len(timeline.events))
        valid, test = (
            timeline.instances(
                rank[held_out & (part_of_event == part)],
                others="ties" if respecting else "whole",
                withheld=withheld,
            )
            for part in (1, 2)
        )
        # Of all training users, so that the groups of test users are the same whatever overlap_ratio leaves.
        of_training_users = events.take((users.part[events.user] == 0) & ~thinned)
        return InteractionParts(
            train=train,
            valid=valid,
            test=test,
            train_events=timeline.events.take(learns),
            thresholds=long_tail_thresholds(of_training_users, dataset.n_domains),
            time_respecting=respecting,
        )


def is_time_respecting(config: CDRConfig, dataset: CrossDomainDataset) -> bool:
    """Returns whether histories in other domains end at the target's time: as configured, else where there is an order.

    Raises:
        CDRError: it is asked for, and the data have no order.
    """
    configured = config["time_respecting"]
    if configured and dataset.order == "none":
        raise CDRError(
            f"time_respecting=True needs an order, and dataset '{dataset.dataset_name}' says order: none. "
            "Leave time_respecting unset."
        )
    return dataset.order != "none" if configured is None else bool(configured)


# -- users --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Users:
    """What was drawn for each user.

    Attributes:
        part: (n_users,) 0 (train), 1 (valid) or 2 (test).
        overlapping: (n_users,) whether there are interactions in several domains.
        cold_domain: (n_users,) the domain whose history is hidden everywhere, or -1.
        removed: (n_users,) overlapping training users that ``overlap_ratio`` takes out.
    """

    part: np.ndarray
    overlapping: np.ndarray
    cold_domain: np.ndarray
    removed: np.ndarray


def _draw_users(
    config: CDRConfig, dataset: CrossDomainDataset, rng: np.random.Generator, report: dict[str, object]
) -> _Users:
    events = dataset.events
    counts = np.zeros((dataset.user_num, dataset.n_domains), np.int64)
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
    return _Users(part, overlapping, cold_domain, removed)


def _draw_parts(
    users: np.ndarray, n_users: int, ratio: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
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


# -- interactions -------------------------------------------------------------------------------------------------


def _thin(
    config: CDRConfig,
    dataset: CrossDomainDataset,
    users: _Users,
    rng: np.random.Generator,
    report: dict[str, object],
) -> tuple[Timeline, np.ndarray]:
    """Returns the timeline without what is hidden, thinned away or removed, and the mask of what was thinned, (m,)."""
    events, n_sequences = dataset.events, dataset.user_num - 1
    last = np.zeros(len(events), bool)
    last[Timeline(events, n_sequences, dataset.n_domains).last_of_blocks()] = True
    hidden = (users.cold_domain[events.user] == events.domain) & ~last
    thinned = ~last & (rng.random(len(events)) >= float(config["density"]))
    report["interactions hidden from cold-start users"] = int(hidden.sum())
    report["interactions thinned away (density)"] = int((thinned & ~hidden).sum())
    report["overlapping training users removed (overlap_ratio)"] = int(users.removed.sum())
    remaining = events.take(~(hidden | thinned | users.removed[events.user]))
    return Timeline(remaining, n_sequences, dataset.n_domains), thinned


def _held_out(timeline: Timeline, users: _Users) -> np.ndarray:
    """Returns the mask of the events that are asked for, (m,).

    Held-out users are asked about the last item of each domain; cold-start users of the one they lost.
    """
    events = timeline.events
    held_out = np.zeros(len(events), bool)
    held_out[timeline.last_of_blocks()] = True
    held_out &= users.part[events.user] > 0
    cold_domain = users.cold_domain[events.user]
    held_out &= (cold_domain < 0) | (cold_domain == events.domain)
    return held_out


def _training(
    config: CDRConfig, dataset: CrossDomainDataset, users: _Users, timeline: Timeline, held_out: np.ndarray
) -> tuple[Instances, np.ndarray, np.ndarray | None]:
    """Returns the training instances, the mask of the events that train, (m,), and of the withheld blocks."""
    events, rank = timeline.events, np.arange(len(timeline.events))
    withheld = None
    earliest = np.full(dataset.user_num, len(events))
    if dataset.order == "none":
        # Without an order no history item is later than a target, so the other domains' targets are taken out.
        withheld = np.zeros(len(timeline.block_start), bool)
        withheld[timeline.block[held_out]] = True
    else:
        np.minimum.at(earliest, events.user[held_out], rank[held_out])
    learns = users.part[events.user] == 0
    if config["train_on_histories"]:
        history = (users.part[events.user] > 0) & ~held_out & (rank < earliest[events.user])
        if float(config["overlap_ratio"]) < 1:
            history &= ~users.overlapping[events.user]
        learns |= history
    targets = np.flatnonzero(learns) if config["train_targets"] == "all" else timeline.last_of_blocks(learns)
    train = timeline.instances(
        targets,
        others="ties" if is_time_respecting(config, dataset) else "whole",
        limit=earliest[events.user[targets]],
        withheld=withheld,
    )
    return train, learns, withheld
