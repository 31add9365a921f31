"""A sweep without Ray: its folder, page and summary, and its trials."""

from __future__ import annotations

import fcntl
import json
import pickle
import socket
from dataclasses import replace

import numpy as np
import pytest
import support
from study_toys import EVIL, Page, check_harmless
from support import LEARNING_RATES, Troubled, prepared, score_of_run, space_file
from toy_models import ToyMLP

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.pages.page import plotly_script
from recbole_cdr_ext.tuning import sweep, sweep_page
from recbole_cdr_ext.tuning import tune as tune_module
from recbole_cdr_ext.tuning.records import (
    CUT,
    FAILED,
    FINISHED,
    RUNNING,
    Record,
    best_first,
    end_trial,
    read_record,
)
from recbole_cdr_ext.tuning.space import Parameter
from recbole_cdr_ext.tuning.sweep import DEFAULTS, prepare
from recbole_cdr_ext.tuning.trial import TrialFailed, reason_of, run_trial
from recbole_cdr_ext.tuning.tune import share, tune

quick = support.quick


# -- the folder, without Ray -----------------------------------------------------------------------------------------


def test_two_sweeps_in_one_folder(quick, tmp_path):
    (tmp_path / "sweep").mkdir()
    with (tmp_path / "sweep" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CDRError, match="Another sweep is at work in"):
            tune("BPR", "toy", config_dict=quick, space=space_file(tmp_path), out=str(tmp_path / "sweep"))


def test_another_sweep_in_the_folder(quick, tmp_path):
    made = prepared(tmp_path, quick, "BPR")
    tune_module._begin(made)
    tune_module._begin(prepared(tmp_path, quick, "BPR", jobs=2))  # how it runs may change
    options = {**DEFAULTS, "resume": True, "out": str(made.folder)}
    found = tune_module._stored(None, None, options, None, (), None)
    assert prepare(*found[:3], None, found[3]).identity() == made.identity()
    with pytest.raises(CDRError, match="model=Pop contradicts the sweep"):
        tune_module._stored("Pop", None, options, None, (), None)
    with pytest.raises(CDRError, match=r"holds another sweep \(settings: .*epochs.: 4.*epochs.: 5"):
        tune_module._begin(prepared(tmp_path, {**quick, "epochs": 5}, "BPR"))
    with pytest.raises(CDRError, match=r"holds another sweep \(space"):
        tune_module._begin(prepared(tmp_path, quick, "BPR", space="learning_rate: {choice: [0.01, 0.004]}\n"))


def test_a_sweep_does_not_go_on_where_defaults_have_changed(quick, tmp_path):
    made = prepared(tmp_path, quick, "BPR")
    tune_module._begin(made)
    path = made.folder / "sweep.json"
    state = json.loads(path.read_text())
    tune_module._begin(made)
    state["resolved"]["embedding_size"] = 7
    path.write_text(json.dumps(state))
    with pytest.raises(CDRError, match="where embedding_size is 7 unless it is given, and here it is 64"):
        tune_module._begin(made)
    path.write_text(json.dumps({**state, "finished": True}))
    tune_module._begin(made)  # there is nothing to go on with


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
    found = sweep_page.importance(made_up(40), PARAMETERS)
    assert next(iter(found)) == "learning_rate" and found["learning_rate"][0] > 10 * abs(found["kind"][0])
    assert sweep_page.importance(made_up(7), PARAMETERS) is None


def test_what_comes_from_files_is_no_markup_in_the_page(tmp_path):
    parameters = (*PARAMETERS, Parameter("word", "choice", (EVIL, "b")))
    records = [replace(record, settings={**record.settings, "word": EVIL}) for record in made_up(9)]
    failed = Record(EVIL, {"word": EVIL, "learning_rate": 0.5}, FAILED, reason=EVIL)
    about = sweep_page.About(EVIL, EVIL, EVIL, True, parameters, EVIL, EVIL, [EVIL])
    sweep_page.write_page([*records, failed], about, tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    check_harmless(page)
    assert page.title == about.title
    # Title and heading; command, how and note; nine values, and the failed trial's with its name.
    assert page.text.count(EVIL) == 2 * 3 + 3 + 9 + 2
    assert set(page.figures) == {"parallel", "importance", "curves"}
    # Parallel coordinates are drawn by code that plotly compiles.
    assert "script-src 'unsafe-inline' 'unsafe-eval';" in page.policy


def test_trials_are_sorted_by_their_numbers(tmp_path):
    failed = Record("9999", {"kind": "a", "learning_rate": 0.5}, FAILED, reason="x")
    about = sweep_page.About("M", "D", "NDCG@10", True, PARAMETERS, "command", "how")
    sweep_page.write_page([*made_up(1), failed], about, tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    numbers = [attributes.get("data-value") for tag, attributes in page.tags if tag == "td"]
    first = made_up(1)[0]
    assert numbers[:4] == [
        None,
        str(first.settings["learning_rate"]),
        None,
        "",
    ]  # of trial, rate, kind and size
    assert numbers[8:] == [None, "0.5", None, "", "0", "", "0.0", None]  # a missing score comes last


@pytest.mark.parametrize("n", [3, 12])
def test_page_and_summary(tmp_path, n):
    failed = Record("9999", {"kind": "a", "learning_rate": 0.5}, FAILED, reason="<b>out</b> | of memory")
    records = best_first([*made_up(n), failed], True)
    about = sweep_page.About("M", "D", "NDCG@10", True, PARAMETERS, "recbole-cdr run --x", "how")
    sweep_page.write_page(records, about, tmp_path / "p.html")
    sweep_page.write_summary(records, about, tmp_path / "p.md")
    text, summary = (tmp_path / "p.html").read_text(), (tmp_path / "p.md").read_text()
    own = text.replace(plotly_script(), "")
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


# -- trials --------------------------------------------------------------------------------------------------------


class TwoSteps(ToyMLP):
    """Learns in two phases, of which the first has a score of its own."""

    def phases(self):
        """Two of them."""
        return [Phase("first", validate=self.own, settings=(("epochs", 2),)), Phase("second")]

    def own(self):
        """A score far above any of the second phase's."""
        return 99.0


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
    tune_module._begin(made)
    return tune_module._conclude(made)


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
