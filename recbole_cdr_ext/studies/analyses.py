"""The analyses of a study: `recbole-cdr analyse` on the first seed's runs of each of its tables."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_cdr_ext.runs.folder import RESULT
from recbole_cdr_ext.studies.cells import Cell
from recbole_cdr_ext.studies.definition import Settings
from recbole_cdr_ext.studies.state import State
from recbole_cdr_ext.trainer import checkpoint

FOLDER = "analyses"
FORMER_STAMP = "analysis.json"  # in the folder of an analysis, where an earlier version noted what it is of
TRAINS_ITSELF = "sensitivity"


@dataclass(frozen=True)
class Analysis:
    """One call of `recbole-cdr analyse`.

    Attributes:
        cells: the runs that it is of; of sensitivity, the one whose settings its own runs have.
        folder: of its files.
    """

    kind: str
    options: Settings
    cells: tuple[Cell, ...]
    folder: Path

    @property
    def name(self) -> str:
        """What messages call it."""
        parts = [part for part in self.cells[0].place if part]
        row_names = [self.cells[0].row] if self.kind == TRAINS_ITSELF else []
        return ", ".join([self.kind, *row_names, *parts])

    @property
    def image(self) -> Path:
        """Its figure."""
        return self.folder / f"{self.kind}.png"

    def stamp(self, state: State) -> dict[str, Any]:
        """Returns what decides its files, as JSON has it."""
        runs = [cell.identity if (line := state.line(cell)) is None else line["key"] for cell in self.cells]
        stamp: dict[str, Any] = json.loads(
            json.dumps({"kind": self.kind, "options": dict(self.options), "runs": runs})
        )
        return stamp

    def done(self, state: State) -> bool:
        """Says whether its figure is there, of these runs and with these options."""
        if self.image.exists() and state.store.analyses.stamp(self.folder) == self.stamp(state):
            return True
        return self._former_done(state)

    def mark_done(self, state: State) -> None:
        """Keeps its tables, and what its files are of."""
        state.store.analyses.add(self.folder, self.stamp(state))

    def restore(self, state: State) -> None:
        """Writes back tables that do not lie beside the figure of a finished analysis.

        Takes over what an earlier version noted beside its files.
        """
        if not self.done(state):
            return
        if state.store.analyses.stamp(self.folder) != self.stamp(state):
            self.mark_done(state)
        state.store.analyses.restore(self.folder)

    def _former_done(self, state: State) -> bool:
        try:
            former = json.loads((self.folder / FORMER_STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(former == self.stamp(state))

    def words(self, state: State) -> list[str]:
        """Returns the words of its command; files of another analysis are removed from its folder."""
        state.store.analyses.forget(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        words = [f"--{key}={value}" for key, value in self.options.items()]
        words += [f"--out={self.folder}", f"--checkpoint_dir={state.checkpoint_dir}", "--show_progress=False"]
        machine = [
            word for word in self.cells[0].machine if _key(word) not in ("checkpoint_dir", "show_progress")
        ]
        if self.kind == TRAINS_ITSELF:
            run_words = [*self.cells[0].words, *machine]
            return ["analyse", self.kind, *words, *(w for w in run_words if _key(w) not in self.options)]
        folders = [str(state.run_folder(cell)) for cell in self.cells]
        machine_words = [
            w for w in machine if _key(w) in ("data_path", "cache_dir", "use_gpu", "torch_threads")
        ]
        return ["analyse", self.kind, f"--runs={','.join(folders)}", *words, *machine_words]

    def without_weights(self, state: State) -> list[Cell]:
        """Returns its cells whose weights are not here, which have to be run although their results may be kept."""
        if self.kind == TRAINS_ITSELF:
            return []
        return [cell for cell in self.cells if not _has_weights(state.run_folder(cell))]


def analyses_of(state: State) -> list[Analysis]:
    """Returns the analyses of a study, in its order."""
    tables: dict[tuple[str, str | None], list[Cell]] = {}
    for cell in state.cells:
        if cell.seed == state.study.seeds_of(cell.scene)[0]:
            tables.setdefault(cell.place, []).append(cell)
    analyses = []
    for kind, options in state.study.analyses.items():
        calls = (
            [[cell] for cells in tables.values() for cell in cells]
            if kind == TRAINS_ITSELF
            else tables.values()
        )
        for cells in calls:
            parts = [part for part in cells[0].place if part] + [cells[0].row] * (kind == TRAINS_ITSELF)
            folder = state.folder / FOLDER / _named(kind, parts if len(calls) > 1 else [])
            analyses.append(Analysis(kind, options, tuple(cells), folder))
    return analyses


def _named(kind: str, parts: Sequence[str]) -> str:
    """Returns a folder's name; what it leaves out of the parts may be what tells two apart."""
    if not parts:
        return kind
    said = re.sub(r"[^a-zA-Z0-9.=_]+", "-", " ".join(parts)).strip("-")
    return f"{kind}-{said}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:4]}"


def _has_weights(folder: Path | None) -> bool:
    return folder is not None and (folder / RESULT).exists() and (folder / checkpoint.MODEL).exists()


def _key(word: str) -> str:
    return word[2:].partition("=")[0]
