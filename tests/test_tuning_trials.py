"""A trial, without Ray: what it scores a run scores, and what fails is noted."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tuning_toys
from toy_models import ToyMLP
from tuning_toys import LEARNING_RATES, Troubled, prepared, score_of_run

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.phase import Phase
from recbole_cdr_ext.tuning import sweep, tune
from recbole_cdr_ext.tuning.records import CUT, FAILED, FINISHED, RUNNING, best_first, end_trial, read_record
from recbole_cdr_ext.tuning.trial import TrialFailed, reason_of, run_trial
from recbole_cdr_ext.tuning.tune import share

quick = tuning_toys.quick


class TwoSteps(ToyMLP):
    """Learns in two phases, of which the first has a score of its own."""

    def phases(self):
        """Two of them."""
        return [Phase("first", validate="own", settings=(("epochs", 2),)), Phase("second")]

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
    tune._begin(made)
    return tune._conclude(made)


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
