"""Where each instance's target ranks among its candidates, and which of them are best: what all metrics follow from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from recbole.utils import set_color
from tqdm import tqdm

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.instances import Batch, Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.sampler import Candidates
from recbole_cdr_ext.splits.split import Split

compat.apply()

# Scores that exist at once in full ranking (a quarter of a gigabyte): a domain of many items is ranked in
# fewer rows.
_MAX_SCORES = 1 << 26


class Scorer(Protocol):
    """What is ranked by: a ``CrossDomainRecommender``, or anything that scores batches as it does."""

    @property
    def training(self) -> bool:
        """Whether it is in training mode."""

    @property
    def domain_names(self) -> Sequence[str]:
        """The domains, by index."""

    def train(self, mode: bool = True) -> object:
        """Enters or leaves training mode."""

    def eval(self) -> object:
        """Leaves training mode."""

    def item_slice(self, domain: int) -> slice:
        """Returns which global item ids are a domain's."""

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Returns (B,) which instances it can score, None for all."""

    def score(self, batch: Batch, candidates: torch.Tensor | None = None) -> torch.Tensor:
        """Returns (B, C) scores of global item ids, or (B, n_k) of all items of the batch's target domain."""


@dataclass(frozen=True)
class Ranks:
    """The result of ranking n instances.

    Attributes:
        rank: (n,) the target's rank among its candidates, from 1: ties count against it.
        candidates: (n,) how many were ranked, the target included.
        fallback: (n,) whether training popularity ranked them, for the model has no score for the instance.
        mean_rank: (n,) the target's rank where it shares the ranks of all that score as much; empty if not asked for.
        items: (n, K) the best candidates, best first, as ids within the target's domain from 1, and 0 behind the last
            where there are fewer than K; empty if not asked for. Of those that score the same, the smaller id comes
            first and the target last, so that it stands there where ``rank`` is at most K.
    """

    rank: np.ndarray
    candidates: np.ndarray
    fallback: np.ndarray
    mean_rank: np.ndarray = field(default_factory=lambda: np.zeros(0))
    items: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))

    @classmethod
    def empty(cls, candidates: Candidates, list_length: int | None) -> Ranks:
        """Returns ranks of 0 for all instances that have candidates, to be filled."""
        n = len(candidates)
        ranks = cls(np.zeros(n, np.int64), candidates.counts, np.zeros(n, bool))
        if list_length is None:
            return ranks
        items = np.zeros((n, list_length), np.int32)
        return cls(ranks.rank, ranks.candidates, ranks.fallback, np.zeros(n), items)

    def __len__(self) -> int:
        return len(self.rank)

    def take(self, rows: np.ndarray) -> Ranks:
        """Returns the ranks of some instances, by (n,) mask or by their numbers."""
        arrays = [getattr(self, one.name) for one in fields(self)]
        return Ranks(*(array[rows] if len(array) else array for array in arrays))

    def fill(self, rows: np.ndarray, scores: _Scores) -> None:
        """Enters the instances that ``scores`` are of."""
        self.rank[rows] = scores.rank()
        if len(self.mean_rank):
            self.mean_rank[rows] = scores.mean_rank()
            self.items[rows] = scores.best(self.items.shape[1])


def popularity_scores(split: Split) -> np.ndarray:
    """Returns how often each item was interacted with in training, (item_num,), by global id."""
    return np.bincount(split.train_events.item, minlength=int(split.item_offset[-1]))


def popularity_by_domain(popularity: np.ndarray, item_offset: np.ndarray) -> list[np.ndarray]:
    """Returns each domain's (n_items + 1,) popularity by the ids of :attr:`Ranks.items`, 0 of the padding first."""
    return [np.append(0, popularity[low:high]) for low, high in pairwise(item_offset)]


@torch.no_grad()
def evaluate(
    model: Scorer,
    instances: Instances,
    candidates: Candidates,
    loader: CrossDomainLoader,
    popularity: np.ndarray,
    config: CDRConfig,
    *,
    progress: str = "",
    list_length: int | None = None,
) -> Ranks:
    """Ranks each instance's target with a model: one encoding per instance, its candidates scored at once.

    Ties count against the target, so a model that says the same of every item gets nothing. Memory depends on
    the loader's batches, not on the number of instances.

    Args:
        model: what scores; it is in training mode afterwards if it was before.
        loader: batches of the instances, in any order; each row once.
        popularity: (item_num,) scores for the instances that the model cannot score.
        config: read for ``device`` and ``show_progress``.
        progress: what the progress bar is called.
        list_length: how many of the best candidates to note, with the mean rank; None: the rank alone.

    Raises:
        CDRError: a score is not a number.
    """
    was_training = model.training
    model.eval()
    ranks = Ranks.empty(candidates, list_length)
    popularity_tensor = torch.from_numpy(popularity.astype(np.float64))
    device = config["device"] or "cpu"
    bar = tqdm(
        loader,
        total=len(loader),
        ncols=100,
        desc=set_color(f"Evaluate {progress:>5}", "pink"),
        disable=not config["show_progress"],
        leave=False,
    )
    try:
        for batch in bar:
            for part in _parts(batch, candidates, model):
                rows = part["index"].numpy()
                _rank(ranks, model, part.to(device), candidates, rows, popularity_tensor)
    finally:
        model.train(was_training)
    assert (ranks.rank > 0).all(), "the loader left out instances"
    return ranks


def rank_by_popularity(
    instances: Instances,
    candidates: Candidates,
    popularity: np.ndarray,
    item_offset: np.ndarray,
    block: int = 1024,
    list_length: int | None = None,
) -> Ranks:
    """Ranks each instance's target by training popularity, by the same rules."""
    ranks = Ranks.empty(candidates, list_length)
    scores = torch.from_numpy(popularity.astype(np.float64))
    for domain in np.unique(instances.domain):
        domain_items = slice(int(item_offset[domain]), int(item_offset[domain + 1]))
        members = np.flatnonzero(instances.domain == domain)
        step = max(1, min(block, _MAX_SCORES // (domain_items.stop - domain_items.start)))
        for first in range(0, len(members), step):
            rows = members[first : first + step]
            targets = torch.from_numpy(instances.target[rows])
            ranks.fill(rows, _popular(scores, targets, candidates, rows, domain_items))
    return ranks


def _parts(batch: Batch, candidates: Candidates, model: Scorer) -> Iterator[Batch]:
    """Cuts a batch for full ranking so that its scores stay within ``_MAX_SCORES``."""
    domain_items = model.item_slice(batch.target_domain)
    size = domain_items.stop - domain_items.start
    step = max(1, _MAX_SCORES // size) if candidates.mode == "full" else len(batch)
    if len(batch) <= step:
        yield batch
        return
    for first in range(0, len(batch), step):
        yield batch.rows(torch.arange(first, min(first + step, len(batch))))


def _rank(
    ranks: Ranks,
    model: Scorer,
    batch: Batch,
    candidates: Candidates,
    rows: np.ndarray,
    popularity: torch.Tensor,
) -> None:
    """Enters one batch: by the model what it can score, by popularity the rest."""
    domain_items = model.item_slice(batch.target_domain)
    able = model.can_score(batch)
    scorable = np.ones(len(rows), bool) if able is None else able.cpu().numpy()
    ranks.fallback[rows] = ~scorable
    if not scorable.all():
        targets = batch.targets.cpu()[torch.from_numpy(~scorable)]
        others = rows[~scorable]
        ranks.fill(others, _popular(popularity, targets, candidates, others, domain_items))
    if scorable.any():
        scored = batch if able is None or scorable.all() else batch.rows(able)
        ranks.fill(rows[scorable], _scored(model, scored, candidates, rows[scorable], domain_items))


def _scored(
    model: Scorer, batch: Batch, candidates: Candidates, rows: np.ndarray, domain_items: slice
) -> _Scores:
    block = candidates.block(rows)
    if block is None:
        scores = model.score(batch)
        _check_numbers(scores, model, batch)
        return _Scores.of_all(scores, batch.targets - domain_items.start, candidates.touched(rows))
    items = torch.from_numpy(block).to(batch.targets.device)
    scores = model.score(batch, items)
    _check_numbers(scores, model, batch, items == 0)
    return _Scores.of_sample(scores, items, domain_items.start)


def _popular(
    popularity: torch.Tensor,
    targets: torch.Tensor,
    candidates: Candidates,
    rows: np.ndarray,
    domain_items: slice,
) -> _Scores:
    block = candidates.block(rows)
    if block is None:
        scores = popularity[domain_items].expand(len(rows), -1)
        return _Scores.of_all(scores, targets - domain_items.start, candidates.touched(rows))
    items = torch.from_numpy(block)
    return _Scores.of_sample(popularity[items], items, domain_items.start)


@dataclass(frozen=True)
class _Scores:
    """The scores of B instances' candidates.

    What is not ranked is NaN, which compares false with everything: with minus infinity it would tie with a target
    that a model rules out altogether.

    Attributes:
        values: (B, C).
        target: (B, 1) the target's column.
        ids: (B, C) ids within the domain, from 1; None: those of the columns.
    """

    values: torch.Tensor
    target: torch.Tensor
    ids: torch.Tensor | None

    @classmethod
    def of_sample(cls, scores: torch.Tensor, items: torch.Tensor, first: int) -> _Scores:
        """Takes those of (B, C) candidates: the target in column 0, 0 behind the last; ``first`` is the first item."""
        values = scores if scores.is_floating_point() else scores.double()
        target = torch.zeros_like(items[:, :1])
        return cls(values.masked_fill(items == 0, torch.nan), target, items - first + 1)

    @classmethod
    def of_all(
        cls, scores: torch.Tensor, target: torch.Tensor, touched: tuple[np.ndarray, np.ndarray]
    ) -> _Scores:
        """Takes those of all (B, n_k) items of a domain but ``touched`` ones; (B,) ``target`` places among them."""
        row, column = (torch.from_numpy(index).to(scores.device) for index in touched)
        # A copy, for the scores may be a view of what the model keeps.
        values = scores.clone() if scores.is_floating_point() else scores.double()
        values[row, column] = torch.nan
        return cls(values, target.unsqueeze(1), None)

    def rank(self) -> np.ndarray:
        """Returns (B,) ranks of the targets."""
        # The target ties with itself, which is the 1 of its rank.
        return (self.values >= self.values.gather(1, self.target)).sum(1).cpu().numpy()

    def mean_rank(self) -> np.ndarray:
        """Returns (B,) ranks of the targets, each the mean of the ranks that those of its score share."""
        of_target = self.values.gather(1, self.target)
        above, equal = ((self.values > of_target).sum(1), (self.values == of_target).sum(1))
        return above.cpu().numpy() + (equal.cpu().numpy() + 1) / 2

    def best(self, length: int) -> np.ndarray:
        """Returns (B, length) ids of the best; see :attr:`Ranks.items` for their order."""
        ordered = self._by_id()
        values, is_target = ordered.values, torch.zeros_like(ordered.values, dtype=torch.bool)
        is_target.scatter_(1, ordered.target, True)
        ranked, values = ~values.isnan(), values.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        width = min(length, values.shape[1])
        # What topk takes of equal scores is not said, so it finds the lowest score of the list alone.
        lowest = values.topk(width, dim=1).values[:, -1:]
        above, equal = ranked & (values > lowest), ranked & (values == lowest)
        others = equal & ~is_target
        place = torch.where(is_target, others.sum(1, keepdim=True) + 1, others.cumsum(1))
        chosen = above | (equal & (place <= width - above.sum(1, keepdim=True)))
        row, column = chosen.nonzero(as_tuple=True)
        columns = torch.zeros((len(values), width), dtype=torch.int64, device=values.device)
        missing = torch.ones_like(columns, dtype=torch.bool)
        at = row, (chosen.cumsum(1) - 1)[row, column]
        columns[at], missing[at] = column, False
        # Stable sorts: the last key first. What is missing stays behind a score of minus infinity.
        last = is_target.gather(1, columns).int().masked_fill(missing, 2)
        order = last.argsort(dim=1, stable=True)
        key = values.gather(1, columns).masked_fill(missing, -torch.inf).gather(1, order)
        order = order.gather(1, key.argsort(dim=1, descending=True, stable=True))
        ids = columns + 1 if ordered.ids is None else ordered.ids.gather(1, columns)
        best = ids.masked_fill(missing, 0).gather(1, order).cpu().numpy()
        return np.pad(best, ((0, 0), (0, length - width)))

    def _by_id(self) -> _Scores:
        """Returns the same scores, columns in the order of their items."""
        if self.ids is None:
            return self
        ids, order = self.ids.sort(1)
        target = (order == self.target).int().argmax(1, keepdim=True)
        return _Scores(self.values.gather(1, order), target, ids)


def _check_numbers(
    scores: torch.Tensor, model: Scorer, batch: Batch, ignored: torch.Tensor | None = None
) -> None:
    # A sum is one pass. It is NaN also where infinities of both signs meet, so then each score is looked at.
    if not torch.isnan(scores.sum()):
        return
    bad = torch.isnan(scores if ignored is None else scores.masked_fill(ignored, 0)).any(1)
    if bad.any():
        name, domain = type(model).__name__, model.domain_names[batch.target_domain]
        raise CDRError(
            f"{name} gives scores that are not numbers, for {int(bad.sum())} of {len(batch)} instances of a "
            f"batch of domain '{domain}'. Lower learning_rate, or set clip_grad_norm."
        )
