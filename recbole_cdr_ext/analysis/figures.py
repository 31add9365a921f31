"""Figures of the analyses, each as a PNG image (matplotlib) and as an HTML page to turn and zoom (plotly).

Nothing here computes: every function draws a table that is also written as CSV.
"""

from __future__ import annotations

import html as html_text
import importlib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import replacing

if TYPE_CHECKING:
    from recbole_cdr_ext.analysis.landscape import Landscape

# Okabe and Ito's colours, told apart with any colour vision; the yellow, too pale for a line, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"),
           ("P", "cross"), ("X", "x"))  # fmt: skip
DASHES = ((":", "dot"), ("--", "dash"), ("-.", "dashdot"))
# A line that comes after as many as there are colours has the next of these.
STROKES = (("-", "solid"), ("--", "dash"), (":", "dot"))
SURFACE = "viridis"
DPI = 150


def require() -> None:
    """Raises a CDRError if what figures are drawn with is not installed."""
    for name in ("matplotlib", "plotly"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise CDRError(
                f"Figures need {name}, which is not installed: pip install 'recbole_cdr_ext[plots]' "
                "(or pip install matplotlib plotly)."
            ) from error


# -- lines ----------------------------------------------------------------------------------------------------------


class Curves:
    """Panels of lines, drawn once for each of the two files.

    Args:
        title: above all.
        note: below all, in small print.
    """

    def __init__(self, title: str, note: str = ""):
        self.title, self.note = title, note
        self.panels: list[dict[str, Any]] = []
        self._looks: dict[str, int] = {}

    def panel(
        self,
        title: str,
        x: str,
        y: str,
        *,
        ticks: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        group: str = "",
        zero: bool = False,
    ) -> None:
        """Opens the next panel.

        Args:
            x, y: axis labels, with units.
            ticks: the places on the x axis to name; None: chosen.
            names: what to call them; None: their numbers.
            group: panels of one group share the range of their y axis.
            zero: whether the y axis begins at 0.
        """
        self.panels.append(
            {
                "title": title,
                "x": x,
                "y": y,
                "ticks": ticks,
                "names": names or [f"{tick:g}" for tick in ticks or ()],
                "group": group,
                "zero": zero,
                "lines": [],
                "levels": [],
            }
        )

    def line(
        self, name: str, x: Sequence[float], y: Sequence[float], spread: Sequence[float | None] | None = None
    ) -> None:
        """Draws a line in the open panel; a name has one colour and one marker in all panels.

        Args:
            spread: half the length of an error bar at each point, None where there is none.
        """
        look = self._looks.setdefault(name, len(self._looks))
        bars = [0.0 if half is None else half for half in spread or ()]
        self.panels[-1]["lines"].append(
            {"name": name, "look": look, "x": list(x), "y": list(y), "spread": bars if any(bars) else None}
        )

    @property
    def has_spread(self) -> bool:
        """Whether any line has error bars."""
        return any(line["spread"] for panel in self.panels for line in panel["lines"])

    def level(self, name: str, y: float) -> None:
        """Draws a grey horizontal line, of three at most: what the lines have to be compared with."""
        self.panels[-1]["levels"].append((name, y))

    def write(self, png: Path, html: Path) -> None:
        """Writes both files."""
        self._ranges()
        _write_png(self._matplotlib(), png)
        _write_html(self._plotly(), html, self.title, self._small_print)

    def _ranges(self) -> None:
        for panel in self.panels:
            peers = [
                other
                for other in self.panels
                if other is panel or (panel["group"] and other["group"] == panel["group"])
            ]
            panel["far"] = _far([line for peer in peers for line in peer["lines"]])
            values = np.array([value for peer in peers for value in _values(peer, panel["far"])], float)
            values = values[np.isfinite(values)]
            low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
            # Differences of a thousandth are no differences here, and shall not look like some.
            room = max(high - low, 0.02 * abs(high), 1e-9) * 0.08
            middle, half = (low + high) / 2, max((high - low) / 2, 0.01 * abs(high)) + room
            # Errors and shares have no values below zero to make room for.
            least = 0.0 if panel["zero"] else max(0.0, middle - half) if low >= 0 else middle - half
            panel["range"] = (least, middle + half)

    @property
    def _small_print(self) -> str:
        far = dict.fromkeys(name for panel in self.panels for name in sorted(panel["far"]))
        return " ".join(filter(None, [self.note, f"Beyond the axis: {', '.join(far)}." if far else ""]))

    def _matplotlib(self):
        from matplotlib.figure import Figure

        lines, columns = _layout(len(self.panels))
        figure = Figure(figsize=(4.4 * columns + 1.8, 3.7 * lines + 0.9), layout="constrained")
        figure.suptitle(self.title, fontsize=12)
        rows = figure.subfigures(lines, 1, squeeze=False)[:, 0]
        for i, row in enumerate(rows):
            self._draw_row(row, self.panels[i * columns : (i + 1) * columns])
        _footnote(figure, self._small_print)
        return figure

    def _draw_row(self, figure: Any, panels: Sequence[Mapping[str, Any]]) -> None:
        handles: dict[str, Any] = {}
        for i, panel in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), i + 1)
            for line in panel["lines"]:
                look = line["look"]
                drawn = axes.errorbar(
                    line["x"],
                    line["y"],
                    yerr=line["spread"],
                    color=COLOURS[look % len(COLOURS)],
                    marker=MARKERS[look % len(MARKERS)][0],
                    linestyle=_stroke(look)[0],
                    linewidth=1.8,
                    markersize=6,
                    elinewidth=1.0,
                    capsize=2.5,
                )
                handles.setdefault(line["name"], drawn)
            for (name, y), dash in zip(panel["levels"], DASHES, strict=False):
                drawn = axes.axhline(y, color="0.45", linestyle=dash[0], linewidth=1.4, zorder=0)
                handles.setdefault(name, drawn)
            axes.set_title(panel["title"], fontsize=10)
            axes.set_xlabel(panel["x"])
            axes.set_ylabel(panel["y"])
            axes.set_ylim(*panel["range"])
            if panel["ticks"] is not None:
                crowded = sum(len(name) + 2 for name in panel["names"]) > 40
                axes.set_xticks(panel["ticks"], panel["names"], rotation=45 if crowded else 0)
            axes.grid(color="0.9", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        # Beside the panels, where it can't cover a line, and not below, where the note stands.
        many = len(handles) > 6
        names = [_wrapped(name, 34 if many else 26) for name in handles]
        size = "small" if many else None
        figure.legend(handles.values(), names, loc="outside right center", frameon=False, fontsize=size)

    def _plotly(self):
        from plotly.subplots import make_subplots

        lines, columns = _layout(len(self.panels))
        figure = make_subplots(
            rows=lines, cols=columns, subplot_titles=[panel["title"] for panel in self.panels],
            vertical_spacing=0.16, horizontal_spacing=0.09,
        )  # fmt: skip
        shown: set[str] = set()
        for i, panel in enumerate(self.panels):
            place = {"row": i // columns + 1, "col": i % columns + 1}
            for line in panel["lines"]:
                look = line["look"]
                figure.add_scatter(
                    x=line["x"], y=line["y"], name=line["name"], legendgroup=line["name"],
                    showlegend=line["name"] not in shown, mode="lines+markers",
                    line={"color": COLOURS[look % len(COLOURS)], "dash": _stroke(look)[1]},
                    marker={"symbol": MARKERS[look % len(MARKERS)][1], "size": 9},
                    error_y={"type": "data", "array": line["spread"], "thickness": 1.2, "width": 3},
                    **place,
                )  # fmt: skip
                shown.add(line["name"])
            for (name, y), dash in zip(panel["levels"], DASHES, strict=False):
                figure.add_hline(y=y, line={"color": "#777", "dash": dash[1]}, annotation_text=name, **place)
            ticks = panel["ticks"]
            names = panel["names"] if ticks is not None else None
            figure.update_xaxes(title_text=panel["x"], tickvals=ticks, ticktext=names, **place)
            figure.update_yaxes(title_text=panel["y"], range=panel["range"], **place)
        figure.update_layout(
            title=self.title, template="plotly_white", height=430 * lines + 120, hovermode="closest"
        )
        return figure


def _layout(n: int) -> tuple[int, int]:
    """Returns (lines, columns) for n panels."""
    columns = n if n <= 3 else 2 if n == 4 else 3
    return -(-n // columns), columns


def _stroke(look: int) -> tuple[str, str]:
    return STROKES[look // len(COLOURS) % len(STROKES)]


def _far(lines: Sequence[Mapping[str, Any]]) -> set[str]:
    """Returns the names of lines so far from most that these could not be told apart beside them."""
    heights = [np.array([y for y in line["y"] if np.isfinite(y)]) for line in lines]
    middles = [float(np.median(ys)) for ys in heights if len(ys)]
    if len(middles) < 5:
        return set()
    low, middle, high = np.quantile(middles, (0.25, 0.5, 0.75))
    room = 6 * max(high - low, 0.02 * abs(middle))
    return {
        line["name"]
        for line, ys in zip(lines, heights, strict=True)
        if len(ys) and (ys.min() > high + room or ys.max() < low - room)
    }


def _values(panel: Mapping[str, Any], far: set[str]) -> list[float]:
    """Returns the heights that the panel's y axis has to reach."""
    found = [y for _, y in panel["levels"]]
    for line in panel["lines"]:
        if line["name"] in far:
            continue
        for y, half in zip(line["y"], line["spread"] or [0.0] * len(line["y"]), strict=True):
            found += [y - half, y + half]
    return found


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
    _write_png(_drawn_slopes(table, panels, title, note), png)
    _write_html(_plotly_slopes(table, panels, title), html, title, note)


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
        axes.set_yticks(places, [_wrapped(label) if i == 0 else "" for label in table["model"]])
        axes.set_ylim(-0.6, len(table) - 0.4)
        if i < 2:  # slopes; errors are told apart better without the way from 0
            axes.set_xlim(0, 1.06 * float(np.nanmax(ends.to_numpy(float), initial=0.1)))
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, frameon=False, fontsize=8)
    _footnote(figure, note)
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
    _write_png(_drawn_landscapes(found, title, note, low, high), png)
    _write_html(_turning_landscapes(found, title, low, high), html, title, note)


def _caption(label: str, one: Landscape) -> str:
    rises = ", ".join(f"{rise:+.3f} at {distance:g}" for distance, rise in one.rises.items())
    return f"{_wrapped(label, 38)}\nMAE {one.centre:.3f}; {rises}"


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
    _footnote(figure, note)
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


# -- files ----------------------------------------------------------------------------------------------------------


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Writes a table."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def _wrapped(label: str, letters: int = 26) -> str:
    return textwrap.fill(label, letters, break_long_words=False)


def _footnote(figure: Any, note: str) -> None:
    if note:
        letters = int(15 * figure.get_figwidth())
        figure.supxlabel(textwrap.fill(note, letters), fontsize=8, color="0.3")


def _write_png(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _write_html(figure: Any, path: Path, title: str, note: str) -> None:
    """One file that needs neither a network nor other files."""

    page = figure.to_html(full_html=True, include_plotlyjs=True)
    below = (
        f'<p style="font-family: sans-serif; font-size: small; margin: 1em 3em">{html_text.escape(note)}</p>'
    )
    page = page.replace("<head>", f"<head><title>{html_text.escape(title)}</title>", 1)
    page = page.replace("</body>", f"{below}</body>") if note else page
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
