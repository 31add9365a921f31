"""SCDR: sharpness-aware embedding and mapping."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from recbole_cdr_ext.model.bridge import Bridge
from recbole_cdr_ext.model.rating_recommender import RatingBatch
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import Count, NonNegative, Settings
from recbole_cdr_ext.splits.split import RatingSplit, TrainingData


class SCDRSettings(Settings):
    """SCDR, tuned: biases on, balls that fit the vectors. The paper's text:
    --config_files=properties/model/SCDR_paper.yaml
    """

    pretrain_sharpness: Literal["none", "sam", "asam", "pgd"] = Field(
        "pgd", description="SMF; none: SCDR- of the paper."
    )
    sharpness: Literal["none", "sam", "asam", "pgd"] = Field(
        "pgd", description="The mapping is trained at the worst source vectors within rho."
    )
    rho: NonNegative | None = Field(
        None, description="Radius of the mapping's ball; None: 0.25 with biases, 0.05 without."
    )
    learn_source_users: bool = Field(
        True, description="Whether the overlapping users' source vectors learn with the mapping."
    )
    epochs: Count = Field(
        20,
        description=(
            "The most epochs of the mapping; 50 change the fourth digit of MAE, and are more robust to "
            "attack."
        ),
    )


class SCDR(Bridge):
    """Sharpness-Aware Cross-Domain Recommendation to Cold-Start Users (Zeng et al.), Algorithm 1.

    Both steps are trained at the worst user vectors within a ball of radius ρ: the factorisation of each domain
    (SMF, Eq. 10; ``pretrain_sharpness``, ``rho_pretrain``) and the mapping, min over θ and û^s of
    max over ‖δ‖ ≤ ρ of (r - ⟨f_θ(û^s + δ), v^t⟩)² (Eq. 8; ``sharpness``, ``rho``). δ is found by ``pgd_steps`` steps
    of projected gradient ascent (Eq. 12-13) and held fixed (Eq. 15); v^t is fixed. A cold-start user is mapped from
    the source vector that pre-training left (Eq. 16).

    SCDR⁻ of the paper is ``pretrain_sharpness=none``; ``pgd_steps=0`` in both steps is the task-oriented mapping.

    Where the paper is silent: reductions (sum over a batch in pre-training, mean in the mapping), initialisation,
    epochs, the step size α, and to what ρ applies; see docs/models/SCDR.md.
    """

    settings_class = SCDRSettings
    paper = "Sharpness-Aware Cross-Domain Recommendation to Cold-Start Users"

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        self.learns_source_users = bool(config["learn_source_users"])
        super().__init__(config, data)

    def phases(self) -> list[Phase]:
        """Returns the mapping; rho is 0.25 with biases and 0.05 without, unless it is given."""
        if not self.size:
            return []
        rho = self.config["rho"]
        rho = (0.25 if self.has_biases else 0.05) if rho is None else rho
        return [
            self.mapping_phase(
                self.calculate_loss,
                self.shared_batches,
                row_gradient=self.rating_gradient,
                settings={"rho": rho},
            )
        ]

    @torch.no_grad()
    def rating_gradient(self, batch: RatingBatch, rows: torch.Tensor) -> torch.Tensor:
        """Returns ∇ (r - r̂)² with respect to each source vector, (B, d), at ``rows``.

        Each of the k looks of a step needs it: in closed form it takes a third of autograd's time.
        """
        assert isinstance(self.mapping, nn.Sequential)
        first, _, second = self.mapping
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        base, items = self.fixed_parts(batch)
        hidden = torch.tanh(first(rows))
        error = batch.rating - base - (second(hidden) * items).sum(1)
        slope = ((items @ second.weight) * (1 - hidden.square())) @ first.weight
        gradient: torch.Tensor = -2 * error.unsqueeze(1) * slope
        return gradient
