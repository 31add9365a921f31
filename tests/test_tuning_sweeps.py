"""Sweeps by Ray: from the space to a run, and going on where something was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tuning_toys
from toy_models import ToyMLP
from tuning_toys import QUICK, Troubled, score_of_run, space_file

from recbole_cdr_ext.tuning.records import CUT, FAILED, FINISHED, ended
from recbole_cdr_ext.tuning.sweep import DEFAULTS
from recbole_cdr_ext.tuning.tune import tune

quick = tuning_toys.quick


class KilledOnce(ToyMLP):
    """Kills its process once, in its third epoch."""

    def start_epoch(self, phase, epoch):
        """Does it where no mark says that it was done."""
        mark = Path(self.config["cache_dir"]).parent / "killed"
        if epoch == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


# -- sweeps by Ray ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_here():
    """One Ray for all tests of this file."""
    from recbole_cdr_ext.tuning import ray_tune

    with ray_tune._connected({**DEFAULTS, "jobs": 2}, use_gpu=False):
        yield ray_tune.ray


def test_a_sweep_from_space_to_run(ray_here, quick, tmp_path, capsys):
    space = "trouble: {choice: [none, raises, nan, memory]}\n"
    space += "learning_rate: {choice: [0.01, 0.003], if: {trouble: none}}\n"
    options = {
        "space": space_file(tmp_path, space),
        "search": "grid",
        "grace_epochs": 2,
        "out": str(tmp_path / "sweep"),
    }
    found = tune(Troubled, "toy", config_dict=quick, **options)
    records = {record.trial: record for record in found["trials"]}
    assert len(records) == 5 and [r.status for r in found["trials"][2:]] == [FAILED] * 3
    assert {r.settings["trouble"]: r.reason.split(":")[0] for r in found["trials"][2:]} == {
        "raises": "ValueError",
        "memory": "out of memory",
        "nan": next(r.reason.split(":")[0] for r in found["trials"] if r.settings["trouble"] == "nan"),
    }
    assert "not finite" in next(r.reason for r in found["trials"] if r.settings["trouble"] == "nan")
    assert len((found["folder"] / "trials.jsonl").read_text().splitlines()) == 5
    assert all((found["folder"] / name).exists() for name in found["files"])
    out = capsys.readouterr().out
    assert "failed: ValueError: this one raises" in out and found["command"] in out
    assert found["best"].score == score_of_run(found["folder"], Troubled)

    # The same command again does nothing but say so.
    again = tune(Troubled, "toy", config_dict=quick, **options)
    assert again["best"] == found["best"] and "is finished" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("search", "scheduler"), [("optuna", "asha"), ("random", "pbt")])
def test_other_ways_to_search(ray_here, quick, tmp_path, search, scheduler):
    space = "learning_rate: {loguniform: [1e-4, 1e-2]}\nweight_decay: {choice: [0.0, 0.01]}\n"
    found = tune(
        "BPR", "toy", config_dict={**quick, "epochs": 6}, space=space_file(tmp_path, space), search=search,
        scheduler=scheduler, trials=4, grace_epochs=2, out=str(tmp_path / "sweep"),
    )  # fmt: skip
    assert len(found["trials"]) == 4 and all(r.status in (FINISHED, CUT) for r in found["trials"])
    for record in found["trials"]:
        assert 1e-4 <= record.settings["learning_rate"] <= 1e-2 and record.settings["weight_decay"] in (
            0.0,
            0.01,
        )
    if scheduler == "pbt":
        assert all(record.epochs == 6 for record in found["trials"])
        assert any(len(record.schedule) > 1 for record in found["trials"])


def command(tmp_path, *more):
    words = [f"--{key}={value}" for key, value in QUICK.items() if key not in ("eval_args", "epochs")]
    return [
        sys.executable, "-m", "recbole_cdr_ext", "tune", "--model=BPR", "--dataset=toy", f"--out={tmp_path / 'sweep'}",
        f"--space={space_file(tmp_path, 'learning_rate: {loguniform: [1e-4, 1e-2]}')}", "--trials=6", "--jobs=1",
        "--grace_epochs=20", "--epochs=60", "--stopping_step=100", *words, *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("again", [[], ["--resume"]])
def test_a_killed_driver_goes_on_and_repeats_nothing(tmp_path, again):
    folder = tmp_path / "sweep"
    process = subprocess.Popen(command(tmp_path), cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(ended(folder)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {record.trial: record for record in ended(folder)}
    logs = {name: (folder / "trials" / name / "run.log").read_bytes() for name in before}
    assert 2 <= len(before) < 6

    words = command(tmp_path)
    words = [*words[:4], f"--out={folder}", "--resume"] if again else words
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "was begun before and goes on" in done.stdout
    after = {record.trial: record for record in ended(folder)}
    assert sorted(after) == [f"{i:04d}" for i in range(6)]
    for name, record in before.items():
        assert after[name] == record and (folder / "trials" / name / "run.log").read_bytes() == logs[name]
    for name in set(after) - set(before):
        epochs = [
            line
            for line in (folder / "trials" / name / "run.log").read_text().splitlines()
            if " epoch " in line
        ]
        numbers = [
            int(line.split(" epoch ")[1].split()[0].rstrip(",")) for line in epochs if "training [" in line
        ]
        assert len(numbers) <= after[name].epochs + 1  # a running trial loses its current epoch at most


@pytest.mark.slow
def test_a_killed_worker_goes_on_after_its_last_epoch(ray_here, quick, tmp_path):
    found = tune(
        KilledOnce, "toy", config_dict=quick, space=space_file(tmp_path), search="grid", out=str(tmp_path / "sweep"),
        jobs=1, scheduler="none",
    )  # fmt: skip
    assert (tmp_path / "killed").exists() and [r.status for r in found["trials"]] == [FINISHED] * 2
    logs = [(found["folder"] / "trials" / name / "run.log").read_text() for name in ("0000", "0001")]
    assert sum("Resume training" in log for log in logs) == 1
    assert all(log.count("training [") == 4 for log in logs)
    assert json.loads((found["folder"] / "sweep.json").read_text())["finished"]
