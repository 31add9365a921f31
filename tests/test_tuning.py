"""Trials and sweeps: what a trial scores a run scores, what fails is noted, what has ended is not done again."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toy_models import ToyMLP

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.abstract import Phase
from recbole_cdr_ext.run import run_recbole_cdr
from recbole_cdr_ext.tuning import page, sweep
from recbole_cdr_ext.tuning.records import (
    CUT,
    FAILED,
    FINISHED,
    RUNNING,
    Record,
    best_first,
    end_trial,
    ended,
    read_record,
)
from recbole_cdr_ext.tuning.space import Parameter
from recbole_cdr_ext.tuning.sweep import DEFAULTS, prepare, share, tune
from recbole_cdr_ext.tuning.trial import TrialFailed, reason_of, run_trial

ROOT = Path(__file__).parents[1]
QUICK = {
    "data_path": str(ROOT / "dataset_atomic"), "epochs": 4, "train_targets": "last", "train_batch_size": 128,
    "eval_args": {"mode": "uni50"},
}  # fmt: skip
LEARNING_RATES = "learning_rate: {choice: [0.01, 0.003]}\n"


class Troubled(ToyMLP):
    """Learns, or does not, as its setting ``trouble`` says."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.trouble = config["trouble"]

    def calculate_loss(self, interaction):
        """Returns the loss, unless there is trouble."""
        loss = super().calculate_loss(interaction)
        if self.trouble == "raises":
            raise ValueError("this one\nraises")
        if self.trouble == "memory":
            raise MemoryError
        return loss * float("nan") if self.trouble == "nan" else loss


class KilledOnce(ToyMLP):
    """Kills its process once, in its third epoch."""

    def start_epoch(self, phase, epoch):
        """Does it where no mark says that it was done."""
        mark = Path(self.config["cache_dir"]).parent / "killed"
        if epoch == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class TwoSteps(ToyMLP):
    """Learns in two phases, of which the first has a score of its own."""

    def phases(self):
        """Two of them."""
        return [Phase("first", validate="own", settings=(("epochs", 2),)), Phase("second")]

    def own(self):
        """A score far above any of the second phase's."""
        return 99.0


@pytest.fixture
def quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {**QUICK, "cache_dir": str(tmp_path / "cache")}


def space_file(tmp_path, text=LEARNING_RATES):
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def prepared(tmp_path, quick, model=ToyMLP, space=LEARNING_RATES, dataset="toy", **options):
    options = {
        **DEFAULTS,
        "search": "grid",
        "out": str(tmp_path / "sweep"),
        "space": space_file(tmp_path, space),
        **options,
    }
    made = prepare(model, dataset, options, None, quick)
    made.folder.mkdir(exist_ok=True)
    return made


def in_shared_memory(shared):
    """As another process gets it: through pickle, with arrays that cannot be written to."""
    buffers: list[bytes] = []
    text = pickle.dumps(shared, protocol=5, buffer_callback=lambda buffer: buffers.append(bytes(buffer)))
    return pickle.loads(text, buffers=buffers), len(text), sum(map(len, buffers))


def try_one(made, searched, name="0000", stop_after=None, shared=None):
    """Runs a trial, ended after an epoch as a scheduler or a killed process would; returns what it told."""
    told = []

    def report(news):
        told.append(news)
        if stop_after is not None and news["epoch"] >= stop_after:
            raise SystemExit

    try:
        run_trial(shared or share(made), name, searched, report)
    except SystemExit:
        assert stop_after is not None
    return told


def conclude(made):
    """Ends a sweep of which the trials have ended."""
    sweep._begin(made)
    return sweep._conclude(made)


def score_of_run(folder, model):
    """The validation score of a run with best.yaml alone."""
    quiet = {"show_progress": False, "tensorboard": False, "save_instances": False, "torch_threads": 1}
    return run_recbole_cdr(model, "toy", [str(folder / sweep.BEST)], quiet)["best_valid_score"]


# -- a trial, without Ray --------------------------------------------------------------------------------------------


def test_a_trial_scores_what_a_run_scores(quick, tmp_path):
    made = prepared(tmp_path, quick)
    told = try_one(made, {"learning_rate": 0.01})
    record = read_record(made.folder / "trials" / "0000")
    assert record.status == FINISHED and record.stopped == "epochs" and record.epochs == 4
    assert [news["epoch"] for news in told] == [1, 2, 3, 4, 4]
    scores = [news["epoch_score"] for news in told[:-1]]
    assert record.curve == [[i + 1, score] for i, score in enumerate(scores)]
    assert [news["score"] for news in told[:-1]] == list(np.maximum.accumulate(scores))
    assert told[-1]["score"] == record.score == max(scores)

    end_trial(made.folder, "0000")
    found = conclude(made)
    assert found["best"].score == score_of_run(made.folder, ToyMLP)


def test_a_trial_that_was_cut_is_reproduced_by_its_epochs(quick, tmp_path):
    made = prepared(tmp_path, {**quick, "epochs": 6, "max_seconds": 500})
    assert len(try_one(made, {"learning_rate": 0.01}, stop_after=2)) == 2
    assert end_trial(made.folder, "0000").status == CUT
    best = conclude(made)["best"]
    text = (made.folder / sweep.BEST).read_text()
    assert "epochs: 2\n" in text and "seed: 2024\n" in text and "max_seconds" not in text
    assert best.score == score_of_run(made.folder, ToyMLP)


def test_a_killed_trial_goes_on_to_what_it_would_have_been(quick, tmp_path):
    made = prepared(tmp_path, quick)
    shared = share(made)
    whole = try_one(made, {"learning_rate": 0.01}, "whole", shared=shared)
    first = try_one(made, {"learning_rate": 0.01}, "killed", stop_after=2, shared=shared)
    assert read_record(shared.folder / "killed").status == RUNNING
    second = try_one(made, {"learning_rate": 0.01}, "killed", shared=shared)
    assert [news["epoch"] for news in second] == [3, 4, 4] and first + second == whole
    records = [read_record(shared.folder / name) for name in ("whole", "killed")]
    assert records[0].curve == records[1].curve and records[0].score == records[1].score
    # What has ended says so again, and trains nothing.
    log = (shared.folder / "killed" / "run.log").read_text()
    assert try_one(made, {"learning_rate": 0.01}, "killed", shared=shared) == [whole[-1]]
    assert (shared.folder / "killed" / "run.log").read_text() == log


def test_a_trial_goes_on_from_another_ones_weights(quick, tmp_path):
    made = prepared(tmp_path, quick)
    shared = share(made)
    try_one(made, {"learning_rate": 0.01}, "donor", stop_after=2, shared=shared)
    told = []
    run_trial(shared, "other", {"learning_rate": 0.003}, told.append, shared.folder / "donor")
    assert [news["epoch"] for news in told] == [3, 4, 4]
    other, donor = (read_record(shared.folder / name) for name in ("other", "donor"))
    assert other.curve[:2] == donor.curve
    assert other.schedule == [[0, {"learning_rate": 0.01}], [2, {"learning_rate": 0.003}]]
    whole = try_one(made, {"learning_rate": 0.01}, "whole", shared=shared)
    assert told[0] != whole[2]  # its own step size is in force
    end_trial(made.folder, "other")
    end_trial(made.folder, "donor")
    conclude(made)
    steps = made.folder / sweep.SCHEDULE
    best = best_first([other, donor], True)[0]
    assert steps.exists() == (best is other)


def test_only_the_last_phase_is_told(quick, tmp_path):
    made = prepared(tmp_path, {**quick, "epochs": 3}, TwoSteps)
    told = try_one(made, {"learning_rate": 0.01})
    assert [news["epoch"] for news in told] == [1, 2, 3, 3] and all(news["score"] <= 1 for news in told)
    record = read_record(made.folder / "trials" / "0000")
    assert record.by_epochs  # the first phase has epochs of its own


def test_a_model_without_epochs_is_scored_once(quick, tmp_path):
    made = prepared(tmp_path, quick, "ItemKNN", "k: {choice: [5, 50]}\n")
    told = try_one(made, {"k": 5})
    assert len(told) == 1 and told[0]["epoch"] == 0 and 0 < told[0]["score"] < 1
    end_trial(made.folder, "0000")
    assert conclude(made)["best"].score == score_of_run(made.folder, "ItemKNN")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("raises", "ValueError: this one raises"),
        ("memory", "out of memory"),
        ("nan", "The loss is not finite"),
    ],
)
def test_a_trial_that_fails_says_why(quick, tmp_path, trouble, reason):
    made = prepared(tmp_path, quick, Troubled, "trouble: {choice: [none, raises, memory, nan]}\n")
    shared, told = share(made), []
    for _ in range(2):  # started again, it fails again without training
        with pytest.raises(TrialFailed, match=reason):
            run_trial(shared, "0000", {"trouble": trouble}, told.append)
    assert [list(news) for news in told] == [["failed"]] * 2 and told[0]["failed"].startswith(reason)
    record = end_trial(made.folder, "0000")
    assert record.status == FAILED and "\n" not in record.reason
    assert "Traceback" in (shared.folder / "0000" / "run.log").read_text()
    with pytest.raises(CDRError, match=f"Every trial failed: {reason}"):
        conclude(made)
    assert not (made.folder / sweep.BEST).exists()


def test_reasons_are_one_line():
    assert reason_of(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")).startswith(
        "out of memory"
    )
    assert reason_of(CDRError("a\nb")) == "a b" and reason_of(KeyError("x")) == "KeyError: 'x'"


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("BPR", {}),
        ("SASRec", {}),
        ("I2VAE", {"psg_settings": {"epochs": 1}}),
        ("SCDR", {"task": "rating", "pretrain_epochs": 1, "eval_args": None, "train_targets": None}),
    ],
)
def test_models_learn_from_data_that_they_cannot_write_to(quick, tmp_path, model, given):
    quick = {key: value for key, value in {**quick, "epochs": 1, **given}.items() if value is not None}
    made = prepared(tmp_path, quick, model)
    assert made.staged
    own = share(made)
    shared, in_band, _ = in_shared_memory(own)
    expected = try_one(made, {"learning_rate": 0.01}, "own", shared=own)
    assert try_one(made, {"learning_rate": 0.01}, "shared", shared=shared) == expected
    # Rows and columns are shared, not copied: what is left grows with neither (tables of rating stages do).
    assert in_band < 20_000 or model == "SCDR"


def test_stages_that_the_space_varies_are_left_to_the_trials(quick, tmp_path):
    made = prepared(tmp_path, quick, "I2VAE", "psg: {choice: [random, lightgcn]}\n")
    assert not made.staged
    assert prepared(tmp_path, quick, "I2VAE", LEARNING_RATES).staged


# -- the folder, without Ray -----------------------------------------------------------------------------------------


def test_two_sweeps_in_one_folder(quick, tmp_path):
    (tmp_path / "sweep").mkdir()
    with (tmp_path / "sweep" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CDRError, match="Another sweep is at work in"):
            tune("BPR", "toy", config_dict=quick, space=space_file(tmp_path), out=str(tmp_path / "sweep"))


def test_another_sweep_in_the_folder(quick, tmp_path):
    made = prepared(tmp_path, quick, "BPR")
    sweep._begin(made)
    sweep._begin(prepared(tmp_path, quick, "BPR", jobs=2))  # how it runs may change
    options = {**DEFAULTS, "resume": True, "out": str(made.folder)}
    found = sweep._stored(None, None, options, None, (), None)
    assert prepare(*found[:3], None, found[3]).identity() == made.identity()
    with pytest.raises(CDRError, match="model=Pop contradicts the sweep"):
        sweep._stored("Pop", None, options, None, (), None)
    with pytest.raises(CDRError, match=r"holds another sweep \(settings: .*epochs.: 4.*epochs.: 5"):
        sweep._begin(prepared(tmp_path, {**quick, "epochs": 5}, "BPR"))
    with pytest.raises(CDRError, match=r"holds another sweep \(space"):
        sweep._begin(prepared(tmp_path, quick, "BPR", space="learning_rate: {choice: [0.01, 0.004]}\n"))


def test_a_sweep_does_not_go_on_where_defaults_have_changed(quick, tmp_path):
    made = prepared(tmp_path, quick, "BPR")
    sweep._begin(made)
    path = made.folder / "sweep.json"
    state = json.loads(path.read_text())
    sweep._begin(made)
    state["resolved"]["embedding_size"] = 7
    path.write_text(json.dumps(state))
    with pytest.raises(CDRError, match="where embedding_size is 7 unless it is given, and here it is 64"):
        sweep._begin(made)
    path.write_text(json.dumps({**state, "finished": True}))
    sweep._begin(made)  # there is nothing to go on with


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CDRError, match="There is no sweep to resume"):
        tune(resume=True, out=str(tmp_path))
    with pytest.raises(CDRError, match="Which sweep is to go on"):
        tune(resume=True)


def test_an_address_that_does_not_answer(quick, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for given, message in (
        (address, f"No Ray cluster answers at {address}"),
        ("nowhere", "should be HOST:PORT"),
    ):
        with pytest.raises(CDRError, match=message):
            tune(
                "BPR",
                "toy",
                config_dict=quick,
                space=space_file(tmp_path),
                out=str(tmp_path / "s"),
                ray_address=given,
            )


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "optuna" else object())
    sweep.require("random")
    with pytest.raises(CDRError, match=r"needs optuna.*pip install 'recbole_cdr_ext\[tune\]'"):
        sweep.require("optuna")


# -- page and summary ------------------------------------------------------------------------------------------------

PARAMETERS = (
    Parameter("learning_rate", "loguniform", (1e-4, 1e-1)),
    Parameter("kind", "choice", ("a", "b")),
    Parameter("size", "int", (1, 9), {"kind": ("b",)}),
)


def made_up(n, seed=0):
    """Trials whose score depends on the learning rate alone."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        rate, kind = float(10 ** rng.uniform(-4, -1)), "ab"[i % 2]
        settings = {"learning_rate": rate, "kind": kind} | (
            {"size": int(rng.integers(1, 9))} if kind == "b" else {}
        )
        score = 1 - abs(np.log10(rate) + 2.5) / 3
        found.append(Record(f"{i:04d}", settings, FINISHED, score, 2, "epochs", [[1, score / 2], [2, score]]))
    return found


def test_importance_finds_what_matters():
    found = page.importance(made_up(40), PARAMETERS)
    assert next(iter(found)) == "learning_rate" and found["learning_rate"][0] > 10 * abs(found["kind"][0])
    assert page.importance(made_up(7), PARAMETERS) is None


@pytest.mark.parametrize("n", [3, 12])
def test_page_and_summary(tmp_path, n):
    failed = Record("9999", {"kind": "a", "learning_rate": 0.5}, FAILED, reason="<b>out</b> | of memory")
    records = best_first([*made_up(n), failed], True)
    about = page.About("M", "D", "NDCG@10", True, PARAMETERS, "recbole-cdr run --x", "how")
    page.write_page(records, about, tmp_path / "p.html")
    page.write_summary(records, about, tmp_path / "p.md")
    text, summary = (tmp_path / "p.html").read_text(), (tmp_path / "p.md").read_text()
    own = text.replace(page._plotly_source(), "")
    assert "<script src" not in text and "http" not in own.replace("http-equiv", "")
    assert "<b>out" not in text and "&lt;b&gt;out" in text and "recbole-cdr run --x" in text
    assert ('id="importance"' in text) == (n == 12) and 'id="parallel"' in text and 'id="curves"' in text
    assert ("there are fewer" in text) == (n == 3)
    assert records[0].trial in summary and f"{n + 1} trials: {n} finished, 1 failed" in summary


def test_order_of_records():
    records = [
        Record("a", {}, FINISHED, 0.1),
        Record("b", {}, CUT, 0.3),
        Record("c", {}, FAILED, 0.9),
        Record("d", {}, FINISHED, 0.3),
    ]
    assert [r.trial for r in best_first(records, True)] == ["b", "d", "a", "c"]
    assert [r.trial for r in best_first(records, False)] == ["a", "b", "d", "c"]


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
