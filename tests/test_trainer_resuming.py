"""The trainer: resuming to the same result, and caps on time."""

from __future__ import annotations

import pytest
import torch
from trainer_toys import Batches, Slope, TwoPhases, assert_same, by_loss, scripted, trainer_of, weights

# -- resuming ------------------------------------------------------------------------------------------------


def unbroken(tmp_path, cls, **more):
    model = cls()
    trainer = trainer_of(model, tmp_path / "unbroken", **more)
    return model, trainer, trainer.fit(None, Batches(), by_loss(model))


@pytest.mark.parametrize("averaging", [0.0, 0.9])
@pytest.mark.parametrize("moment", [(0, 0, 2), (0, 1, 0), (0, 3, 3), (0, 5, 1)])
def test_interrupted_and_resumed_equals_unbroken(tmp_path, moment, averaging):
    expected, whole, expected_result = unbroken(tmp_path, Slope, weight_averaging=averaging)
    model = Slope()
    first = trainer_of(model, tmp_path / "run", weight_averaging=averaging)
    with pytest.raises(KeyboardInterrupt, match="--resume=run") as stop:
        first.fit(None, Batches(interrupt=moment), by_loss(model))
    assert f"phase 'train', epoch {moment[1]}" in str(stop.value)

    torch.manual_seed(99)  # another process would have drawn other things by now
    again = Slope()
    second = trainer_of(again, tmp_path / "run", weight_averaging=averaging)
    last = tmp_path / "run" / "last.pth"
    assert last.exists() == (moment[1] > 0)
    batches = Batches()
    if last.exists():
        second.resume_checkpoint(last)
    result = second.fit(None, batches, by_loss(again))
    assert batches.seen[0] == (0, moment[1])
    assert_same(weights(again), weights(expected))
    assert result == expected_result
    assert (second.best_epoch, second.epochs_run, second.stopped) == (whole.best_epoch, 6, "epochs")
    scores = [(e["epoch"], e["valid_score"], e["loss"]) for e in second.history]
    assert scores == [(e["epoch"], e["valid_score"], e["loss"]) for e in whole.history]


@pytest.mark.parametrize("calls", [1, 3, 4, 5])
def test_resuming_between_and_within_phases(tmp_path, calls):
    expected, _, expected_result = unbroken(tmp_path, TwoPhases)
    model = TwoPhases()
    n = 0

    def interrupting(phase, epoch):
        nonlocal n
        if n == calls:
            raise KeyboardInterrupt
        n += 1

    model.start_epoch = interrupting
    first = trainer_of(model, tmp_path / "run")
    if calls < 5:
        with pytest.raises(KeyboardInterrupt):
            first.fit(None, Batches(), by_loss(model))
    else:  # after the last epoch: only what follows training is left to do
        first.fit(None, Batches(), by_loss(model))
    again = TwoPhases()
    second = trainer_of(again, tmp_path / "run")
    second.resume_checkpoint(tmp_path / "run" / "last.pth")
    assert second.fit(None, Batches(), by_loss(again)) == expected_result
    assert_same(weights(again), weights(expected))
    assert second.epochs_run == 5


def test_early_stopping_counts_on_after_resuming(tmp_path):
    first = trainer_of(Slope(), tmp_path / "run", stopping_step=1)
    with pytest.raises(KeyboardInterrupt):
        first.fit(None, Batches(interrupt=(0, 2, 0)), scripted(0.5, 0.4))
    second = trainer_of(Slope(), tmp_path / "run", stopping_step=1)
    second.resume_checkpoint(tmp_path / "run" / "last.pth")
    score, _ = second.fit(None, Batches(), scripted(0.3))
    assert (score, second.stopped, second.epochs_run) == (0.5, "early", 3)


# -- time ----------------------------------------------------------------------------------------------------


def test_time_cap_ends_training_after_the_epoch(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("recbole_cdr_ext.trainer.trainer.perf_counter", lambda: next(clock))
    trainer = trainer_of(TwoPhases(), tmp_path / "run", max_seconds=45)
    trainer.fit(None, Batches(), scripted(0.1, 0.2, 0.3))
    # 10 s before the first phase, then 10 s of training and 10 s of validation an epoch: 30 s, 50 s.
    assert (trainer.stopped, trainer.epochs_run, trainer.skipped) == ("time", 2, ["upper"])
    assert sum(trainer.seconds.values()) == 50
    assert trainer.history[-1]["valid_score"] == 0.2


def test_processor_time_cap_goes_on_over_a_resumed_run(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("recbole_cdr_ext.trainer.progress.process_time", lambda: next(clock))
    first = trainer_of(Slope(), tmp_path / "run", max_processor_seconds=1000)
    with pytest.raises(KeyboardInterrupt):
        first.fit(None, Batches(interrupt=(0, 2, 0)), scripted(0.5, 0.6))
    spent = first.processor_seconds
    assert 0 < spent < 100
    second = trainer_of(Slope(), tmp_path / "run", max_processor_seconds=spent + 5)
    second.resume_checkpoint(tmp_path / "run" / "last.pth")
    second.fit(None, Batches(), scripted(0.7, 0.8))
    assert (second.stopped, second.epochs_run) == ("time", 3)
    assert second.time_cap == f"max_processor_seconds={spent + 5:g}"
