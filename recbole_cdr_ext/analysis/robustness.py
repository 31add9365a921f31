"""How robust a bridge is: attacks on its source vectors, the loss around them, and how steep its mapping is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_cdr_ext.analysis.bridges import CHUNK, bridge_of, chunks, median_norm, ratings_of
from recbole_cdr_ext.model.bridge import Bridge
from recbole_cdr_ext.model.rating_recommender import RatingBatch
from recbole_cdr_ext.tasks.rating import RatingExperiment
from recbole_cdr_ext.trainer.sharpness import PGD

# -- attacks (FGSM) ---------------------------------------------------------------------------------------------------


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


# -- landscapes -------------------------------------------------------------------------------------------------------


ROWS = 131_072  # moved vectors in one forward pass: some tens of MB for d = 10 and 50 hidden units
DISTANCES = (0.5, 1.0)
PAIRS = 128  # of a random direction and its opposite, which together leave out the slope


@dataclass(frozen=True)
class Landscape:
    """What was measured around a run's source vectors.

    Attributes:
        axis: (P,) the values of ζ and γ.
        mae: (P, P) mean |r - r̂|, ``mae[i, j]`` at ζ = axis[i], γ = axis[j].
        centre: the same at the vectors themselves.
        rises: by distance s, in lengths of u^s: the MAE at u^s ± s ‖u^s‖ g / ‖g‖, mean over :data:`PAIRS` random
            directions g, minus the centre's. One plane shows two directions of d, and is another one with another seed.
        errors: standard errors of these means.
        n: the ratings it was measured on.
        median_norm: of u^s over all test users.
    """

    axis: np.ndarray
    mae: np.ndarray
    centre: float
    rises: dict[float, float]
    errors: dict[float, float]
    n: int
    median_norm: float


def directions(size: int, n: int, seed: int) -> torch.Tensor:
    """Returns n random directions g / ‖g‖ with g ~ N(0, I), (n, size); a longer list begins with the shorter one."""
    # numpy's generator and not torch's, whose numbers depend on how many are asked for.
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, size), np.float32))
    unit: torch.Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return unit


def sample(batch: RatingBatch, n: int, seed: int) -> RatingBatch:
    """Returns n of the ratings, drawn without replacement, or all if there are no more."""
    if n >= len(batch):
        return batch
    chosen = np.sort(np.random.default_rng(seed).choice(len(batch), n, replace=False))
    return batch.take(torch.from_numpy(chosen).to(batch.user.device))


@torch.no_grad()
def errors_at(model: Bridge, batch: RatingBatch, offsets: torch.Tensor) -> np.ndarray:
    """Returns mean |r - r̂(u^s + ‖u^s‖ o)| for each of (P, d) offsets o, (P,), over the batch's N ratings.

    As many points at once as :data:`ROWS` vectors allow.
    """
    rows = model.source_rows(batch)
    n, at_once = len(batch), max(1, ROWS // len(batch))
    length, offsets = rows.norm(dim=1, keepdim=True), offsets.to(rows)
    copies = torch.arange(n, device=rows.device).repeat(min(at_once, len(offsets)))
    repeated = batch.take(copies)
    errors = []
    for start in range(0, len(offsets), at_once):
        part = offsets[start : start + at_once]
        moved = (rows + length * part.unsqueeze(1)).reshape(-1, rows.shape[1])  # (points, N, d) as rows
        same = repeated.take(slice(0, len(moved)))
        error = (model.finished(model.rate_from(moved, same), same) - same.rating).abs()
        errors.append(error.view(len(part), n).double().mean(1))
    return torch.cat(errors).cpu().numpy()


def landscape(
    experiment: RatingExperiment, *, points: int = 21, extent: float = 1.0, samples: int = 2000, seed: int = 0
) -> Landscape:
    """Measures the loss at u^s + ‖u^s‖ (ζ g₁ / ‖g₁‖ + γ g₂ / ‖g₂‖) for ζ, γ in [-extent, extent].

    g₁ and g₂ are the same for all ratings, and for all runs with vectors of one size and one seed. Line 8 of the
    algorithm has û^t inside of f_U, a misprint for û^s.

    Args:
        points: per axis; odd, so that the centre is one of them.
        samples: how many test ratings.
        seed: of directions and sample.
    """
    model = bridge_of(experiment)
    everything = ratings_of(experiment, "test")
    batch = sample(everything, samples, seed)
    axis = np.linspace(-extent, extent, points)
    axis[points // 2] = 0.0
    around = directions(model.size, PAIRS, seed)
    first, second = around[:2]
    zeta, gamma = (torch.from_numpy(g.ravel()).float() for g in np.meshgrid(axis, axis, indexing="ij"))
    grid = errors_at(model, batch, zeta[:, None] * first + gamma[:, None] * second)
    centre = float(errors_at(model, batch, torch.zeros(1, model.size))[0])
    rises, errors = {}, {}
    for distance in DISTANCES:
        pairs = (errors_at(model, batch, distance * around) + errors_at(model, batch, -distance * around)) / 2
        rises[distance] = float(pairs.mean()) - centre
        errors[distance] = float(pairs.std(ddof=1)) / math.sqrt(PAIRS)
    square, norm = grid.reshape(points, points), median_norm(model, everything)
    return Landscape(axis, square, centre, rises, errors, len(batch), norm)


# -- Lipschitz estimates ----------------------------------------------------------------------------------------------


def lipschitz(
    experiment: RatingExperiment, ball: PGD, *, part: str = "train", chunk: int = CHUNK
) -> dict[str, Any]:
    """Estimates E ‖f(u^s) - f(u^s + δ*)‖ / ‖δ*‖, with the δ* that projected gradient ascent finds for each rating.

    δ* is that of Eq. 12: it raises the squared error of the rating. So the estimate is of slopes in directions that
    hurt, and a lower bound of the mapping's Lipschitz constant.

    Args:
        ball: radius and steps of the search, the same for all runs that are compared: a larger ball gives a smaller
            slope by itself where f saturates.
        part: "train" for the ratings that the mapping was learned from (as the paper), "test" or "valid".
        chunk: rows that are searched at once, which a ball per batch is shared by.

    Returns:
        n (ratings with δ* ≠ 0 and a known item), median_norm (of u^s), delta (median ‖δ*‖), lipschitz (the
        estimate), and from the same slopes lipschitz_p95 and lipschitz_max; rating_slope, the mean of
        |r̂(u^s) - r̂(u^s + δ*)| / ‖δ*‖ (what the mapped vector is multiplied with counts there); mae and
        mae_at_delta.
    """
    model = bridge_of(experiment)
    batch = ratings_of(experiment, part)
    # Items without a training rating are predicted without any vector.
    batch = batch.take(model.known_items[batch.item])
    measured: list[torch.Tensor] = []
    for rows in chunks(batch, chunk):
        start = model.source_rows(rows).detach()

        def loss(moved: torch.Tensor, rows: RatingBatch = rows) -> torch.Tensor:
            total: torch.Tensor = (rows.rating - model.rate_from(moved, rows)).square().sum()
            return total

        delta = ball.worst(start, loss)
        with torch.no_grad():
            moved, length = start + delta, delta.norm(dim=1)
            apart = (model.bridged(moved, rows.user) - model.bridged(start, rows.user)).norm(dim=1)
            before, after = (model.finished(model.rate_from(at, rows), rows) for at in (start, moved))
        errors = ((before - rows.rating).abs(), (after - rows.rating).abs())
        measured.append(torch.stack([length, apart, (after - before).abs(), *errors]).double().cpu())
    length, apart, change, error, worst = torch.cat(measured, 1).numpy()
    # A vector that no step moves (its gradient is zero) has no slope.
    moves = length > 0
    slope = apart[moves] / length[moves]
    nothing = not moves.any()
    return {
        "n": int(moves.sum()),
        "median_norm": median_norm(model, batch),
        "delta": np.nan if nothing else float(np.median(length[moves])),
        "lipschitz": np.nan if nothing else float(slope.mean()),
        "lipschitz_p95": np.nan if nothing else float(np.percentile(slope, 95)),
        "lipschitz_max": np.nan if nothing else float(slope.max()),
        "rating_slope": np.nan if nothing else float((change[moves] / length[moves]).mean()),
        "mae": float(error.mean()),
        "mae_at_delta": float(worst.mean()),
    }
