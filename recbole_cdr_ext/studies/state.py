"""How far a study is: its cells and analyses, what is kept of them, and what is left to do."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.runs.finished import FinishedRun, Unusable, read_run
from recbole_cdr_ext.runs.folder import RESULT
from recbole_cdr_ext.studies.cells import Cell, Source, deciding, prepare
from recbole_cdr_ext.studies.definition import Settings, Study
from recbole_cdr_ext.studies.store import Line, Store, same_settings, siblings
from recbole_cdr_ext.trainer import checkpoint


@dataclass
class State:
    """A study in its folder.

    Attributes:
        cells: all of its cells, in the order in which they are run.
        digests: of the data that cells learn from; None where they are not prepared here.
        command: what a reader types to get it.
        failed: by the names of cells and analyses, why they failed, in one line.
        output: of those, the last lines that their processes printed.
    """

    study: Study
    cells: Sequence[Cell]
    folder: Path
    checkpoint_dir: Path
    store: Store
    digests: dict[Source, str | None]
    command: str = "recbole-cdr study"
    failed: dict[str, str] = field(default_factory=dict)
    output: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, cells: Sequence[Cell], folder: Path, checkpoint_dir: Path) -> State:
        """Reads what there is."""
        digests = {source: source.digest() for source in dict.fromkeys(cell.source for cell in cells)}
        return cls(study, cells, folder, checkpoint_dir, Store(folder), digests)

    def line(self, cell: Cell) -> Line | None:
        """Returns what is kept of a cell, None if it is not done."""
        return self.store.find(cell, self.digests[cell.source])

    def run(self, cell: Cell) -> FinishedRun | None:
        """Returns the run of a cell that is done."""
        line = self.line(cell)
        return None if line is None else self.store.run(cell, line, self.study.groups)

    def data(self, cell: Cell) -> str:
        """Returns the digest of a cell's data.

        Raises:
            CDRError: they are not prepared.
        """
        digest = self.digests[cell.source]
        if digest is None:
            raise CDRError(f"the data of '{cell.source.dataset}' are not prepared in {cell.source.root}.")
        return digest

    def run_folder(self, cell: Cell) -> Path | None:
        """Returns where a cell's run lies, or would; None while its data are not prepared, which decide the name."""
        digest = self.digests[cell.source]
        return None if digest is None else self.checkpoint_dir / cell.run_id(digest)

    def missing(self, cells: Iterable[Cell] | None = None) -> list[Cell]:
        """Returns the cells that are not done, one of those that are the same run."""
        missing: dict[tuple[str, Source], Cell] = {}
        for cell in self.cells if cells is None else cells:
            if self.line(cell) is None:
                missing.setdefault((cell.identity, cell.source), cell)
        return list(missing.values())

    def prepare(self, cells: Iterable[Cell]) -> None:
        """Has the data of cells prepared.

        Raises:
            CDRError: they cannot be had.
        """
        for cell in cells:
            if self.digests[cell.source] is None:
                prepare(cell.source, cell.settings["raw"], bool(cell.settings["download"]))
                self.digests[cell.source] = cell.source.digest()

    def gather(self, cells: Iterable[Cell]) -> None:
        """Keeps what is done of cells but not kept here: by runs that ended unseen, or by other studies."""
        others: list[Store] | None = None
        for cell in cells:
            digest = self.digests[cell.source]
            if digest is None or self.store.find(cell, digest) is not None or self.keep(cell):
                continue
            others = siblings(self.folder) if others is None else others
            for other in others:
                line = other.find(cell, digest)
                if line is not None:
                    self.store.adopt(other, line)
                    break

    def adopt(self, cells: Iterable[Cell]) -> int:
        """Keeps finished runs in ``checkpoint_dir`` that have the settings of cells, whatever made them; the newest.

        Returns:
            How many.
        """
        finished: dict[tuple[str, str, int], list[FinishedRun]] = {}
        paths = sorted(self.checkpoint_dir.glob(f"*/{RESULT}"), key=lambda path: path.stat().st_mtime)
        for path in reversed(paths):
            try:
                run = read_run(path.parent, self.study.part)
            except Unusable:
                continue
            finished.setdefault((run.model, run.result["dataset"], run.seed), []).append(run)
        n = 0
        for cell in cells:
            wanted = deciding(cell.settings)
            for run in finished.get((wanted["model"], wanted["dataset"], cell.seed), []):
                if same_settings(deciding(run.settings), wanted):
                    self.store.add(cell, self.data(cell), run)
                    n += 1
                    break
        return n

    def keep(self, cell: Cell) -> bool:
        """Keeps a cell's run if it is finished; says whether it is."""
        folder = self.run_folder(cell)
        if folder is None or not (folder / RESULT).exists():
            return False
        try:
            self.store.add(cell, self.data(cell), read_run(folder, cell.part))
        except Unusable as reason:
            self.failed[cell.name] = f"{reason}: delete {folder} to make it anew"
            return False
        self.failed.pop(cell.name, None)
        return True


def chosen(cells: Iterable[Cell], only: str | None) -> list[Cell]:
    """Returns the cells whose line a regular expression is found in; None: all.

    Raises:
        CDRError: it is none, or found in no line.
    """
    if only is None:
        return list(cells)
    try:
        matches = [cell for cell in cells if re.search(only, line_of(cell))]
    except re.error as error:
        raise CDRError(f"--only={only} is no regular expression: {error}.") from error
    if not matches:
        raise CDRError(f"--only={only} is found in no run; --dry_run lists them.")
    return matches


def line_of(cell: Cell) -> str:
    """Returns a cell in one line: its name and its command."""
    return f"{cell.name}: {cell.command}"


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
