"""Losses over many items, written for memory traffic: on a CPU that, not arithmetic, is what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F

# Scores that a block of rows may hold: a few megabytes stay in the processor's cache between the passes over them.
_BLOCK = 1 << 21

Argument = TypeVar("Argument")


class Products:
    """Matrix products in the precision of autocast, of single precision themselves.

    Args:
        device: that of the matrices.
    """

    def __init__(self, device: torch.device):
        kind = device.type
        self._dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def rounded(self, matrix: torch.Tensor) -> torch.Tensor:
        """Returns a matrix as products see it, which saves that work where it is in several."""
        return matrix if self._dtype is None else matrix.to(self._dtype)

    def of(self, left: torch.Tensor, right: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Returns left · right + added."""
        if self._dtype is None:
            return left @ right if added is None else torch.addmm(added, left, right)
        product = (self.rounded(left) @ self.rounded(right)).float()
        return product if added is None else product.add_(added)

    def into(self, out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        """Writes left · right."""
        if self._dtype is None:
            torch.mm(left, right, out=out)
        else:
            out.copy_(self.of(left, right))

    def onto(self, out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        """Adds left · right."""
        if self._dtype is None:
            out.addmm_(left, right)
        else:
            out += self.of(left, right)


def with_products(loss: type[torch.autograd.Function], *arguments: Any) -> torch.Tensor:
    """Returns loss.apply(Products, *arguments) outside of autocast: sums over many items are not for half precision."""
    device = arguments[0].device
    products = Products(device)
    with torch.autocast(device.type, enabled=False):
        value: torch.Tensor = loss.apply(products, *map(in_single, arguments))
        return value


def in_single(value: Argument) -> Argument:
    """Returns a tensor of half precision in single precision, anything else as it is."""
    if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return cast(Argument, value.float())
    return value


class _SoftmaxLoss(torch.autograd.Function):
    """Both gradients are made on the way forward, block by block, in the memory of the scores themselves."""

    @staticmethod
    def forward(
        ctx: Any, products: Products, vectors: torch.Tensor, items: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        n = len(vectors)
        for_vectors, for_items = torch.empty_like(vectors), torch.zeros_like(items)
        loss, items = vectors.new_zeros(()), products.rounded(items)
        step = max(1, _BLOCK // len(items))
        for first in range(0, n, step):
            rows, targets = vectors[first : first + step], target[first : first + step].unsqueeze(1)
            scores = products.of(rows, items.T)
            highest = scores.amax(1, keepdim=True)
            target_scores = scores.gather(1, targets) - highest
            total = scores.sub_(highest).exp_().sum(1, keepdim=True)
            loss += (total.log() - target_scores).sum()
            share = scores.div_(total * n)
            share.scatter_add_(1, targets, share.new_full(targets.shape, -1 / n))
            products.into(for_vectors[first : first + step], share, items)
            products.onto(for_items, share.T, rows)
        ctx.save_for_backward(for_vectors, for_items)
        return loss / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        for_vectors, for_items = ctx.saved_tensors
        return None, for_vectors * gradient, for_items * gradient, None


def softmax_loss(vectors: torch.Tensor, items: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns the mean of −log softmax(vectors · itemsᵀ) at the targets, a scalar.

    Equal to ``F.cross_entropy(vectors @ items.T, target)`` in value and gradient, without keeping (N, M) scores.
    There is no second derivative.

    Args:
        vectors: (N, d), N ≥ 1.
        items: (M, d).
        target: (N,) rows of ``items``.
    """
    if not torch.is_grad_enabled():
        return F.cross_entropy(vectors @ items.T, target)
    return with_products(_SoftmaxLoss, vectors, items, target)


def softmax_loss_of_several(
    vectors: torch.Tensor, items: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Returns the mean over rows of the mean of −log softmax(vectors · itemsᵀ) at each row's targets, a scalar.

    Args:
        vectors: (N, d), N ≥ 1.
        items: (M, d).
        targets: (N, k) rows of ``items``, -1 where there are fewer, but never in the first column.
    """
    loss = softmax_loss(vectors, items, targets[:, 0])
    if targets.shape[1] == 1:
        return loss
    # Targets of one row share its normaliser, so all that is missing is how far their mean score is from the first's.
    real = (targets >= 0).to(vectors.dtype)
    scores = torch.bmm(F.embedding(targets.clamp(min=0), items), vectors.unsqueeze(2)).squeeze(2)
    return loss + (scores[:, 0] - (scores * real).sum(1) / real.sum(1)).mean()


class _SampledSoftmaxLoss(torch.autograd.Function):
    """As ``_SoftmaxLoss``, of each row's own item against negatives that all rows share."""

    @staticmethod
    def forward(
        ctx: Any,
        products: Products,
        vectors: torch.Tensor,
        own_items: torch.Tensor,
        negatives: torch.Tensor,
        target: torch.Tensor,
        drawn: torch.Tensor,
        shift: float,
    ) -> torch.Tensor:
        n = len(vectors)
        for_vectors, for_negatives = torch.empty_like(vectors), torch.zeros_like(negatives)
        target_scores = (vectors * own_items).sum(1, keepdim=True)
        own_share = torch.empty_like(target_scores)
        loss, negatives = vectors.new_zeros(()), products.rounded(negatives)
        step = max(1, _BLOCK // len(negatives))
        for first in range(0, n, step):
            rows, mine = vectors[first : first + step], target_scores[first : first + step]
            scores = products.of(rows, negatives.T)
            if shift:
                scores += shift
            scores.masked_fill_(drawn == target[first : first + step].unsqueeze(1), -torch.inf)
            highest = torch.maximum(scores.amax(1, keepdim=True), mine)
            mine = mine - highest
            total = scores.sub_(highest).exp_().sum(1, keepdim=True) + mine.exp()
            loss += (total.log() - mine).sum()
            share = scores.div_(total * n)
            own_share[first : first + step] = (mine.exp() / total - 1) / n
            products.into(for_vectors[first : first + step], share, negatives)
            products.onto(for_negatives, share.T, rows)
        for_vectors.addcmul_(own_share, own_items)
        ctx.save_for_backward(for_vectors, own_share * vectors, for_negatives)
        return loss / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *(part * gradient for part in ctx.saved_tensors), None, None, None


def sampled_softmax_loss(
    vectors: torch.Tensor,
    items: Callable[[torch.Tensor], torch.Tensor],
    n_items: int,
    target: torch.Tensor,
    n_negatives: int,
    log_q: bool,
) -> torch.Tensor:
    """Returns the mean softmax loss of the targets against negatives that all rows share, a scalar.

    There is no second derivative.

    Args:
        vectors: (N, d), N ≥ 1.
        items: gives the vectors (n, d) of n items, each one of 0 .. n_items - 1. Negatives are drawn from these,
            uniformly and with replacement, by torch's generator. A negative that is a row's own target does not
            count for that row.
        target: (N,) items.
        log_q: whether negatives stand for all items (their scores gain log(n_items / n_negatives)), so that the loss
            estimates that of the full softmax, or for themselves.
    """
    drawn = torch.randint(n_items, (n_negatives,), device=target.device)
    shift = math.log(n_items / n_negatives) if log_q else 0.0
    return with_products(_SampledSoftmaxLoss, vectors, items(target), items(drawn), target, drawn, shift)


def sampled_softmax_loss_of_several(
    vectors: torch.Tensor, items: torch.Tensor, targets: torch.Tensor, n_negatives: int
) -> torch.Tensor:
    """As ``softmax_loss_of_several``, of each target against negatives that all rows share, a scalar.

    A row's other targets are not among a target's negatives.

    Args:
        vectors: (N, d), N ≥ 1.
        items: (M, d); negatives are drawn from them uniformly and with replacement, by torch's generator.
        targets: (N, k) rows of ``items``, -1 where there are fewer, but never in the first column.
        n_negatives: how many are drawn.
    """
    drawn = torch.randint(len(items), (n_negatives,), device=targets.device)
    # One lookup, since each makes a gradient of the whole table.
    ids = torch.cat([targets.clamp(min=0).flatten(), drawn])
    target_vectors, negatives = F.embedding(ids, items).split([targets.numel(), n_negatives])
    if targets.shape[1] == 1:
        return with_products(
            _SampledSoftmaxLoss, vectors, target_vectors, negatives, targets[:, 0], drawn, 0.0
        )
    real = (targets >= 0).float()
    scores = (vectors @ negatives.T).float()
    for column in targets.unbind(1):
        scores.masked_fill_(drawn == column.unsqueeze(1), -1e9)
    mine = torch.bmm(target_vectors.view(*targets.shape, -1), vectors.unsqueeze(2)).squeeze(2).float()
    # -log(e^s / (e^s + Σ e^negatives)) = softplus(log Σ e^negatives - s)
    each = F.softplus(scores.logsumexp(1, keepdim=True) - mine) * real
    return (each.sum(1) / real.sum(1)).mean()
