"""EMCDR: a mapping fitted to the target vectors of overlapping users."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from recbole_cdr_ext.model.bridge import Bridge
from recbole_cdr_ext.model.parts.layers import mapping
from recbole_cdr_ext.model.rating_recommender import RatingBatch, Shuffled
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.settings.declaration import Count, Positive, Settings, SettingsClass


class EMCDRSettings(Settings):
    """EMCDR on the vectors that all bridges share."""

    mapping: Literal["mlp", "linear"] = Field("mlp", description="mlp, or linear: one matrix without bias.")
    learning_rate: Positive = Field(
        0.1, description="Step size; the loss is a mean over users and dimensions."
    )
    epochs: Count = Field(100, description="The most epochs.")
    stopping_step: Count = Field(
        10, description="Training stops after more than so many validations without improvement."
    )


class EMCDR(Bridge):
    """Cross-Domain Recommendation: An Embedding and Mapping Approach (Man et al., IJCAI 2017), on ratings.

    min over θ of the mean of ‖f_θ(u^s) - u^t‖² over the overlapping users, each once however many ratings
    (``mapping: mlp`` or ``linear``, the latter without bias).

    Differs from the paper: the MLP has the hidden size that all bridges share, and the epoch is the best one
    for the validation users' ratings.
    """

    settings_class: ClassVar[SettingsClass | None] = EMCDRSettings
    paper = "Cross-Domain Recommendation: An Embedding and Mapping Approach, IJCAI 2017"

    def make_mapping(self) -> nn.Module:
        """As in the base class, or one matrix."""
        if self.config["mapping"] == "mlp" or not self.size:
            return super().make_mapping()
        return mapping(self.size, self.target_items.shape[1], None)

    def phases(self) -> list[Phase]:
        """Returns one phase, over users."""
        if not self.size:
            return []
        return [self.mapping_phase(self.embedding_loss, self.user_batches)]

    def user_batches(self, rng: np.random.Generator) -> Iterable[RatingBatch]:
        """Returns the overlapping training users, shuffled, each once; items and ratings of the batches are zeros."""
        users = self._overlapping
        nothing = torch.zeros(len(users))
        return Shuffled(RatingBatch(users, nothing.long(), nothing, self.target), self._batch_size, rng)

    def embedding_loss(self, batch: RatingBatch, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the squared error of the mapped vectors, over users and dimensions (Eq. 3 of SCDR)."""
        rows = self.source_rows(batch) if rows is None else rows
        error = self.bridged(rows, batch.user) - self.target_users[batch.user]
        return self.reduced(error.square().mean(1))
