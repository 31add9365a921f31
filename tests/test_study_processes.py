"""``recbole-cdr study``: its processes, how they end, and runs in earnest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from study_runs import CHILD, DATA, QUIET, ROOT, TWO, calls, go, written

from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.settings.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.studies import execution, processes
from recbole_cdr_ext.studies.processes import Job, ends_on_sigterm, run_all

# -- processes -------------------------------------------------------------------------------------------------------

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
    assert main(["study", written(here, TWO), *QUIET]) == 130
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


# -- in earnest ------------------------------------------------------------------------------------------------------

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
    assert main(["study", written(tmp_path, REAL), *QUIET, "--only=Popular"]) == 0
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
    assert main(["study", written(tmp_path, REAL), *QUIET, "--only=Impossible"]) == 1
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
    words = ["study", written(tmp_path, LONG), DATA, "--jobs=2", "--show_progress=False"]
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
