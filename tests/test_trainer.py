"""The trainer: the best weights, early stopping, phases, averages, resuming to the same result, and caps on time."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn
from toy_models import Batches, Slope, TwoPhases, assert_same, by_loss, scripted, trainer_of, weights

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.optimisation import WeightAverage, clip_gradients

# -- the best weights ----------------------------------------------------------------------------------------


def test_best_epoch_is_kept_and_saved(tmp_path):
    model = Slope()
    kept = []
    trainer = trainer_of(model, tmp_path / "run")
    result = trainer.fit(
        None,
        Batches(),
        scripted(0.1, 0.3, 0.2, 0.2, 0.2, 0.2),
        callback_fn=lambda e, s: kept.append(weights(model)),
    )
    assert result[0] == 0.3 and trainer.best_epoch == 1 and trainer.stopped == "epochs"
    assert result[1]["cloth"]["all"]["ndcg@10"] == 0.3
    assert_same(weights(model), kept[1])
    _, states = checkpoint.load(tmp_path / "run" / "model.pth", model="Slope", data="d1")
    assert_same(states["model"], kept[1])
    assert trainer.epochs_run == len(trainer.history) == 6


def test_score_is_the_mean_over_domains_with_instances(tmp_path):
    table = {"cloth": {"all": {"n": 2, "ndcg@10": 0.2}}, "sport": {"all": {"n": 5, "ndcg@10": 0.6}}}
    score, _ = trainer_of(Slope(), tmp_path / "a", epochs=1).fit(None, Batches(), lambda: table)
    assert score == pytest.approx((0.2 + 0.6) / 2)
    table["sport"]["all"] = {"n": 0, "ndcg@10": None}
    score, _ = trainer_of(Slope(), tmp_path / "b", epochs=1).fit(None, Batches(), lambda: table)
    assert score == 0.2


def test_early_stopping(tmp_path):
    trainer = trainer_of(Slope(), tmp_path / "run", stopping_step=1)
    trainer.fit(None, Batches(), scripted(0.5, 0.4, 0.3, 0.9))
    # RecBole stops at the first validation beyond stopping_step of them without improvement.
    assert (trainer.stopped, trainer.epochs_run, trainer.best_epoch) == ("early", 3, 0)


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    model = Slope()
    trainer = trainer_of(model, tmp_path / "run", epochs=2)
    assert trainer.fit(None, Batches()) == (None, None)
    _, states = checkpoint.load(tmp_path / "run" / "model.pth")
    assert_same(states["model"], weights(model))
    assert trainer.best_epoch == 1


def test_last_epoch_is_validated_whatever_the_step(tmp_path):
    trainer = trainer_of(Slope(), tmp_path / "run", epochs=3, eval_step=2)
    trainer.fit(None, Batches(), scripted(0.1, 0.2))
    assert [entry.get("valid_score") for entry in trainer.history] == [None, 0.1, 0.2]


def test_model_without_phases_is_complete_once_fitted(tmp_path):
    class Counted(Slope):
        def phases(self):
            return []

    model = Counted()
    before = weights(model)
    trainer = trainer_of(model, tmp_path / "run")
    assert trainer.fit(None) == (None, None)
    assert model.closed_form_calls == 1 and trainer.epochs_run == 0
    assert_same(weights(model), before)


# -- phases --------------------------------------------------------------------------------------------------


def test_phase_starts_from_the_best_weights_of_the_one_before(tmp_path):
    model = TwoPhases()
    seen = []

    def remember(epoch, score):
        seen.append(weights(model))

    begun = {}
    original = model.start_epoch
    model.start_epoch = lambda phase, epoch: (
        begun.setdefault((phase.name, epoch), weights(model)),
        original(phase, epoch),
    )
    trainer = trainer_of(model, tmp_path / "run")
    trainer.fit(None, Batches(), scripted(0.1, 0.9, 0.2), callback_fn=remember)
    assert_same(begun["upper", 0], seen[1])
    assert not torch.equal(seen[2]["first.weight"], seen[1]["first.weight"])
    assert [e["phase"] for e in trainer.history] == ["lower"] * 3 + ["upper"] * 2
    assert isinstance(trainer.optimizer, torch.optim.SGD) and trainer.optimizer.param_groups[0]["lr"] == 0.5


def test_frozen_parameters_keep_every_bit_and_are_thawed(tmp_path):
    model = TwoPhases()
    model.first.bias.requires_grad_(False)  # what the model fixes itself stays fixed
    before = weights(model)
    flags = []
    original = model.calculate_loss

    def spy(batch):
        flags.append({name: p.requires_grad for name, p in model.named_parameters()})
        return original(batch)

    model.calculate_loss = spy
    trainer_of(model, tmp_path / "run", weight_decay=0.5).fit(None, Batches(), scripted(0.1, 0.2, 0.3))
    after = weights(model)
    lower, upper = flags[0], flags[-1]
    assert lower == {
        "first.weight": True, "first.bias": False, "second.weight": False, "second.bias": False
    }  # fmt: skip
    assert upper["second.weight"] and not upper["first.weight"]
    assert torch.equal(before["first.bias"], after["first.bias"])
    assert not torch.equal(before["first.weight"], after["first.weight"])
    assert model.first.weight.requires_grad and not model.first.bias.requires_grad


def test_phase_that_trains_nothing_or_sets_nonsense_is_refused(tmp_path):
    model = Slope()
    model.phases = lambda: [Phase("typo", parameters=("fist",))]
    with pytest.raises(CDRError, match="phase 'typo' of Slope has nothing that learns"):
        trainer_of(model, tmp_path / "run").fit(None, Batches())
    model.phases = lambda: [Phase(settings=(("learning_rates", 1),))]
    with pytest.raises(CDRError, match="Did you mean 'learning_rate'"):
        trainer_of(model, tmp_path / "run").fit(None, Batches())


def test_terms_of_the_loss_are_summed_and_logged_by_name(tmp_path, caplog):
    class Terms(NamedTuple):
        fit: torch.Tensor
        size: torch.Tensor

    class Several(Slope):
        def calculate_loss(self, interaction):
            return Terms(super().calculate_loss(interaction), 0.1 * self.second.weight.pow(2).sum())

    class Summed(Slope):
        def calculate_loss(self, interaction):
            return super().calculate_loss(interaction) + 0.1 * self.second.weight.pow(2).sum()

    several, summed = Several(), Summed()
    with caplog.at_level("INFO"):
        trainer = trainer_of(several, tmp_path / "a", epochs=2)
        trainer.fit(None, Batches())
    trainer_of(summed, tmp_path / "b", epochs=2).fit(None, Batches())
    torch.testing.assert_close(several.second.weight, summed.second.weight)
    assert "fit" in caplog.text and "size" in caplog.text
    assert len(trainer.history[0]["loss"]) == 2


@pytest.mark.parametrize("learner", ["adam", "adamw"])
def test_fused_optimiser_takes_the_same_steps(tmp_path, learner):
    fused, plain = Slope(), Slope()
    trainer = trainer_of(fused, tmp_path / "run", learner=learner, epochs=3, weight_decay=0.1)
    trainer.fit(None, Batches())
    assert trainer.optimizer.defaults["fused"]
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[learner]
    other = trainer_of(plain, tmp_path / "plain", learner=learner, epochs=3, weight_decay=0.1)
    other._build_optimizer = lambda **kw: cls(
        kw["params"], lr=kw["learning_rate"], weight_decay=kw["weight_decay"]
    )
    other.fit(None, Batches())
    for name, tensor in weights(fused).items():
        torch.testing.assert_close(tensor, weights(plain)[name], atol=1e-6, rtol=1e-5)


# -- the average of the weights ------------------------------------------------------------------------------


def test_average_is_what_its_formula_says():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = WeightAverage([weight], 0.5)
    expected = 1.0
    for step, value in enumerate((3.0, -2.0, 7.0, 0.5, 4.0, 4.0, 1.0, 2.0, 3.0, 9.0)):
        with torch.no_grad():
            weight.fill_(value)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with average.in_place():
        assert weight.item() == pytest.approx(expected)
    assert weight.item() == 9.0


def test_average_is_validated_and_kept_and_training_goes_on_without_it(tmp_path):
    plain, model = Slope(), Slope()
    without = trainer_of(plain, tmp_path / "plain")
    without.fit(None, Batches(), by_loss(plain))
    seen = []

    def validate():
        seen.append(weights(model))
        return by_loss(model)()

    trainer = trainer_of(model, tmp_path / "run", weight_averaging=0.9)
    trainer.fit(None, Batches(), validate)
    assert [e["loss"] for e in trainer.history] == [e["loss"] for e in without.history]
    assert [e["valid_score"] for e in trainer.history] != [e["valid_score"] for e in without.history]
    assert_same(weights(model), seen[trainer.best_epoch])
    _, states = checkpoint.load(tmp_path / "run" / "model.pth")
    assert_same(states["model"], seen[trainer.best_epoch])


# -- checkpoints ---------------------------------------------------------------------------------------------


def test_tensorboard_writes_into_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer_of(TwoPhases(), tmp_path / "run", tensorboard=True).fit(None, Batches(), scripted(0.1, 0.2, 0.3))
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert not (tmp_path / "log_tensorboard").exists()


# -- the norm of gradients ------------------------------------------------------------------------------------------


def test_sparse_gradients_are_clipped_as_dense_ones():
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table, dense = nn.Embedding(6, 3, sparse=sparse), nn.Linear(3, 1)
        dense(
            table(torch.tensor([1, 4, 4]))
        ).sum().backward()  # row 4 twice: its parts add up before the norm
        clip_gradients([*table.parameters(), *dense.parameters()], max_norm=0.5)
        gradients = [
            p.grad.to_dense() if p.grad.is_sparse else p.grad
            for p in (table.weight, dense.weight, dense.bias)
        ]
        assert math.sqrt(sum(float(g.square().sum()) for g in gradients)) == pytest.approx(0.5, rel=1e-4)
        found.append(gradients)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


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


def test_a_phase_without_anything_is_the_usual_one():
    phase = Phase()
    assert phase.name == "train" and phase.ranks_to_validate


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("loss", "sequence_loss", "write loss=self.sequence_loss"),
        ("batches", "pairs", "write batches=self.pairs"),
        ("rows", "source_rows", "write rows=self.source_rows"),
        ("rows", "", "leave rows out"),
        ("row_gradient", 1, "leave row_gradient out"),
        ("validate", "own_score", "write validate=self.own_score"),
        ("validate", "", "write validated=False"),
    ],
)
def test_a_name_is_no_function(field, value, advice):
    with pytest.raises(CDRError, match=f"phase 'map' has {field}=") as error:
        Phase("map", **{field: value})
    assert advice in str(error.value)


def test_a_score_of_the_models_own_ranks_nothing():
    assert not Phase(validate=lambda: 0.0).ranks_to_validate
    assert not Phase(validated=False).ranks_to_validate
