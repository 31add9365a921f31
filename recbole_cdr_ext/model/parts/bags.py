"""Bags of items: what the models that have no use for order read, as sums over the items that are there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from recbole_cdr_ext.model.parts.layers import Dropout
from recbole_cdr_ext.model.parts.losses import Products, with_products


class Bags(NamedTuple):
    """B sets of rows of a table of items.

    Attributes:
        items: (m,) rows; bag b holds ``items[offsets[b]:offsets[b + 1]]``, ascending, each once.
        offsets: (B + 1,).
    """

    items: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, histories: torch.Tensor, first: int = 0) -> Bags:
        """Returns the sets in (B, L) ids, 0 is padding, as rows of a table that begins with the id ``first``."""
        items = histories.sort(1).values
        distinct = items != 0
        distinct[:, 1:] &= items[:, 1:] != items[:, :-1]
        return cls(items[distinct] - first, F.pad(distinct.sum(1).cumsum(0), (1, 0)))

    @property
    def sizes(self) -> torch.Tensor:
        """(B,) how many items each bag holds."""
        return self.offsets.diff()

    @property
    def owners(self) -> torch.Tensor:
        """(m,) the bag of each item."""
        return torch.arange(len(self.offsets) - 1, device=self.items.device).repeat_interleave(self.sizes)


class BagLinear(nn.Module):
    """A linear layer on L2-normalised, dropped-out multi-hot rows that are never laid out: (n_items, d) weights.

    Equal to ``F.linear(F.dropout(F.normalize(x), dropout), weight.T, bias)`` for the (B, n_items) matrix x of the bags;
    an empty bag gives the bias. Starts as Xavier's normal matrix.
    """

    def __init__(self, n_items: int, d: int, dropout: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(n_items, d)))
        self.bias = nn.Parameter(torch.zeros(d))
        self.dropout = Dropout(dropout)

    def forward(self, bags: Bags) -> torch.Tensor:
        """Returns (B, d)."""
        share = self.dropout(bags.sizes.to(self.weight.dtype).rsqrt()[bags.owners])
        total = F.embedding_bag(
            bags.items,
            self.weight,
            bags.offsets,
            mode="sum",
            per_sample_weights=share,
            include_last_offset=True,
        )
        return total + self.bias


class _MultinomialLoss(torch.autograd.Function):
    """As the softmax loss of ``losses``: the gradients are made on the way forward, in the scores' own memory."""

    @staticmethod
    def forward(
        ctx: Any,
        products: Products,
        vectors: torch.Tensor,
        items: torch.Tensor,
        bias: torch.Tensor,
        bags: Bags,
        block: int,
    ) -> torch.Tensor:
        n, sizes, owners = len(vectors), bags.sizes.to(vectors.dtype), bags.owners
        for_vectors, for_items = torch.empty_like(vectors), torch.zeros_like(items)
        for_bias, loss = torch.zeros_like(bias), vectors.new_zeros(())
        bounds = bags.offsets.tolist()
        step, items = max(1, block // len(items)), products.rounded(items)
        for first in range(0, n, step):
            rows, size = vectors[first : first + step], sizes[first : first + step].unsqueeze(1)
            part = slice(bounds[first], bounds[min(first + step, n)])
            at = (owners[part] - first, bags.items[part])
            scores = products.of(rows, items.T, bias)
            target_score = scores[at].sum()
            highest = scores.amax(1, keepdim=True)
            total = scores.sub_(highest).exp_().sum(1, keepdim=True)
            loss += (size * (total.log() + highest)).sum() - target_score
            share = scores.mul_(size / (total * n))
            share[at] -= 1 / n
            products.into(for_vectors[first : first + step], share, items)
            products.onto(for_items, share.T, rows)
            for_bias += share.sum(0)
        ctx.save_for_backward(for_vectors, for_items, for_bias)
        return loss / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *(part * gradient for part in ctx.saved_tensors), None, None


def multinomial_loss(
    vectors: torch.Tensor, items: torch.Tensor, bias: torch.Tensor, bags: Bags, block: int = 1 << 22
) -> torch.Tensor:
    """Returns the mean over bags of −Σ_{i in the bag} log softmax(vectors · itemsᵀ + bias)_i, a scalar.

    Neither (B, M) scores nor (B, M) targets are kept. There is no second derivative.

    Args:
        vectors: (B, d), B ≥ 1.
        items: (M, d).
        bias: (M,).
        bags: B sets of rows of ``items``.
        block: scores that are held at once.
    """
    return with_products(_MultinomialLoss, vectors, items, bias, bags, block)
