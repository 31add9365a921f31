"""``recbole-cdr report``: what the tables say, the files that they are written to, and pages of all kinds."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from study_toys import EVIL, Page, check_harmless, only_group, report_files, write_run

from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.evaluation.result_table import read_instances, write_instances
from recbole_cdr_ext.pages.curves import Curves
from recbole_cdr_ext.pages.figures import Axis, Dots, Figure, Surfaces, plain
from recbole_cdr_ext.reports.groups import Collection
from recbole_cdr_ext.reports.report_page import page as report_page
from recbole_cdr_ext.reports.table_text import latex, markdown, tex
from recbole_cdr_ext.reports.tables import Table, tables_of
from recbole_cdr_ext.runs.finished import find_folders, read_run
from recbole_cdr_ext.runs.run import run_recbole_cdr

ROOT = Path(__file__).resolve().parent.parent


# -- tables ---------------------------------------------------------------------------------------------------------


def test_numbers_places_and_marks(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "SASRec", seed, shift=12)
        write_run(tmp_path, "BPR", seed)
    group = only_group(tmp_path)
    (table,) = tables_of(group, "BPR")
    assert [block.domain for block in table.blocks] == ["books", "films"]
    best, worse = table.blocks[0].rows[1], table.blocks[0].rows[0]
    assert (best.label, worse.label) == ("SASRec", "BPR")
    values = [100 * run.result["test"]["books"]["all"]["ndcg@10"] for run in group.members["SASRec"]]
    cell = best.cells["all", "ndcg@10"]
    assert cell.text == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert (cell.place, cell.mark) == (1, "**")
    assert (worse.cells["all", "ndcg@10"].place, worse.cells["all", "ndcg@10"].mark) == (2, "")
    floor = table.blocks[0].rows[-1]
    assert (floor.label, floor.floor, floor.cells["all", "hit@10"].text) == ("Popularity", True, "2.00")
    (other,) = tables_of(group, "SASRec")
    assert other.blocks[0].rows[0].cells["all", "ndcg@10"].mark == "↓↓"
    (alone,) = tables_of(group)
    assert alone.blocks[0].rows[1].cells["all", "ndcg@10"].mark == "**"
    assert "than the second best" in " ".join(alone.legend())


def test_errors_of_ratings_are_the_better_the_lower(tmp_path):
    rng = np.random.default_rng(0)
    rating = rng.integers(1, 6, 60).astype(float)
    for model, noise in (("CMF", 0.2), ("EMCDR", 1.0)):
        error = noise * np.abs(rng.normal(size=60))
        cell = {"n": 60, "mae": float(error.mean()), "rmse": float(np.sqrt((error**2).mean()))}
        test = {"films": {"cold": cell}}
        folder = write_run(
            tmp_path, model, instances=False,
            changes={"task": "rating", "test": test, "floors": {"GlobalMean": test}, "source": "books",
                     "target": "films", "beta": 0.5, "popularity": test, "split": "cold_start"},
        )  # fmt: skip
        frame = {"part": "test", "user": [f"u{i}" for i in range(60)], "domain": "films", "item": "i"}
        frame |= {"rating": rating, "prediction": rating + error, "absolute_error": error, "known_item": True}
        write_instances(pd.DataFrame(frame), folder)
    (table,) = tables_of(only_group(tmp_path))
    good, bad, *floors = table.blocks[0].rows
    assert (good.label, good.cells["cold", "mae"].place, good.cells["cold", "rmse"].place) == ("CMF", 1, 1)
    assert good.cells["cold", "rmse"].mark == "**"
    assert re.fullmatch(r"\d\.\d{4}", bad.cells["cold", "mae"].text)
    assert "GlobalMean" in [row.label for row in floors]


def test_ties_are_shared(tmp_path):
    for model in ("BPR", "SASRec"):
        write_run(tmp_path, model)
    (table,) = tables_of(only_group(tmp_path))
    cells = [row.cells["all", "ndcg@10"] for row in table.blocks[0].rows[:2]]
    assert [(cell.place, cell.mark) for cell in cells] == [(1, ""), (1, "")]


def test_runs_without_instances_are_shown_and_not_compared(tmp_path):
    write_run(tmp_path, "BPR", instances=False)
    write_run(tmp_path, "SASRec")
    (table,) = tables_of(only_group(tmp_path), "BPR")
    assert table.comparisons is None
    assert any("BPR is not compared" in note for note in table.notes)


def test_instances_that_differ_are_said(tmp_path):
    write_run(tmp_path, "BPR")
    folder = write_run(tmp_path, "SASRec", instances=False)
    write_instances(read_instances(next(tmp_path.glob("BPR*"))).assign(user="x"), folder)
    (table,) = tables_of(only_group(tmp_path))
    assert table.comparisons is None
    assert any("were not asked the same" in note for note in table.notes)


def test_flags_leaks_and_notes_reach_the_tables(tmp_path):
    changes = {
        "stopped": "time", "notes": ["Read_me first."], "report": {"leak: targets in histories": 3}, "simulated": True,
        "fallback": {"test": {"books": {"all": 2}, "films": {"all": 0}}},
    }  # fmt: skip
    write_run(tmp_path / "saved", "BPR", changes=changes)
    files = report_files(tmp_path / "saved", tmp_path / "out")
    assert "| BPR†‡ (1) |" in files["tables.md"]
    assert "Leaks: targets in histories: 3" in files["tables.md"]
    assert r"Read\_me first." in files["tables.md"]
    assert "SIMULATED DATA" in files["tables.md"]
    assert r"\textbf{SIMULATED DATA.}" in files["tables.tex"]
    assert "SIMULATED DATA" in files["report.html"]
    assert "Read_me first." in files["report.html"]


@pytest.mark.parametrize("seed", [0, 1])
def test_instances_are_the_same_from_csv(tmp_path, monkeypatch, seed):
    write_run(tmp_path, seed=seed, name="a")
    frame = read_instances(tmp_path / "a").assign(user=lambda f: ["NA", "007", *f["user"][2:]])
    (tmp_path / "b").mkdir()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert write_instances(frame, tmp_path / "b").suffix == ".csv"
    assert read_instances(tmp_path / "b").astype(object).equals(frame.astype(object))


# -- files ----------------------------------------------------------------------------------------------------------


def test_whatever_comes_from_files_is_shown_and_not_obeyed(tmp_path, capsys):
    write_run(tmp_path / "saved", "BPR", name="plain")
    plain = Page(report_files(tmp_path / "saved", tmp_path / "plain")["report.html"])
    evil = f"{EVIL}\"'&_%$|{{}}\\"
    changes = {
        "notes": [evil], "stopped": evil, "versions": {evil: evil}, "seconds": {evil: 1.0},
        "report": {f"leak: {evil}": 1},
        "history": [{"phase": evil, "epoch": 0, "valid_score": 0.5}],
    }  # fmt: skip
    test = {evil: {evil: {"n": 3, "ndcg@10": 0.1, evil: 0.2}}}
    tables = {"test": test, "popularity": test}
    settings = {"learner": evil, "domains": [evil]}
    shared = {"dataset": evil, "changes": changes | tables, **settings}
    write_run(tmp_path / "odd", evil, name="a", **shared)
    write_run(tmp_path / "odd", "Other", name="b", **shared)
    broken = tmp_path / "odd" / "<img src=x onerror=alert(1)>"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    files = report_files(tmp_path / "odd", tmp_path / "out", f"--title={evil}", "--baseline=Other")
    page = Page(files["report.html"])
    check_harmless(page)
    assert EVIL in page.text and str(broken.name) in page.text
    assert {tag for tag, _ in page.tags} - {tag for tag, _ in plain.tags} <= {"nav", "div", "ul", "li", "sup"}
    assert "<script" not in files["tables.md"].replace(r"\<script", "")
    body = files["tables.tex"].split("\n", 1)[1]
    assert "_" not in re.sub(r"\\_", "", body)
    assert_latex(body)


def assert_latex(text: str) -> None:
    """Checks what can be checked without a compiler: braces, environments, columns, ASCII."""
    assert text.isascii()
    bare = re.sub(r"\\[\\{}$&#%_]", "", text)
    depth = 0
    for letter in bare:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    opened = re.findall(r"\\(begin|end)\{(\w+\*?)\}", text)
    stack: list[str] = []
    for what, name in opened:
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    for table in re.split(r"\\begin\{tabular\}", text)[1:]:
        columns = re.match(r"\{@\{\}(l r*|lr*)@\{\}\}", table)
        assert columns, table[:60]
        for line in table.split("\n"):
            if line.endswith(r"\\"):
                spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + spans == len(columns[1]), line


def test_latex_of_ordinary_runs(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "SASRec", seed, shift=12)
        write_run(tmp_path, "BPR", seed)
    group = only_group(tmp_path)
    text = latex([(group, tables_of(group, "SASRec"))])
    assert_latex(text)
    assert r"\toprule" in text and r"\bottomrule" in text
    assert r"\textbf{" in text and r"\underline{" in text
    assert r"$^{\downarrow \downarrow }$" in text
    assert tex("é → 漢_50%") == r"e $\rightarrow$ ?\_50\%"
    assert tex("[a]*") == "{[}a{]}{*}"  # or they would belong to the row break before them


def test_markdown_has_as_many_cells_as_heads(tmp_path):
    write_run(tmp_path, "BPR")
    write_run(tmp_path, "SASRec", dataset="toy")
    group = only_group(tmp_path)
    lines = [line for line in markdown("T", [(group, tables_of(group))]).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_a_page_is_whole_and_asks_for_nothing(tmp_path):
    write_run(tmp_path / "saved")
    page = Page(report_files(tmp_path / "saved", tmp_path / "out", "--title=My runs")["report.html"])
    check_harmless(page)
    assert "recbole-cdr run --model=BPR --dataset=toy" in page.text
    assert page.text.split()[:4] == ["My", "runs", "My", "runs"]
    heads = [attributes for tag, attributes in page.tags if tag == "th" and "data-column" in attributes]
    buttons = [tag for tag, _ in page.tags if tag == "button"]
    assert len(heads) == len(buttons) > 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "tables.md",
        "tables.tex",
    ]


# -- broken runs and misuse -----------------------------------------------------------------------------------------


def test_real_runs(tmp_path):
    shared = {
        "show_progress": False, "tensorboard": False, "use_gpu": False, "state": "ERROR", "epochs": 1,
        "checkpoint_dir": str(tmp_path / "saved"), "data_path": str(ROOT / "dataset_atomic"),
        "cache_dir": str(tmp_path / "cache"), "task": "next_item",
    }  # fmt: skip
    for model in ("Pop", "BPR"):
        run_recbole_cdr(model, "toy", config_dict=shared)
    files = report_files(tmp_path / "saved", tmp_path / "out")
    assert "comparisons of this table" in files["tables.md"]
    assert_latex(files["tables.tex"])
    run = read_run(find_folders(None, tmp_path / "saved")[0])
    assert "--epochs=1" in run.command()


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
