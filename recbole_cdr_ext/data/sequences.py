"""Training sequences: one pass over a sequence of n events trains the n - 1 positions behind the first.

Where a model's state at a position depends on nothing behind it, the instances of a sequence (see ``instances.py``)
need not be encoded one by one. A batch then holds sequences, and every position predicts the event after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.registry.splits import get_split
from recbole_cdr_ext.settings.config import CDRConfig

# As in loader.py: batches are cut from pools of this many, sorted by length.
_BUCKET = 16


class SequenceBatch(Interaction):
    """B windows of training sequences, padded with 0 on the right.

    Fields, all (B, L): ``item_seq`` global ids of what is read, ``target_seq`` those of what comes next, ``event``
    the targets' rows in the split's ``train_events`` (-1 at padding). A position with an item and without a target is
    read and predicts nothing. ``tag`` says which of several kinds of sequences they are.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], tag: int = 0):
        super().__init__(tensors)
        self.tag = tag

    def to(
        self, device: torch.device | str, selected_field: Sequence[str] | str | None = None
    ) -> SequenceBatch:
        """Returns the batch on ``device``."""
        return SequenceBatch({name: tensor.to(device) for name, tensor in self.interaction.items()}, self.tag)

    @property
    def items(self) -> torch.Tensor:
        """(B, L) what is read, oldest first."""
        return self["item_seq"]

    @property
    def targets(self) -> torch.Tensor:
        """(B, L) what comes next."""
        return self["target_seq"]


class TrainingSequences:
    """The training events of some domains as windows of at most ``max_length`` positions, each a target once.

    A sequence with more positions is cut from its end, so that what is short is its oldest window.

    Args:
        events: the split's ``train_events``, ordered by (sequence, merged timeline).
        mask: (m,) the events that take part; None: all.
        max_length: positions read at most.
        target_mask: (m,) the events that a model is asked for; windows without any as a target are left out. None: all.
    """

    def __init__(
        self,
        events: Events,
        max_length: int,
        mask: np.ndarray | None = None,
        target_mask: np.ndarray | None = None,
    ):
        self._row = np.arange(len(events)) if mask is None else np.flatnonzero(mask)
        self._item = events.item[self._row].astype(np.int64)
        sequence = events.sequence[self._row]
        edge = np.flatnonzero(np.diff(sequence)) + 1
        first, stop = np.append(0, edge), np.append(edge, len(sequence))
        positions = stop - first - 1
        windows = -(-positions // max_length)  # none for a single event
        owner = np.repeat(np.arange(len(first)), windows)
        back = np.arange(len(owner)) - np.repeat(np.cumsum(windows) - windows, windows)
        # A window reads [start, stop) and predicts [start + 1, stop + 1).
        self._stop = stop[owner] - 1 - back * max_length
        self._start = np.maximum(self._stop - max_length, first[owner])
        if target_mask is not None:
            before = np.append(0, np.cumsum(target_mask[self._row]))
            some = before[self._stop + 1] > before[self._start + 1]
            self._start, self._stop = self._start[some], self._stop[some]

    def __len__(self) -> int:
        """Returns the number of targets."""
        return int((self._stop - self._start).sum())

    def parts(self, size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Returns all windows, shuffled, in parts of about ``size`` targets and of similar length."""
        order = rng.permutation(len(self._start))
        length = (self._stop - self._start)[order]
        pool = np.cumsum(length) // (_BUCKET * size)
        order = order[np.lexsort((length, pool))]
        length = (self._stop - self._start)[order]
        part = (np.cumsum(length) - length) // max(1, size)
        cuts = np.flatnonzero(np.diff(part)) + 1
        return np.split(order, cuts) if len(order) else []

    def batch(self, windows: np.ndarray, tag: int = 0) -> SequenceBatch:
        """Returns the batch of some windows."""
        start, length = self._start[windows], (self._stop - self._start)[windows]
        column = np.arange(int(length.max(initial=1)))
        real = column < length[:, None]
        index = np.where(real, start[:, None] + column, 0)
        arrays = {
            "item_seq": np.where(real, self._item[index], 0),
            "target_seq": np.where(real, self._item[np.where(real, index + 1, 0)], 0),
            "event": np.where(real, self._row[np.where(real, index + 1, 0)], -1),
        }
        return SequenceBatch({name: torch.from_numpy(array) for name, array in arrays.items()}, tag)


def reorders(config: CDRConfig) -> bool:
    """Returns whether each epoch reads training sequences in another order (``reorder``), as theirs means nothing.

    The published rows are trained on as they were printed.
    """
    return (
        bool(config["reorder"]) and config["order"] == "none" and get_split(config["split"]).layout != "rows"
    )


def new_order(events: Events, rng: np.random.Generator) -> np.ndarray:
    """Returns the rows of the events with those of each sequence in a random order, (m,)."""
    return np.lexsort((rng.random(len(events)), events.sequence))


def first_of_token(events: Events, token_key: np.ndarray) -> np.ndarray:
    """Returns which events are the first with their item's token in their sequence, (m,) bool.

    One thing may be an item of two domains, under one token. An instance's histories do not hold its target's token
    (see ``split.py``); so where merged sequences are trained on, the second of a pair must not be a target behind the
    first.

    Args:
        token_key: (item_num,) equal for items with the same token.
    """
    key = events.sequence * (np.int64(token_key.max(initial=0)) + 1) + token_key[events.item]
    mask = np.zeros(len(events), bool)
    mask[np.unique(key, return_index=True)[1]] = True
    return mask


def behind_the_others(events: Events, domain: int, max_length: int) -> Events:
    """Returns the events as sequences for targets in ``domain``, where there is no order between domains.

    A sequence holds the last ``max_length`` events of each other domain, domain by domain, then at most ``max_length``
    of its own. A longer one of the domain is cut from its end, and each piece stands behind the same other events.
    """
    in_target = events.domain == domain
    block = events.sequence * np.int64(events.domain.max(initial=0) + 1) + events.domain
    by_block = np.argsort(block, kind="stable")
    stop = np.cumsum(np.bincount(block))
    back = np.empty(len(block), np.int64)  # events behind each in its sequence and domain
    back[by_block] = stop[block[by_block]] - 1 - np.arange(len(block))
    pieces = -(
        -np.bincount(events.sequence[in_target], minlength=int(events.sequence.max(initial=0)) + 1)
        // max_length
    )
    context = np.flatnonzero(~in_target & (back < max_length))
    copies = pieces[events.sequence[context]]
    copy = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
    rows = np.append(np.repeat(context, copies), np.flatnonzero(in_target))
    piece = np.append(copy, back[in_target] // max_length)
    order = np.lexsort((rows, events.domain[rows], in_target[rows], piece, events.sequence[rows]))
    rows, piece = rows[order], piece[order]
    first = np.append(True, (np.diff(events.sequence[rows]) != 0) | (np.diff(piece) != 0))[: len(rows)]
    return replace(events.take(rows), sequence=np.cumsum(first) - 1)


def with_start(events: Events, token: int) -> Events:
    """Returns the events with one of item ``token``, in domain -1, before the first of each sequence.

    In :class:`TrainingSequences`, the first event is then a target too, and a single event is a sequence to learn from.
    """
    first = np.flatnonzero(np.diff(events.sequence, prepend=-1))
    columns = {f.name: getattr(events, f.name) for f in fields(events)}
    started = {name: np.insert(column, first, column[first]) for name, column in columns.items()}
    place = first + np.arange(len(first))
    started["item"][place], started["domain"][place] = token, -1
    return replace(events, **started)


def next_items(events: Events, count: int) -> np.ndarray:
    """Returns each event's item and those of the ``count`` - 1 events behind it in its sequence and domain, (m, count).

    0 stands where there are fewer. Whether events lie in one window or in two does not matter.
    """
    order = np.lexsort((events.domain, events.sequence))
    follows = np.diff(events.sequence[order]) == 0
    follows &= np.diff(events.domain[order]) == 0
    behind = np.full(len(events), -1)
    behind[order[:-1][follows]] = order[1:][follows]
    place, out = np.arange(len(events)), np.zeros((len(events), count), np.int64)
    for column in range(count):
        real = place >= 0
        out[real, column] = events.item[place[real]]
        place = np.where(real, behind[place], -1)
    return out


class EpochBatches:
    """The batches of one epoch, each made when its turn comes; ``parts`` are the arguments that ``make`` takes."""

    def __init__(self, parts: list[tuple[int, np.ndarray]], make: Callable[[int, np.ndarray], Interaction]):
        self._parts, self._make = parts, make

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Interaction]:
        for part in self._parts:
            yield self._make(*part)


def shuffled_windows(
    sequences: Sequence[TrainingSequences],
    size: int,
    rng: np.random.Generator,
    make: Callable[[int, np.ndarray], Interaction] | None = None,
) -> EpochBatches:
    """Returns all windows of several kinds of sequences in batches of one kind and about ``size`` targets, shuffled.

    Args:
        make: turns a kind and some of its windows into a batch; None: :meth:`TrainingSequences.batch`.
    """
    parts = [(tag, windows) for tag, of_kind in enumerate(sequences) for windows in of_kind.parts(size, rng)]
    return EpochBatches(
        [parts[place] for place in rng.permutation(len(parts))],
        make or (lambda tag, windows: sequences[tag].batch(windows, tag)),
    )
