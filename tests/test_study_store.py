"""What a study keeps of its runs, whole after whatever happened; its processes, how they end, and runs in earnest."""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from study_toys import ANALYSED, CHILD, DATA, QUIET, ROOT, TWO, calls, cells, go, state, study_file

from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.result_table import write_instances
from recbole_cdr_ext.runs.finished import FinishedRun
from recbole_cdr_ext.settings.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.studies import execution, processes
from recbole_cdr_ext.studies.instance_store import InstanceStore
from recbole_cdr_ext.studies.processes import Job, ends_on_sigterm, run_all
from recbole_cdr_ext.studies.store import Store

# -- what is kept -----------------------------------------------------------------------------------------------------


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


def test_a_clone_has_the_analyses_and_their_tables(here):
    """Version control has the figures and one file of tables; the tables beside the figures are written back."""
    table, folder = go(ANALYSED), Path("results/mine")
    texts = {path: path.read_bytes() for path in folder.glob("analyses/*/*.csv")}
    assert len(texts) == 3 and len((folder / "analyses.jsonl").read_text().splitlines()) == 3
    assert not list(folder.rglob("analysis.json"))
    for path in texts:
        path.unlink()
    shutil.rmtree("saved")
    calls()
    assert go(ANALYSED) == table and not calls()
    assert {path: path.read_bytes() for path in texts} == texts
    shutil.rmtree(
        folder / "analyses" / "fgsm"
    )  # without its figure it is made anew, of runs that are made for it
    go(ANALYSED)
    assert sum(words.startswith("analyse fgsm") for words in calls()) == 1


def test_analyses_of_an_earlier_version_count(here):
    table, folder = go(ANALYSED), Path("results/mine")
    kept = folder / "analyses.jsonl"
    text = kept.read_text()
    for line in map(json.loads, text.splitlines()):
        (folder / "analyses" / line["folder"] / "analysis.json").write_text(
            json.dumps(line["stamp"], indent=1) + "\n"
        )
    kept.unlink()
    calls()
    assert go(ANALYSED) == table and not calls()
    assert kept.read_text() == text


@pytest.mark.parametrize("damage", ["half", "elsewhere", "no tables"])
def test_an_analysis_whose_line_is_damaged_is_made_anew(here, damage):
    table, path = go(ANALYSED), Path("results/mine/analyses.jsonl")
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    changed = {
        "half": lines[0][:40],
        "elsewhere": json.dumps({**first, "tables": {"../../../outside.csv": "x"}}),
        "no tables": json.dumps({**first, "tables": {"fgsm.csv": 3}}),
    }
    path.write_text("\n".join([changed[damage], *lines[1:]]) + "\n")
    calls()
    assert go(ANALYSED) == table
    assert [words.split()[1] for words in calls()] == ["fgsm"]
    assert path.read_text().splitlines() == lines and not Path("outside.csv").exists()


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


# -- processes --------------------------------------------------------------------------------------------------------

# As in child.py: pytest in a script's background ignores this signal, and so would what it starts.
SLEEP = [
    sys.executable, "-S", "-c",
    "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); open('begun', 'a').write('x'); "
    "time.sleep(60)",
]  # fmt: skip


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_end_with_the_iteration(here, monkeypatch):
    started = []
    real = subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1]
    )
    quick = Job("quick", lambda: [sys.executable, "-S", "-c", "print('done')"])
    slow = Job("slow", lambda: SLEEP)
    with closing(run_all([slow, quick], 2, 1)) as ends:
        first = next(ends)
        assert (first.job.name, first.status, first.output) == ("quick", 0, "done\n")
        wait_for(Path("begun").exists)
        assert alive(started[0].pid)
    assert not alive(started[0].pid) and started[0].returncode == -signal.SIGINT


def test_a_folder_is_worked_in_by_one(here):
    mark = "import sys, time; f = open('log', 'a'); f.write('('); f.flush(); time.sleep(0.3); f.write(')')"
    jobs = [Job(str(i), lambda: [sys.executable, "-S", "-c", mark], here / "run") for i in range(3)]
    assert [one.status for one in run_all(jobs, 3, 1)] == [0, 0, 0]
    assert (here / "log").read_text() == "()()()"


def test_no_more_at_once_than_asked_for(here):
    mark = "import time; f = open('log', 'a'); f.write('('); f.flush(); time.sleep(0.2); f.write(')')"
    jobs = [Job(str(i), lambda: [sys.executable, "-S", "-c", mark]) for i in range(4)]
    list(run_all(jobs, 1, 1))
    assert (here / "log").read_text() == "()()()()"


def test_sigterm_is_an_interrupt():
    before = signal.getsignal(signal.SIGTERM)

    def terminated():
        with ends_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        terminated()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such call")
def test_a_child_follows_a_parent_that_was_killed(tmp_path):
    child = "import os, sys, time; from recbole_cdr_ext.cli.child import follow_parent; "
    child += "follow_parent(int(sys.argv[1])); open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    parent = (
        "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent, child], cwd=tmp_path, env=environment)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(pid))


def test_an_interrupted_study_says_how_to_go_on(here, monkeypatch, capsys):
    Path("moods/ItemKNN").write_text("wait")
    real = execution._take

    def take(*given):
        said = real(*given)
        if len(calls_so_far()) >= 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        return said

    def calls_so_far():
        return Path("calls.txt").read_text().splitlines()

    monkeypatch.setattr(execution, "_take", take)
    assert main(["study", study_file(here, TWO), *QUIET]) == 130
    assert re.search(
        r"interrupted with \d of 4 runs to do; the same command goes on", capsys.readouterr().err
    )
    assert "| Popular (" in Path("results/mine/tables.md").read_text()
    time.sleep(0.1)
    assert not subprocess.run(["pgrep", "-f", f"{CHILD} run"], capture_output=True).stdout
    Path("moods/ItemKNN").unlink()
    monkeypatch.setattr(execution, "_take", real)
    calls()
    assert "| Neighbours (2) |" in go(TWO)
    assert sum("--resume=" in words for words in calls()) == 1


# -- in earnest -------------------------------------------------------------------------------------------------------

REAL = """
task: next_item
datasets: [toy]
seeds: [3]
rows:
  Popular: {model: Pop}
  Impossible: {model: SAVAE, domains: [books]}
"""


def test_a_run_in_earnest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["study", study_file(tmp_path, REAL), *QUIET, "--only=Popular"]) == 0
    (folder,) = Path("saved").glob("study-Pop-toy-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["settings"]["torch_threads"] == 1 and result["seed"] == 3
    table = Path("results/mine/tables.md").read_text()
    assert f"{100 * result['test']['books']['all']['ndcg@10']:.2f}" in table
    assert "| Impossible (0) |" in table
    (line,) = Path("results/mine/cells.jsonl").read_text().splitlines()
    assert json.loads(line)["key"].startswith(folder.name[-12:])
    # Its command is one that `run` takes, to the same settings.
    again = CDRConfig(argv=json.loads(line)["command"].split()[2:]).to_dict()
    decides = set(again) - RUNTIME_KEYS
    assert {key: again[key] for key in decides} == {key: result["settings"][key] for key in decides}


@pytest.mark.slow
def test_a_failure_in_earnest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["study", study_file(tmp_path, REAL), *QUIET, "--only=Impossible"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"Failed: Impossible, toy, seed 3: SAVAE takes two domain", shown), shown


LONG = """
task: next_item
datasets: [toy]
seeds: [3]
settings: {epochs: 120, stopping_step: 1000, train_targets: last}
rows: {Short: {model: BPR, embedding_size: 8}, Long: {model: BPR, embedding_size: 16}}
"""


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_running_and_goes_on(tmp_path):
    words = ["study", study_file(tmp_path, LONG), DATA, "--jobs=2", "--show_progress=False"]
    command = [sys.executable, "-m", "recbole_cdr_ext", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(command, cwd=tmp_path, env=environment)
    logs = lambda: list((tmp_path / "saved").glob("study-BPR-*/run.log"))  # noqa: E731
    wait_for(lambda: len(logs()) == 2 and all(" epoch 5 " in log.read_text() for log in logs()), 120)
    children = subprocess.run(["pgrep", "-P", str(driver.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(alive(int(pid)) for pid in children))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for log in logs():
        text = log.read_text()
        assert text.count("Resume training") == 1 and text.count("training [") <= 121
    assert "| Long† (1) |" in (tmp_path / "results/mine/tables.md").read_text()
