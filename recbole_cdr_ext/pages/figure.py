"""What all figures have in common: described once, drawn as a PNG image (matplotlib) and as a page to turn and zoom
(plotly).
"""

from __future__ import annotations

import html
import importlib
import json
import textwrap
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import replacing
from recbole_cdr_ext.pages.page import Drawing, render, write

if TYPE_CHECKING:  # both are optional
    import plotly.graph_objects as go
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
