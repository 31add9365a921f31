"""Figures, described once and drawn as a PNG image (matplotlib) and as a page to turn and zoom (plotly): what all
have in common, figures of dots, and figures of surfaces.
"""

from __future__ import annotations

import html
import importlib
import json
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import replacing
from recbole_cdr_ext.pages.page import Drawing, render, write

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure


# Okabe and Ito's colours, told apart with any colour vision; the yellow, too pale for a line, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# matplotlib's names and plotly's.
MARKERS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"),
           ("P", "cross"), ("X", "x"))  # fmt: skip
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


class Figure(ABC):
    """A figure, described: what it shows is added by the methods of its kind, and drawn by :meth:`write`.

    Args:
        title: above all.
        note: below all, in small print.
    """

    def __init__(self, title: str, note: str = "") -> None:
        self.title, self.note = title, note

    def write(self, png: Path, page: Path) -> None:
        """Writes both files."""
        image = self.for_image()
        image.suptitle(self.title, fontsize=12)
        _write_footnote(image, self.small_print)
        with replacing(png) as temporary:
            image.savefig(temporary, format="png", dpi=DPI)
        drawing = drawing_of(self.for_page(), "figure", self.title)
        write(page, render("figure.html.j2", self.title, [drawing], note=self.small_print))

    @property
    def small_print(self) -> str:
        """What stands below the figure."""
        return self.note

    @abstractmethod
    def for_image(self) -> MatplotlibFigure:
        """Returns the figure, drawn with matplotlib; title and note are added to it."""

    @abstractmethod
    def for_page(self) -> go.Figure:
        """Returns the figure, drawn with plotly."""


def drawing_of(figure: go.Figure, name: str, label: str) -> Drawing:
    """Returns a figure of plotly as a page holds it."""
    content = json.loads(figure.to_json())
    return Drawing(name, label, {"data": content["data"], "layout": content["layout"]})


def plain(text: object) -> str:
    """Returns text that plotly, which reads some HTML, shows as it is."""
    return html.escape(str(text), quote=False)


def wrapped(label: str, letters: int = 26) -> str:
    """Returns a label in lines of at most so many letters."""
    return textwrap.fill(label, letters, break_long_words=False)


def _write_footnote(figure: MatplotlibFigure, note: str) -> None:
    if note:
        letters = int(15 * figure.get_figwidth())
        figure.supxlabel(textwrap.fill(note, letters), fontsize=8, color="0.3")


# -- dots -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """The dots of one kind, one on each line.

    Attributes:
        look: its place in :data:`~recbole_cdr_ext.pages.figures.COLOURS` and MARKERS.
    """

    name: str
    values: Sequence[float]
    look: int


@dataclass(frozen=True)
class Panel:
    """Lines over one axis.

    Attributes:
        x: what the axis shows, with its unit.
        zero: whether the axis begins at 0.
    """

    title: str
    x: str
    series: Sequence[Series]
    zero: bool


class Dots(Figure):
    """Panels of dots, side by side.

    Args:
        rows: what the lines are called, from above.
    """

    def __init__(self, title: str, rows: Sequence[str], note: str = "") -> None:
        super().__init__(title, note)
        self.rows = list(rows)
        self.panels: list[Panel] = []

    def panel(
        self, title: str, x: str, series: Mapping[str, tuple[Sequence[float], int]], *, zero: bool = False
    ) -> None:
        """Adds a panel.

        Args:
            x: axis label, with its unit.
            series: by name, a value for each row, and the look of its dots.
            zero: whether the axis begins at 0.
        """
        dots = [Series(name, list(values), look) for name, (values, look) in series.items()]
        self.panels.append(Panel(title, x, dots, zero))

    def for_image(self) -> MatplotlibFigure:
        """Returns the figure, drawn with matplotlib."""
        from matplotlib.figure import Figure as MatplotlibFigure

        figure = MatplotlibFigure(figsize=(13, 2.7 + 0.45 * len(self.rows)), layout="constrained")
        for i, panel in enumerate(self.panels):
            axes = figure.add_subplot(1, len(self.panels), i + 1)
            self._draw(axes, panel, named=i == 0)
        return figure

    def _draw(self, axes: Axes, panel: Panel, *, named: bool) -> None:
        places = np.arange(len(self.rows))[::-1]
        values = np.array([series.values for series in panel.series], float)
        low, high = np.fmin.reduce(values), np.fmax.reduce(values)  # which pass over gaps
        axes.hlines(places, low, high, color="0.8", linewidth=2, zorder=1)
        for series in panel.series:
            colour, marker = COLOURS[series.look], MARKERS[series.look][0]
            axes.scatter(
                series.values, places, color=colour, marker=marker, s=45, label=series.name, zorder=2
            )
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(panel.x)
        axes.locator_params(axis="x", nbins=6)
        axes.margins(x=0.08)
        axes.set_yticks(places, [wrapped(row) if named else "" for row in self.rows])
        axes.set_ylim(-0.6, len(self.rows) - 0.4)
        if panel.zero:
            axes.set_xlim(0, 1.06 * float(np.nanmax(values, initial=0.1)))
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, frameon=False, fontsize=8)

    def for_page(self) -> go.Figure:
        """Returns the figure, drawn with plotly."""
        from plotly.subplots import make_subplots

        titles, rows = [plain(panel.title) for panel in self.panels], list(map(plain, self.rows))
        figure = make_subplots(rows=1, cols=len(self.panels), shared_yaxes=True, subplot_titles=titles)
        for column, panel in enumerate(self.panels, 1):
            for series in panel.series:
                marker = {"color": COLOURS[series.look], "symbol": MARKERS[series.look][1], "size": 11}
                figure.add_scatter(
                    x=series.values, y=rows, name=plain(f"{panel.title}: {series.name}"), mode="markers",
                    marker=marker, row=1, col=column,
                )  # fmt: skip
            figure.update_xaxes(
                title_text=plain(panel.x), rangemode="tozero" if panel.zero else "normal", row=1, col=column
            )
        figure.update_yaxes(autorange="reversed")
        figure.update_layout(
            title=plain(self.title), template="plotly_white", height=320 + 45 * len(self.rows),
            legend={"orientation": "h", "y": -0.35},
        )  # fmt: skip
        return figure


# -- surfaces ---------------------------------------------------------------------------------------------------------


COLOUR_SCALE = "viridis"


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Attributes:
        symbol: beside the surfaces, where there is little room.
        label, markup: below the contours, as matplotlib and as plotly write it.
    """

    symbol: str
    label: str
    markup: str


@dataclass(frozen=True)
class Surface:
    """One surface.

    Attributes:
        caption: below its label.
        axis: (P,) the places on both axes.
        heights: (P, P), ``heights[i, j]`` at x = axis[i], y = axis[j].
    """

    label: str
    caption: str
    axis: np.ndarray
    heights: np.ndarray

    @property
    def title(self) -> str:
        """Label and caption, in lines."""
        return f"{wrapped(self.label, 38)}\n{self.caption}"


class Surfaces(Figure):
    """Surfaces side by side, of one colour scale and one height.

    Args:
        x, y: the axes of the plane.
        height: what the height is called, and its unit.
    """

    def __init__(self, title: str, x: Axis, y: Axis, height: tuple[str, str], note: str = "") -> None:
        super().__init__(title, note)
        self.x, self.y, self.height, self.unit = x, y, *height
        self.surfaces: list[Surface] = []

    def surface(self, label: str, caption: str, axis: np.ndarray, heights: np.ndarray) -> None:
        """Adds the next surface; see :class:`Surface`."""
        self.surfaces.append(Surface(label, caption, axis, heights))

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value of the scale."""
        low = min(float(surface.heights.min()) for surface in self.surfaces)
        high = max(float(surface.heights.max()) for surface in self.surfaces)
        # What is flat shall look flat: less than a tenth of the height never fills the scale.
        return low, max(high, low * 1.1)

    def for_image(self) -> MatplotlibFigure:
        """Returns the figure, drawn with matplotlib."""
        from matplotlib.figure import Figure as MatplotlibFigure
        from matplotlib.ticker import MaxNLocator

        n = len(self.surfaces)
        figure = MatplotlibFigure(figsize=(max(3.4 * n + 1.0, 6.8), 7.0), layout="constrained")
        levels = MaxNLocator(20, steps=[1, 2, 2.5, 5, 10]).tick_values(*self.range)
        panels: list[Any] = []
        for i, surface in enumerate(self.surfaces):
            upper = figure.add_subplot(2, n, i + 1, projection="3d")
            lower = figure.add_subplot(2, n, n + i + 1)
            self._draw_surface(upper, surface, levels)
            filled = self._draw_contours(lower, surface, levels, named=i == 0)
            panels += [upper, lower]
        label = f"{self.height} ({self.unit})"
        figure.colorbar(filled, ax=panels, label=label, shrink=0.7, pad=0.03, ticks=levels[::2])
        return figure

    def _draw_surface(self, axes: Any, surface: Surface, levels: Sequence[float]) -> None:
        from matplotlib.ticker import MaxNLocator

        x, y = np.meshgrid(surface.axis, surface.axis, indexing="ij")
        low, high = levels[0], levels[-1]
        axes.plot_surface(
            x, y, surface.heights, cmap=COLOUR_SCALE, vmin=low, vmax=high, rcount=60, ccount=60, linewidth=0
        )
        axes.set_zlim(low, high)
        axes.set_xlabel(self.x.symbol)
        axes.set_ylabel(self.y.symbol)
        axes.set_title(surface.title, fontsize=10, pad=0)
        axes.tick_params(labelsize=8)
        axes.view_init(elev=28, azim=-55)
        axes.zaxis.set_major_locator(MaxNLocator(5))
        axes.set_box_aspect((1, 1, 0.8), zoom=1.05)

    def _draw_contours(self, axes: Any, surface: Surface, levels: Sequence[float], *, named: bool) -> Any:
        x, y = np.meshgrid(surface.axis, surface.axis, indexing="ij")
        scale = {"levels": levels, "vmin": levels[0], "vmax": levels[-1]}
        filled = axes.contourf(x, y, surface.heights, cmap=COLOUR_SCALE, **scale)
        axes.contour(x, y, surface.heights, levels=levels, colors="white", linewidths=0.6)
        axes.plot(0, 0, marker="+", color="white", markersize=11, markeredgewidth=2)
        axes.set_aspect("equal")
        axes.set_xlabel(self.x.label)
        axes.set_ylabel(self.y.label if named else "")
        axes.locator_params(nbins=5)
        return filled

    def for_page(self) -> go.Figure:
        """Returns the figure, drawn with plotly."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        n, (low, high) = len(self.surfaces), self.range
        titles = [plain(surface.title).replace("\n", "<br>") for surface in self.surfaces]
        figure = make_subplots(
            rows=2, cols=n, specs=[[{"type": "surface"}] * n, [{"type": "xy"}] * n], row_heights=[0.58, 0.42],
            subplot_titles=titles, vertical_spacing=0.07,
        )  # fmt: skip
        for column, surface in enumerate(self.surfaces, 1):
            place = f"{self.x.symbol} %{{x:.2f}}, {self.y.symbol} %{{y:.2f}}<br>{self.height} %{{z:.4f}}"
            label = plain(surface.label)
            content = {
                "x": surface.axis, "y": surface.axis, "z": surface.heights.T, "name": label,
                "coloraxis": "coloraxis", "hovertemplate": f"{label}<br>{place}<extra></extra>",
            }  # fmt: skip
            steps = {"start": low, "end": high, "size": (high - low) / 20}
            figure.add_trace(go.Surface(**content), row=1, col=column)
            figure.add_trace(go.Contour(**content, contours=steps), row=2, col=column)
            figure.update_xaxes(title_text=self.x.markup, row=2, col=column)
            figure.update_yaxes(title_text=self.y.markup, row=2, col=column)
        axes = {"xaxis": self.x.symbol, "yaxis": self.y.symbol, "zaxis": self.height}
        figure.update_scenes(**{name: {"title": {"text": text}} for name, text in axes.items()})
        figure.update_scenes(zaxis_range=[low, high])
        scale = {"colorscale": COLOUR_SCALE, "cmin": low, "cmax": high}
        figure.update_layout(
            title=plain(self.title), template="plotly_white", height=900, margin={"t": 130},
            coloraxis={**scale, "colorbar": {"title": {"text": self.height}}},
        )  # fmt: skip
        return figure
