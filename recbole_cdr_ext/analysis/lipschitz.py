"""Lipschitz estimate of a mapping: how far it carries apart what lies close together (Eq. 22 of SCDR)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recbole_cdr_ext.analysis.bridges import CHUNK, bridge_of, chunks, median_norm, ratings_of
from recbole_cdr_ext.model.rating_recommender import RatingBatch
from recbole_cdr_ext.tasks.rating import RatingExperiment
from recbole_cdr_ext.trainer.sharpness import PGD


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
