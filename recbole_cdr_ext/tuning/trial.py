"""One trial of a sweep: what a run does up to its test evaluation, reported epoch by epoch.

Nothing here knows of Ray: who runs the trial hands in what it reports to.
"""

from __future__ import annotations

import logging
import math
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric_tables import mean_over_domains
from recbole_cdr_ext.files import make_folder, replacing
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.runs.experiment import build, set_threads
from recbole_cdr_ext.runs.folder import LOG
from recbole_cdr_ext.runs.record import describe_model, logging_to
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer
from recbole_cdr_ext.tuning.records import CUT, FAILED, FINISHED, RUNNING, Record, read_record

compat.apply()

SETTINGS = "settings.yaml"
Report = Callable[[dict[str, Any]], None]


class TrialFailed(Exception):
    """A trial has come to nothing; its record says why."""


# -- what trials share ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep have in common. Its arrays may lie in memory that no trial can write to.

    Attributes:
        model: name or class.
        settings: the user's, as a property file would hold them.
        machine: settings of where and how, which do not change what is computed.
        folder: of the trials' folders.
        dataset: as :meth:`CrossDomainDataset.portable` gives it.
        split: with what the stages made of it if ``staged``.
        staged: whether the model's stages were run; else each trial runs its own.
        plan: settings by the trials' numbers, where they are known beforehand.
    """

    model: str | type
    name: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    folder: Path
    dataset: CrossDomainDataset
    split: Any
    staged: bool
    plan: tuple[Mapping[str, Any], ...] = ()

    def config(self, searched: Mapping[str, Any], folder: Path) -> CDRConfig:
        """Returns a trial's settings, read from a file that ``recbole-cdr run`` reads to the same end."""
        path = folder / SETTINGS
        write_yaml({**self.settings, **searched}, path)
        return CDRConfig(self.model, self.name, [path], dict(self.machine))


def write_yaml(settings: Mapping[str, Any], path: Path, header: str = "") -> None:
    """Writes a property file; ``header`` becomes its first comment."""
    with replacing(path) as temporary:
        comment = "".join(f"# {line}\n" for line in header.splitlines())
        temporary.write_text(comment + yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")


# -- a trial --------------------------------------------------------------------------------------------------------


def run_trial(
    shared: Shared, name: str, searched: Mapping[str, Any], report: Report, donor: Path | None = None
) -> None:
    """Trains one model and reports its best validation score so far after each validated epoch.

    A trial whose folder has a checkpoint goes on after its last epoch; one that has ended says so again.

    Args:
        report: called with ``epoch`` (of the last phase, from 1), ``score`` (the best so far), ``epoch_score``; it may
            raise SystemExit to end the trial. A trial that fails reports ``failed``, its reason, and nothing else.
        donor: the folder of another trial's checkpoint to go on from, with the settings of this one.

    Raises:
        TrialFailed: the trial raised, ran out of memory or out of numbers.
    """
    folder = make_folder(shared.folder / name)
    record = read_record(folder) or Record(name, dict(searched))
    if donor is None and record.status in (FINISHED, CUT):
        report(_progress(record))
        return
    if donor is None and record.status == FAILED:
        report({"failed": record.reason})
        raise TrialFailed(record.reason)
    record.status, record.settings = RUNNING, dict(searched)
    try:
        with logging_to(folder / LOG, "INFO", console=False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            _train(shared, folder, record, report, donor)
    except Exception as error:
        record.status, record.reason = FAILED, reason_of(error)
        with (folder / LOG).open("a", encoding="utf-8") as log:
            log.write(traceback.format_exc())
        record.write(folder)
        report({"failed": record.reason})
        raise TrialFailed(record.reason) from error


def _train(shared: Shared, folder: Path, record: Record, report: Report, donor: Path | None) -> None:
    config = shared.config(record.settings, folder)
    set_threads(config)
    experiment = build(config, shared.dataset.with_settings(config), shared.split, staged=shared.staged)
    experiment.check()
    logging.getLogger().info(describe_model(experiment.model))
    trainer = CrossDomainTrainer(config, experiment.model, folder, data=experiment.split.fingerprint)
    phases = experiment.model.phases()
    last = folder / checkpoint.LAST
    if donor is not None:
        _take_over(donor / checkpoint.LAST, last, config, phases)
    if last.exists():
        trainer.resume_checkpoint(last)
    _follow(record, trainer, phases)
    if donor is not None and (before_it := read_record(donor)) is not None:
        record.schedule = before_it.schedule  # what its weights were trained with
    if not record.schedule or record.schedule[-1][1] != record.settings:
        record.schedule.append([record.epochs, dict(record.settings)])
    started, before = perf_counter(), record.seconds

    def tell(epoch: int, score: float) -> None:
        _follow(record, trainer, phases)
        record.seconds = before + perf_counter() - started
        record.write(folder)
        if record.score is not None:
            report({**_progress(record), "epoch_score": score})

    trainer.fit(experiment.split, experiment.training_batches(), experiment.validate, callback_fn=tell)
    _follow(record, trainer, phases)
    # What was trained without validation, or by a score of the model's own, is validated once, as a run does it.
    metric = config["valid_metric"].lower()
    score = trainer.best_valid_score if record.curve else mean_over_domains(experiment.validate(), metric)
    if not math.isfinite(score):
        raise CDRError("The validation score is not a number.")
    record.score, record.stopped, record.status = score, trainer.stopped, FINISHED
    record.seconds = before + perf_counter() - started
    record.write(folder)
    report(_progress(record))


def _progress(record: Record) -> dict[str, Any]:
    return {"epoch": record.epochs, "score": record.score}


def _follow(record: Record, trainer: CrossDomainTrainer, phases: Sequence[Phase]) -> None:
    """Brings the record up to what the trainer has done in the last phase, resumed epochs included.

    Other phases are steps on the way, and a score of the model's own cannot be compared: neither is told.
    """
    if not phases or not trainer.history or trainer.history[-1]["phase"] != phases[-1].name:
        return
    history = [entry for entry in trainer.history if entry["phase"] == phases[-1].name]
    record.epochs = int(history[-1]["epoch"]) + 1
    record.by_epochs = _by_epochs(trainer, phases, record.epochs)
    if phases[-1].ranks_to_validate:
        record.curve = [
            [int(entry["epoch"]) + 1, float(entry["valid_score"])]
            for entry in history
            if "valid_score" in entry
        ]
        best = max if trainer.config["valid_metric_bigger"] else min
        record.score = best((score for _, score in record.curve), default=None)


def _by_epochs(trainer: CrossDomainTrainer, phases: Sequence[Phase], epochs: int) -> bool:
    """Returns whether epochs=N cuts the last phase alone: no earlier phase has run longer by the same setting."""
    with_epochs = {phase.name for phase in phases if "epochs" in dict(phase.settings)}
    return phases[-1].name not in with_epochs and all(
        entry["epoch"] < epochs for entry in trainer.history if entry["phase"] not in with_epochs
    )


def _take_over(donor: Path, last: Path, config: CDRConfig, phases: Sequence[Phase]) -> None:
    """Makes another trial's checkpoint this one's, with this one's step size and decay in its optimiser."""
    meta, states = checkpoint.load(donor, model=config["model"])
    phase_settings = dict(phases[meta["phase_index"]].settings)
    for group in states["optimizer"]["param_groups"]:
        group["lr"] = float(phase_settings.get("learning_rate", config["learning_rate"]))
        group["weight_decay"] = float(phase_settings.get("weight_decay", config["weight_decay"]) or 0)
    checkpoint.save(last, meta, **states)


def reason_of(error: BaseException) -> str:
    """Returns what went wrong, in one line."""
    text = " ".join(str(error).split())
    memory = (
        isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text.lower()
    )
    if memory:
        return f"out of memory{': ' + text if text else ''}"
    return text if isinstance(error, CDRError) else f"{type(error).__name__}: {text}".rstrip(": ")
