"""What a study keeps of its runs: lines and per-instance data, whole after whatever happened."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from study_runs import TWO, calls, cells, go, state

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.instance_table import write_instances
from recbole_cdr_ext.runs.finished import FinishedRun
from recbole_cdr_ext.studies.instance_store import InstanceStore
from recbole_cdr_ext.studies.store import Store


def test_a_line_is_small_and_instances_are_kept_once(here):
    go(TWO)
    lines = Path("results/mine/cells.jsonl").read_text().splitlines()
    assert all(len(line) < 6000 and '"history"' not in line for line in lines)
    with closing(sqlite3.connect("results/mine/instances.sqlite")) as file:
        assert file.execute("SELECT count(*) FROM sets").fetchone() == (1,)
        assert file.execute("SELECT count(*) FROM runs").fetchone() == (4,)
    names = {path.name for path in Path("results/mine").iterdir()}
    assert names == {"cells.jsonl", "instances.sqlite", "report.html", "tables.md", "tables.tex"}


def test_ranks_of_fifteen_thousand_instances_take_little(tmp_path):
    rng, n = np.random.default_rng(0), 15_000
    frame = pd.DataFrame(
        {"part": "test", "user": [f"u{i}" for i in range(n)], "domain": "books", "target": "i"}
    )
    frame = frame.assign(all=True, candidates=1000, rank=rng.integers(1, 1001, n), fallback=False)
    write_instances(frame, tmp_path)
    cell = cells(tmp_path, TWO)[0]
    result = {"model": "Pop", "dataset": "toy", "split": "user", "seed": 1, "run_id": "x", "settings": {}}
    result["test"] = {"books": {"all": {"n": n, "ndcg@10": 0.5}}}
    store = Store(tmp_path / "out")
    line = store.add(cell, "data", FinishedRun(tmp_path, result))
    path = tmp_path / "out" / "instances.sqlite"
    assert len(Store(tmp_path / "out").record(line).planes_xz) < 25_000
    again = Store(tmp_path / "out").run(cell, line).instances
    assert (again["rank"] == frame["rank"]).all() and (again["user"] == frame["user"]).all()
    assert again["hit@10"].sum() == (frame["rank"] <= 10).sum()
    path.unlink()
    with pytest.raises(CDRError, match="x has no per-instance table"):
        _ = Store(tmp_path / "out").run(cell, line).instances


def test_damaged_instances_are_said(here):
    go(TWO)
    path = Path("results/mine/instances.sqlite")
    whole = path.read_bytes()
    ready = state(TWO)
    for damage in (b"no database" * 99, whole[:5000], whole[: len(whole) // 2]):
        path.write_bytes(damage)
        with pytest.raises(CDRError, match=r"instances\.sqlite can't be read: .* delete the study's folder"):
            _ = [ready.run(cell).instances for cell in ready.cells]
    path.write_bytes(whole)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE runs SET planes_xz = ?", (lzma.compress(b"12"),))
    with pytest.raises(CDRError, match="2 values of 120 instances"):
        _ = ready.run(ready.cells[0]).instances


def test_instances_in_a_folder_of_an_earlier_version_are_taken_over(here, capsys):
    before = go(TWO)
    ready = state(TWO)
    frames = [ready.run(cell).instances for cell in ready.cells]
    folder = Path("results/mine/instances")
    folder.mkdir()
    for line in map(ready.line, ready.cells):
        record = ready.store.record(line)
        planes = np.frombuffer(lzma.decompress(record.planes_xz), np.uint8).reshape(record.width, -1)
        np.savez_compressed(folder / f"run-{line['key'][:12]}.npz", planes=planes)
        (folder / f"set-{line['instances'][:12]}.csv.xz").write_bytes(record.csv_xz)
    Path("results/mine/instances.sqlite").unlink()
    shutil.rmtree("saved")
    capsys.readouterr()
    assert (
        go(TWO, name="other").splitlines()[3:] == before.splitlines()[3:]
    )  # a study beside it takes them, too
    assert not InstanceStore(Path("results/mine")).keys()
    assert go(TWO) == before
    assert "The per-instance data of 4 runs are in results/mine/instances.sqlite" in capsys.readouterr().out
    shutil.rmtree(folder)
    for cell, frame in zip(ready.cells, frames, strict=True):
        pd.testing.assert_frame_equal(ready.run(cell).instances, frame)
    assert go(TWO) == before


def test_what_a_killed_process_left_half_written_is_taken_back(here):
    go(TWO)
    path = Path("results/mine/instances.sqlite")
    script = """
import os, sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None)
file.execute("PRAGMA cache_size = 1")
file.execute("BEGIN")
file.execute("DELETE FROM runs")
file.execute("INSERT INTO sets VALUES ('x', zeroblob(1000000))")
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert path.with_name("instances.sqlite-journal").exists()
    ready = state(TWO)
    assert all(len(ready.run(cell).instances) == 120 for cell in ready.cells)


def test_validation_scores_and_test_scores_do_not_stand_for_one_another(here):
    searched = TWO.replace("seeds:", "part: valid\nseeds:")
    table = go(searched, name="search")
    assert len(found := calls()) == 4 and all("--evaluate_test=False" in words for words in found)
    assert "Scores of the validation part; the test part was not evaluated." in table
    assert "4 of 4 runs" in table and "is not compared" not in table
    assert re.search(r"\| Popular \(2\) \| .*\d\.\d\d ± ", table)
    assert not Path("results/search/instances.sqlite").exists()
    assert go(searched, name="search") == table and not calls()
    go(TWO)
    assert len(found := calls()) == 4 and not any("evaluate_test" in words for words in found)
    shutil.rmtree("saved")
    go(TWO, name="third")
    go(searched, name="fourth")
    assert not calls()
    parts = [
        json.loads(line).get("part") for line in Path("results/fourth/cells.jsonl").read_text().splitlines()
    ]
    assert parts == ["valid"] * 4
