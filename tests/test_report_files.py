"""``recbole-cdr report``: what the tables say, and the files that they are written to."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from study_toys import EVIL, Page, check_harmless, only_group, report_files, write_run

from recbole_cdr_ext.evaluation.instance_table import read_instances, write_instances
from recbole_cdr_ext.reports.table_text import latex, markdown, tex
from recbole_cdr_ext.reports.tables import tables_of
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
