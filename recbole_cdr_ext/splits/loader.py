"""Batches of instances, without work on padding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from recbole_cdr_ext.data.instances import Batch, Instances, make_batch
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.sampler import CrossDomainSampler

# Training batches are cut from pools of this many batches sorted by length: short enough to stay random, long enough
# that a batch's rows are about as long as its longest.
_BUCKET = 16


class BatchReader(Protocol):
    """What a model says of the batches that it reads."""

    max_history_length: int
    needs_negatives: bool
    needs_merged: bool
    needs_pseudo: bool


class CrossDomainLoader:
    """Iterates over instances in batches of one target domain each, each trimmed to its longest history.

    In training the order, the drawn positions (``targets_per_sequence``) and the negatives depend on the seed and on
    :meth:`set_epoch` alone, so that a resumed run sees what the unbroken one would have.

    Args:
        config: read for sizes, lengths and seeds.
        instances: what to iterate over.
        model: says what its batches must hold.
        sampler: draws the negatives of training batches.
        training: shuffled and with negatives, or in blocks for evaluation.
    """

    def __init__(
        self,
        config: CDRConfig,
        instances: Instances,
        model: BatchReader,
        *,
        sampler: CrossDomainSampler | None = None,
        training: bool = False,
    ):
        self.instances, self.sampler, self.training = instances, sampler, training
        self.batch_size = int(config["train_batch_size"] if training else config["eval_batch_size"])
        self.shuffle = training
        self._seed = int(config["seed"])
        self._per_sequence = int(config["targets_per_sequence"] or 0) if training else 0
        self._negatives = int(config["train_neg_num"]) if training and model.needs_negatives else 0
        self._max_length = int(model.max_history_length)
        self._pseudo_length = int(config["pseudo_length"]) if model.needs_pseudo else 0
        self._merged = bool(model.needs_merged)
        self._length = np.minimum(instances.lengths, self._max_length)
        self._epoch: tuple[int, int] = (0, 0)

    def set_epoch(self, phase: int, epoch: int) -> None:
        """Says which epoch of which phase the next iteration is."""
        self._epoch = (phase, epoch)

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng((self._seed, *self._epoch))

    def __len__(self) -> int:
        sizes = np.bincount(self.instances.domain[self._positions(np.random.default_rng(0))])
        return sum(math.ceil(size / self.batch_size) for size in sizes)

    def __iter__(self) -> Iterator[Batch]:
        rng = self._generator()
        for rows in self._training_batches(rng) if self.training else self._blocks():
            negatives = None
            if self._negatives and self.sampler is not None:
                domain = int(self.instances.domain[rows[0]])
                negatives = self.sampler.negatives(self.instances.user[rows], domain, self._negatives, rng)
            yield make_batch(
                self.instances,
                rows,
                max_length=self._max_length,
                pseudo_length=self._pseudo_length,
                merged=self._merged,
                negatives=negatives,
            )

    def _positions(self, rng: np.random.Generator) -> np.ndarray:
        """Rows that take part: all, or so many per sequence, drawn anew each epoch."""
        if not self._per_sequence:
            return np.arange(len(self.instances))
        order = np.lexsort((rng.random(len(self.instances)), self.instances.sequence))
        sequence = self.instances.sequence[order]
        first = np.append(0, np.flatnonzero(np.diff(sequence)) + 1) if len(order) else order
        rank = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
        return np.sort(order[rank < self._per_sequence])

    def _training_batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        rows = rng.permutation(self._positions(rng))
        batches = []
        for k in np.unique(self.instances.domain[rows]):
            in_domain = rows[self.instances.domain[rows] == k]
            for first in range(0, len(in_domain), _BUCKET * self.batch_size):
                bucket = in_domain[first : first + _BUCKET * self.batch_size]
                bucket = bucket[self._by_length(bucket, int(k))]
                batches += [bucket[i : i + self.batch_size] for i in range(0, len(bucket), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _blocks(self) -> list[np.ndarray]:
        blocks = []
        for k in np.unique(self.instances.domain):
            in_domain = np.flatnonzero(self.instances.domain == k)
            in_domain = in_domain[self._by_length(in_domain, int(k))]
            blocks += [in_domain[i : i + self.batch_size] for i in range(0, len(in_domain), self.batch_size)]
        return blocks

    def _by_length(self, rows: np.ndarray, domain: int) -> np.ndarray:
        """Returns an order of ``rows`` by the length of their own, then of their other histories."""
        lengths = self._length[rows]
        return np.lexsort((lengths.sum(1), lengths[:, domain]))
