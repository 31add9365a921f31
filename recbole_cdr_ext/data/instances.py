"""Ranking instances, the timeline of events that they are read from, and the batches that models see.

An *instance* is one question put to a recommender: given what this user did in every domain (its histories), which
item of one domain comes next? Splits make instances, loaders batch them, evaluation ranks them.

Histories are not copied: an instance holds, for each domain, a range ``[start, stop)`` of one shared pool of events,
so the positions of one sequence share its memory whatever their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_cdr_ext.data.dataset import Events


@dataclass(frozen=True)
class Pool:
    """The events that histories are ranges of, ordered by (sequence, domain, time).

    All arrays have shape (m,): ``item`` global ids, ``user`` ids, ``order`` the event's rank on the merged timeline
    of its sequence (comparable within one sequence only), ``time`` as in the data.
    """

    item: np.ndarray
    user: np.ndarray
    order: np.ndarray
    time: np.ndarray

    def extended(self, other: Pool) -> Pool:
        """Returns a pool with the events of ``other`` behind its own."""
        return Pool(
            *(
                np.concatenate([getattr(self, f), getattr(other, f)])
                for f in ("item", "user", "order", "time")
            )
        )

    def take(self, index: np.ndarray) -> Pool:
        """Returns the events at ``index``."""
        return Pool(self.item[index], self.user[index], self.order[index], self.time[index])


@dataclass(frozen=True)
class Instances:
    """n instances over K domains.

    Attributes:
        user: (n,) user ids.
        domain: (n,) index of the target's domain.
        target: (n,) global item id of the target.
        time: (n,) the target's time.
        sequence: (n,) id of the sequence an instance was cut from (a user and domain), for drawing positions.
        start, stop: (n, K) each domain's history as a range of ``pool``.
        pool: the events.
        recalled: (n, r) global ids that a pseudo-sequence generator recalled in the target's domain, best first,
            0 where there are fewer; None before one ran.
    """

    user: np.ndarray
    domain: np.ndarray
    target: np.ndarray
    time: np.ndarray
    sequence: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    pool: Pool
    recalled: np.ndarray | None = field(default=None)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def lengths(self) -> np.ndarray:
        """(n, K) history lengths, the target not counted."""
        lengths: np.ndarray = self.stop - self.start
        return lengths

    @property
    def own_length(self) -> np.ndarray:
        """(n,) history length in the target's domain."""
        lengths: np.ndarray = self.lengths[np.arange(len(self)), self.domain]
        return lengths

    def take(self, rows: np.ndarray) -> Instances:
        """Returns the instances at ``rows`` (indices or a mask); the pool is shared."""
        per_row = ("user", "domain", "target", "time", "sequence", "start", "stop")
        taken = {name: getattr(self, name)[rows] for name in per_row}
        return replace(self, **taken, recalled=None if self.recalled is None else self.recalled[rows])

    def history(self, row: int, domain: int) -> np.ndarray:
        """Returns one instance's history in one domain, oldest first."""
        return self.pool.item[self.start[row, domain] : self.stop[row, domain]]

    def gather(self, rows: np.ndarray, domain: int, max_length: int) -> np.ndarray:
        """Returns the most recent ``max_length`` items of each row's history in ``domain``.

        Shape (B, L), right-aligned, 0 on the left; L is the longest of these rows, at least 1.
        """
        return self._gather(self.pool.item, rows, domain, max_length)

    def gather_merged(self, rows: np.ndarray, max_length: int) -> np.ndarray:
        """Returns the most recent items of all domains on one timeline, shape (B, L), right-aligned.

        Events at one time stand in the order of the domains, as they do in training sequences, which have no target's
        domain to put last; rows may differ in their domain.
        """
        n_domains = self.start.shape[1]
        item = np.concatenate([self.gather(rows, k, max_length) for k in range(n_domains)], 1)
        order = [self._gather(self.pool.order, rows, k, max_length) for k in range(n_domains)]
        key = np.where(item == 0, -1, np.concatenate(order, 1))
        ranked = np.argsort(key, axis=1, kind="stable")[:, -max_length:]
        merged = np.take_along_axis(item, ranked, 1)
        return merged[:, -max(1, int((merged != 0).sum(1).max(initial=0))) :]

    def gather_pseudo(self, rows: np.ndarray, max_length: int) -> np.ndarray:
        """Returns the pseudo-sequences of the target's domain: the most recent real items, then the recalled ones.

        Shape (B, L), right-aligned, at most ``max_length`` wide. All rows must have the same target domain.
        """
        assert self.recalled is not None, "no pseudo-sequence generator has run"
        domain = int(self.domain[rows[0]])
        recalled = self.recalled[rows][:, :max_length]
        width = recalled.shape[1]
        if width == max_length:
            return _compact(recalled)
        return _compact(np.concatenate([self.gather(rows, domain, max_length - width), recalled], 1))

    def _gather(self, values: np.ndarray, rows: np.ndarray, domain: int, max_length: int) -> np.ndarray:
        stop = self.stop[rows, domain]
        length = np.minimum(stop - self.start[rows, domain], max_length)
        width = max(1, int(length.max(initial=0)))
        column = np.arange(width)
        index = stop[:, None] - width + column
        valid = column >= (width - length)[:, None]
        return np.where(valid, values[np.where(valid, index, 0)] if len(values) else 0, 0)


def _compact(ids: np.ndarray) -> np.ndarray:
    """Moves the non-zero ids of each row to the right, in order, and trims columns that are 0 throughout."""
    order = np.argsort(ids != 0, axis=1, kind="stable")
    moved = np.take_along_axis(ids, order, 1)
    return moved[:, -max(1, int((moved != 0).sum(1).max(initial=0))) :]


class Batch(Interaction):
    """Some instances of *one* target domain as tensors: RecBole's ``Interaction`` with names for what it holds.

    Fields (B rows): ``user_id`` (B,), ``item_id`` the targets (B,), ``index`` rows of the instances (B,),
    ``history_k`` (B, L_k) of each domain k, right-aligned and 0-padded, ``merged`` (B, L) if asked for, ``pseudo``
    (B, L') and ``recalled`` (B, r) if a generator ran, ``neg_item_id`` (B, n) in training where the model asks for
    negatives.
    Item ids are global: domain k owns the ids ``dataset.item_range(k)``.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], target_domain: int, n_domains: int):
        super().__init__(tensors)
        self.target_domain = target_domain
        self.n_domains = n_domains

    def to(self, device: torch.device | str, selected_field: Sequence[str] | str | None = None) -> Batch:
        """Returns the batch on ``device``."""
        moved = {name: tensor.to(device) for name, tensor in self.interaction.items()}
        return Batch(moved, self.target_domain, self.n_domains)

    def rows(self, mask: torch.Tensor) -> Batch:
        """Returns the rows at ``mask`` (boolean or indices)."""
        return Batch({k: v[mask] for k, v in self.interaction.items()}, self.target_domain, self.n_domains)

    def with_fields(self, **tensors: torch.Tensor) -> Batch:
        """Returns a batch with the given fields put in place of, or beside, its own."""
        return Batch({**self.interaction, **tensors}, self.target_domain, self.n_domains)

    @property
    def users(self) -> torch.Tensor:
        """(B,) user ids."""
        return self["user_id"]

    @property
    def targets(self) -> torch.Tensor:
        """(B,) global ids of the target items."""
        return self["item_id"]

    @property
    def negatives(self) -> torch.Tensor:
        """(B, n) sampled negatives of the target's domain."""
        return self["neg_item_id"]

    @property
    def pseudo(self) -> torch.Tensor:
        """(B, L') pseudo-sequences of the target's domain."""
        return self["pseudo"]

    @property
    def recalled(self) -> torch.Tensor:
        """(B, r) the recalled items alone, best first, 0 where there are fewer."""
        return self["recalled"]

    def history(self, domain: int) -> torch.Tensor:
        """Returns the histories of one domain, (B, L_k)."""
        return self[f"history_{domain}"]

    @property
    def own_history(self) -> torch.Tensor:
        """The histories of the target's domain, (B, L)."""
        return self.history(self.target_domain)


def make_batch(
    instances: Instances,
    rows: np.ndarray,
    *,
    max_length: int,
    pseudo_length: int = 0,
    merged: bool = False,
    negatives: np.ndarray | None = None,
) -> Batch:
    """Returns the batch of ``rows``, which must share one target domain, each field trimmed to its longest row."""
    domain, n_domains = int(instances.domain[rows[0]]), instances.start.shape[1]
    arrays = {"user_id": instances.user[rows], "item_id": instances.target[rows], "index": rows}
    for k in range(n_domains):
        arrays[f"history_{k}"] = instances.gather(rows, k, max_length)
    if merged:
        arrays["merged"] = instances.gather_merged(rows, max_length)
    if pseudo_length:
        arrays["pseudo"] = instances.gather_pseudo(rows, pseudo_length)
        arrays["recalled"] = np.asarray(instances.recalled)[rows]
    if negatives is not None:
        arrays["neg_item_id"] = negatives
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a, dtype=np.int64)) for name, a in arrays.items()}
    return Batch(tensors, domain, n_domains)


def random_recall(
    instances: Instances, item_offset: np.ndarray, width: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns (n, width) distinct uniform items of each target's domain that its history does not hold."""
    out = np.zeros((len(instances), width), np.int32)
    longest = int(instances.lengths.max(initial=1))
    for k in range(len(item_offset) - 1):
        members = np.flatnonzero(instances.domain == k)
        low, size = int(item_offset[k]), int(item_offset[k + 1] - item_offset[k])
        for first in range(0, len(members), 512):
            rows = members[first : first + 512]
            key = rng.random((len(rows), size), dtype=np.float32)
            history = instances.gather(rows, k, longest)
            row, column = np.nonzero(history)
            key[row, history[row, column] - low] = 2.0  # behind every other
            best = np.argpartition(key, min(width, size) - 1, axis=1)[:, : min(width, size)]
            drawn = np.where(np.take_along_axis(key, best, 1) < 2.0, best + low, 0)
            out[rows, : drawn.shape[1]] = drawn
    return out


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
