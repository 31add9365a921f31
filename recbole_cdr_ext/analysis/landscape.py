"""The loss around the source vectors, in a plane and in all directions (Algorithm 2 of SCDR)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from recbole_cdr_ext.analysis.bridges import bridge_of, median_norm, ratings_of
from recbole_cdr_ext.model.bridge import Bridge
from recbole_cdr_ext.model.rating_recommender import RatingBatch
from recbole_cdr_ext.tasks.rating import RatingExperiment

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
