"""What stands beside a run: its lock, its log, its seconds, and the files that are written at its end."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import pandas as pd
from recbole.utils import set_color

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.instance_table import write_instances
from recbole_cdr_ext.evaluation.result_table import result_tables
from recbole_cdr_ext.files import locked
from recbole_cdr_ext.runs.experiment import Experiment
from recbole_cdr_ext.runs.folder import (
    LOG,
    RESULT,
    SETTINGS,
    as_json,
    how_to_resume,
    write_result,
    write_settings,
)
from recbole_cdr_ext.runs.log import logging_to, notes_on
from recbole_cdr_ext.runs.opening import OpenedRun
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer
from recbole_cdr_ext.versions import versions


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
