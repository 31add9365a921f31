"""Losses over many items, written for memory traffic: on a CPU that, not arithmetic, is what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

# Scores that a block of rows may hold: a few megabytes stay in the processor's cache between the passes over them.
_BLOCK = 1 << 21


def in_single_precision(loss: type[torch.autograd.Function], *arguments) -> torch.Tensor:
    """Returns what a loss gives outside of autocast: sums over thousands of items are not for half precision."""
    kind = arguments[0].device.type
    if not torch.is_autocast_enabled(kind):
        return loss.apply(*arguments)
    with torch.autocast(kind, enabled=False):
        return loss.apply(*(one.float() if _is_float(one) else one for one in arguments))


def _is_float(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


class _SoftmaxLoss(torch.autograd.Function):
    """Both gradients are made on the way forward, block by block, in the memory of the scores themselves."""

    @staticmethod
    def forward(ctx, vectors, items, target):
        n = len(vectors)
        for_vectors, for_items = torch.empty_like(vectors), torch.zeros_like(items)
        loss = vectors.new_zeros(())
        step = max(1, _BLOCK // len(items))
        for first in range(0, n, step):
            rows, asked = vectors[first : first + step], target[first : first + step].unsqueeze(1)
            scores = rows @ items.T
            highest = scores.amax(1, keepdim=True)
            own = scores.gather(1, asked) - highest
            total = scores.sub_(highest).exp_().sum(1, keepdim=True)
            loss += (total.log() - own).sum()
            share = scores.div_(total * n)
            share.scatter_add_(1, asked, share.new_full(asked.shape, -1 / n))
            torch.mm(share, items, out=for_vectors[first : first + step])
            for_items.addmm_(share.T, rows)
        ctx.save_for_backward(for_vectors, for_items)
        return loss / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        for_vectors, for_items = ctx.saved_tensors
        return for_vectors * gradient, for_items * gradient, None


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
    return in_single_precision(_SoftmaxLoss, vectors, items, target)


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
    def forward(ctx, vectors, own_items, negatives, target, drawn, shift):
        n = len(vectors)
        for_vectors, for_negatives = torch.empty_like(vectors), torch.zeros_like(negatives)
        own = (vectors * own_items).sum(1, keepdim=True)
        own_share = torch.empty_like(own)
        loss = vectors.new_zeros(())
        step = max(1, _BLOCK // len(negatives))
        for first in range(0, n, step):
            rows, mine = vectors[first : first + step], own[first : first + step]
            scores = rows @ negatives.T
            if shift:
                scores += shift
            scores.masked_fill_(drawn == target[first : first + step].unsqueeze(1), -torch.inf)
            highest = torch.maximum(scores.amax(1, keepdim=True), mine)
            mine = mine - highest
            total = scores.sub_(highest).exp_().sum(1, keepdim=True) + mine.exp()
            loss += (total.log() - mine).sum()
            share = scores.div_(total * n)
            own_share[first : first + step] = (mine.exp() / total - 1) / n
            torch.mm(share, negatives, out=for_vectors[first : first + step])
            for_negatives.addmm_(share.T, rows)
        for_vectors.addcmul_(own_share, own_items)
        ctx.save_for_backward(for_vectors, own_share * vectors, for_negatives)
        return loss / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return *(found * gradient for found in ctx.saved_tensors), None, None, None


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
    return in_single_precision(
        _SampledSoftmaxLoss, vectors, items(target), items(drawn), target, drawn, shift
    )
