"""Losses over many items, written for memory traffic: on a CPU that, not arithmetic, is what they cost."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# Scores that a block of rows may hold: a few megabytes stay in the processor's cache between the passes over them.
_BLOCK = 1 << 21


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
    return _SoftmaxLoss.apply(vectors, items, target)


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


def sampled_softmax_loss(
    vectors: torch.Tensor, items: torch.Tensor, target: torch.Tensor, n_negatives: int, log_q: bool
) -> torch.Tensor:
    """Returns the mean softmax loss of the targets against negatives that all rows share, a scalar.

    Args:
        vectors: (N, d), N ≥ 1.
        items: (M, d); negatives are drawn from its rows, uniformly and with replacement, by torch's generator. A
            negative that is a row's own target does not count for that row.
        target: (N,) rows of ``items``.
        log_q: whether negatives stand for all M items (their scores gain log(M / n_negatives)), so that the loss
            estimates that of the full softmax, or for themselves.
    """
    drawn = torch.randint(len(items), (n_negatives,), device=items.device)
    scores = vectors @ items[drawn].T
    if log_q:
        scores = scores + math.log(len(items) / n_negatives)
    scores = scores.masked_fill(drawn == target.unsqueeze(1), -torch.inf)
    own = (vectors * items[target]).sum(1)
    return (torch.logaddexp(own, scores.logsumexp(1)) - own).mean()
