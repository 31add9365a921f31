"""Gradients at the worst point nearby: sharpness-aware minimisation over weights, and over rows of embeddings.

``sam`` (Foret et al., ICLR 2021) and ``asam`` (Kwon et al., ICML 2021) move all weights that learn, for any model.
``pgd`` (SCDR, Eq. 12-15) moves the (B, d) rows of a batch that the model names, by projected gradient ascent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from recbole_cdr_ext.errors import CDRError

DEFAULT_RHO = 0.05  # SAM's

Terms = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Step:
    """What a gradient is computed from.

    Attributes:
        loss: forward pass on the batch, at given rows in place of the batch's own; None: at its own.
        check: raises if a loss is not finite.
        clear: forgets the gradients.
        rows: the (B, d) rows that pgd moves, as part of the graph; None where the model names none.
        gradient: the loss's gradient at given rows, (B, d), up to a positive factor per row; None: autograd's.
    """

    loss: Callable[[torch.Tensor | None], Terms]
    check: Callable[[Terms], None]
    clear: Callable[[], None]
    rows: Callable[[], torch.Tensor] | None = None
    gradient: Callable[[torch.Tensor], torch.Tensor] | None = None


class Plain:
    """The gradient at the current weights."""

    def facts(self) -> dict[str, str]:
        """Returns what a report on a loss that is not finite should say."""
        return {}

    def backward(self, step: Step) -> Terms:
        """Leaves the gradient in the parameters; returns the terms of the loss that it is the gradient of."""
        terms = step.loss(None)
        _backward(terms, step)
        return terms


class SAM(Plain):
    """The gradient at w + ρ g / ‖g‖ (adaptive: w + ρ T² g / ‖T g‖ with T = |w|), g the gradient at w.

    Sparse gradients stay sparse: rows that a batch does not touch are neither read nor moved.

    Args:
        parameters: all that learn.
        rho: radius of the neighbourhood.
        adaptive: whether it scales with the weights.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], rho: float, *, adaptive: bool = False):
        self.parameters, self.rho, self.adaptive = list(parameters), rho, adaptive

    def facts(self) -> dict[str, str]:
        """As in the base class."""
        return {"rho": f"{self.rho:g} ({'asam' if self.adaptive else 'sam'})"}

    def backward(self, step: Step) -> Terms:
        """As :meth:`Plain.backward`; the returned terms are those at w."""
        terms = super().backward(step)
        with torch.no_grad():
            moved = self._move()
        try:
            _backward(step.loss(None), step)
        finally:
            with torch.no_grad():
                for parameter, index, before in moved:
                    if index is None:
                        parameter.copy_(before)
                    else:
                        parameter[index] = before
        return terms

    def _move(self) -> list[tuple[torch.nn.Parameter, torch.Tensor | None, torch.Tensor]]:
        """Moves the parameters to the worst point; returns (parameter, rows or None for all, former values)."""
        places = []
        for parameter in self.parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            index = None
            if gradient.is_sparse:
                gradient = gradient.coalesce()
                index, gradient = gradient.indices()[0], gradient.values()
            before = parameter.detach().clone() if index is None else parameter.detach()[index]
            places.append((parameter, index, before, gradient))
        scaled = [g * w.abs() if self.adaptive else g for _, _, w, g in places]
        norm = math.sqrt(sum(float(s.float().pow(2).sum()) for s in scaled))
        if norm == 0 or not math.isfinite(norm):
            return []
        for (parameter, index, before, _), s in zip(places, scaled, strict=True):
            moved = before + (self.rho / norm) * (s * before.abs() if self.adaptive else s)
            if index is None:
                parameter.copy_(moved)
            else:
                parameter[index] = moved
        return [(parameter, index, before) for parameter, index, before, _ in places]


class PGD(Plain):
    """The gradient at rows + δ*, δ* found by k steps of ``δ ← Π(δ + α sign ∇)`` from 0 and then held fixed.

    Args:
        rho: radius ρ of the ball, or its share of the rows' length if ``relative``.
        steps: k.
        step_size: α, the length of a step in every coordinate; None: 2.5 ρ / (k √d), with which k steps can
            reach the surface of the ball from anywhere in it.
        scope: "row": each row has a ball of its own; "batch": one ball holds the (B, d) tensor.
        relative: whether ρ is a share of the rows' (the tensor's) own length.
    """

    def __init__(
        self,
        rho: float,
        steps: int,
        step_size: float | None = None,
        *,
        scope: str = "row",
        relative: bool = False,
    ):
        self.rho, self.steps, self.step_size, self.scope, self.relative = (
            rho,
            steps,
            step_size,
            scope,
            relative,
        )

    def facts(self) -> dict[str, str]:
        """As in the base class."""
        return {"rho": f"{self.rho:g} (pgd, {self.steps} steps, a ball per {self.scope})"}

    def backward(self, step: Step) -> Terms:
        """As :meth:`Plain.backward`; the returned terms are those at rows + δ*."""
        assert step.rows is not None
        rows = step.rows()
        delta = self.worst(rows.detach(), lambda moved: _total(step.loss(moved)), step.gradient)
        terms = step.loss(rows + delta)
        _backward(terms, step)
        return terms

    def worst(
        self,
        rows: torch.Tensor,
        loss: Callable[[torch.Tensor], torch.Tensor],
        gradient: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Returns δ*, (B, d), for rows that are no part of a graph.

        Args:
            loss: the scalar loss at (B, d) rows. Only the signs of its gradient count, so neither the reduction
                nor a positive factor matters.
            gradient: its gradient at (B, d) rows, where that is known in closed form; None: autograd's.
        """
        gradient = gradient or partial(_gradient, loss)
        radius = self._radius(rows)
        n = rows.shape[1] if self.scope == "row" else rows.numel()
        alpha = 2.5 * radius / (self.steps * math.sqrt(n)) if self.step_size is None else self.step_size
        delta = torch.zeros_like(rows)
        for _ in range(self.steps):
            delta = project(delta.add_(gradient(rows + delta).sign().mul_(alpha)), radius, self.scope)
        return delta

    def _radius(self, rows: torch.Tensor) -> torch.Tensor | float:
        return self.rho * _length(rows, self.scope) if self.relative else self.rho


def project(delta: torch.Tensor, radius: torch.Tensor | float, scope: str = "row") -> torch.Tensor:
    """Returns the nearest points to (B, d) ``delta`` in the L2 ball around 0; points in it stay as they are.

    Args:
        radius: of the ball; (B, 1) for a radius per row.
        scope: "row" for a ball per row, "batch" for one ball that holds the whole tensor.
    """
    length = _length(delta, scope).clamp_min(torch.finfo(delta.dtype).tiny)
    return delta * (radius / length).clamp(max=1.0)


def make(settings: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter], *, names_rows: bool) -> Plain:
    """Returns what the settings of a phase ask for.

    Args:
        settings: sharpness, rho, rho_scope, rho_relative, pgd_steps, pgd_step_size.
        parameters: those that learn in the phase.
        names_rows: whether the phase names rows for pgd to move.

    Raises:
        CDRError: sharpness is pgd, and there are no rows to move.
    """
    kind, rho = settings["sharpness"], DEFAULT_RHO if settings["rho"] is None else float(settings["rho"])
    if kind == "pgd" and not names_rows:
        raise CDRError(
            "sharpness=pgd moves rows of embeddings that a model names, and this one names none. "
            "Use sharpness=sam or asam, which move the weights of any model."
        )
    if kind in (None, "none") or rho == 0 or (kind == "pgd" and int(settings["pgd_steps"]) == 0):
        return Plain()
    if kind == "pgd":
        size = settings["pgd_step_size"]
        return PGD(
            rho,
            int(settings["pgd_steps"]),
            None if size is None else float(size),
            scope=settings["rho_scope"],
            relative=bool(settings["rho_relative"]),
        )
    return SAM(parameters, rho, adaptive=kind == "asam")


def _length(rows: torch.Tensor, scope: str) -> torch.Tensor:
    length: torch.Tensor = rows.norm(dim=1, keepdim=True) if scope == "row" else rows.norm()
    return length


def _gradient(loss: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    rows = rows.requires_grad_()
    return torch.autograd.grad(loss(rows), rows)[0]


def _total(terms: Terms) -> torch.Tensor:
    values = list(terms.values())
    return sum(values[1:], start=values[0])


def _backward(terms: Terms, step: Step) -> None:
    step.check(terms)
    # The gradients of the batch before live until here, for the report on a loss that is not finite.
    step.clear()
    _total(terms).backward()
