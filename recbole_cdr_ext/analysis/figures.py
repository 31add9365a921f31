"""Figures of the analyses, each as a PNG image (matplotlib) and as an HTML page to turn and zoom (plotly).

Nothing here computes: every function draws a table that is also written as CSV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from recbole_cdr_ext.analysis.landscape import Landscape
from recbole_cdr_ext.pages.curves import COLOURS, MARKERS, footnote, wrapped, write_html, write_png

SURFACE = "viridis"


# -- models one below the other ------------------------------------------------------------------------------------


def slopes(table: pd.DataFrame, title: str, note: str, png: Path, html: Path) -> None:
    """Draws the columns of :func:`recbole_cdr_ext.analysis.lipschitz.lipschitz`, a line for each row of ``table``.

    Left, the slopes of the mapping; in the middle, those of the ratings; right, the error before and after δ*.
    """
    panels = [
        ("Lipschitz estimate of the mapping", "‖f(u) - f(u + δ*)‖ / ‖δ*‖",
         [("lipschitz", "mean", 0), ("lipschitz_p95", "95th percentile", 4), ("lipschitz_max", "largest", 6)]),
        ("Slope of the rating", "|r̂(u) - r̂(u + δ*)| / ‖δ*‖ (rating points)", [("rating_slope", "mean", 0)]),
        ("Error before and after δ*", "MAE (rating points)",
         [("mae", "at uˢ", 1), ("mae_at_delta", "at uˢ + δ*", 3)]),
    ]  # fmt: skip
    write_png(_drawn_slopes(table, panels, title, note), png)
    write_html(_plotly_slopes(table, panels, title), html, title, note)


def _drawn_slopes(table: pd.DataFrame, panels: Sequence[Any], title: str, note: str):
    from matplotlib.figure import Figure

    places = np.arange(len(table))[::-1]
    figure = Figure(figsize=(13, 2.7 + 0.45 * len(table)), layout="constrained")
    figure.suptitle(title, fontsize=12)
    for i, (heading, label, columns) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        ends = table[[column for column, _, _ in columns]]
        axes.hlines(places, ends.min(axis=1), ends.max(axis=1), color="0.8", linewidth=2, zorder=1)
        for column, name, look in columns:
            axes.scatter(
                table[column],
                places,
                color=COLOURS[look],
                marker=MARKERS[look][0],
                s=45,
                label=name,
                zorder=2,
            )
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=6)
        axes.margins(x=0.08)
        axes.set_yticks(places, [wrapped(label) if i == 0 else "" for label in table["model"]])
        axes.set_ylim(-0.6, len(table) - 0.4)
        if i < 2:  # slopes; errors are told apart better without the way from 0
            axes.set_xlim(0, 1.06 * float(np.nanmax(ends.to_numpy(float), initial=0.1)))
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, frameon=False, fontsize=8)
    footnote(figure, note)
    return figure


def _plotly_slopes(table: pd.DataFrame, panels: Sequence[Any], title: str):
    from plotly.subplots import make_subplots

    headings = [heading for heading, _, _ in panels]
    figure = make_subplots(rows=1, cols=len(panels), shared_yaxes=True, subplot_titles=headings)
    for i, (heading, label, columns) in enumerate(panels):
        for column, name, look in columns:
            figure.add_scatter(
                x=table[column], y=table["model"], name=f"{heading}: {name}", mode="markers",
                marker={"color": COLOURS[look], "symbol": MARKERS[look][1], "size": 11}, row=1, col=i + 1,
            )  # fmt: skip
        figure.update_xaxes(title_text=label, rangemode="normal" if i == 2 else "tozero", row=1, col=i + 1)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        title=title,
        template="plotly_white",
        height=320 + 45 * len(table),
        legend={"orientation": "h", "y": -0.35},
    )
    return figure


# -- surfaces -------------------------------------------------------------------------------------------------------


def landscapes(found: Mapping[str, Landscape], title: str, note: str, png: Path, html: Path) -> None:
    """Draws each landscape as a surface and, below, as contours; one colour scale and one height for all.

    Args:
        found: by label, in the order of the columns.
    """
    low = min(float(one.mae.min()) for one in found.values())
    high = max(float(one.mae.max()) for one in found.values())
    # A flat landscape shall look flat: less than a tenth of the loss never fills the scale.
    high = max(high, low * 1.1)
    write_png(_drawn_landscapes(found, title, note, low, high), png)
    write_html(_turning_landscapes(found, title, low, high), html, title, note)


def _caption(label: str, one: Landscape) -> str:
    rises = ", ".join(f"{rise:+.3f} at {distance:g}" for distance, rise in one.rises.items())
    return f"{wrapped(label, 38)}\nMAE {one.centre:.3f}; {rises}"


def _drawn_landscapes(found: Mapping[str, Landscape], title: str, note: str, low: float, high: float):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    n = len(found)
    figure = Figure(figsize=(max(3.4 * n + 1.0, 6.8), 7.0), layout="constrained")
    figure.suptitle(title, fontsize=12)
    levels = MaxNLocator(20, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    low, high = levels[0], levels[-1]
    every = []
    for i, (label, one) in enumerate(found.items()):
        zeta, gamma = np.meshgrid(one.axis, one.axis, indexing="ij")
        surface = figure.add_subplot(2, n, i + 1, projection="3d")
        surface.plot_surface(
            zeta, gamma, one.mae, cmap=SURFACE, vmin=low, vmax=high, rcount=60, ccount=60, linewidth=0
        )
        surface.set_zlim(low, high)
        surface.set_xlabel("ζ")
        surface.set_ylabel("γ")
        surface.set_title(_caption(label, one), fontsize=10, pad=0)
        surface.tick_params(labelsize=8)
        surface.view_init(elev=28, azim=-55)
        surface.zaxis.set_major_locator(MaxNLocator(5))
        surface.set_box_aspect((1, 1, 0.8), zoom=1.05)
        contours = figure.add_subplot(2, n, n + i + 1)
        drawn = contours.contourf(zeta, gamma, one.mae, levels=levels, cmap=SURFACE, vmin=low, vmax=high)
        contours.contour(zeta, gamma, one.mae, levels=levels, colors="white", linewidths=0.6)
        contours.plot(0, 0, marker="+", color="white", markersize=11, markeredgewidth=2)
        contours.set_aspect("equal")
        contours.set_xlabel("ζ (lengths of u$^s$ along g$_1$)")
        contours.set_ylabel("γ (lengths of u$^s$ along g$_2$)" if i == 0 else "")
        contours.locator_params(nbins=5)
        every.append(surface)
        every.append(contours)
    figure.colorbar(drawn, ax=every, label="MAE (rating points)", shrink=0.7, pad=0.03, ticks=levels[::2])
    footnote(figure, note)
    return figure


def _turning_landscapes(found: Mapping[str, Landscape], title: str, low: float, high: float):
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    n = len(found)
    captions = [_caption(label, one).replace("\n", "<br>") for label, one in found.items()]
    figure = make_subplots(
        rows=2, cols=n, specs=[[{"type": "surface"}] * n, [{"type": "xy"}] * n], row_heights=[0.58, 0.42],
        subplot_titles=captions, vertical_spacing=0.07,
    )  # fmt: skip
    for i, (label, one) in enumerate(found.items()):
        surface = go.Surface(
            x=one.axis, y=one.axis, z=one.mae.T, name=label, coloraxis="coloraxis",
            hovertemplate=f"{label}<br>ζ %{{x:.2f}}, γ %{{y:.2f}}<br>MAE %{{z:.4f}}<extra></extra>",
        )  # fmt: skip
        contour = go.Contour(
            x=one.axis, y=one.axis, z=one.mae.T, name=label, coloraxis="coloraxis",
            contours={"start": low, "end": high, "size": (high - low) / 20},
            hovertemplate=f"{label}<br>ζ %{{x:.2f}}, γ %{{y:.2f}}<br>MAE %{{z:.4f}}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(surface, row=1, col=i + 1)
        figure.add_trace(contour, row=2, col=i + 1)
        figure.update_xaxes(title_text="ζ (lengths of u<sup>s</sup>)", row=2, col=i + 1)
        figure.update_yaxes(title_text="γ", row=2, col=i + 1)
    axes = {
        "xaxis": {"title": {"text": "ζ"}},
        "yaxis": {"title": {"text": "γ"}},
        "zaxis": {"title": {"text": "MAE"}, "range": [low, high]},
    }
    figure.update_scenes(**axes)
    figure.update_layout(
        title=title, template="plotly_white", height=900,
        margin={"t": 130},
        coloraxis={"colorscale": SURFACE, "cmin": low, "cmax": high, "colorbar": {"title": {"text": "MAE"}}},
    )  # fmt: skip
    return figure
