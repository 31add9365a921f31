"""A report in a real browser: figures are drawn, heads sort, nothing fails and nothing is asked for."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_runs import write_run

from recbole_cdr_ext.cli.main import main

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium and no google-chrome on PATH"),
    pytest.mark.slow,
]
EVIL = "<script>window.parent.hacked = 1</script><img src=http://example.com/x onerror='window.parent.hacked = 1'>"

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
        for model, shift in (("BPR", 0.0), ("SASRec", 12.0), (EVIL, 6.0)):
            name = f"run-{seed}-{shift:g}"
            write_run(folder / "saved", model, seed, shift=shift, name=name, changes={"notes": [EVIL]})
    words = [f"--checkpoint_dir={folder / 'saved'}", f"--out={folder / 'out'}", f"--title={EVIL}"]
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


def test_figures_are_drawn(opened):
    found, _ = opened
    assert found["figures"] == found["drawn"] == 3
    assert found["bars"] == 2 * 4 * 4  # metrics; domain x group; three models and popularity
    assert found["lines"] == 6  # runs


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


def test_nothing_fails_and_nothing_is_asked_for(opened):
    found, log = opened
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert [name for name in found["asked"] if not name.startswith(("data:", "blob:"))] == []
    assert "net_error" not in log and "example.com" not in log


def test_what_comes_from_files_is_harmless_and_shown(opened):
    found, _ = opened
    assert found["hacked"] is None
    assert found["title"] == EVIL
    assert "<script>window.parent.hacked" in found["shown"]
