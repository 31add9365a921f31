"""What a run says: the log of its data and model, the notes on its result, and where the log goes."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from recbole.utils import set_color

from recbole_cdr_ext import __version__, compat
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.runs.experiment import log_parts
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import RatingSplit, Split
from recbole_cdr_ext.tasks.task import Experiment
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

compat.apply()


def log_data(
    config: CDRConfig, dataset: CrossDomainDataset, split: Split | RatingSplit, notes: list[str]
) -> None:
    """Logs what is run on what data: settings, counts, and what the leak audit found."""
    info = logging.getLogger().info
    simulated = set_color(" (SIMULATED DATA)", "red") if config["simulated"] else ""
    info(
        f"{set_color(config['model'], 'pink')} on {set_color(config['dataset'], 'pink')}{simulated}; "
        f"recbole_cdr_ext {__version__}, run {config['run_id']}"
    )
    for note in notes:
        info(note)
    info(
        f"task {config['task']}, split {split.name} (split_seed {config['split_seed']}), "
        f"seed {config['seed']}, device {config['device']}, {torch.get_num_threads()} threads"
    )
    info(f"{set_color('data', 'blue')}: {dataset.summary()}")
    log_parts(config, dataset, split)
    for what, count in split.report.items():
        if not what.startswith("leak: ") and count:
            info(f"  {what}: {count}")
    leaks = {
        what.removeprefix("leak: "): n for what, n in split.report.items() if what.startswith("leak: ") and n
    }
    counts = "; ".join(f"{what}: {n}" for what, n in leaks.items())
    label = set_color("leak audit", "blue")
    if leaks:
        logging.getLogger().warning(f"{label}: {counts}")
    else:
        info(f"{label}: no held-out pair can be reached")


def log_model(model: CrossDomainRecommender) -> None:
    """Logs a model's size and its phases."""
    logging.getLogger().info(describe_model(model))


def describe_model(model: CrossDomainRecommender) -> str:
    """Returns a line on a model: its size and its phases."""
    n = sum(p.numel() for p in model.parameters())
    phases = ", ".join(phase.name for phase in model.phases()) or "nothing to train"
    return f"{set_color('model', 'blue')}: {type(model).__name__}, {n:,} parameters; phases: {phases}"


def notes_on(experiment: Experiment, trainer: CrossDomainTrainer) -> list[str]:
    """Returns what a reader of the result must know about it."""
    notes = []
    if experiment.config["simulated"]:
        notes.append("The data are simulated: the figures say nothing about real users.")
    notes += experiment.notes()
    if trainer.stopped == "time":
        notes.append(f"Training was stopped by {trainer.time_cap}, not by early stopping.")
    if trainer.skipped:
        notes.append(f"No time was left for the phases: {', '.join(trainer.skipped)}.")
    return notes


class _Uncoloured(logging.Formatter):
    _COLOUR = re.compile(r"\x1b\[[0-9;]*m")

    def format(self, record: logging.LogRecord) -> str:
        return self._COLOUR.sub("", super().format(record))


@contextmanager
def logging_to(path: Path, level: str | None, *, console: bool = True) -> Iterator[None]:
    """Sends the log to a file and, if wanted, to the console, as RecBole formats it, for as long as a run lasts.

    RecBole's own set-up writes to ``./log`` and cannot be taken back; here the root logger is, afterwards,
    as it was.
    """
    root = logging.getLogger()
    number = logging.getLevelName((level or "INFO").upper())
    number = number if isinstance(number, int) else logging.INFO
    text = "%(asctime)-15s %(levelname)s  %(message)s"
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(_Uncoloured(text, "%a %d %b %Y %H:%M:%S"))
    handlers: list[logging.Handler] = [file]
    if console:
        screen = logging.StreamHandler()
        screen.setFormatter((logging.Formatter if sys.stderr.isatty() else _Uncoloured)(text, "%d %b %H:%M"))
        screen.addFilter(lambda record: getattr(record, "console", True))
        handlers.append(screen)
    before = root.level
    root.setLevel(number)
    for handler in handlers:
        handler.setLevel(number)
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(before)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
