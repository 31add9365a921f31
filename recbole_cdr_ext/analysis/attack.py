"""FGSM: how much a small change of the source vectors, the worst to first order, costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_cdr_ext.analysis.bridges import bridge_of, chunks, median_norm, ratings_of
from recbole_cdr_ext.model.bridge import Bridge
from recbole_cdr_ext.model.rating_recommender import RatingBatch
from recbole_cdr_ext.tasks.rating import RatingExperiment

EPSILONS = (0.0, 0.25, 0.5, 0.75, 1.0)


def signs(model: Bridge, batch: RatingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the source vectors u^s, (B, d), and sign ∇_u (r - r̂(u))² there, (B, d).

    The error is that of the model's own rating: unclipped, so that clipping hides no gradient.
    """
    rows = model.source_rows(batch).detach().requires_grad_()
    error = batch.rating - model.rate_from(rows, batch)
    (gradient,) = torch.autograd.grad(error.square().sum(), rows)
    return rows.detach(), gradient.sign()


def perturbation(
    rows: torch.Tensor, sign: torch.Tensor, epsilon: float, *, relative: bool = False
) -> torch.Tensor:
    """Returns η, (B, d): ε sign ∇ (Eq. 19 of SCDR), or ε ‖u‖ / √d sign ∇ if ``relative``, of length ε ‖u‖."""
    if not relative:
        return epsilon * sign
    length: torch.Tensor = epsilon * rows.norm(dim=1, keepdim=True) / math.sqrt(rows.shape[1])
    return length * sign


def fgsm(
    experiment: RatingExperiment, epsilons: Sequence[float] = EPSILONS, *, relative: bool = False
) -> pd.DataFrame:
    """Attacks the source vectors of the test users, each rating's by itself.

    A user's vector is moved anew for every rating, as the paper's user-item pairs are; biases, and whatever else a
    model derives from the user (PTUPCDR's M_u), stay as they are.

    Args:
        epsilons: attack rates ε.
        relative: whether they are shares of each vector's own length, or steps per coordinate as in the paper.

    Returns:
        One row per ε: epsilon, relative, n, median_norm (of the test users' u^s), epsilon_over_norm (ε / median
        norm; ε itself if relative), length_over_norm (‖η‖ / ‖u^s‖, the former at the median norm; what models with
        vectors of different length and size can be compared at), mae, rmse, rise (of the MAE over the one at
        ε = 0).
    """
    model, batch = bridge_of(experiment), ratings_of(experiment, "test")
    # Each in float64, and summed over chunks: no ε sees other rounding than another.
    absolute, squared = np.zeros(len(epsilons) + 1), np.zeros(len(epsilons) + 1)
    for part in chunks(batch):
        rows, sign = signs(model, part)
        with torch.no_grad():
            for place, epsilon in enumerate((0.0, *epsilons)):
                moved = rows + perturbation(rows, sign, epsilon, relative=relative)
                error = (model.finished(model.rate_from(moved, part), part) - part.rating).double()
                absolute[place] += float(error.abs().sum())
                squared[place] += float(error.square().sum())
    mae, rmse, norm = absolute / len(batch), np.sqrt(squared / len(batch)), median_norm(model, batch)
    lines: list[dict[str, Any]] = []
    for place, epsilon in enumerate(epsilons, 1):
        share = epsilon if relative else _ratio(epsilon, norm)
        lines.append(
            {
                "epsilon": float(epsilon),
                "relative": relative,
                "n": len(batch),
                "median_norm": norm,
                "epsilon_over_norm": share,
                "length_over_norm": share if relative else share * math.sqrt(model.size),
                "mae": mae[place],
                "rmse": rmse[place],
                "rise": mae[place] - mae[0],
            }
        )
    return pd.DataFrame(lines)


def _ratio(value: float, norm: float) -> float:
    return value / norm if norm else math.inf
