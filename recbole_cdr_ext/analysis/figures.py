"""Figures of the analyses of bridges.

Nothing here computes: each shows a table that is also written as CSV.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from recbole_cdr_ext.analysis.landscape import Landscape
from recbole_cdr_ext.pages.dots import Dots
from recbole_cdr_ext.pages.surfaces import Axis, Surfaces

ZETA = Axis("ζ", "ζ (lengths of u$^s$ along g$_1$)", "ζ (lengths of u<sup>s</sup>)")
GAMMA = Axis("γ", "γ (lengths of u$^s$ along g$_2$)", "γ")


def slopes(table: pd.DataFrame, title: str, note: str) -> Dots:
    """Shows the columns of :func:`recbole_cdr_ext.analysis.lipschitz.lipschitz`, a line for each row of ``table``.

    Left, the slopes of the mapping; in the middle, those of the ratings; right, the error before and after δ*.
    """
    dots = Dots(title, table["model"].tolist(), note)
    dots.panel(
        "Lipschitz estimate of the mapping",
        "‖f(u) - f(u + δ*)‖ / ‖δ*‖",
        {
            "mean": (table["lipschitz"], 0),
            "95th percentile": (table["lipschitz_p95"], 4),
            "largest": (table["lipschitz_max"], 6),
        },
        zero=True,
    )
    slope = "|r̂(u) - r̂(u + δ*)| / ‖δ*‖ (rating points)"
    dots.panel("Slope of the rating", slope, {"mean": (table["rating_slope"], 0)}, zero=True)
    # Errors are told apart better without the way from 0.
    dots.panel(
        "Error before and after δ*",
        "MAE (rating points)",
        {"at uˢ": (table["mae"], 1), "at uˢ + δ*": (table["mae_at_delta"], 3)},
    )
    return dots


def landscapes(by_label: Mapping[str, Landscape], title: str, note: str) -> Surfaces:
    """Shows each landscape as a surface and, below, as contours."""
    surfaces = Surfaces(title, ZETA, GAMMA, ("MAE", "rating points"), note)
    for label, landscape in by_label.items():
        rises = ", ".join(f"{rise:+.3f} at {distance:g}" for distance, rise in landscape.rises.items())
        caption = f"MAE {landscape.centre:.3f}; {rises}"
        surfaces.surface(label, caption, landscape.axis, landscape.mae)
    return surfaces
