"""What is said of losses and weights that are no longer finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from recbole_cdr_ext.errors import CDRError


def describe(
    terms: Mapping[str, torch.Tensor],
    batch: Any,
    domains: Sequence[str],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, str],
) -> str:
    """Returns the facts of a batch whose loss is not finite, for the error that stops the run.

    Args:
        terms: the terms of the loss.
        batch: has a length, and a ``target_domain`` where it is of one domain.
        domains: the domains' names.
        optimizer: its parameters still hold the gradients of the batch before.
        facts: what sharpness and model have to say.
    """
    domain = getattr(batch, "target_domain", None)
    told = {
        "domain": "-" if domain is None else domains[domain],
        "rows": len(batch),
        "learning rate": optimizer.param_groups[0]["lr"],
        "gradient norm of the batch before": _gradient_norm(optimizer),
        "loss terms": ", ".join(f"{name or 'loss'} {term.item():g}" for name, term in terms.items()),
        **facts,
    }
    return "; ".join(f"{name}: {fact}" for name, fact in told.items())


def check_weights(model: torch.nn.Module, where: str, last: str) -> None:
    """Raises a CDRError if a parameter that learns is not finite.

    Args:
        where: the epoch that ended, in words.
        last: what is left to go on from, in words.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise CDRError(f"Parameter '{name}' is not finite at the end of training {where}. {last}")


def _gradient_norm(optimizer: torch.optim.Optimizer) -> str:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return "none before it"
    return f"{math.sqrt(sum(g.float().pow(2).sum().item() for g in gradients)):g}"
