"""What an instance sees of its histories, in whichever form they are encoded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass
class Views:
    """What N instances of target domain X give to the posteriors.

    Attributes:
        own, other: S^X, S^Y, (N, d), zero where there is no such history.
        augmented: S_a^X (N, d), or None without pseudo-sequences.
        mixed: what z_t^y is made from, the rows in ``both``.
        has_own, has_other, both: (N,) masks.
        length: (N,) history lengths in X.
    """

    own: torch.Tensor
    other: torch.Tensor
    augmented: torch.Tensor | None
    mixed: torch.Tensor
    has_own: torch.Tensor
    has_other: torch.Tensor
    both: torch.Tensor
    length: torch.Tensor

    def with_hidden(self, share: float) -> Views:
        """Returns the views with a random share of those who have both histories treated as cold-start users."""
        if share == 0:
            return self
        hidden = self.both & (torch.rand(len(self.both), device=self.both.device) < share)
        return replace(
            self,
            has_own=self.has_own & ~hidden,
            both=self.both & ~hidden,
            mixed=self.mixed[~hidden[self.both]],
        )
