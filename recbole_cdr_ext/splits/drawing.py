"""What several splits draw alike."""

from __future__ import annotations

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset, Events
from recbole_cdr_ext.data.timeline import Timeline


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
