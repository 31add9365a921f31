"""CLCDR: a mapping that finds its user, and the user's items, among others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch.nn import functional as F

from recbole_cdr_ext.model.bridge import Bridge
from recbole_cdr_ext.model.rating.sscdr import liking_threshold
from recbole_cdr_ext.model.rating_recommender import RatingBatch
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import NonNegative, Positive, Settings
from recbole_cdr_ext.splits.split import RatingSplit, TrainingData


class ContrastiveLoss(NamedTuple):
    """L_rating, λ₁ L_uu and λ₂ L_ui of a batch."""

    rating: torch.Tensor
    users: torch.Tensor
    items: torch.Tensor


class CLCDRSettings(Settings):
    """CLCDR on the vectors that all bridges share; our definition, see docs/models/CLCDR.md. The paper's text:
    --config_files=properties/model/CLCDR_paper.yaml
    """

    user_weight: NonNegative = Field(
        0.1, description="Weight of the contrastive loss between users of both domains."
    )
    item_weight: NonNegative = Field(
        0.1, description="Weight of the contrastive loss between users and the items they like."
    )
    temperature: Positive = Field(0.2, description="Cosines are divided by it.")
    learn_source_users: bool = Field(
        False, description="Whether the overlapping users' source vectors learn with the mapping."
    )


class CLCDR(Bridge):
    """Contrastive Learning for Cross-Domain Recommendation to Cold-Start Users (Chen et al., ICONIP 2022).

    **This is our definition.** There is no public code, and only the abstract was at hand. It speaks of two
    contrastive losses, over overlapping users and over user-item interactions; this is what we make of it.

    min over θ of L_rating + λ₁ L_uu + λ₂ L_ui, on batches of D^o:
        L_rating: the squared error of the rating, as every bridge has it;
        L_uu: the mean over the batch's distinct users of -log softmax(cos(f(u^s), u^t) / τ), u^t among those
            of the batch's other users, and the same with the domains exchanged, halved;
        L_ui: the mean over the batch's ratings that say "likes" of -log softmax(cos(f(u^s), v^t) / τ), v^t
            among the batch's other items that the user has not rated.
    λ₁, λ₂ and τ are ``user_weight``, ``item_weight`` and ``temperature``. Cosines leave the length of f(u^s)
    free, and a rating needs it: hence L_rating. A rating says "likes" if it reaches max(4, the user's mean);
    with biases, if it is above μ + b_i + b̂_u, which is where the product of the vectors should be positive.

    Differs from the paper, as far as its abstract goes: that is about top-N lists, and learns representations
    as well. Here the vectors are those that all bridges share, and of them only the overlapping users' source
    vectors may learn (``learn_source_users``).
    """

    settings_class = CLCDRSettings
    paper = "CLCDR: Contrastive Learning for Cross-Domain Recommendation to Cold-Start Users, ICONIP 2022"

    liking_threshold: torch.Tensor
    rated_pairs: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        self.learns_source_users = bool(config["learn_source_users"])
        super().__init__(config, data)
        settings = CLCDRSettings.of(config)
        self.user_weight, self.item_weight = settings.user_weight, settings.item_weight
        self.temperature = settings.temperature
        split = data.split
        threshold = torch.from_numpy(liking_threshold(split.train[split.target], split))
        self.register_buffer("liking_threshold", threshold, persistent=False)
        # What D^o holds, as sorted numbers user * n_items + item: a look-up needs no users x items table.
        pairs = self._pair(self._shared.user, self._shared.item).unique()
        self.register_buffer("rated_pairs", pairs, persistent=False)

    def phases(self) -> list[Phase]:
        """Returns one phase, on D^o."""
        return [self.mapping_phase(self.contrastive_loss, self.shared_batches)] if self.size else []

    def contrastive_loss(self, batch: RatingBatch, rows: torch.Tensor | None = None) -> ContrastiveLoss:
        """Returns L_rating, λ₁ L_uu and λ₂ L_ui, at moved source vectors if they are given."""
        rows = self.source_rows(batch) if rows is None else rows
        rating = self.calculate_loss(batch, rows)
        users = items = torch.zeros_like(rating)
        if self.user_weight:
            users = self.user_weight * self.user_loss(batch, rows)
        if self.item_weight:
            items = self.item_weight * self.item_loss(batch, rows)
        return ContrastiveLoss(rating, users, items)

    def user_loss(self, batch: RatingBatch, rows: torch.Tensor) -> torch.Tensor:
        """Returns L_uu. A user with several rows, each moved its own way, is represented by the first."""
        user, place = batch.user.unique(return_inverse=True)
        numbers = torch.arange(len(batch), device=place.device)
        first = torch.full_like(user, len(batch)).scatter_reduce_(0, place, numbers, "amin")
        mapped = self.bridged(rows[first], user)
        similarity = self.similarity(mapped, self.target_users[user])  # (n, n)
        labels = numbers[: len(user)]
        there = F.cross_entropy(similarity, labels, reduction="none")
        back = F.cross_entropy(similarity.T, labels, reduction="none")
        return self.reduced((there + back) / 2)

    def item_loss(self, batch: RatingBatch, rows: torch.Tensor) -> torch.Tensor:
        """Returns L_ui; 0 where the batch holds no rating that says "likes"."""
        likes = self.likes(batch)
        if not likes.any():
            return rows.new_zeros(())
        item, place = batch.item.unique(return_inverse=True)
        user, positive = batch.user[likes], place[likes]
        similarity = self.similarity(self.bridged(rows[likes], user), self.target_items[item])  # (p, n)
        allowed = ~self.has_rated(user, item)
        allowed[torch.arange(len(positive), device=positive.device), positive] = True
        return self.reduced(
            F.cross_entropy(similarity.masked_fill(~allowed, -torch.inf), positive, reduction="none")
        )

    def similarity(self, mapped: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Returns the cosines of (n, d) and (m, d) vectors over the temperature, (n, m)."""
        return F.normalize(mapped, dim=1) @ F.normalize(others, dim=1).T / self.temperature

    def likes(self, batch: RatingBatch) -> torch.Tensor:
        """Returns which ratings of a batch say that the user likes the item, (B,) bool; see the class."""
        if self.has_biases:
            return batch.rating > self.base_rating(batch)
        return batch.rating >= self.liking_threshold[batch.user]

    def has_rated(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Returns which of n overlapping users have rated which of m target items in training, (n, m)."""
        wanted = self._pair(user.unsqueeze(1), item)
        place = torch.searchsorted(self.rated_pairs, wanted).clamp_(max=len(self.rated_pairs) - 1)
        return self.rated_pairs[place] == wanted

    def _pair(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return user * len(self.target_items) + item
