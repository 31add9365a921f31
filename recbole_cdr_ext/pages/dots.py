"""Figures of dots: one line for each model, one below the other, with some of its values on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recbole_cdr_ext.pages.figure import COLOURS, MARKERS, Figure, plain, wrapped

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure


@dataclass(frozen=True)
class Series:
    """The dots of one kind, one on each line.

    Attributes:
        look: its place in :data:`~recbole_cdr_ext.pages.figure.COLOURS` and MARKERS.
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
