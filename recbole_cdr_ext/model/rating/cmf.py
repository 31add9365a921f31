"""CMF: both domains factorised at once, with one table of users."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from logging import getLogger

import numpy as np
import torch
from pydantic import Field

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.rating.tgt import FactorizationLoss, _table
from recbole_cdr_ext.model.rating_recommender import (
    SPARSE_LEARNERS,
    RatingBatch,
    RatingRecommender,
    Shuffled,
    whole_batch,
)
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import Count, Learner, Positive, Reduction, Settings, Share, Size
from recbole_cdr_ext.splits.split import RatingSplit, TrainingData


@dataclass(frozen=True)
class JointRatings(RatingBatch):
    """B ratings of both domains; ``item`` counts the source's items first, then the target's."""


class CMFSettings(Settings):
    """CMF: one table of users for both domains, learned in one phase. The paper's form is CMF_paper.yaml."""

    source_weight: Share = Field(
        0.5, description="Weight w of a source rating, between 0 and 1; one of the target's has 1 - w."
    )
    reduction: Reduction = Field(
        "sum", description="sum or mean of a batch's losses; with sum the step is one per rating."
    )
    learner: Learner = Field("sgd", description="adam, adamw, sgd, adagrad, rmsprop or sparse_adam.")
    learning_rate: Positive = Field(0.01, description="Step size of the learner.")
    train_batch_size: Size = Field(256, description="Ratings in a batch, of both domains.")
    epochs: Count = Field(100, description="The most epochs; without biases it learns slowly.")
    stopping_step: Count = Field(
        10, description="Training stops after more than so many validations without improvement."
    )


class CMF(RatingRecommender):
    """Relational Learning via Collective Matrix Factorization (Singh & Gordon, KDD 2008), on two tables of ratings.

    Each user has one vector u for both domains, each item of domain k a vector v of its own: r̂ = ⟨u, v⟩, with biases
    μ_k + b_u + b_i + ⟨u, v⟩, where b_u is shared as u is and μ_k is the mean of the domain's training ratings, fixed.
    With w_s = ``source_weight`` and w_t = 1 - w_s it minimises

        Σ_k 2 w_k Σ_{D^k} [(r - r̂)² + λ(‖u‖² + ‖v‖² + b_u² + b_i²)].

    The 2 makes w = 0.5 a plain sum over both domains' ratings. A cold-start user's u and b_u come from source ratings
    alone and are used as they are: there is no mapping. With ``sharpness: pgd``, u is moved to the worst point nearby.

    Differs from the paper: squared error with the identity link for both relations (the paper allows any Bregman
    divergence), stochastic gradient steps on shuffled ratings instead of alternating Newton steps, the penalty counted
    per rating and weighted with it (so that w = 0 is TGT), and biases, which ``biases=False`` leaves out.
    """

    settings_class = CMFSettings
    paper = "Relational Learning via Collective Matrix Factorization, KDD 2008"
    needs_overlap = True

    weights: torch.Tensor
    means: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        super().__init__(config, data)
        split = data.split
        self.size = int(config["embedding_size"])
        self.n_source_items = data.n_domain_items(self.source)
        n_items = self.n_source_items + data.n_domain_items(self.target)
        sparse = config["learner"] in SPARSE_LEARNERS
        std, n_biases = float(config["init_std"]), int(self.has_biases)
        self.user_vectors = _table(self.n_users, self.size, std, sparse)
        self.item_table = _table(n_items, self.size, std, sparse)
        self.user_bias = _table(self.n_users, n_biases, 0.0, sparse)
        self.item_bias = _table(n_items, n_biases, 0.0, sparse)
        weight = config["pretrain_reg_weight"]
        self.reg_weight = (0.02 if self.has_biases else 0.1) if weight is None else float(weight)
        source_weight = float(config["source_weight"])
        self.register_buffer("weights", torch.tensor([2 * source_weight, 2 * (1 - source_weight)]))
        self.register_buffer("means", self._means(split))
        self._train = self._joined(split)
        self._batch_size = int(config["train_batch_size"])

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """As in the base class."""
        super().check_settings(config)
        if config["backbone"] != "MF":
            raise CDRError(f"backbone={config['backbone']}: CMF factorises ratings, leave it at MF.")
        if config["learner"] in SPARSE_LEARNERS and config["weight_decay"]:
            raise CDRError(
                f"learner={config['learner']} has no weight_decay here, where gradients are sparse: set "
                "pretrain_reg_weight, the L2 penalty per rating."
            )
        if config["reduction"] == "sum" and config["train_batch_size"] > 1024:
            getLogger().warning(
                f"reduction=sum with train_batch_size={config['train_batch_size']}: steps may diverge; 1,024 or less "
                "is safe."
            )

    def _means(self, split: RatingSplit) -> torch.Tensor:
        """Returns μ of source and target, (2,); zeros without biases."""
        if not self.has_biases:
            return torch.zeros(2)
        rows = (split.train[self.source], split.train[self.target])
        return torch.tensor([float(r.rating.mean(dtype=np.float64)) for r in rows])

    def _joined(self, split: RatingSplit) -> JointRatings:
        source, target = (
            whole_batch(split.train[k], int(split.item_offset[k]), k) for k in (self.source, self.target)
        )
        return JointRatings(
            torch.cat([source.user, target.user]),
            torch.cat([source.item, target.item + self.n_source_items]),
            torch.cat([source.rating, target.rating]),
            self.target,
        )

    # -- training ------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Returns one phase on both domains' ratings; the validation users, cold in the target, choose the epoch."""
        return [Phase("factorize", batches=self.batches, rows=self.source_rows if self.size else None)]

    def batches(self, rng: np.random.Generator) -> Iterable[RatingBatch]:
        """Returns the training ratings of both domains, shuffled together: a batch mixes them as they come."""
        return Shuffled(self._train, self._batch_size, rng)

    def calculate_loss(self, interaction: RatingBatch, rows: torch.Tensor | None = None) -> FactorizationLoss:
        """Returns the loss of a batch, at moved user vectors if they are given; the penalty is on the unmoved ones.

        Args:
            interaction: B ratings of both domains.
            rows: (B, d).
        """
        user, item = interaction.user, interaction.item
        weight = self.weights[self._domain(item)]
        users = self.source_rows(interaction)
        predicted = self._rated(users if rows is None else rows, user, item)
        error = self.reduced(weight * (interaction.rating - predicted).square())
        parts = (users, self.item_table(item), self.user_bias(user), self.item_bias(item))
        lengths = torch.stack([part.square().sum(1) for part in parts]).sum(0)
        return FactorizationLoss(error, self.reg_weight * self.reduced(weight * lengths))

    # -- predictions ---------------------------------------------------------------------------------------------

    def source_rows(self, batch: RatingBatch) -> torch.Tensor:
        """Returns the vectors of a batch's users, (B, d): what sharpness and attacks move."""
        vectors: torch.Tensor = self.user_vectors(batch.user)
        return vectors

    def rate_from(self, rows: torch.Tensor, batch: RatingBatch) -> torch.Tensor:
        """Returns the ratings, (B,), of target items by users with the vectors ``rows`` (B, d)."""
        return self._rated(rows, batch.user, batch.item + self.n_source_items)

    def rate(self, batch: RatingBatch) -> torch.Tensor:
        """As in the base class."""
        return self.rate_from(self.source_rows(batch), batch)

    def cold_bias(self, user: torch.Tensor) -> torch.Tensor:
        """Returns the shared biases."""
        bias: torch.Tensor = self.user_bias(user).sum(1)
        return bias

    def _rated(self, rows: torch.Tensor, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Returns μ + b_u + b_i + ⟨rows, v⟩, (B,), for items counted over both domains."""
        base = self.means[self._domain(item)] + self.user_bias(user).sum(1) + self.item_bias(item).sum(1)
        rating: torch.Tensor = base + (rows * self.item_table(item)).sum(1)
        return rating

    def _domain(self, item: torch.Tensor) -> torch.Tensor:
        """Returns 0 for an item of the source and 1 for one of the target, (B,)."""
        return (item >= self.n_source_items).long()
