"""Finished runs: their folders, what is read of them, and the commands that make them."""

from __future__ import annotations

import functools
import glob
import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.evaluation.result_table import read_instances
from recbole_cdr_ext.runs.folder import RESULT, SETTINGS, how_to_resume
from recbole_cdr_ext.settings.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.settings.reading import TASKS, as_argument, words_in

# Caps on time are settings of a machine, but change what a command gives.
CAPS = {"max_seconds", "max_processor_seconds"}
UNKNOWN = "?"


class Unusable(Exception):
    """Why a folder's run can't be reported."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, in its folder or in what a study has stored of it.

    Attributes:
        folder: of the run; of one that is only stored, it need not exist.
        result: what ``result.json`` holds, checked as far as it is read.
        unknown: settings that the run is older than and whose values in it are not known (:func:`find_unknown`).
        stored_command: the command that made it, where that is stored; None: it follows from the settings.
        stored_instances: reads its per-instance table from where it is stored; None: it lies in the folder.
    """

    folder: Path
    result: Mapping[str, Any]
    unknown: set[str] = field(default_factory=set, compare=False)
    stored_command: str | None = None
    stored_instances: Callable[[], pd.DataFrame] | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.result["model"])

    @property
    def task(self) -> str:
        """The task, next_item or rating; runs from before there were two don't say."""
        return self.result.get("task") or self.settings.get("task") or "next_item"

    @property
    def seed(self) -> int:
        """The seed of training."""
        return int(self.result["seed"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """All settings."""
        settings: Mapping[str, Any] = self.result["settings"]
        return settings

    @property
    def notes(self) -> list[str]:
        """What a reader of the result must know."""
        return [str(note) for note in self.result.get("notes") or []]

    @property
    def leaks(self) -> dict[str, Any]:
        """The counts of the leak audit that are not 0, by kind of leak."""
        report = self.result.get("report")
        rows = report.items() if isinstance(report, Mapping) else ()
        return {str(k).removeprefix("leak: "): n for k, n in rows if str(k).startswith("leak: ") and n}

    @functools.cached_property
    def instances(self) -> pd.DataFrame:
        """The per-instance table.

        Raises:
            CDRError: there is none, or it can't be read.
        """
        return read_instances(self.folder) if self.stored_instances is None else self.stored_instances()

    def value(self, key: str) -> object:
        """Returns a setting; if the run is older than the setting, today's default, or UNKNOWN."""
        if key in self.unknown:
            return UNKNOWN
        return self.settings[key] if key in self.settings else self.defaults().get(key)

    def defaults(self) -> Mapping[str, Any]:
        """Returns what the run's settings would be if the user had set none."""
        return default_settings(self.model, self.result["dataset"], self.task)

    def command(self) -> str:
        """Returns the command that makes such a run; without what lies on the machine, such as folders."""
        if self.stored_command is not None:
            return self.stored_command
        defaults = self.defaults()
        # Folders and other run-time settings are the reader's own.
        passed = RUNTIME_KEYS - CAPS | {"model", "dataset", "seed", "simulated"}
        words = [f"--model={self.model}", f"--dataset={self.result['dataset']}", f"--seed={self.seed}"]
        if not defaults:  # a model, or a dataset, that isn't installed here
            words = [f"--config_files={self.folder / SETTINGS}", "--run_id=None"]
        for key, value in self.settings.items():
            if key in defaults and key not in passed and value != defaults[key]:
                words.append(f"--{key}={as_argument(value)}")
        return " ".join(["recbole-cdr run", *map(shlex.quote, words)])


@functools.cache
def default_settings(model: str, dataset: str, task: str) -> Mapping[str, Any]:
    """Returns the settings of a run that is given none; {} if this model or dataset isn't known here."""
    try:
        return CDRConfig(model, dataset, config_dict={"task": task}).to_dict()
    except Exception:  # of whatever kind another package's model raises: it is only wanted for comparison
        return {}


def find_folders(runs: str | None, checkpoint_dir: str | Path) -> list[Path]:
    """Returns the folders of runs, finished or not, each once.

    Raises:
        CDRError: a word names nothing.
    """
    root = Path(checkpoint_dir)
    if runs is None:
        if not root.is_dir():
            raise CDRError(f"There is no folder {root}: say --checkpoint_dir=DIR or --runs=DIR.")
        return _runs_in(root)
    words = words_in(runs)
    if not words:
        raise CDRError(
            "Which runs? Say --runs=DIR,DIR; without --runs, all in --checkpoint_dir are reported."
        )
    folders: dict[Path, Path] = {}
    for word in words:
        named = [path for base in (Path(), root) for path in _matches(base, word)]
        if not named:
            known = [path.name for path in _runs_in(root)] if root.is_dir() else []
            raise CDRError(f"--runs: there is no '{word}' here or in {root}.{did_you_mean(word, known)}")
        for path in named:
            path = path if path.is_dir() else path.parent
            # A folder without runs is named as it is, and skipped with the reason.
            for folder in [path] if _is_run(path) else _runs_in(path) or [path]:
                folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def _matches(base: Path, word: str) -> list[Path]:
    path = base / word
    if path.exists():
        return [path]
    return sorted(Path(name) for name in glob.glob(str(path)) if Path(name).is_dir())


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))


def _is_run(folder: Path) -> bool:
    return (folder / RESULT).exists() or (folder / SETTINGS).exists()


def read_run(folder: Path, part: str = "test") -> FinishedRun:
    """Reads a finished run.

    Args:
        part: the part that its scores are wanted of, "test" or "valid".

    Raises:
        Unusable: it isn't finished, or its result isn't one; says why.
    """
    path = folder / RESULT
    if not path.exists():
        begun = (folder / SETTINGS).exists()
        raise Unusable(f"not finished; {how_to_resume(folder)}" if begun else "no run's folder")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Unusable(f"{RESULT} can't be read: {' '.join(str(error).split())}") from error
    check_result(result, part)
    return FinishedRun(folder, result)


def check_result(result: Any, part: str = "test") -> None:
    """Checks what is read of a result.

    Args:
        part: the part that it must have scores of, "test" or "valid".

    Raises:
        Unusable: it isn't one; says why.
    """
    if not isinstance(result, dict):
        raise Unusable(f"{RESULT} holds no result")
    kinds: Mapping[str, type] = {
        "model": str, "dataset": str, "split": str, "seed": int, part: dict, "settings": dict,
    }  # fmt: skip
    if (
        part not in result
        and isinstance(result.get("settings"), dict)
        and result["settings"].get("evaluate_test") is False
    ):
        raise Unusable("its test part was not evaluated (evaluate_test=False)")
    for key, kind in kinds.items():
        if not isinstance(result.get(key), kind):
            raise Unusable(f"{RESULT} is damaged: '{key}' is missing or is no {kind.__name__}")
    if result.get("task") not in (None, *TASKS):
        raise Unusable(f"{RESULT}: the task '{result['task']}' is unknown here")
    for name in (part, "popularity", "test_among_test_items", "popularity_among_test_items"):
        if name in result:
            _check_table(name, result[name])
    floors = result.get("floors") or {}
    if not isinstance(floors, dict):
        raise Unusable(f"{RESULT} is damaged: 'floors' is no dict")
    for name, table in floors.items():
        _check_table(f"floors: {name}", table)
    if not isinstance(result.get("notes") or [], list):
        raise Unusable(f"{RESULT} is damaged: 'notes' is no list")


def _check_table(name: str, table: Any) -> None:
    damaged = Unusable(f"{RESULT} is damaged: '{name}' is no table of domain, group and metrics")
    if not isinstance(table, dict) or not table:
        raise damaged
    for groups in table.values():
        if not isinstance(groups, dict) or not groups:
            raise damaged
        for cell in groups.values():
            if not isinstance(cell, dict) or type(cell.get("n")) is not int:
                raise damaged
            _check_cell(name, cell)


def _check_cell(name: str, cell: Mapping[str, Any]) -> None:
    for metric, value in cell.items():
        if value is None and not cell["n"]:
            continue
        if type(value) not in (int, float) or not math.isfinite(value):
            raise Unusable(f"{RESULT}: '{name}' has a {metric} that is no number: {value}")
