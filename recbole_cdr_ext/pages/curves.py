"""Figures of lines, in panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_cdr_ext.pages.figures import COLOURS, MARKERS, Figure, plain, wrapped

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure
    from matplotlib.figure import SubFigure

DASHES = ((":", "dot"), ("--", "dash"), ("-.", "dashdot"))
# A line that comes after as many as there are colours has the next of these.
STROKES = (("-", "solid"), ("--", "dash"), (":", "dot"))


@dataclass(frozen=True)
class Line:
    """A line.

    Attributes:
        look: what its colour, marker and stroke are counted from.
        spread: half the length of the error bar at each point; None: there is none.
    """

    name: str
    look: int
    x: list[float]
    y: list[float]
    spread: list[float] | None

    @property
    def stroke(self) -> tuple[str, str]:
        """How it is stroked, for matplotlib and for plotly."""
        return STROKES[self.look // len(COLOURS) % len(STROKES)]


@dataclass
class Panel:
    """Lines on one pair of axes; :meth:`Curves.panel` says what its arguments are.

    Attributes:
        levels: (name, height) of horizontal lines.
        range: lowest and highest value of the y axis.
        far: names of lines that the axis does not reach.
    """

    title: str
    x: str
    y: str
    ticks: Sequence[float] | None
    names: Sequence[str]
    group: str
    zero: bool
    lines: list[Line] = field(default_factory=list)
    levels: list[tuple[str, float]] = field(default_factory=list)
    range: tuple[float, float] = (0.0, 1.0)
    far: set[str] = field(default_factory=set)


class Curves(Figure):
    """Panels of lines."""

    def __init__(self, title: str, note: str = "") -> None:
        super().__init__(title, note)
        self.panels: list[Panel] = []
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
        names = names or [f"{tick:g}" for tick in ticks or ()]
        self.panels.append(Panel(title, x, y, ticks, names, group, zero))

    def line(
        self, name: str, x: Sequence[float], y: Sequence[float], spread: Sequence[float | None] | None = None
    ) -> None:
        """Draws a line in the open panel; a name has one colour and one marker in all panels.

        Args:
            spread: half the length of an error bar at each point, None where there is none.
        """
        look = self._looks.setdefault(name, len(self._looks))
        bars = [0.0 if half is None else half for half in spread or ()]
        self.panels[-1].lines.append(Line(name, look, list(x), list(y), bars if any(bars) else None))

    @property
    def has_spread(self) -> bool:
        """Whether any line has error bars."""
        return any(line.spread for panel in self.panels for line in panel.lines)

    def level(self, name: str, y: float) -> None:
        """Draws a grey horizontal line, of three at most: what the lines have to be compared with."""
        self.panels[-1].levels.append((name, y))

    def write(self, png: Path, page: Path) -> None:
        """Writes both files."""
        self.find_ranges()
        super().write(png, page)

    def find_ranges(self) -> None:
        """Finds the ranges of the y axes, once all lines have been added."""
        for panel in self.panels:
            peers = [
                other
                for other in self.panels
                if other is panel or (panel.group and other.group == panel.group)
            ]
            panel.far = _far([line for peer in peers for line in peer.lines])
            heights = np.array([height for peer in peers for height in _heights(peer, panel.far)], float)
            heights = heights[np.isfinite(heights)]
            low, high = (heights.min(), heights.max()) if len(heights) else (0.0, 1.0)
            # Differences of a thousandth are no differences here, and shall not look like some.
            room = max(high - low, 0.02 * abs(high), 1e-9) * 0.08
            middle, half = (low + high) / 2, max((high - low) / 2, 0.01 * abs(high)) + room
            # Errors and shares have no values below zero to make room for.
            least = 0.0 if panel.zero else max(0.0, middle - half) if low >= 0 else middle - half
            panel.range = (least, middle + half)

    @property
    def small_print(self) -> str:
        """The note, and which lines are beyond the axes."""
        far = dict.fromkeys(name for panel in self.panels for name in sorted(panel.far))
        return " ".join(filter(None, [self.note, f"Beyond the axis: {', '.join(far)}." if far else ""]))

    # -- the image --------------------------------------------------------------------------------------------------

    def for_image(self) -> MatplotlibFigure:
        """Returns the figure, drawn with matplotlib."""
        from matplotlib.figure import Figure as MatplotlibFigure

        rows, columns = _layout(len(self.panels))
        figure = MatplotlibFigure(figsize=(4.4 * columns + 1.8, 3.7 * rows + 0.9), layout="constrained")
        for i, row in enumerate(figure.subfigures(rows, 1, squeeze=False)[:, 0]):
            self._draw_row(row, self.panels[i * columns : (i + 1) * columns])
        return figure

    def _draw_row(self, figure: SubFigure, panels: Sequence[Panel]) -> None:
        handles: dict[str, Any] = {}
        for i, panel in enumerate(panels):
            for name, handle in _draw_panel(figure.add_subplot(1, len(panels), i + 1), panel).items():
                handles.setdefault(name, handle)
        # Beside the panels, where it can't cover a line, and not below, where the note stands.
        many = len(handles) > 6
        names = [wrapped(name, 34 if many else 26) for name in handles]
        size = "small" if many else None
        figure.legend(list(handles.values()), names, loc="outside right center", frameon=False, fontsize=size)

    # -- the page ---------------------------------------------------------------------------------------------------

    def for_page(self) -> go.Figure:
        """Returns the figure, drawn with plotly."""
        from plotly.subplots import make_subplots

        rows, columns = _layout(len(self.panels))
        figure = make_subplots(
            rows=rows, cols=columns, subplot_titles=[plain(panel.title) for panel in self.panels],
            vertical_spacing=0.16, horizontal_spacing=0.09,
        )  # fmt: skip
        shown: set[str] = set()
        for i, panel in enumerate(self.panels):
            place = {"row": i // columns + 1, "col": i % columns + 1}
            for line in panel.lines:
                name = plain(line.name)
                figure.add_scatter(
                    x=line.x, y=line.y, name=name, legendgroup=name, showlegend=name not in shown, mode="lines+markers",
                    line={"color": COLOURS[line.look % len(COLOURS)], "dash": line.stroke[1]},
                    marker={"symbol": MARKERS[line.look % len(MARKERS)][1], "size": 9},
                    error_y={"type": "data", "array": line.spread, "thickness": 1.2, "width": 3},
                    **place,
                )  # fmt: skip
                shown.add(name)
            for (name, y), dash in zip(panel.levels, DASHES, strict=False):
                stroke = {"color": "#777", "dash": dash[1]}
                figure.add_hline(y=y, line=stroke, annotation_text=plain(name), **place)
            names = [plain(name) for name in panel.names] if panel.ticks is not None else None
            figure.update_xaxes(title_text=plain(panel.x), tickvals=panel.ticks, ticktext=names, **place)
            figure.update_yaxes(title_text=plain(panel.y), range=panel.range, **place)
        figure.update_layout(
            title=plain(self.title), template="plotly_white", height=430 * rows + 120, hovermode="closest"
        )
        return figure


def _draw_panel(axes: Axes, panel: Panel) -> dict[str, Any]:
    """Draws a panel; returns what stands for each line and level in the legend."""
    handles: dict[str, Any] = {}
    for line in panel.lines:
        handle: Any = axes.errorbar(
            line.x,
            line.y,
            yerr=line.spread,
            color=COLOURS[line.look % len(COLOURS)],
            marker=MARKERS[line.look % len(MARKERS)][0],
            linestyle=line.stroke[0],
            linewidth=1.8,
            markersize=6,
            elinewidth=1.0,
            capsize=2.5,
        )
        handles.setdefault(line.name, handle)
    for (name, y), dash in zip(panel.levels, DASHES, strict=False):
        handle = axes.axhline(y, color="0.45", linestyle=dash[0], linewidth=1.4, zorder=0)
        handles.setdefault(name, handle)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.set_ylim(*panel.range)
    if panel.ticks is not None:
        crowded = sum(len(name) + 2 for name in panel.names) > 40
        axes.set_xticks(panel.ticks, panel.names, rotation=45 if crowded else 0)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def _layout(n: int) -> tuple[int, int]:
    """Returns (rows, columns) for n panels."""
    columns = n if n <= 3 else 2 if n == 4 else 3
    return -(-n // columns), columns


def _far(lines: Sequence[Line]) -> set[str]:
    """Returns the names of lines so far from most that these could not be told apart beside them."""
    heights = [np.array([y for y in line.y if np.isfinite(y)]) for line in lines]
    middles = [float(np.median(ys)) for ys in heights if len(ys)]
    if len(middles) < 5:
        return set()
    low, middle, high = np.quantile(middles, (0.25, 0.5, 0.75))
    room = 6 * max(high - low, 0.02 * abs(middle))
    return {
        line.name
        for line, ys in zip(lines, heights, strict=True)
        if len(ys) and (ys.min() > high + room or ys.max() < low - room)
    }


def _heights(panel: Panel, far: set[str]) -> list[float]:
    """Returns the heights that the panel's y axis has to reach."""
    heights = [y for _, y in panel.levels]
    for line in panel.lines:
        if line.name in far:
            continue
        for y, half in zip(line.y, line.spread or [0.0] * len(line.y), strict=True):
            heights += [y - half, y + half]
    return heights
