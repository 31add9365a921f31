"""Figures of surfaces over a plane, each with its contours below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_cdr_ext.pages.figure import Figure, plain, wrapped

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure as MatplotlibFigure

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
