"""An index over events that answers, for many instances at once, "what stood before this?"."""

from __future__ import annotations

import numpy as np

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.instances import Instances, Pool


class Timeline:
    """Events on their sequences' timelines, and the same events cut by domain.

    A *block* is what one sequence holds in one domain: block ``sequence * K + domain``. An event's *rank* is its index
    in ``events``, which are ordered by (sequence, merged order); so within a sequence, ranks are the timeline.
    """

    def __init__(self, events: Events, n_sequences: int, n_domains: int):
        self.events, self.n_domains = events, n_domains
        m = len(events)
        self.block = events.sequence * n_domains + events.domain
        self._by_block = np.argsort(self.block, kind="stable")
        counts = np.bincount(self.block, minlength=n_sequences * n_domains)
        self.block_stop = np.cumsum(counts)
        self.block_start = self.block_stop - counts
        # (block, rank) as one number, ascending along the pool: one binary search finds any place in any block.
        self._key = self.block[self._by_block] * (m + 1) + self._by_block
        self.place = np.empty(m, np.int64)
        self.place[self._by_block] = np.arange(m)
        self.pool = Pool(events.item, events.user, np.arange(m), events.time).take(self._by_block)
        same = (events.sequence[1:] == events.sequence[:-1]) & (events.time[1:] == events.time[:-1])
        run_ends = np.append(np.flatnonzero(~same) + 1, m) if m else np.zeros(0, np.int64)
        self.tie_stop = run_ends[np.searchsorted(run_ends, np.arange(m), side="right")] if m else run_ends

    def before(self, block: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """Returns the pool position where the events of each ``block`` with a rank below ``rank`` end."""
        place: np.ndarray = np.searchsorted(self._key, block * (len(self.events) + 1) + rank)
        return place

    def last_of_blocks(self, mask: np.ndarray | None = None) -> np.ndarray:
        """Returns the rank of the last event of each block, among the events in ``mask``."""
        ranks = self._by_block if mask is None else self._by_block[mask[self._by_block]]
        blocks = self.block[ranks]
        return ranks[np.append(blocks[1:] != blocks[:-1], True)] if len(ranks) else ranks

    def instances(
        self,
        targets: np.ndarray,
        *,
        others: str,
        limit: np.ndarray | None = None,
        withheld: np.ndarray | None = None,
    ) -> Instances:
        """Returns one instance for each target event.

        The history in the target's own domain is what stands before it. In the other domains, ``others`` says:
        "strict" what stands before it on the merged timeline, "ties" that and what happened at the same time,
        "whole" everything.

        Args:
            targets: (n,) ranks of the target events.
            limit: (n,) ranks; nothing at or behind them enters a history of another domain.
            withheld: (blocks,) mask of blocks whose last event must stay out of every other domain's history.
        """
        events, k = self.events, self.n_domains
        sequence, domain = events.sequence[targets], events.domain[targets]
        start = np.empty((len(targets), k), np.int64)
        stop = np.empty_like(start)
        edge = {
            "strict": targets,
            "ties": self.tie_stop[targets],
            "whole": np.full(len(targets), len(events)),
        }[others]
        edge = edge if limit is None else np.minimum(edge, limit)
        for j in range(k):
            block = sequence * k + j
            start[:, j] = self.block_start[block]
            stop[:, j] = self.before(block, np.where(domain == j, targets, edge))
            if withheld is not None:
                other = (domain != j) & withheld[block]
                stop[other, j] = np.minimum(stop[other, j], self.block_stop[block[other]] - 1)
        return Instances(
            user=events.user[targets],
            domain=domain,
            target=events.item[targets],
            time=events.time[targets],
            sequence=self.block[targets],
            start=start,
            stop=stop,
            pool=self.pool,
        )
