"""Where each instance's target ranks among its candidates: what all ranking metrics follow from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from recbole.utils import set_color
from tqdm import tqdm

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.instances import Batch, Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.splits.interaction_split import Split
from recbole_cdr_ext.splits.sampler import Candidates

compat.apply()

# Scores that exist at once in full ranking (a quarter of a gigabyte): a domain of many items is ranked in
# fewer rows.
_MAX_SCORES = 1 << 26


@dataclass(frozen=True)
class Ranks:
    """The result of ranking n instances.

    Attributes:
        rank: (n,) the target's rank among its candidates, from 1.
        candidates: (n,) how many were ranked, the target included.
        fallback: (n,) whether training popularity ranked them, for the model has no score for the instance.
    """

    rank: np.ndarray
    candidates: np.ndarray
    fallback: np.ndarray

    def __len__(self) -> int:
        return len(self.rank)


def popularity_scores(split: Split) -> np.ndarray:
    """Returns how often each item was interacted with in training, (item_num,), by global id."""
    return np.bincount(split.train_events.item, minlength=int(split.item_offset[-1]))


@torch.no_grad()
def evaluate(
    model,
    instances: Instances,
    candidates: Candidates,
    loader,
    popularity: np.ndarray,
    config,
    *,
    progress: str = "",
) -> Ranks:
    """Ranks each instance's target with a model: one encoding per instance, its candidates scored at once.

    Ties count against the target, so a model that says the same of every item gets nothing. Memory depends on
    the loader's batches, not on the number of instances.

    Args:
        model: a ``CrossDomainRecommender``; it is in training mode afterwards if it was before.
        loader: batches of the instances, in any order; each row once.
        popularity: (item_num,) scores for the instances that the model cannot score.
        config: read for ``device`` and ``show_progress``.
        progress: what the progress bar is called.

    Raises:
        CDRError: a score is not a number.
    """
    was_training = model.training
    model.eval()
    rank = np.zeros(len(instances), np.int64)
    fallback = np.zeros(len(instances), bool)
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
                ranked, able = _rank(model, part.to(device), candidates, rows, popularity_tensor)
                rank[rows], fallback[rows] = ranked, ~able
    finally:
        model.train(was_training)
    assert (rank > 0).all(), "the loader left out instances"
    return Ranks(rank, candidates.counts, fallback)


def rank_by_popularity(
    instances: Instances,
    candidates: Candidates,
    popularity: np.ndarray,
    item_offset: np.ndarray,
    block: int = 1024,
) -> Ranks:
    """Ranks each instance's target by training popularity, by the same rules."""
    rank = np.zeros(len(instances), np.int64)
    scores = torch.from_numpy(popularity.astype(np.float64))
    for domain in np.unique(instances.domain):
        own = slice(int(item_offset[domain]), int(item_offset[domain + 1]))
        members = np.flatnonzero(instances.domain == domain)
        step = max(1, min(block, _MAX_SCORES // (own.stop - own.start)))
        for first in range(0, len(members), step):
            rows = members[first : first + step]
            targets = torch.from_numpy(instances.target[rows])
            rank[rows] = _rank_popular(scores, targets, candidates, rows, own)
    return Ranks(rank, candidates.counts, np.zeros(len(instances), bool))


def _parts(batch: Batch, candidates: Candidates, model) -> Iterator[Batch]:
    """Cuts a batch for full ranking so that its scores stay within ``_MAX_SCORES``."""
    own = model.item_slice(batch.target_domain)
    step = max(1, _MAX_SCORES // (own.stop - own.start)) if candidates.mode == "full" else len(batch)
    if len(batch) <= step:
        yield batch
        return
    for first in range(0, len(batch), step):
        yield batch.rows(torch.arange(first, min(first + step, len(batch))))


def _rank(
    model, batch: Batch, candidates: Candidates, rows: np.ndarray, popularity: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ranks, which of them are the model's) of one batch."""
    own = model.item_slice(batch.target_domain)
    able = model.can_score(batch)
    scorable = np.ones(len(rows), bool) if able is None else able.cpu().numpy()
    rank = np.zeros(len(rows), np.int64)
    if not scorable.all():
        targets = batch.targets.cpu()[torch.from_numpy(~scorable)]
        rank[~scorable] = _rank_popular(popularity, targets, candidates, rows[~scorable], own)
    if scorable.any():
        scored = batch if able is None or scorable.all() else batch.rows(able)
        rank[scorable] = _rank_scored(model, scored, candidates, rows[scorable], own)
    return rank, scorable


def _rank_scored(model, batch: Batch, candidates: Candidates, rows: np.ndarray, own: slice) -> np.ndarray:
    block = candidates.block(rows)
    if block is None:
        scores = model.score(batch)
        _check_numbers(scores, model, batch)
        return _rank_full(scores, batch.targets - own.start, candidates.touched(rows))
    items = torch.from_numpy(block).to(batch.targets.device)
    scores = model.score(batch, items)
    _check_numbers(scores, model, batch, items == 0)
    return _rank_sampled(scores, items)


def _rank_popular(
    popularity: torch.Tensor, targets: torch.Tensor, candidates: Candidates, rows: np.ndarray, own: slice
) -> np.ndarray:
    block = candidates.block(rows)
    if block is None:
        scores = popularity[own].expand(len(rows), -1)
        return _rank_full(scores, targets - own.start, candidates.touched(rows))
    items = torch.from_numpy(block)
    return _rank_sampled(popularity[items], items)


def _rank_sampled(scores: torch.Tensor, items: torch.Tensor) -> np.ndarray:
    """(B, C) scores of candidates, the target in column 0 → (B,) ranks."""
    ahead = (scores[:, 1:] >= scores[:, :1]) & (items[:, 1:] != 0)
    return 1 + ahead.sum(1).cpu().numpy()


def _rank_full(
    scores: torch.Tensor, target: torch.Tensor, touched: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """(B, n_k) scores of a domain's items and (B,) targets' places among them → (B,) ranks.

    ``touched`` items leave the ranking. They become NaN, which compares false with everything: with minus
    infinity they would tie with a target that a model rules out altogether.
    """
    place = target.unsqueeze(1)
    row, column = (torch.from_numpy(index).to(scores.device) for index in touched)
    # A copy, for the scores may be a view of what the model keeps.
    masked = scores.clone() if scores.is_floating_point() else scores.double()
    masked[row, column] = torch.nan
    # The target ties with itself, which is the 1 of its rank.
    return (masked >= masked.gather(1, place)).sum(1).cpu().numpy()


def _check_numbers(scores: torch.Tensor, model, batch: Batch, ignored: torch.Tensor | None = None) -> None:
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
