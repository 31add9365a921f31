"""What all models that predict ratings share: batches, bias forms, predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from logging import getLogger
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import Ratings, RatingSplit, TrainingData

if TYPE_CHECKING:
    pass

# Learners that torch can apply sparse gradients with.
SPARSE_LEARNERS = ("sgd", "adagrad", "sparse_adam")


@dataclass(frozen=True)
class RatingBatch:
    """B ratings of one domain.

    Attributes:
        user: (B,) user ids.
        item: (B,) places of the items in their domain, from 0.
        rating: (B,) in the dataset's own units.
        target_domain: the domain's index.
    """

    user: torch.Tensor
    item: torch.Tensor
    rating: torch.Tensor
    target_domain: int

    def __len__(self) -> int:
        return len(self.user)

    def to(self, device: torch.device | str) -> Self:
        """Returns the batch on a device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "target_domain"}
        return replace(self, **moved)

    def take(self, rows: torch.Tensor | slice) -> Self:
        """Returns the ratings at ``rows``: a slice, indices or a mask."""
        taken = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "target_domain"}
        return replace(self, **taken)


def whole_batch(ratings: Ratings, item_offset: int, domain: int) -> RatingBatch:
    """Returns all of some ratings as one batch."""
    return RatingBatch(
        torch.from_numpy(ratings.user.astype(np.int64)),
        torch.from_numpy(ratings.item.astype(np.int64) - item_offset),
        torch.from_numpy(ratings.rating),
        domain,
    )


class Shuffled:
    """An epoch's batches: all ratings once, in an order drawn from ``rng``."""

    def __init__(self, ratings: RatingBatch, size: int, rng: np.random.Generator):
        self.ratings, self.size, self.rng = ratings, size, rng

    def __len__(self) -> int:
        return -(-len(self.ratings) // self.size)

    def __iter__(self) -> Iterator[RatingBatch]:
        # One gather for the epoch: batches are then slices, without copies.
        order = torch.from_numpy(self.rng.permutation(len(self.ratings)))
        shuffled = self.ratings.take(order)
        for start in range(0, len(order), self.size):
            yield shuffled.take(slice(start, start + self.size))


@dataclass(frozen=True)
class Tables:
    """What was learned of one domain's ratings: r ≈ mean + user_bias + item_bias + ⟨user, item⟩.

    Attributes:
        user, item: (n_users, d) and (n_k, d) vectors; d may be 0.
        user_bias, item_bias: (n_users,) and (n_k,); zero without biases.
        mean: the domain's mean training rating; 0 without biases.
    """

    user: torch.Tensor
    item: torch.Tensor
    user_bias: torch.Tensor
    item_bias: torch.Tensor
    mean: float


class RatingRecommender(CrossDomainRecommender[RatingBatch, RatingSplit]):
    """Base of all models that predict the target-domain ratings of users who have none there.

    A model gives :meth:`rate`; :meth:`predict` adds what holds for all: items without a training rating, whose
    vectors nothing was learned of, get the target's mean plus the user's bias, and predictions are clipped if
    ``clip_ratings`` says so.
    """

    task = "rating"
    domains: ClassVar[str] = "two or more"
    cold_start = True
    # Whether it learned what is asked for; a stage may learn the source domain's ratings alone.
    rates_target = True

    target_mean: torch.Tensor
    known_items: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        super().__init__(config, data)
        split = data.split
        self.source, self.target = split.source, split.target
        self.has_biases = bool(config["biases"])
        self.clipped = bool(config["clip_ratings"])
        self.rating_range = split.rating_range
        self.mean_reduction = config["reduction"] == "mean"
        rows = split.train[self.target]
        self.register_buffer("target_mean", torch.tensor(float(rows.rating.mean(dtype=np.float64))))
        self.register_buffer("known_items", torch.from_numpy(split.known_items(self.target)))

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """As in the base class; checks what all rating models read."""
        if config["embedding_size"] == 0 and not config["biases"]:
            raise CDRError("embedding_size=0 with biases=False leaves nothing to learn: set one of them.")
        if config["pretrain_reduction"] == "sum" and config["pretrain_batch_size"] > 1024:
            # A popular item's step grows with the batch; measured: 4,096 diverges without biases.
            getLogger().warning(
                f"pretrain_reduction=sum with pretrain_batch_size={config['pretrain_batch_size']}: steps may diverge; "
                "1,024 or less is safe."
            )

    def rate(self, batch: RatingBatch) -> torch.Tensor:
        """Returns the predicted ratings of target items by cold-start users, (B,)."""
        raise NotImplementedError(f"{type(self).__name__}.rate")

    def cold_bias(self, user: torch.Tensor) -> torch.Tensor:
        """Returns the biases that users without target ratings are given there, (B,); zero by default."""
        return torch.zeros(len(user), device=user.device)

    def finished(self, raw: torch.Tensor, batch: RatingBatch) -> torch.Tensor:
        """Returns final predictions, (B,), from the model's own: unknown items, clipping."""
        fallback = self.target_mean + self.cold_bias(batch.user)
        rated = torch.where(self.known_items[batch.item], raw, fallback)
        return rated.clamp(*self.rating_range) if self.clipped else rated

    def predict(self, interaction: RatingBatch) -> torch.Tensor:
        """RecBole's interface: the predicted ratings of the batch's (user, item) pairs, (B,)."""
        return self.finished(self.rate(interaction), interaction)

    def facts(self, batch: RatingBatch) -> dict[str, str]:
        """Returns the reduction, and how long the vectors are that the batch starts from."""
        facts = {"reduction": "mean" if self.mean_reduction else "sum"}
        rows_of = next((phase.rows for phase in self.phases() if phase.rows is not None), None)
        if rows_of is not None:
            with torch.no_grad():
                rows = rows_of(batch)
            facts["median length of the rows"] = f"{float(rows.norm(dim=1).median()):g}"
        return facts

    def reduced(self, errors: torch.Tensor) -> torch.Tensor:
        """Returns the sum or the mean of (B,) losses, as ``reduction`` says."""
        return errors.mean() if self.mean_reduction else errors.sum()
