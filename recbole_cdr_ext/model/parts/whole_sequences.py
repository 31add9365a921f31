"""Training on whole sequences: what an epoch reads of them, and in which order.

Where there is no order in the data, each epoch reads every sequence in a new one (``reorder``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.sequences import (
    EpochBatches,
    SequenceBatch,
    TrainingSequences,
    behind_the_others,
    first_of_token,
    new_order,
    reorders,
    shuffled_windows,
)
from recbole_cdr_ext.settings.config import CDRConfig

AnySequences = TypeVar("AnySequences", bound=TrainingSequences)


def trains_whole_sequences(config: CDRConfig) -> bool:
    """Returns whether every position of a sequence is a target, and one pass over it trains them all."""
    every = config["train_targets"] == "all" and not config["targets_per_sequence"]
    return bool(config["one_pass"]) and every


class WholeSequences(Generic[AnySequences]):
    """The sequences of all training events, in the order of the epoch.

    Args:
        config: ``train_batch_size`` counts targets; ``reorder`` and ``order`` say whether each epoch has its own order.
        events: the split's ``train_events``.
        arrange: makes of the events, in the order of an epoch, one or several kinds of sequences (of a domain, of all).
        recalled: (m, r) items that a generator recalled for the events, 0 where there are fewer; None without one.

    Attributes:
        kinds: the sequences of the epoch whose batches were asked for last; a batch is of one kind, its ``tag``.
        reordered: whether each epoch reads the events of a sequence in another order.
    """

    def __init__(
        self,
        config: CDRConfig,
        events: Events,
        arrange: Callable[[Events], Sequence[AnySequences]],
        recalled: np.ndarray | None = None,
    ):
        self.events, self.recalled, self.reordered = events, recalled, reorders(config)
        self._arrange, self._size = arrange, int(config["train_batch_size"])
        self._rows: np.ndarray | None = None
        self.kinds = arrange(events)

    def __len__(self) -> int:
        """The number of targets."""
        return sum(len(kind) for kind in self.kinds)

    def batches(self, rng: np.random.Generator) -> EpochBatches:
        """Returns an epoch's batches, each of one kind and about ``train_batch_size`` targets, shuffled."""
        if self.reordered:
            self._rows = new_order(self.events, rng)
            self.kinds = self._arrange(self.events.take(self._rows))
        return shuffled_windows(self.kinds, self._size, rng)

    def recalled_at(
        self, batch: SequenceBatch, row: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor | None:
        """Returns the items recalled for the targets at positions (row, place) of a batch, each (N,): (N, r).

        They were recalled for the order of the data, where they stood behind; what is history in another one is left
        out. None without a generator.
        """
        if self.recalled is None:
            return None
        event = batch["event"][row, place].cpu().numpy()
        event = event if self._rows is None else self._rows[event]
        recalled = torch.from_numpy(self.recalled[event].astype(np.int64)).to(row.device)
        return _without_known(recalled, batch.items[row], place) if self.reordered else recalled


def merged_timelines(events: Events, token_key: np.ndarray, max_length: int) -> list[TrainingSequences]:
    """Returns the sequences of all domains on one timeline, where an item's token stands once.

    Args:
        token_key: (item_num,) equal for items with the same token.
        max_length: positions read at most.
    """
    return [TrainingSequences(events, max_length, first_of_token(events, token_key))]


def events_by_target_domain(
    events: Events, token_key: np.ndarray, n_domains: int, max_length: int
) -> list[Events]:
    """Returns for each domain the events as its targets read them where there is no clock: behind those of all others.

    Args:
        token_key: (item_num,) equal for items with the same token.
        max_length: events of a domain in a sequence at most.
    """
    once = events.take(first_of_token(events, token_key))
    return [behind_the_others(once, domain, max_length) for domain in range(n_domains)]


def _without_known(recalled: torch.Tensor, items: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Returns (N, r) recalled items without those that stand in the (N, L) sequences up to ``place`` (N,)."""
    behind = torch.arange(items.shape[1], device=items.device) > place.unsqueeze(1)
    known = items.masked_fill(behind, 0)
    return recalled.masked_fill((recalled.unsqueeze(2) == known.unsqueeze(1)).any(2), 0)
