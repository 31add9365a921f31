"""Pages and figures: what they show, in a browser too, and that no text becomes markup."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from study_toys import EVIL, Page, check_harmless, only_group, write_run

from recbole_cdr_ext.cli.main import main
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


# -- in a browser -----------------------------------------------------------------------------------------------------


BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None, reason="no chromium and no google-chrome on PATH")
SCRIPT = "<script>window.parent.hacked = 1</script><img src=http://example.com/x onerror='window.parent.hacked = 1'>"

# Another page of the same origin opens the report as it is, clicks, and writes down what it finds.
WRAPPER = """<!DOCTYPE html><html><body><pre id="found">nothing</pre>
<iframe src="report.html" width="1300" height="900"></iframe><script>
const frame = document.querySelector("iframe");
const wait = (test) => new Promise((done) => {
  const look = () => (test() ? done() : setTimeout(look, 50));
  look();
});
frame.addEventListener("load", async () => {
  const page = frame.contentDocument;
  const figures = [...page.querySelectorAll(".figure")];
  await wait(() => figures.every((one) => one.querySelector("svg.main-svg .trace, svg.main-svg .bars .point")));
  const table = page.querySelector("table.sortable:has(tr.floor)");
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const values = (column) => [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.value));
  const heads = [...table.querySelectorAll("th[data-column]")];
  const click = (column) => {
    const button = heads[column].querySelector("button");
    button.focus();
    button.click();
    return {names: names(), values: values(column), sorts: heads.map((one) => one.getAttribute("aria-sort")),
            focused: page.activeElement === button};
  };
  const found = {
    before: names(), first: click(1), second: click(1), byName: click(0),
    figures: figures.length, drawn: figures.filter((one) => one.querySelector("svg.main-svg")).length,
    bars: page.querySelectorAll("g.points .point path").length,
    lines: page.querySelectorAll(".scatterlayer path.js-line").length,
    shown: figures.map((one) => one.textContent).join(" "),
    asked: frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name),
    hacked: window.hacked || frame.contentWindow.hacked || null, title: page.title,
  };
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body></html>
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What the wrapper found, and what the browser logged."""
    folder = tmp_path_factory.mktemp("browser")
    for seed in (1, 2):
        for model, shift in (("BPR", 0.0), ("SASRec", 12.0), (SCRIPT, 6.0)):
            name = f"run-{seed}-{shift:g}"
            write_run(folder / "saved", model, seed, shift=shift, name=name, changes={"notes": [SCRIPT]})
    words = [f"--checkpoint_dir={folder / 'saved'}", f"--out={folder / 'out'}", f"--title={SCRIPT}"]
    assert main(["report", *words]) == 0
    return look(folder / "out", folder / "profile")


def look(out: Path, profile: Path) -> tuple[dict, str]:
    (out / "wrapper.html").write_text(WRAPPER, encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--virtual-time-budget=60000",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", f"--user-data-dir={profile}", "--dump-dom",
        *(["--no-sandbox"] if os.geteuid() == 0 else []), (out / "wrapper.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text, done.stdout[-2000:] + done.stderr[-2000:]
    assert text[1] != "nothing", done.stderr[-3000:]
    return json.loads(html.unescape(text[1])), done.stderr


@NEEDS_BROWSER
@pytest.mark.slow
def test_figures_are_drawn(opened):
    found, _ = opened
    assert found["figures"] == found["drawn"] == 3
    assert found["bars"] == 2 * 4 * 4  # metrics; domain x group; three models and popularity
    assert found["lines"] == 6  # runs


@NEEDS_BROWSER
@pytest.mark.slow
def test_a_click_on_a_head_sorts(opened):
    found, _ = opened
    first, second, by_name = found["first"], found["second"], found["byName"]
    assert first["values"] == sorted(first["values"], reverse=True)
    assert second["values"] == sorted(first["values"])
    assert len(set(first["values"])) == 4
    assert sorted(first["names"]) == sorted(found["before"])
    assert [first["sorts"][1], second["sorts"][1]] == ["descending", "ascending"]
    assert by_name["sorts"][:2] == ["ascending", None]
    assert [name[:3] for name in by_name["names"]] == ["<sc", "BPR", "Pop", "SAS"]
    assert first["focused"]


@NEEDS_BROWSER
@pytest.mark.slow
def test_nothing_fails_and_nothing_is_asked_for(opened):
    found, log = opened
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert [name for name in found["asked"] if not name.startswith(("data:", "blob:"))] == []
    assert "net_error" not in log and "example.com" not in log


@NEEDS_BROWSER
@pytest.mark.slow
def test_what_comes_from_files_is_harmless_and_shown(opened):
    found, _ = opened
    assert found["hacked"] is None
    assert found["title"] == SCRIPT
    assert "<script>window.parent.hacked" in found["shown"]
