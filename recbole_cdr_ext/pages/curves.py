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
    pass


# Okabe and Ito's colours, told apart with any colour vision; the yellow, too pale for a line, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"),
           ("P", "cross"), ("X", "x"))  # fmt: skip
DASHES = ((":", "dot"), ("--", "dash"), ("-.", "dashdot"))
# A line that comes after as many as there are colours has the next of these.
STROKES = (("-", "solid"), ("--", "dash"), (":", "dot"))
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
        write_png(self._matplotlib(), png)
        write_html(self._plotly(), html, self.title, self._small_print)

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
        footnote(figure, self._small_print)
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
        names = [wrapped(name, 34 if many else 26) for name in handles]
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


# -- files ----------------------------------------------------------------------------------------------------------


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Writes a table."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def wrapped(label: str, letters: int = 26) -> str:
    return textwrap.fill(label, letters, break_long_words=False)


def footnote(figure: Any, note: str) -> None:
    if note:
        letters = int(15 * figure.get_figwidth())
        figure.supxlabel(textwrap.fill(note, letters), fontsize=8, color="0.3")


def write_png(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def write_html(figure: Any, path: Path, title: str, note: str) -> None:
    """One file that needs neither a network nor other files."""

    page = figure.to_html(full_html=True, include_plotlyjs=True)
    below = (
        f'<p style="font-family: sans-serif; font-size: small; margin: 1em 3em">{html_text.escape(note)}</p>'
    )
    page = page.replace("<head>", f"<head><title>{html_text.escape(title)}</title>", 1)
    page = page.replace("</body>", f"{below}</body>") if note else page
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
