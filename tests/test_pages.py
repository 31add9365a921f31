"""Pages of figures, and what a study adds to a report's page: whole, harmless, and like their images."""

from __future__ import annotations

import numpy as np
import pytest
from page_reader import EVIL, Page, check_harmless
from report_runs import only_group, write_run

from recbole_cdr_ext.pages.curves import Curves
from recbole_cdr_ext.pages.figures import Axis, Dots, Figure, Surfaces, plain
from recbole_cdr_ext.reports.groups import Collection
from recbole_cdr_ext.reports.report_page import page as report_page
from recbole_cdr_ext.reports.tables import Table, tables_of


def curves(text: str) -> Figure:
    figure = Curves(text, text)
    figure.panel(text, "x", "y", ticks=[0, 1], names=[text, "b"])
    figure.line(text, [0, 1], [1.0, 2.0], [0.1, None])
    figure.level(text, 1.5)
    return figure


def dots(text: str) -> Figure:
    figure = Dots(text, [text, "b"], text)
    figure.panel(text, text, {text: ([1.0, float("nan")], 0), "largest": ([2.0, float("nan")], 1)}, zero=True)
    return figure


def surfaces(text: str) -> Figure:
    axis = Axis("x", "x", "x")
    figure = Surfaces(text, axis, axis, ("height", "metres"), text)
    figure.surface(text, text, np.array([-1.0, 0.0, 1.0]), np.arange(9.0).reshape(3, 3))
    return figure


@pytest.mark.filterwarnings("ignore:constrained_layout")  # labels without a space leave the lines no room
@pytest.mark.parametrize("described", [curves, dots, surfaces])
def test_text_in_a_figure_is_no_markup(described, tmp_path):
    described(EVIL).write(tmp_path / "f.png", tmp_path / "f.html")
    page = Page((tmp_path / "f.html").read_text(encoding="utf-8"))
    check_harmless(page)
    assert page.title == EVIL and EVIL in page.text
    assert "unsafe-eval" not in page.policy
    figure = page.figures["figure"]
    assert figure["layout"]["title"]["text"] == plain(EVIL)
    assert plain(EVIL) in figure["data"][0]["name"]
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_image_and_page_show_the_same_lines():
    figure = Curves("title")
    figure.panel("one", "x", "y", zero=True)
    figure.line("a", [0, 1], [1.0, 2.0], [0.5, None])
    figure.line("b", [0, 1], [3.0, 4.0])
    figure.find_ranges()
    axes, page = figure.for_image().axes[0], figure.for_page()
    drawn = [container.lines[0] for container in axes.containers]
    assert [line.get_ydata().tolist() for line in drawn] == [list(trace.y) for trace in page.data]
    assert [line.get_color() for line in drawn] == [trace.line.color for trace in page.data]
    assert axes.get_ylim() == tuple(page.layout.yaxis.range) == figure.panels[0].range


def test_a_dot_that_is_missing_leaves_the_others():
    figure = dots("text")
    axes = figure.for_image().axes[0]
    assert [len(kind.get_offsets().compressed()) for kind in axes.collections[1:]] == [2, 2]  # one point each
    assert axes.get_xlim() == (0, pytest.approx(1.06 * 2))


def test_images_and_summaries_of_a_study_are_no_markup(tmp_path):
    write_run(tmp_path / "saved", "BPR")
    group = only_group(tmp_path / "saved")
    tables = tables_of(group)
    curves("text").write(tmp_path / "f.png", tmp_path / "f.html")
    summary = Table(EVIL, tables[0].blocks)
    text = report_page(EVIL, EVIL, Collection([group], []), [tables], [summary], {EVIL: tmp_path / "f.png"})
    page = Page(text)
    check_harmless(page, images=1)
    assert page.title == EVIL
    assert page.text.count(EVIL) == 5  # title, heading, facts, the table's and the image's
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["alt"] == EVIL and image["src"].startswith("data:image/png;base64,")
