"""TMCDR: a mapping that must also serve the users who did not make the step before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch.func import functional_call

from recbole_cdr_ext.model.bridge import Bridge
from recbole_cdr_ext.model.rating_recommender import RatingBatch, Shuffled
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import NonNegative, Settings
from recbole_cdr_ext.splits.split import RatingSplit, TrainingData

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Episode(RatingBatch):
    """B ratings by two groups of users.

    Attributes:
        adapts: (B,) bool, True for the rows of U_a, which make the inner step; the others are those of U_b.
    """

    adapts: torch.Tensor


class Episodes:
    """An epoch's batches, the users of each drawn into two halves; of an odd number, U_b has one more.

    The groups belong to the batch and are not drawn by the loss: sharpness looks at the loss of a batch several times.
    """

    def __init__(self, batches: Shuffled, rng: np.random.Generator):
        self.batches, self.rng = batches, rng

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Episode]:
        for batch in self.batches:
            users, place = np.unique(batch.user.numpy(), return_inverse=True)
            adapts = self.rng.permutation(len(users)) < len(users) // 2
            yield Episode(
                batch.user, batch.item, batch.rating, batch.target_domain, torch.from_numpy(adapts[place])
            )


class TMCDRSettings(Settings):
    """TMCDR: the mapping of all bridges, trained by episodes. The paper's form is TMCDR_paper.yaml."""

    inner_learning_rate: NonNegative = Field(
        0.01, description="Step size of the inner step, on one half of a batch's users; 0: no step."
    )
    first_order: bool = Field(
        False, description="Whether the outer gradient leaves out that of the inner step."
    )


class TMCDR(Bridge):
    """Transfer-Meta Framework for Cross-domain Recommendation to Cold-Start Users (Zhu et al., SIGIR 2021).

    The transfer stage learns the vectors of both domains. The meta stage learns f_θ on the loss of the task itself,
    ℓ(θ; A) = mean over the rows of A of (r - r̂)², r̂ = ⟨f_θ(u^s), v^t⟩ or, with biases, μ + b_i + b̂_u + ⟨f_θ(u^s), v^t⟩.
    An episode is a batch of D^o, its users drawn into two halves with the rows A and C:

        θ' = θ - ``inner_learning_rate`` ∇ℓ(θ; A),   then one step of the learner along ∇_θ ℓ(θ'; C).

    The outer gradient goes through the inner step (second order; ``first_order`` takes ∇ℓ(θ'; C) at θ' instead). A
    cold-start user is mapped by θ: nothing is adapted to anyone. An episode with an empty group has the loss 0.

    Differs from the paper, of which no public code was found: f is the MLP that all bridges share, groups are drawn
    per batch and not of a fixed size, base models come from ``backbone`` alone, the learner is the bridges' SGD
    (``learner=adam`` as an option), and the epoch is the best one for the validation users.
    """

    settings_class = TMCDRSettings
    paper = "Transfer-Meta Framework for Cross-domain Recommendation to Cold-Start Users, SIGIR 2021"

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        super().__init__(config, data)
        settings = TMCDRSettings.of(config)
        self.inner_learning_rate, self.first_order = settings.inner_learning_rate, settings.first_order

    def phases(self) -> list[Phase]:
        """Returns one phase: the mapping, an episode a batch."""
        return [self.mapping_phase(self.episode_loss, self.episodes, name="meta")] if self.size else []

    def episodes(self, rng: np.random.Generator) -> Iterable[Episode]:
        """Returns the rows of D^o, shuffled, the users of each batch in two groups."""
        return Episodes(Shuffled(self._shared, self._batch_size, rng), rng)

    def episode_loss(self, episode: Episode, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Returns ℓ(θ'; C), at moved source vectors (B, d) if they are given."""
        rows = self.source_rows(episode) if rows is None else rows
        inner, outer = episode.adapts, ~episode.adapts
        if not (inner.any() and outer.any()):
            # A loss that depends on nothing would have no gradient to give.
            return 0.0 * self.bridged(rows, episode.user).sum()
        adapted = self.adapted(rows[inner], episode.take(inner))
        return self.reduced(self.errors(adapted, rows[outer], episode.take(outer)))

    def adapted(self, rows: torch.Tensor, batch: RatingBatch) -> Weights:
        """Returns θ', the mapping's weights after the inner step on some users' rows."""
        weights: Weights = dict(self.mapping.named_parameters())
        # A mean whatever `reduction` says, so that the inner step does not grow with the group.
        loss = self.errors(weights, rows, batch).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=not self.first_order)
        steps = zip(weights.items(), gradients, strict=True)
        return {name: weight - self.inner_learning_rate * gradient for (name, weight), gradient in steps}

    def errors(self, weights: Weights, rows: torch.Tensor, batch: RatingBatch) -> torch.Tensor:
        """Returns the squared errors, (B,), of the mapping with the given weights at the source vectors ``rows``."""
        mapped = functional_call(self.mapping, weights, (rows,))
        product = (mapped * self.target_items[batch.item]).sum(1)
        error: torch.Tensor = (batch.rating - (self.base_rating(batch) + product)).square()
        return error
