"""A trainer's state, and the checkpoints that it goes on from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.optimisation import WeightAverage
from recbole_cdr_ext.trainer.progress import Clock, Table, TensorBoard


class ResumableTrainer(Trainer):
    """What a trainer knows between two epochs, and how that is written and read again.

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
        clock: what it took, and the caps on that.
        skipped: names of the phases that the time cap left no time for.
    """

    config: CDRConfig
    model: CrossDomainRecommender
    best_valid_result: Table | None

    # RecBole's constructor opens a TensorBoard folder in the working directory, builds an optimiser over all
    # parameters (a model may have none) and names checkpoints after the clock. So it is not called; what the
    # inherited methods read is set here.
    def __init__(
        self,
        config: CDRConfig,
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
        self.clock = Clock(float(config["max_seconds"] or 0), float(config["max_processor_seconds"] or 0))
        self.tensorboard: TensorBoard | None = None
        self.optimizer: Any = None

        self.stopped = "epochs"
        self.epochs_run = 0
        self.history: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self._phase_index = 0
        self._rows_of: Callable[[Any], torch.Tensor] | None = None
        self._row_gradient: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
        self._average: WeightAverage | None = None
        self.saved = True
        self._start_phase()
        self._resumed: tuple[dict[str, Any], dict[str, checkpoint.State]] | None = None
        self._last_saved: str | None = None

    def _start_phase(self) -> None:
        self.start_epoch = self.cur_step = 0
        self.best_valid_score, self.best_valid_result, self.best_epoch = self._worst_score, None, -1
        self._best: checkpoint.State | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Spent so far in "training" and "validation", interrupted parts of the run included."""
        return self.clock.seconds

    @property
    def processor_seconds(self) -> float:
        """Of this process and its threads, over the same."""
        return self.clock.processor_seconds

    @property
    def time_cap(self) -> str:
        """The time cap that was reached, as the user set it."""
        return self.clock.cap

    @property
    def _worst_score(self) -> float:
        return -math.inf if self._bigger else math.inf

    # -- writing ---------------------------------------------------------------------------------------------

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

    def _last_good(self) -> str:
        last = self._last_saved
        saved = f"The last good checkpoint is kept: {last}." if last else "Nothing was saved yet."
        return f"{saved} Lower learning_rate, or set clip_grad_norm."

    # -- reading ---------------------------------------------------------------------------------------------

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
        self.stopped, self.epochs_run, self.history = meta["stopped"], meta["epochs_run"], meta["history"]
        self.clock.seconds = meta["seconds"]
        self.clock.processor_seconds = meta.get("processor_seconds", 0.0)  # 0.1.0 did not count them
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
        return bool(meta["phase_finished"])

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: Callable[[], Table],
        load_best_model: bool = True,
        model_file: str | Path | None = None,
        show_progress: bool = False,
    ) -> Table:
        """Returns the table that ``eval_data``, a function without arguments, gives for the best weights."""
        if load_best_model:
            path = model_file or self.saved_model_file
            _, states = checkpoint.load(path, model=self.config["model"], data=self.data, device=self.device)
            checkpoint.restore(self.model, states["model"], path)
        return eval_data()
