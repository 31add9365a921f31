"""What is kept of the runs and analyses of a study: small enough for version control, and enough for all of its tables.

``cells.jsonl`` has a line per run, ``instances.sqlite`` what paired tests read (:mod:`.instance_store`),
``analyses.jsonl`` a line per analysis.
"""

from __future__ import annotations

import functools
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics
from recbole_cdr_ext.evaluation.significance import per_user
from recbole_cdr_ext.files import make_folder, replacing
from recbole_cdr_ext.runs.finished import FinishedRun, Unusable, check_result, default_settings
from recbole_cdr_ext.studies.cells import Cell, deciding
from recbole_cdr_ext.studies.instance_store import InstanceRecord, InstanceStore, damaged, former_record

CELLS, ANALYSES = "cells.jsonl", "analyses.jsonl"
ERROR_UNIT = 0.001  # of a rating point
# Of a result, what is left out where the validation part alone is looked at.
_OF_TEST = ("test", "popularity", "test_among_test_items", "popularity_among_test_items", "floors")
_LARGE = ("history", "settings", "report")  # of a result; a line has the settings that decide
_OF_INSTANCES = ("domain", "user", "target", "candidates", "ratings", "asked")
Line = Mapping[str, Any]


class Store:
    """The folder of a study's results.

    Attributes:
        damaged: how many lines could not be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.instances = InstanceStore(folder)
        self.analyses = AnalysisStore(folder / ANALYSES)
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
            if (data is not None and line["data"] != data) or part_of(line) != cell.part:
                continue
            if line["identity"] == cell.identity or same_settings(line["settings"], wanted):
                return line
        return None

    def add(self, cell: Cell, data: str, run: FinishedRun) -> Line:
        """Keeps a finished run."""
        key = cell.key(data)
        left_out = _LARGE if cell.part == "test" else (*_LARGE, *_OF_TEST)
        result = {name: value for name, value in run.result.items() if name not in left_out}
        if run.leaks:
            result["report"] = {f"leak: {what}": n for what, n in run.leaks.items()}
        return self._append(
            {
                "key": key, "identity": cell.identity, "data": data, "row": cell.row, "scene": cell.scene,
                "varied": cell.varied, "seed": cell.seed, "command": cell.command,
                "settings": deciding(cell.settings), "result": result,
                "instances": self._keep_instances(key, run) if cell.part == "test" else None,
                **({} if cell.part == "test" else {"part": cell.part}),
            }
        )  # fmt: skip

    def adopt(self, other: Store, line: Line) -> Line:
        """Keeps what another study has kept."""
        record = other.record(line)
        if record is not None:
            self.instances.add(line["key"], record)
        return self._append(line)

    def import_former(self) -> int:
        """Takes over the per-instance data that an earlier version kept in a folder of files, which stay as they are.

        Returns:
            The number of runs that were taken over.

        Raises:
            CDRError: a file can't be read, or the new one can't be written.
        """
        stored, n = self.instances.keys(), 0
        for line in (line for lines in self._lines.values() for line in lines):
            if line["key"] not in stored and (record := self.record(line)) is not None:
                self.instances.add(line["key"], record)
                n += 1
        return n

    def record(self, line: Line) -> InstanceRecord | None:
        """Returns the per-instance data of a line's run, None where there are none.

        Raises:
            CDRError: they can't be read.
        """
        if line["instances"] is None:
            return None
        stored = self.instances.find(line["key"])
        return stored or former_record(self.folder, line["key"], line["instances"])

    def run(self, cell: Cell, line: Line, groups: tuple[str, ...] | None = None) -> FinishedRun:
        """Returns the run that a line is of; of one that was validated alone, reports show the validation part.

        Args:
            groups: the user groups that tests compare; None: all.
        """
        result = {**line["result"], "settings": cell.settings}
        if cell.part == "valid":
            result |= {"test": result["valid"], "fallback": {"test": result.get("fallback", {}).get("valid")}}
        return FinishedRun(
            Path(str(result["run_id"])),
            result,
            stored_command=cell.command,
            stored_instances=functools.partial(self._read_instances, line, cell.settings, groups),
        )

    def _read_instances(
        self, line: Line, settings: Mapping[str, Any], groups: tuple[str, ...] | None
    ) -> pd.DataFrame:
        """Returns the per-instance table of the test part, as far as tests read it; of ratings a row per user.

        Raises:
            CDRError: it is not there, or can't be read.
        """
        record = self.record(line)
        if record is None:
            raise CDRError(f"{line['result']['run_id']} has no per-instance table.")
        try:
            values, table = record.values(), record.table()
        except (ValueError, EOFError, lzma.LZMAError) as error:
            raise damaged(self.instances.path, error) from error
        rated = "ratings" in table
        if "rating" in table:
            raise CDRError(
                f"{self.folder} has a row per rating, as an older version kept them: delete the study's folder."
            )
        if len(values) != len(table) * (2 if rated else 1):
            raise damaged(self.instances.path, f"{len(values)} values of {len(table)} instances")
        if groups is not None:
            flags = [name for name in table if pd.api.types.is_bool_dtype(table[name])]
            table = table.drop(columns=[name for name in flags if name not in groups])
        if rated:
            absolute, squared = values.reshape(2, -1) / table["ratings"].to_numpy()
            return table.assign(
                part="test",
                item="",
                absolute_error=absolute * ERROR_UNIT,
                squared_error=squared * ERROR_UNIT**2,
            )
        return table.assign(part="test", rank=values, **RankingMetrics(settings).per_instance(values))

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

    def _keep_instances(self, key: str, run: FinishedRun) -> str | None:
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
        instances = frame[[name for name in frame if name in _OF_INSTANCES or name in flags]]
        record = InstanceRecord.of(values, instances)
        self.instances.add(key, record)
        return record.digest


class AnalysisStore:
    """What is kept of a study's analyses: for each folder the stamp of what was analysed, and the text of its tables.

    A line that cannot be read counts as none: its analysis is made anew.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lines: dict[str, Line] = {}
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
                check_analysis(line)
            except (ValueError, TypeError, KeyError):
                continue
            self._lines[line["folder"]] = line

    def stamp(self, folder: Path) -> Mapping[str, Any] | None:
        """Returns what the analysis of a folder is of; None where none is kept."""
        line = self._lines.get(folder.name)
        return None if line is None else line["stamp"]

    def add(self, folder: Path, stamp: Mapping[str, Any]) -> None:
        """Keeps the analysis whose files lie in a folder."""
        tables = {path.name: path.read_bytes().decode() for path in sorted(folder.glob("*.csv"))}
        self._lines[folder.name] = {"folder": folder.name, "stamp": stamp, "tables": tables}
        self._write()

    def forget(self, folder: Path) -> None:
        """Keeps the analysis of a folder no longer."""
        if self._lines.pop(folder.name, None) is not None:
            self._write()

    def restore(self, folder: Path) -> None:
        """Writes the tables of a folder's analysis that do not lie there."""
        for name, text in self._lines[folder.name]["tables"].items():
            if not (folder / name).exists():
                with replacing(folder / name) as temporary:
                    temporary.write_bytes(text.encode())

    def _write(self) -> None:
        make_folder(self.path.parent)
        lines = [json.dumps(self._lines[name], ensure_ascii=False) + "\n" for name in sorted(self._lines)]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


def check_analysis(line: Any) -> None:
    """Raises a KeyError, TypeError or ValueError for what is no line of :class:`AnalysisStore`."""
    if not isinstance(line["stamp"], dict) or not all(
        isinstance(t, str) for t in dict(line["tables"]).values()
    ):
        raise TypeError("a line has the stamp of an analysis and the text of its tables")
    names = [line["folder"], *line["tables"]]
    if any(not isinstance(name, str) or name != Path(name).name for name in names):
        raise ValueError("a line's folder and tables lie in the study's folder")


def check_line(line: Any) -> None:
    """Raises a KeyError, TypeError or ValueError for what is no line of a store."""
    if not all(isinstance(line[key], str) for key in ("key", "identity", "data", "command")):
        raise TypeError("a line has a key, an identity and the digest of data")
    if not {"model", "dataset", "seed", "task"} <= dict(line["settings"]).keys():
        raise TypeError("a line has the settings that decide its result")
    if not isinstance(line["instances"], str | None):
        raise TypeError("a line has the digest of its instances, or None")
    try:
        check_result({**line["result"], "settings": {}}, part_of(line))
    except Unusable as error:
        raise ValueError(str(error)) from error


def part_of(line: Line) -> str:
    """Returns the part that a line has the scores of, "test" or "valid"."""
    return str(line.get("part", "test"))


def same_settings(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Says whether settings are those that were kept; what is newer than these must be at its default."""
    if any(key not in wanted or wanted[key] != value for key, value in stored.items()):
        return False
    newer = wanted.keys() - stored.keys()
    defaults = _defaults(wanted["model"], wanted["dataset"], wanted["task"]) if newer else {}
    return all(key in defaults and wanted[key] == defaults[key] for key in newer)


@functools.lru_cache(maxsize=256)
def _defaults(model: str, dataset: str, task: str) -> Mapping[str, Any]:
    return deciding(default_settings(model, dataset, task))


def siblings(folder: Path) -> list[Store]:
    """Returns the stores of the other studies beside one, whose cells may be its own as well."""
    return [
        Store(path.parent)
        for path in sorted(folder.parent.glob(f"*/{CELLS}"))
        if path.parent.name != folder.name
    ]
