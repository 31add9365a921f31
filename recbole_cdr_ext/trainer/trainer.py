"""One trainer for all models: runs their phases, validates, stops early, resumes to the same result."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from recbole.utils import early_stopping, get_gpu_usage, set_color
from tqdm import tqdm

from recbole_cdr_ext import compat
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric_tables import mean_over_domains
from recbole_cdr_ext.model.recommender import Loss, Phase
from recbole_cdr_ext.trainer import checkpoint, progress, sharpness
from recbole_cdr_ext.trainer.optimisation import (
    WeightAverage,
    check_direction,
    check_learner,
    check_weights,
    clip_gradients,
    frozen_but,
    fused,
    learning_parameters,
    settings_of,
)
from recbole_cdr_ext.trainer.progress import Table, TensorBoard
from recbole_cdr_ext.trainer.resumable import ResumableTrainer

compat.apply()


class InstanceBatches(Protocol):
    """The split's training instances in batches."""

    def set_epoch(self, phase: int, epoch: int) -> None:
        """Says which epoch of which phase the next iteration is."""

    def __iter__(self) -> Iterator[Any]: ...


class CrossDomainTrainer(ResumableTrainer):
    """RecBole's ``Trainer`` for models that learn in phases.

    Each phase starts from the best weights of the one before, with a fresh optimiser over the parameters that
    learn in it; all others are frozen while it runs. Everything random in an epoch follows from (seed, phase,
    epoch), and ``last.pth`` is written after each epoch, so a run that was interrupted and resumed ends as an
    unbroken one would. Constructor and attributes are those of :class:`ResumableTrainer`.
    """

    # -- the run ---------------------------------------------------------------------------------------------

    def fit(
        self,
        split: Any,
        train_data: InstanceBatches | None = None,
        valid_data: Callable[[], Table] | None = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float | None, Table | None]:
        """Trains the model, and leaves the best weights of its last phase in it (and in ``model.pth``).

        Args:
            split: handed to the model's ``fit_closed_form``.
            train_data: yields batches; ``set_epoch(phase, epoch)`` decides what is drawn. None: every phase
                brings batches of its own.
            valid_data: ranks the validation instances and returns the table of metrics; None: the last epoch
                is kept.
            verbose: whether to log a line per epoch.
            saved: whether to write checkpoints.
            show_progress: whether to show a bar per epoch.
            callback_fn: called with (epoch, valid score) after each validated epoch, when its checkpoint is written
                and its entry the last of ``history``, which names the phase.

        Returns:
            The best validation score of the last phase and the table it came from; None where there is none.

        Raises:
            CDRError: a loss or a weight is no longer finite, or a checkpoint cannot be written.
            KeyboardInterrupt: Ctrl-C; its text says how to go on.
        """
        self.verbose, self.saved, self.show_progress = verbose, saved, show_progress
        self.callback_fn = callback_fn
        self._where = "before the first epoch"
        check_direction(self.model.phases(), self.config)
        try:
            if self.config["tensorboard"]:
                self.tensorboard = TensorBoard(self.folder)
            self._run_phases(split, train_data, valid_data)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._how_to_resume()) from None
        finally:
            if self.tensorboard is not None:
                self.tensorboard.close()
        if saved:
            checkpoint.save(self.saved_model_file, self._meta(finished=True), model=self.model.state_dict())
        score = self.best_valid_score if math.isfinite(self.best_valid_score) else None
        return score, self.best_valid_result

    def _run_phases(
        self, split: Any, train_data: InstanceBatches | None, valid_data: Callable[[], Table] | None
    ) -> None:
        """Lets the model learn in closed form what it can, then in its phases from where it stands."""
        phases = self.model.phases()
        started = perf_counter()
        self.clock.start()
        seed_everything(self._seed, len(phases), 0)
        self.model.fit_closed_form(split)
        self.seconds["training"] += perf_counter() - started
        for index in range(self._phase_index, len(phases)):
            self._phase_index = index
            self._fit_phase(phases, train_data, valid_data)
            if self.stopped == "time":
                self._skip_rest(phases)
                break
        if self.tensorboard is not None and math.isfinite(self.best_valid_score):
            settings = self.config.to_dict()
            self.tensorboard.add_settings(settings, self.best_valid_score)

    def _fit_phase(
        self,
        phases: list[Phase],
        train_data: InstanceBatches | None,
        valid_data: Callable[[], Table] | None,
    ) -> None:
        phase = phases[self._phase_index]
        self._title = f"{phase.name} " if len(phases) > 1 else ""
        settings = settings_of(phase, self.config)
        learning = learning_parameters(phase, self.model)
        self._start_phase()
        self.stopped, finished = "epochs", False
        self._sharpness = sharpness.make(settings, learning, names_rows=phase.rows is not None)
        with frozen_but(self.model, learning):
            self.optimizer = self._build_optimizer(
                params=learning,
                learner=settings["learner"],
                learning_rate=float(settings["learning_rate"]),
                weight_decay=float(settings["weight_decay"] or 0),
            )
            decay = float(settings["weight_averaging"] or 0)
            self._average = WeightAverage(learning, decay) if decay else None
            if self._resumed is not None:
                finished = self._take_up()
            epochs = int(settings["epochs"])
            for epoch in range(self.start_epoch, 0 if finished else epochs):
                finished = self._fit_epoch(phase, epoch, settings, train_data, valid_data)
                if finished:
                    break
            self.optimizer.zero_grad(set_to_none=True)
        if self._best is not None:
            checkpoint.restore(self.model, self._best)

    def _fit_epoch(
        self,
        phase: Phase,
        epoch: int,
        settings: Mapping[str, Any],
        train_data: InstanceBatches | None,
        valid_data: Callable[[], Table] | None,
    ) -> bool:
        """Trains, validates where that is due, writes ``last.pth``; returns whether the phase ends."""
        self._where = f"in phase '{phase.name}', epoch {epoch}"
        index, epochs, started = self._phase_index, int(settings["epochs"]), perf_counter()
        seed_everything(self._seed, index, epoch)
        self.model.start_epoch(phase, epoch)
        batches = self._batches(phase, index, epoch, train_data)
        self._rows_of, self._row_gradient = phase.rows, phase.row_gradient
        losses = self._train_epoch(batches, epoch, phase.loss, self.show_progress)
        trained = perf_counter()
        self.seconds["training"] += trained - started
        self.epochs_run += 1
        entry: dict[str, Any] = {"phase": phase.name, "epoch": epoch, "seconds": trained - started}
        entry["loss"] = list(losses.values()) if isinstance(losses, dict) else losses
        line = self._title + self._generate_train_loss_output(epoch, started, trained, losses)
        scalars = {f"Loss/Train{name}": loss for name, loss in _named(losses).items()}
        facts = self.model.epoch_facts()
        if facts:
            entry["facts"] = facts
            line += progress.facts_of(facts)
            scalars |= {f"Facts/{name}": value for name, value in facts.items()}

        last = epoch + 1 == epochs or self.clock.is_up()
        stop = improved = False
        step = min(int(settings["eval_step"]), epochs)
        if not phase.validated or step <= 0 or (phase.validate is None and valid_data is None):
            improved, self.best_epoch = True, epoch
        elif (epoch + 1) % step == 0 or last:
            # The last epoch is always validated: what it learnt would be lost otherwise.
            score, stop, improved, text = self._validate(phase, epoch, settings, valid_data)
            entry["valid_score"] = scalars["Valid_score"] = score
            line += text
        if self.tensorboard is not None:
            self.tensorboard.add_scalars(scalars, epoch, phase.name if self._title else None)
        if self.verbose:
            self.logger.info(line)
        self.history.append(entry)

        finished = stop or last or self.clock.is_up()
        if finished:
            self.stopped = "early" if stop else "epochs" if epoch + 1 == epochs else "time"
            if self.verbose:
                self.logger.info(self._ending(phase))
        self._keep(phase, epoch, improved, finished)
        if self.callback_fn and "valid_score" in entry:
            self.callback_fn(epoch, entry["valid_score"])
        return finished

    def _batches(
        self, phase: Phase, index: int, epoch: int, train_data: InstanceBatches | None
    ) -> Iterable[Any]:
        """What an epoch trains on: batches of the phase's own, or the split's instances."""
        if phase.batches is not None:
            return phase.batches(np.random.default_rng([self._seed, index, epoch]))
        if train_data is None:
            raise CDRError(f"phase '{phase.name}' trains on the split's instances, and none were given.")
        train_data.set_epoch(index, epoch)
        return train_data

    def _validate(
        self,
        phase: Phase,
        epoch: int,
        settings: Mapping[str, Any],
        valid_data: Callable[[], Table] | None,
    ) -> tuple[float, bool, bool, str]:
        """Returns the score, whether patience is at its end, whether the score is the best, and what to say of it."""
        started = perf_counter()
        with self._averaged():
            score, result = self._valid_epoch(valid_data, validate=phase.validate)
        self.best_valid_score, self.cur_step, stop, improved = early_stopping(
            score,
            self.best_valid_score,
            self.cur_step,
            max_step=int(settings["stopping_step"]),
            bigger=self._bigger,
        )
        if improved:
            self.best_epoch, self.best_valid_result = epoch, result
        took = perf_counter() - started
        self.seconds["validation"] += took
        text = progress.validation_line(took, score, result, self.valid_metric, improved)
        return score, stop, improved, text

    def _train_epoch(
        self,
        train_data: Iterable[Any],
        epoch_idx: int,
        loss_func: Callable[..., Loss] | None = None,
        show_progress: bool = False,
    ) -> float | dict[str, float]:
        """Trains on each batch once; returns the sum of the batches' losses, by term if there are several."""
        self.model.train()
        loss_func = loss_func or self.model.calculate_loss
        total: dict[str, float] = {}
        bar = tqdm(
            train_data,
            total=len(train_data) if isinstance(train_data, Sized) else None,
            ncols=100,
            desc=set_color(f"Train {epoch_idx:>5}", "pink"),
            disable=not show_progress,
        )
        for number, batch in enumerate(bar):
            batch = batch.to(self.device)
            for name, term in self._update(loss_func, batch, number).items():
                total[name] = total.get(name, 0.0) + term.item()
            if self.gpu_available and show_progress:
                bar.set_postfix_str(set_color("GPU RAM: " + get_gpu_usage(self.device), "yellow"))
        if not total:
            raise CDRError(f"There is no batch to train on {self._where}.")
        check_weights(self.model, self._where, self._last_good())
        scalar = total.get("")
        return total if scalar is None else scalar

    def _update(self, loss_func: Callable[..., Loss], batch: Any, number: int) -> dict[str, torch.Tensor]:
        """One step of the optimiser, along the gradient that the phase's ``sharpness`` says."""

        def loss(rows: torch.Tensor | None) -> dict[str, torch.Tensor]:
            with self._precision():
                return _terms(loss_func(batch) if rows is None else loss_func(batch, rows))

        rows_of, row_gradient = self._rows_of, self._row_gradient
        step = sharpness.Step(
            loss,
            check=lambda terms: self._check_loss(terms, batch, number),
            clear=lambda: self.optimizer.zero_grad(set_to_none=True),
            rows=None if rows_of is None else lambda: rows_of(batch),
            gradient=None if row_gradient is None else lambda rows: row_gradient(batch, rows),
        )
        terms = self._sharpness.backward(step)
        if self.clip_grad_norm:
            clip_gradients(self.model.parameters(), **self.clip_grad_norm)
        self.optimizer.step()
        if self._average is not None:
            self._average.update()
        return terms

    def _valid_epoch(
        self,
        valid_data: Callable[[], Table] | None,
        show_progress: bool = False,
        *,
        validate: Callable[[], float] | None = None,
    ) -> tuple[float, Table | None]:
        """Returns (mean ``valid_metric`` over the domains, table), or the model's own (score, None)."""
        result: Table | None = None
        if validate is not None:
            self.model.eval()
            with torch.no_grad():
                score = float(validate())
        else:
            assert valid_data is not None
            result = valid_data()
            score = mean_over_domains(result, self.valid_metric)
        if math.isnan(score):
            raise CDRError(f"The validation score is not a number {self._where}. {self._last_good()}")
        return score, result

    def _how_to_resume(self) -> str:
        return f"interrupted {self._where}; {self.resume_hint}"

    # -- settings --------------------------------------------------------------------------------------------

    @property
    def _seed(self) -> int:
        return int(self.config["seed"] or 0) % 2**32

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's optimiser, in torch's fused form where there is one.

        Raises:
            CDRError: RecBole does not know the learner.
        """
        learner, parameters = kwargs["learner"].lower(), list(kwargs.pop("params"))
        check_learner(learner)
        faster = fused(learner, parameters, kwargs["learning_rate"], kwargs["weight_decay"])
        return faster or super()._build_optimizer(params=parameters, **kwargs)

    def _skip_rest(self, phases: list[Phase]) -> None:
        self.skipped = [phase.name for phase in phases[self._phase_index + 1 :]]
        if self.skipped:
            self.logger.warning(f"{self.time_cap} left no time for: {', '.join(self.skipped)}")

    def _check_loss(self, terms: dict[str, torch.Tensor], batch: Any, number: int) -> None:
        if not all(math.isfinite(term.item()) for term in terms.values()):
            facts = {**self._sharpness.facts(), **self.model.facts(batch)}
            domains = self.model.domain_names
            details = progress.describe_batch(terms, batch, domains, self.optimizer, facts)
            raise CDRError(
                f"The loss is not finite {self._where}, batch {number} ({details}). {self._last_good()}"
            )

    # -- what is said ----------------------------------------------------------------------------------------

    def _generate_train_loss_output(
        self, epoch_idx: int, s_time: float, e_time: float, losses: float | dict[str, float]
    ) -> str:
        """RecBole's line, with the names of the loss terms where the model gives them."""
        if not isinstance(losses, dict):
            return super()._generate_train_loss_output(epoch_idx, s_time, e_time, losses)
        line = super()._generate_train_loss_output(epoch_idx, s_time, e_time, tuple(losses.values()))
        return progress.with_names(line, losses)

    def _ending(self, phase: Phase) -> str:
        why = {
            "early": f"no better for {self.cur_step} validations",
            "epochs": "all epochs done",
            "time": f"{self.time_cap} reached",
        }[self.stopped]
        of = f" ({phase.name})" if self._title else ""
        return f"Finished training{of}: {why}; best epoch {self.best_epoch}"


def seed_everything(*entropy: int) -> None:
    """Seeds Python's, numpy's and torch's generators (adapted models may use any) from some numbers."""
    state = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]))


def _terms(losses: Loss) -> dict[str, torch.Tensor]:
    """The terms of a loss by name: fields of a named tuple, numbers for a plain one, "" for a scalar."""
    if not isinstance(losses, tuple):
        return {"": losses}
    names = getattr(losses, "_fields", None) or [f"loss{i}" for i in range(1, len(losses) + 1)]
    return dict(zip(names, losses, strict=True))


def _named(losses: float | dict[str, float]) -> dict[str, float]:
    return {f"/{name}": value for name, value in losses.items()} if isinstance(losses, dict) else {"": losses}
