"""What is kept of the runs of a study: small enough for version control, and enough for all of its tables.

``cells.jsonl`` has a line per run, ``instances/`` what paired tests read: ``run-KEY.npz``, the ranks of one run's test
instances (of ratings: the sums of each test user's absolute and squared errors, in thousandths of a rating point and
their squares), and ``set-DIGEST.csv.xz``, the instances themselves (of ratings: the users, how many ratings
they were asked for, and a checksum of these), once for all runs that were asked the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.ranking_metrics import RankingMetrics
from recbole_cdr_ext.evaluation.significance import per_user
from recbole_cdr_ext.files import make_folder, replacing
from recbole_cdr_ext.runs.finished import Run, Unusable, check_result, default_settings
from recbole_cdr_ext.studies.cells import Cell, deciding

CELLS, INSTANCES = "cells.jsonl", "instances"
ERROR_UNIT = 0.001  # of a rating point
_LARGE = ("history", "settings", "report")  # of a result; a line has the settings that decide
_ASKED = ("domain", "user", "target", "candidates", "ratings", "asked")
_TEXT = dict.fromkeys(("domain", "user", "target", "asked"), str)
Line = Mapping[str, Any]


@dataclass(frozen=True)
class StoredRun(Run):
    """A run of which only what a store keeps may be left.

    Attributes:
        words: the command that makes it.
        kept: its ranks or sums of errors, and its instances; None where it has none.
        groups: the user groups to compare; None: all.
    """

    words: str = ""
    kept: tuple[Path, Path] | None = None
    groups: tuple[str, ...] | None = field(default=None, compare=False)

    def command(self) -> str:
        """The command that makes such a run."""
        return self.words

    @functools.cached_property
    def instances(self) -> pd.DataFrame:
        """The per-instance table of the test part, as far as tests read it; of ratings a row per user.

        Raises:
            CDRError: it is not there, or can't be read.
        """
        if self.kept is None:
            raise CDRError(f"{self.name} has no per-instance table.")
        values, table = _read_values(self.kept[0]), _read_table(self.kept[1])
        rated = "ratings" in table
        if "rating" in table:
            raise CDRError(
                f"{self.kept[1]} has a row per rating, as an older version kept them: delete the study's folder."
            )
        if len(values) != len(table) * (2 if rated else 1):
            raise CDRError(f"{self.kept[0]} is damaged: {len(values)} values of {len(table)} instances.")
        if self.groups is not None:
            flags = [name for name in table if pd.api.types.is_bool_dtype(table[name])]
            table = table.drop(columns=[name for name in flags if name not in self.groups])
        if rated:
            absolute, squared = values.reshape(2, -1) / table["ratings"].to_numpy()
            return table.assign(
                part="test",
                item="",
                absolute_error=absolute * ERROR_UNIT,
                squared_error=squared * ERROR_UNIT**2,
            )
        return table.assign(part="test", rank=values, **RankingMetrics(self.settings).per_instance(values))


class Store:
    """The folder of a study's results.

    Attributes:
        damaged: how many lines could not be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.damaged = 0
        self._lines: dict[tuple[str, str, int], list[Line]] = {}
        path = folder / CELLS
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                self._take(json.loads(text))
            except (ValueError, TypeError, KeyError):  # half a line: killed while it was written
                self.damaged += 1

    def find(self, cell: Cell, data: str | None) -> Line | None:
        """Returns what is kept of a cell; without data here, of the newest run of its settings, on whatever data.

        Settings that the line is older than count as their defaults of today, as they do in reports.
        """
        wanted = deciding(cell.settings)
        for line in reversed(self._lines.get((wanted["model"], wanted["dataset"], cell.seed), [])):
            if data is not None and line["data"] != data:
                continue
            if line["identity"] == cell.identity or same_settings(line["settings"], wanted):
                return line
        return None

    def add(self, cell: Cell, data: str, run: Run) -> Line:
        """Keeps a finished run."""
        key = cell.key(data)
        result = {name: value for name, value in run.result.items() if name not in _LARGE}
        if run.leaks:
            result["report"] = {f"leak: {what}": n for what, n in run.leaks.items()}
        return self._append(
            {
                "key": key, "identity": cell.identity, "data": data, "row": cell.row, "scene": cell.scene,
                "varied": cell.varied, "seed": cell.seed, "command": cell.command,
                "settings": deciding(cell.settings), "result": result,
                "instances": self._keep_instances(key, run),
            }
        )  # fmt: skip

    def adopt(self, other: Store, line: Line) -> Line:
        """Keeps what another study has kept."""
        if line["instances"] is not None:
            make_folder(self.folder / INSTANCES)
            for path, own in zip(other._files(line), self._files(line), strict=True):
                if path.exists():
                    with replacing(own) as temporary:
                        temporary.write_bytes(path.read_bytes())
        return self._append(line)

    def run(self, cell: Cell, line: Line, groups: tuple[str, ...] | None = None) -> StoredRun:
        """Returns the run that a line is of."""
        result = {**line["result"], "settings": cell.settings}
        kept = self._files(line) if line["instances"] is not None else None
        return StoredRun(Path(str(result["run_id"])), result, words=cell.command, kept=kept, groups=groups)

    def _files(self, line: Line) -> tuple[Path, Path]:
        inside = self.folder / INSTANCES
        return inside / f"run-{line['key'][:12]}.npz", inside / f"set-{line['instances'][:12]}.csv.xz"

    def _take(self, line: Line) -> Line:
        check_line(line)
        of = line["settings"]
        self._lines.setdefault((of["model"], of["dataset"], of["seed"]), []).append(line)
        return line

    def _append(self, line: Line) -> Line:
        make_folder(self.folder)
        with (self.folder / CELLS).open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # half a line stands there
                    file.write(b"\n")
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        return self._take(line)

    def _keep_instances(self, key: str, run: Run) -> str | None:
        try:
            frame = run.instances
        except CDRError:
            return None
        frame = frame[frame["part"] == "test"]
        if "rating" in frame:
            frame = per_user(frame)
            errors = (
                frame[["absolute_error", "squared_error"]].to_numpy(float).T * frame["ratings"].to_numpy()
            )
            values = np.round(errors / [[ERROR_UNIT], [ERROR_UNIT**2]]).ravel()
        else:
            values = frame["rank"].to_numpy()
        flags = [
            n for n in frame if pd.api.types.is_bool_dtype(frame[n]) and n not in ("fallback", "known_item")
        ]
        asked = frame[[name for name in frame if name in _ASKED or name in flags]]
        text = asked.to_csv(index=False, lineterminator="\n").encode()
        digest = hashlib.sha256(text).hexdigest()
        make_folder(self.folder / INSTANCES)
        of_run, table = self._files({"key": key, "instances": digest})
        if not table.exists():
            with replacing(table) as temporary:
                temporary.write_bytes(lzma.compress(text))
        _write_values(values, of_run)
        return digest


def check_line(line: Any) -> None:
    """Raises a KeyError, TypeError or ValueError for what is no line of a store."""
    if not all(isinstance(line[key], str) for key in ("key", "identity", "data", "command")):
        raise TypeError("a line has a key, an identity and the digest of data")
    if not {"model", "dataset", "seed", "task"} <= dict(line["settings"]).keys():
        raise TypeError("a line has the settings that decide its result")
    if not isinstance(line["instances"], str | None):
        raise TypeError("a line has the digest of its instances, or None")
    try:
        check_result({**line["result"], "settings": {}})
    except Unusable as error:
        raise ValueError(str(error)) from error


def same_settings(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether settings are those that were kept; what is newer than these must be at its default."""
    if any(key not in wanted or wanted[key] != value for key, value in kept.items()):
        return False
    newer = wanted.keys() - kept.keys()
    defaults = _defaults(wanted["model"], wanted["dataset"], wanted["task"]) if newer else {}
    return all(key in defaults and wanted[key] == defaults[key] for key in newer)


@functools.lru_cache(maxsize=256)
def _defaults(model: str, dataset: str, task: str) -> Mapping[str, Any]:
    return deciding(default_settings(model, dataset, task))


def siblings(folder: Path) -> list[Store]:
    """The stores of the other studies beside one, whose cells may be its own as well."""
    return [
        Store(path.parent)
        for path in sorted(folder.parent.glob(f"*/{CELLS}"))
        if path.parent.name != folder.name
    ]


def _write_values(values: np.ndarray, path: Path) -> None:
    """Writes whole numbers, of as few bytes as the largest takes; bytes of one place together compress best."""
    smallest = values.astype(np.min_scalar_type(int(values.max(initial=0))))
    planes = np.ascontiguousarray(smallest.view(np.uint8).reshape(len(values), -1).T)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, planes=planes)


def _read_values(path: Path) -> np.ndarray:
    try:
        with np.load(path) as file:
            planes = file["planes"]
        return np.ascontiguousarray(planes.T).view(f"u{len(planes)}").ravel().astype(np.int64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CDRError(f"{path} can't be read: {' '.join(str(error).split())}") from error


@functools.lru_cache(maxsize=8)
def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=_TEXT, keep_default_na=False)
    except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
        raise CDRError(f"{path} can't be read: {' '.join(str(error).split())}") from error
