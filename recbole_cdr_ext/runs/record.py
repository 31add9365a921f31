"""What stands beside a run: what it opens, holds, says and times, and the files that are written at its end."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from recbole.utils import set_color

from recbole_cdr_ext import __version__, compat
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.result_table import result_tables, write_instances
from recbole_cdr_ext.files import locked, make_folder
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.runs.experiment import check_metrics, ensure_data, log_parts
from recbole_cdr_ext.runs.folder import (
    LOG,
    RESULT,
    SETTINGS,
    as_json,
    finished_result,
    how_to_resume,
    new_folder,
    settings_to_resume,
    write_result,
    write_settings,
)
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import parse_arguments
from recbole_cdr_ext.splits.split import RatingSplit, Split
from recbole_cdr_ext.tasks.task import Experiment
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer
from recbole_cdr_ext.versions import versions

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


@dataclass(frozen=True)
class OpenedRun:
    """A run that can begin, or go on.

    Attributes:
        notes: what was said while its data were looked for.
        new: whether it was never begun before.
        result: of a run that is finished already; None of any other.
    """

    config: CDRConfig
    folder: Path
    notes: list[str]
    new: bool
    result: dict[str, Any] | None = None


def open_run(
    model: str | type | None,
    dataset: str | None,
    config_file_list: Sequence[str | Path] | str | Path | None,
    config_dict: Mapping[str, Any] | None,
    argv: Iterable[str] | None,
) -> OpenedRun:
    """Checks the settings of a run, has its data prepared and its folder made; or finds the run to resume.

    Args:
        model, dataset, config_file_list, config_dict, argv: as for :class:`CDRConfig`.

    Raises:
        CDRError: a setting or the data are not right, or the run to resume is not there.
    """
    words = list(argv or ())
    arguments = {**dict(config_dict or {}), **parse_arguments(words)}
    if arguments.get("resume") not in (None, "None", "~", ""):
        config, folder = settings_to_resume(model, dataset, config_file_list, config_dict, words, arguments)
        return OpenedRun(config, folder, [], new=False, result=_shown_result(config, folder))
    config = CDRConfig(model, dataset, config_file_list, config_dict, words)
    check_metrics(config)  # an error now, and not after the data
    make_folder(config["checkpoint_dir"])
    if config["result_file"]:
        make_folder(Path(config["result_file"]).absolute().parent)
    ensured = ensure_data(config, allow_simulated=bool(config["allow_simulated"]))
    if ensured.name != config["dataset"]:
        config = CDRConfig(model, ensured.name, config_file_list, config_dict, words)
    if ensured.simulated:
        config = config.replaced(simulated=True)
    folder = new_folder(config)
    return OpenedRun(config.replaced(run_id=folder.name), folder, ensured.notes, new=True)


def _shown_result(config: CDRConfig, folder: Path) -> dict[str, Any] | None:
    """Prints the result of a finished run, and writes it where the settings ask for it besides."""
    result = finished_result(folder)
    if result is not None:
        print(result_tables(result))
        write_result(result, config["result_file"])
    return result


class RunRecord:
    """What is noted of a run while it goes on.

    Attributes:
        about: what its checkpoints say of it.
        seconds: spent by part: data, model, training, validation, evaluation.
    """

    def __init__(self, opened: OpenedRun):
        self.config, self.folder = opened.config, opened.folder
        self.seconds: dict[str, float] = {}
        self.about = {
            "run_id": self.config["run_id"],
            "dataset": self.config["dataset"],
            "settings": self.config.fingerprint(),
            "versions": versions(),
        }

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time spent in a block to a part's seconds."""
        started = perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - started

    def finish(
        self,
        experiment: Experiment,
        trainer: CrossDomainTrainer,
        outcome: dict[str, Any],
        instances: pd.DataFrame,
    ) -> dict[str, Any]:
        """Writes the result and the per-instance table, prints the table, and returns the result.

        Args:
            outcome: what the experiment says of the trained model.
            instances: the per-instance table.
        """
        config = self.config
        seconds = self.seconds | trainer.seconds
        seconds = {part: seconds[part] for part in ("data", "model", *trainer.seconds, "evaluation")}
        result = {
            "model": config["model"],
            "task": config["task"],
            "dataset": config["dataset"],
            "simulated": bool(config["simulated"]),
            "seed": config["seed"],
            "split": experiment.split.name,
            "run_id": config["run_id"],
            **outcome,
            "stopped": trainer.stopped,
            "epochs_run": trainer.epochs_run,
            "history": trainer.history,
            "seconds": {
                part: round(value, 3) for part, value in {**seconds, "total": sum(seconds.values())}.items()
            },
            "settings": config.to_dict(),
            "versions": versions(),
            "notes": notes_on(experiment, trainer),
            "report": experiment.split.report,
        }
        result = as_json(result)
        if config["save_instances"]:
            write_instances(instances, self.folder)
        # Last of all: a run whose result is there is finished.
        write_result(result, self.folder / RESULT)
        write_result(result, config["result_file"])
        (self.folder / checkpoint.LAST).unlink(missing_ok=True)
        table = result_tables(result)
        logger = logging.getLogger()
        logger.info("\n" + table, extra={"console": False})
        print(table)
        logger.info(f"{set_color('Result', 'blue')}: {self.folder / RESULT}")
        return result


@contextmanager
def recording(opened: OpenedRun) -> Iterator[RunRecord]:
    """Holds a run's folder, and keeps its settings and its log there for as long as it lasts.

    Raises:
        CDRError: another process holds the folder; or what the run raised, after it was logged.
        KeyboardInterrupt: Ctrl-C; its text says how to go on.
    """
    config, folder = opened.config, opened.folder
    with locked(folder, "run"):
        write_settings(config, folder / SETTINGS)
        try:
            with logging_to(folder / LOG, config["state"]):
                try:
                    yield RunRecord(opened)
                except KeyboardInterrupt as stop:
                    hint = str(stop) or f"interrupted; {how_to_resume(folder)}"
                    logging.getLogger().warning(hint)
                    raise KeyboardInterrupt(hint) from None
                except CDRError as error:
                    logging.getLogger().error(str(error), extra={"console": False})
                    raise
        except CDRError:
            # Nothing was trained: a folder that only says so would stand in the way of the next attempt.
            if opened.new and not (folder / checkpoint.LAST).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
