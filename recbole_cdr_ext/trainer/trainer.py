"""One trainer for all models: runs their phases, validates, stops early, resumes to the same result."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from logging import getLogger
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import early_stopping, get_gpu_usage, set_color
from torch import nn
from tqdm import tqdm

from recbole_cdr_ext import compat
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.evaluation.ranking_metrics import mean_over_domains
from recbole_cdr_ext.model.phase import Phase
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.trainer import checkpoint, finite, sharpness
from recbole_cdr_ext.trainer.averaging import WeightAverage
from recbole_cdr_ext.trainer.clipping import clip_gradients
from recbole_cdr_ext.trainer.tensorboard import TensorBoard

compat.apply()

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
PHASE_SETTINGS = (
    "epochs", "learning_rate", "weight_decay", "learner", "stopping_step", "eval_step", "sharpness", "rho",
    "rho_scope", "rho_relative", "pgd_steps", "pgd_step_size", "weight_averaging",
)  # fmt: skip

Table = dict[str, dict[str, dict[str, Any]]]


class CrossDomainTrainer(Trainer):
    """RecBole's ``Trainer`` for models that learn in phases.

    Each phase starts from the best weights of the one before, with a fresh optimiser over the parameters that
    learn in it; all others are frozen while it runs. Everything random in an epoch follows from (seed, phase,
    epoch), and ``last.pth`` is written after each epoch, so a run that was interrupted and resumed ends as an
    unbroken one would.

    Args:
        config: the settings.
        model: what to train.
        folder: where checkpoints (and TensorBoard's files) go; it must exist.
        data: fingerprint of data and split, stored in checkpoints and compared on resuming.
        resume_hint: how to go on after Ctrl-C; that of the command line, for the folder's name, by default.
        about: more to store in checkpoints: what JSON can hold.

    Attributes:
        stopped: why training ended: "early" (``stopping_step``), "epochs" (all were run) or "time".
        epochs_run: over all phases.
        history: one entry per epoch: phase, epoch, losses, seconds, valid score.
        seconds: spent so far in "training" and "validation", interrupted parts of the run included.
        processor_seconds: of this process and its threads, over the same.
        skipped: names of the phases that the time cap left no time for.
    """

    # RecBole's constructor opens a TensorBoard folder in the working directory, builds an optimiser over all
    # parameters (a model may have none) and names checkpoints after the clock. So it is not called; what the
    # inherited methods read is set here.
    def __init__(
        self,
        config,
        model: CrossDomainRecommender,
        folder: str | Path,
        *,
        data: str = "",
        resume_hint: str | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        self.config, self.model = config, model
        self.folder = Path(folder)
        self.data, self.about = data, dict(about or {})
        self.resume_hint = resume_hint or f"go on with --resume={self.folder.name}"
        self.logger = getLogger()
        self.device = torch.device(config["device"] or "cpu")
        self.gpu_available = self.device.type == "cuda"
        self.saved_model_file = str(self.folder / checkpoint.MODEL)
        self.learner, self.learning_rate = config["learner"], config["learning_rate"]
        self.weight_decay = config["weight_decay"]
        self.clip_grad_norm = config["clip_grad_norm"]
        self.valid_metric = config["valid_metric"].lower()
        self._bigger = bool(config["valid_metric_bigger"])
        amp = bool(config["enable_amp"])
        # Entering autocast costs as much as a small loss: only where it is asked for.
        self._precision = partial(torch.autocast, self.device.type, torch.bfloat16) if amp else nullcontext
        self.max_seconds = float(config["max_seconds"] or 0)
        self.max_processor_seconds = float(config["max_processor_seconds"] or 0)
        self.tensorboard: TensorBoard | None = None
        self.optimizer: Any = None

        self.stopped = "epochs"
        self.epochs_run = 0
        self.history: list[dict[str, Any]] = []
        self.seconds = {"training": 0.0, "validation": 0.0}
        self.processor_seconds = 0.0
        self.skipped: list[str] = []
        self._phase_index = 0
        self._rows_of = self._row_gradient = None
        self._average: WeightAverage | None = None
        self._start_phase()
        self._resumed: tuple[dict[str, Any], dict[str, checkpoint.State]] | None = None
        self._last_saved: str | None = None

    def _start_phase(self) -> None:
        self.start_epoch = self.cur_step = 0
        self.best_valid_score, self.best_valid_result, self.best_epoch = self._worst_score, None, -1
        self._best: checkpoint.State | None = None

    @property
    def _worst_score(self) -> float:
        return -math.inf if self._bigger else math.inf

    # -- the run ---------------------------------------------------------------------------------------------

    def fit(
        self,
        split,
        train_data=None,
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
        self.verbose, self.saved, self.show_progress, self.callback_fn = (
            verbose,
            saved,
            show_progress,
            callback_fn,
        )
        phases = self.model.phases()
        self._where = "before the first epoch"
        try:
            if self.config["tensorboard"]:
                self.tensorboard = TensorBoard(self.folder)
            started, self._processor_mark = perf_counter(), process_time()
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
                settings = self.config.to_dict() if hasattr(self.config, "to_dict") else dict(self.config)
                self.tensorboard.add_settings(settings, self.best_valid_score)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._how_to_resume()) from None
        finally:
            if self.tensorboard is not None:
                self.tensorboard.close()
        if saved:
            checkpoint.save(self.saved_model_file, self._meta(finished=True), model=self.model.state_dict())
        score = self.best_valid_score if math.isfinite(self.best_valid_score) else None
        return score, self.best_valid_result

    def _fit_phase(self, phases: list[Phase], train_data, valid_data) -> None:
        phase, index = phases[self._phase_index], self._phase_index
        self._title = f"{phase.name} " if len(phases) > 1 else ""
        settings = self._settings(phase)
        learning = self._learning(phase)
        self._start_phase()
        self.stopped, finished = "epochs", False
        self._sharpness = sharpness.make(settings, learning, names_rows=phase.rows is not None)
        with _frozen_but(self.model, learning):
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
                finished = self._fit_epoch(phase, index, epoch, epochs, settings, train_data, valid_data)
                if finished:
                    break
            self.optimizer.zero_grad(set_to_none=True)
        if self._best is not None:
            checkpoint.restore(self.model, self._best)

    def _fit_epoch(self, phase, index, epoch, epochs, settings, train_data, valid_data) -> bool:
        """Trains, validates where that is due, writes ``last.pth``; returns whether the phase ends."""
        self._where = f"in phase '{phase.name}', epoch {epoch}"
        started = perf_counter()
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
            line += " [" + ", ".join(f"{name} {value:.3g}" for name, value in facts.items()) + "]"
            scalars |= {f"Facts/{name}": value for name, value in facts.items()}

        last = epoch + 1 == epochs or self._out_of_time()
        stop = improved = False
        step = min(int(settings["eval_step"]), epochs)
        if not phase.validated or step <= 0 or (phase.validate is None and valid_data is None):
            improved, self.best_epoch = True, epoch
        elif (epoch + 1) % step == 0 or last:
            # The last epoch is always validated: what it learnt would be lost otherwise.
            score, stop, improved, said = self._validate(phase, epoch, settings, valid_data)
            entry["valid_score"] = scalars["Valid_score"] = score
            line += said
        if self.tensorboard is not None:
            self.tensorboard.add_scalars(scalars, epoch, phase.name if self._title else None)
        if self.verbose:
            self.logger.info(line)
        self.history.append(entry)

        finished = stop or last or self._out_of_time()
        if finished:
            self.stopped = "early" if stop else "epochs" if epoch + 1 == epochs else "time"
            if self.verbose:
                self.logger.info(self._ending(phase))
        self._keep(phase, epoch, improved, finished)
        if self.callback_fn and "valid_score" in entry:
            self.callback_fn(epoch, entry["valid_score"])
        return finished

    def _batches(self, phase: Phase, index: int, epoch: int, train_data) -> Iterable:
        """What an epoch trains on: batches of the phase's own, or the split's instances."""
        if phase.batches is not None:
            return phase.batches(np.random.default_rng([self._seed, index, epoch]))
        if train_data is None:
            raise CDRError(f"phase '{phase.name}' trains on the split's instances, and none were given.")
        train_data.set_epoch(index, epoch)
        return train_data

    def _validate(self, phase: Phase, epoch: int, settings, valid_data) -> tuple[float, bool, bool, str]:
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
        return score, stop, improved, self._validation_output(took, score, result, improved)

    def _keep(self, phase: Phase, epoch: int, improved: bool, finished: bool) -> None:
        """Keeps the best weights, and writes ``last.pth``."""
        if improved or self._best is None:
            with self._averaged():
                self._best = checkpoint.snapshot(self.model)
        if not self.saved:
            return
        path = self.folder / checkpoint.LAST
        states = {
            "model": self.model.state_dict(),
            "best": self._best,
            "optimizer": self.optimizer.state_dict(),
        }
        if self._average is not None:
            states["average"] = self._average.state()
        elif improved:
            states["best"] = states["model"]  # stored once
        meta = self._meta(phase=phase.name, epoch=epoch, phase_finished=finished)
        checkpoint.save(path, meta, **states)
        self._last_saved = f"{path} (phase '{phase.name}', epoch {epoch})"

    def _averaged(self) -> AbstractContextManager[None]:
        """The time in which the weights are their average, if there is one."""
        return nullcontext() if self._average is None else self._average.in_place()

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """Trains on each batch once; returns the sum of the batches' losses, by term if there are several."""
        self.model.train()
        loss_func = loss_func or self.model.calculate_loss
        total: dict[str, float] = {}
        bar = tqdm(
            train_data,
            total=len(train_data) if hasattr(train_data, "__len__") else None,
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
        finite.check_weights(self.model, self._where, self._kept())
        return total.get("", total)

    def _update(self, loss_func, batch, number: int) -> dict[str, torch.Tensor]:
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

    def _valid_epoch(self, valid_data, show_progress=False, *, validate: Callable[[], float] | None = None):
        """Returns (mean ``valid_metric`` over the domains, table), or the model's own (score, None)."""
        if validate is not None:
            self.model.eval()
            with torch.no_grad():
                score, result = float(validate()), None
        else:
            result = valid_data()
            score = mean_over_domains(result, self.valid_metric)
        if math.isnan(score):
            raise CDRError(f"The validation score is not a number {self._where}. {self._kept()}")
        return score, result

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """Returns the table that ``eval_data``, a function without arguments, gives for the best weights."""
        if load_best_model:
            path = model_file or self.saved_model_file
            _, states = checkpoint.load(path, model=self.config["model"], data=self.data, device=self.device)
            checkpoint.restore(self.model, states["model"], path)
        return eval_data()

    # -- resuming --------------------------------------------------------------------------------------------

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Makes the next :meth:`fit` go on after the epoch that ``last.pth`` was written at.

        Raises:
            CDRError: the file is no checkpoint, damaged, or of another model or other data.
        """
        meta, states = checkpoint.load(
            resume_file, model=self.config["model"], data=self.data, device=self.device
        )
        if not {"model", "best", "optimizer"} <= set(states) or "phase_index" not in meta:
            raise CDRError(
                f"{resume_file} holds a model for use; training resumes from {checkpoint.LAST} only."
            )
        names = [phase.name for phase in self.model.phases()]
        if meta["phases"] != names:
            raise CDRError(
                f"checkpoint {resume_file} has the phases {meta['phases']}, model '{self.config['model']}' "
                f"has {names}."
            )
        self._resumed = (meta, states)
        self._phase_index = meta["phase_index"]
        self._last_saved = f"{resume_file} (phase '{meta['phase']}', epoch {meta['epoch']})"
        for name in ("stopped", "epochs_run", "history", "seconds"):
            setattr(self, name, meta[name])
        self.processor_seconds = meta.get("processor_seconds", 0.0)  # 0.1.0 did not count them
        self.logger.info(
            f"Checkpoint loaded. Resume training after phase '{meta['phase']}', epoch {meta['epoch']}"
        )

    def _take_up(self) -> bool:
        """Puts the resumed checkpoint's state in place; returns whether its phase was at its end."""
        assert self._resumed is not None
        (meta, states), self._resumed = self._resumed, None
        path = self.folder / checkpoint.LAST
        checkpoint.restore(self.model, states["model"], path)
        try:
            self.optimizer.load_state_dict(states["optimizer"])
            if self._average is not None:
                self._average.load(states["average"])
        except (KeyError, ValueError) as error:
            raise CDRError(f"{path}: its optimiser does not fit this one ({error}).") from error
        self._best = states["best"]
        self.start_epoch = meta["epoch"] + 1
        self.cur_step, self.best_epoch, self.stopped = meta["cur_step"], meta["best_epoch"], meta["stopped"]
        self.best_valid_result = meta["best_result"]
        self.best_valid_score = self._worst_score if meta["best_score"] is None else meta["best_score"]
        return meta["phase_finished"]

    def _meta(self, **facts: Any) -> dict[str, Any]:
        return {
            **self.about,
            "model": self.config["model"],
            "data": self.data,
            "phase_index": self._phase_index,
            "phases": [phase.name for phase in self.model.phases()],
            "best_score": self.best_valid_score if math.isfinite(self.best_valid_score) else None,
            "best_result": self.best_valid_result,
            "best_epoch": self.best_epoch,
            "cur_step": self.cur_step,
            "stopped": self.stopped,
            "epochs_run": self.epochs_run,
            "history": self.history,
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            **facts,
        }

    def _how_to_resume(self) -> str:
        return f"interrupted {self._where}; {self.resume_hint}"

    # -- settings --------------------------------------------------------------------------------------------

    @property
    def _seed(self) -> int:
        return int(self.config["seed"] or 0) % 2**32

    def _settings(self, phase: Phase) -> dict[str, Any]:
        own = dict(phase.settings)
        unknown = next((key for key in own if key not in PHASE_SETTINGS), None)
        if unknown:
            raise CDRError(
                f"phase '{phase.name}' sets '{unknown}', which no phase has."
                f"{did_you_mean(unknown, PHASE_SETTINGS)}"
            )
        return {key: own.get(key, self.config[key]) for key in PHASE_SETTINGS}

    def _learning(self, phase: Phase) -> list[nn.Parameter]:
        # A parameter that the model keeps fixed (pre-trained vectors, say) stays so in every phase.
        learning = [p for _, p in self.model.parameters_of(phase) if p.requires_grad]
        if not learning:
            raise CDRError(
                f"phase '{phase.name}' of {type(self.model).__name__} has nothing that learns: no "
                f"parameter's name begins with one of {phase.parameters}."
            )
        return learning

    def _build_optimizer(self, **kwargs):
        """RecBole's optimiser, in torch's fused form where there is one.

        The fused step of Adam and AdamW is one pass over the parameters: six times as fast on embedding
        tables on a CPU, with and without weight decay.

        Raises:
            CDRError: RecBole does not know the learner.
        """
        learner, params = kwargs["learner"].lower(), list(kwargs.pop("params"))
        if learner not in LEARNERS:
            raise CDRError(
                f"unknown learner '{learner}'.{did_you_mean(learner, LEARNERS)} Known: {LEARNERS}."
            )
        optimizer = super()._build_optimizer(params=params, **kwargs)
        if learner in ("adam", "adamw") and all(p.is_floating_point() for p in params):
            optimizer = type(optimizer)(
                params, lr=kwargs["learning_rate"], weight_decay=kwargs["weight_decay"], fused=True
            )
        return optimizer

    def _out_of_time(self) -> bool:
        now = process_time()
        self.processor_seconds += now - self._processor_mark
        self._processor_mark = now
        return (
            0 < self.max_seconds <= sum(self.seconds.values())
            or 0 < self.max_processor_seconds <= self.processor_seconds
        )

    @property
    def time_cap(self) -> str:
        """The time cap that was reached, as the user set it."""
        if 0 < self.max_processor_seconds <= self.processor_seconds:
            return f"max_processor_seconds={self.max_processor_seconds:g}"
        return f"max_seconds={self.max_seconds:g}"

    def _skip_rest(self, phases: list[Phase]) -> None:
        self.skipped = [phase.name for phase in phases[self._phase_index + 1 :]]
        if self.skipped:
            self.logger.warning(f"{self.time_cap} left no time for: {', '.join(self.skipped)}")

    def _check_loss(self, terms: dict[str, torch.Tensor], batch, number: int) -> None:
        if not all(math.isfinite(term.item()) for term in terms.values()):
            facts = {**self._sharpness.facts(), **self.model.facts(batch)}
            domains = self.model.domain_names
            said = finite.describe(terms, batch, domains, self.optimizer, facts)
            raise CDRError(f"The loss is not finite {self._where}, batch {number} ({said}). {self._kept()}")

    def _kept(self) -> str:
        kept = (
            f"The last good checkpoint is kept: {self._last_saved}."
            if self._last_saved
            else "Nothing was saved yet."
        )
        return f"{kept} Lower learning_rate, or set clip_grad_norm."

    # -- what is said ----------------------------------------------------------------------------------------

    def _generate_train_loss_output(self, epoch_idx, s_time, e_time, losses):
        """RecBole's line, with the names of the loss terms where the model gives them."""
        if not isinstance(losses, dict):
            return super()._generate_train_loss_output(epoch_idx, s_time, e_time, losses)
        values = super()._generate_train_loss_output(epoch_idx, s_time, e_time, tuple(losses.values()))
        for place, name in enumerate(losses, start=1):
            values = values.replace(set_color(f"train_loss{place}", "blue"), set_color(name, "blue"))
        return values

    def _validation_output(self, seconds: float, score: float, result: Table | None, improved: bool) -> str:
        parts = [
            f"{domain} {cell[self.valid_metric]:.4f}"
            for domain, cell in ((d, next(iter(cells.values()))) for d, cells in (result or {}).items())
            if cell["n"]
        ]
        detail = f" ({', '.join(parts)})" if len(parts) > 1 else ""
        label, time_label = set_color("valid_score", "blue"), set_color("time", "blue")
        return (
            f" {set_color('evaluating', 'green')} "
            f"[{time_label}: {seconds:.2f}s, {label}: {score:.6f}{detail}]" + (" best" if improved else "")
        )

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


def _terms(losses) -> dict[str, torch.Tensor]:
    """The terms of a loss by name: fields of a named tuple, numbers for a plain one, "" for a scalar."""
    if not isinstance(losses, tuple):
        return {"": losses}
    names = getattr(losses, "_fields", None) or [f"loss{i}" for i in range(1, len(losses) + 1)]
    return dict(zip(names, losses, strict=True))


def _named(losses: float | dict[str, float]) -> dict[str, float]:
    return {f"/{name}": value for name, value in losses.items()} if isinstance(losses, dict) else {"": losses}


@contextmanager
def _frozen_but(model: nn.Module, learning: list[nn.Parameter]) -> Iterator[None]:
    """Freezes every parameter but those in ``learning``, and thaws them afterwards."""
    learns = {id(p) for p in learning}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in learns]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
