"""Negatives for training and candidates for evaluation: vectorised, exact, never a false negative."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import torch
from recbole.sampler.sampler import AbstractSampler, Sampler

from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.splits.split import Split, UserItems

# Rows whose candidates are drawn together: their scratch table (rows × items) then stays within tens of megabytes.
_BLOCK = 256


class CrossDomainSampler(Sampler):
    """RecBole's sampler for several domains.

    Training negatives of a user are uniform over the items of one domain that the user has not touched in the
    *training* data; candidates for evaluation avoid what the user touched in *any* part of the data.

    Args:
        split: whose users and items are sampled.
        candidate_seed: fixes the candidates, whatever the model.
    """

    def __init__(self, split: Split, candidate_seed: int = 0):
        self.split = split
        self.candidate_seed = candidate_seed
        self.user_num = split.n_users
        self.item_num = int(split.item_offset[-1])
        self.phases = ["train", "valid", "test"]
        AbstractSampler.__init__(self, distribution="uniform", alpha=1.0)

    def get_used_ids(self) -> dict[str, UserItems]:
        """Returns what must not be sampled, by phase."""
        events = self.split.train_events
        trained = UserItems.of(events.user, events.item, self.user_num)
        span = np.int64(self.item_num)
        owner = np.repeat(np.arange(self.user_num), np.diff(trained.indptr))
        self._trained_pairs = owner * span + trained.items  # ascending, for binary search
        return {"train": trained, "valid": self.split.touched, "test": self.split.touched}

    def _uni_sampling(self, sample_num: int) -> np.ndarray:
        return np.random.randint(1, self.item_num, sample_num)

    def sample_by_user_ids(
        self, user_ids: np.ndarray | torch.Tensor, item_ids: np.ndarray | torch.Tensor, num: int
    ) -> torch.Tensor:
        """RecBole's interface: ``num`` training negatives per user, of the domain that each ``item_ids`` lies in.

        Returns:
            (len(user_ids) * num,) tensor, the first negative of every user before the second, as RecBole orders it.
        """
        users, items = np.asarray(user_ids), np.asarray(item_ids)
        out = np.empty((len(users), num), np.int64)
        domain = np.searchsorted(self.split.item_offset, items, side="right") - 1
        for k in np.unique(domain):
            mask = domain == k
            out[mask] = self.negatives(
                users[mask], int(k), num, np.random.default_rng(np.random.randint(2**31))
            )
        return torch.from_numpy(out.T.reshape(-1))

    def negatives(self, users: np.ndarray, domain: int, num: int, rng: np.random.Generator) -> np.ndarray:
        """Returns uniform negatives, (n, num) global ids of ``domain``, with replacement between columns.

        Raises:
            CDRError: a user has touched every item of the domain.
        """
        low, high = self.split.item_offset[domain], self.split.item_offset[domain + 1]
        base = users.astype(np.int64)[:, None] * self.item_num
        out = rng.integers(low, high, (len(users), num))
        todo = np.flatnonzero(self._is_trained(base + out).ravel())
        flat, base = out.reshape(-1), np.broadcast_to(base, out.shape).reshape(-1)
        for _ in range(200):
            if not len(todo):
                return out
            flat[todo] = rng.integers(low, high, len(todo))
            todo = todo[self._is_trained(base[todo] + flat[todo])]
        raise CDRError(
            f"User {int(base[todo[0]] // self.item_num)} has touched (nearly) all {high - low} items of domain "
            f"{domain}: there is no negative to draw. Filter such users with user_inter_num_interval."
        )

    def _is_trained(self, pairs: np.ndarray) -> np.ndarray:
        if not len(self._trained_pairs):
            return np.zeros(pairs.shape, bool)
        place = np.searchsorted(self._trained_pairs, pairs)
        trained: np.ndarray = self._trained_pairs[np.minimum(place, len(self._trained_pairs) - 1)] == pairs
        return trained

    def candidates(self, instances: Instances, mode: str, allowed: np.ndarray | None = None) -> Candidates:
        """Returns the candidates of instances: ``uniN``, ``popN`` (N negatives) or ``full``.

        Args:
            allowed: (item_num,) mask of the items that negatives may be; None: all.
        """
        return Candidates(self.split, instances, mode, self.candidate_seed, allowed)


def _take_room(file: IO[bytes], n_bytes: int) -> None:
    """Takes the room of a file that is to be mapped: a full disk would end the program when a page is written.

    Raises:
        CDRError: there is not so much.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        except OSError as error:
            raise CDRError(
                f"The candidates of the evaluation need {n_bytes / 2**20:,.0f} MiB in {tempfile.gettempdir()}: "
                f"{error.strerror}. Make room there, or name another folder with TMPDIR."
            ) from error


class Candidates:
    """What each instance's target is ranked against, drawn once.

    Sampled candidates live in an unnamed temporary file that is mapped into memory, so that a run's memory does not
    grow with the number of instances.

    Attributes:
        mode: "uniN", "popN" or "full".
        counts: (n,) candidates ranked, the target included.
        reduced: domain index → most candidates there, where a domain has too few items for N negatives.
    """

    def __init__(
        self, split: Split, instances: Instances, mode: str, seed: int, allowed: np.ndarray | None = None
    ):
        self.mode, self._split, self._instances = mode, split, instances
        self.distribution, self.n_negatives = _parse_mode(mode)
        self._allowed = np.ones(int(split.item_offset[-1]), bool) if allowed is None else allowed
        if allowed is not None and self.distribution == "full":
            raise CDRError(
                "A pool of candidates goes with sampled modes (uni999, pop999), not with mode full."
            )
        sizes = np.array([self._allowed[a:b].sum() for a, b in zip(*_bounds(split), strict=True)])
        self._n_touched = self._count_touched()
        room = sizes[instances.domain] - self._n_touched
        if self.distribution == "full":
            self.counts = room + 1
            self.reduced: dict[int, int] = {}
            self.width = int(sizes.max())
            return
        self.counts = np.minimum(room, self.n_negatives) + 1
        short = np.unique(instances.domain[room < self.n_negatives])
        self.reduced = {int(k): int(self.counts[instances.domain == k].max()) for k in short}
        self.width = self.n_negatives + 1
        self._table = self._draw(np.random.default_rng(seed))

    def __len__(self) -> int:
        return len(self._instances)

    def block(self, rows: np.ndarray) -> np.ndarray | None:
        """Returns (B, C) global ids, the target in column 0, 0 behind the last; None in mode ``full``."""
        return None if self.distribution == "full" else self._table[rows].astype(np.int64)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (rows, candidates) of all instances."""
        for first in range(0, len(self), _BLOCK):
            rows = np.arange(first, min(first + _BLOCK, len(self)))
            block = self.block(rows)
            assert block is not None
            yield rows, block

    def touched(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (row index, index within the domain) of items that mode ``full`` must not rank."""
        instances, split = self._instances, self._split
        row, item = split.touched.rows(instances.user[rows])
        low = split.item_offset[instances.domain[rows]][row]
        high = split.item_offset[instances.domain[rows] + 1][row]
        keep = (item >= low) & (item < high) & (item != instances.target[rows][row])
        return row[keep], (item - low)[keep]

    def _count_touched(self) -> np.ndarray:
        touched, offset = self._split.touched, self._split.item_offset
        owner = np.repeat(np.arange(self._split.n_users), np.diff(touched.indptr))
        domain = np.searchsorted(offset, touched.items, side="right") - 1
        counts = np.zeros((self._split.n_users, self._split.n_domains), np.int64)
        np.add.at(counts, (owner, domain), self._allowed[touched.items])
        touched_in_domain: np.ndarray = counts[self._instances.user, self._instances.domain]
        return touched_in_domain

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        instances, offset = self._instances, self._split.item_offset
        with tempfile.TemporaryFile() as file:
            _take_room(file, max(1, len(self)) * self.width * np.dtype(np.int32).itemsize)
            table = np.memmap(file, np.int32, "w+", shape=(max(1, len(self)), self.width))
        table[: len(self), 0] = instances.target
        popularity = np.bincount(self._split.train_events.item, minlength=int(offset[-1]))
        for k in range(self._split.n_domains):
            members = np.flatnonzero(instances.domain == k)
            low, size = int(offset[k]), int(offset[k + 1] - offset[k])
            allowed = self._allowed[low : low + size]
            for first in range(0, len(members), _BLOCK):
                rows = members[first : first + _BLOCK]
                if self.distribution == "pop":
                    local = self._draw_popular(rows, popularity[low : low + size], allowed, rng)
                elif allowed.sum() < 4 * self.n_negatives:
                    local = self._draw_popular(rows, np.ones(size), allowed, rng)
                else:
                    local = self._draw_uniform(rows, allowed, rng)
                table[rows, 1:] = np.where(local >= 0, local + low, 0)
        return table

    def _draw_uniform(self, rows: np.ndarray, allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws by sequential rejection: each row's first N valid, distinct draws, exactly uniform, without sorting."""
        n, b, size = self.n_negatives, len(rows), len(allowed)
        touched = self.touched_or_target(rows)
        blocked = np.repeat(~allowed[None], b, 0)
        blocked[touched] = True
        if (size - blocked.sum(1)).min(initial=size) < n:
            # Rejection would not end for a user who has touched nearly everything.
            return self._draw_popular(rows, np.ones(size), allowed, rng)
        out = np.full((b, n), -1)
        filled = np.zeros(b, np.int64)
        seen = np.zeros(b * size, np.int32)
        todo = np.arange(b)
        while len(todo):
            draws = rng.integers(0, size, (len(todo), n + n // 8 + 8))
            key = (todo[:, None] * size + draws).ravel()
            ticket = np.arange(len(key), dtype=np.int32)
            # Writing backwards leaves the *first* draw's ticket at each item: repetitions are seen without a sort.
            seen[key[::-1]] = ticket[::-1]
            fresh = ((seen[key] == ticket) & ~blocked.reshape(-1)[key]).reshape(draws.shape)
            place = np.cumsum(fresh, 1) - 1 + filled[todo][:, None]
            use = fresh & (place < n)
            row = np.broadcast_to(todo[:, None], draws.shape)
            out[row[use], place[use]] = draws[use]
            blocked[row[use], draws[use]] = True
            filled[todo] += use.sum(1)
            todo = todo[filled[todo] < n]
        return out

    def _draw_popular(
        self, rows: np.ndarray, weight: np.ndarray, allowed: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Gumbel's top N: draws without replacement in proportion to ``weight`` (never-bought items last)."""
        n = min(self.n_negatives, len(weight))
        with np.errstate(divide="ignore"):
            key = np.log(np.maximum(weight, 1e-12))[None] - np.log(
                -np.log(rng.random((len(rows), len(weight))))
            )
        key[:, ~allowed] = -np.inf
        key[self.touched_or_target(rows)] = -np.inf
        best = np.argpartition(-key, n - 1, axis=1)[:, :n]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(key, best, 1), 1), 1)
        best = np.where(np.isneginf(np.take_along_axis(key, best, 1)), -1, best)
        return np.pad(best, ((0, 0), (0, self.n_negatives - n)), constant_values=-1)

    def touched_or_target(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what :meth:`touched` does, and the targets."""
        row, local = self.touched(rows)
        target = self._instances.target[rows] - self._split.item_offset[self._instances.domain[rows]]
        return np.append(row, np.arange(len(rows))), np.append(local, target)


def _bounds(split: Split) -> tuple[np.ndarray, np.ndarray]:
    return split.item_offset[:-1], split.item_offset[1:]


def _parse_mode(mode: str) -> tuple[str, int]:
    kind, number = mode[:3], mode[3:]
    if mode == "full":
        return "full", 0
    if kind in ("uni", "pop") and number.isdigit() and int(number) > 0:
        return kind, int(number)
    raise CDRError(
        f"eval_args mode '{mode}' is not known: use uni999, pop999 (any number of negatives) or full."
    )
