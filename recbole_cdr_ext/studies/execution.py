"""``recbole-cdr study``: runs what a study has left to run, and writes its tables."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from recbole.utils import set_color
from tqdm import tqdm

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric import spelt
from recbole_cdr_ext.files import locked, make_folder
from recbole_cdr_ext.runs.folder import settings_to_finish
from recbole_cdr_ext.settings.command_options import STUDY_OPTIONS, read_options
from recbole_cdr_ext.settings.declaration import documented
from recbole_cdr_ext.settings.reading import words_in
from recbole_cdr_ext.settings.run_settings import RunSettings
from recbole_cdr_ext.studies import study_pages as pages
from recbole_cdr_ext.studies.cells import MACHINE_KEYS, Cell, make_cells
from recbole_cdr_ext.studies.definition import Study, read_study
from recbole_cdr_ext.studies.instance_store import FORMER_INSTANCES
from recbole_cdr_ext.studies.processes import Ended, Job, ends_on_sigterm, run_all
from recbole_cdr_ext.studies.state import Analysis, State, analyses_of, chosen, line_of
from recbole_cdr_ext.studies.store import CELLS
from recbole_cdr_ext.studies.study_tables import Pair, tables_by_group

RESULTS, FORMER_RESULTS = Path("results"), Path("studies")
_OPTIONS = (
    *STUDY_OPTIONS,
    *(documented(RunSettings)[key] for key in ("checkpoint_dir", "show_progress")),
)
_KEYS = frozenset(option.key for option in _OPTIONS)
# While runs are at work, tables are written when that has been so many times as long ago as it takes.
PATIENCE = 20


def run_study(name: str | Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Does what :func:`recbole_cdr_ext.studies.study` says, with all arguments by name."""
    options = _command_options(arguments)
    passed = {key: value for key, value in arguments.items() if key not in _KEYS}
    study, changed, some = _changed(read_study(name), options, passed)
    cells = make_cells(study, passed)
    folder = Path(options["out"]) if options["out"] else default_folder(default_name(study, changed, passed))
    wanted = [cell for cell in chosen(cells, options["only"]) if not some or cell.seed in some]
    place = study, cells, folder, Path(options["checkpoint_dir"])
    if options["dry_run"]:
        state = State.of(*place)
        print(dry_run(state, {cell.name for cell in wanted}))
        return _outcome(state, tables_by_group(state))
    if sys.platform == "win32":  # groups of processes, and locks that outlive their parent
        raise CDRError("Studies run on Linux and macOS; on Windows, in WSL. --dry_run prints their commands.")
    make_folder(folder)
    with locked(folder, "study"), ends_on_sigterm():
        state = State.of(*place)
        state.command = _command(name, changed, passed)
        if n := state.store.import_former():
            print(
                f"The per-instance data of {n} runs are in {state.store.instances.path} now; "
                f"{folder / FORMER_INSTANCES} is not needed any more."
            )
        for analysis in analyses_of(state):
            analysis.restore(state)
        writer = _Writer(state)
        try:
            if options["adopt"]:
                missing = state.missing(wanted)
                state.prepare(missing)
                print(f"{state.adopt(missing)} runs were there already.")
            do(state, wanted, options["jobs"], bar=bool(options["show_progress"]), progress=writer.sometimes)
        except KeyboardInterrupt:
            pages.write(state, tables_by_group(state), final=False)
            left = len(state.missing(wanted))
            raise KeyboardInterrupt(
                f"interrupted with {left} of {len(wanted)} runs to do; the same command goes on from there."
            ) from None
        pairs = tables_by_group(state)
        files = pages.write(state, pairs, final=True)
    print(pages.as_text(state, pairs))
    _conclude(state, files, {cell.name for cell in wanted})
    return _outcome(state, pairs)


class _Writer:
    """Writes the tables now and then, so that they cost little beside the runs."""

    def __init__(self, state: State):
        self.state, self.due = state, 0.0

    def sometimes(self) -> None:
        """Writes them if it is time."""
        started = time.monotonic()
        if started >= self.due:
            pages.write(self.state, tables_by_group(self.state), final=False)
            ended = time.monotonic()
            self.due = ended + PATIENCE * (ended - started)


def _command_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the command's options, of their types."""
    options = read_options("study", _OPTIONS, {key: arguments[key] for key in _KEYS & arguments.keys()})
    if options["jobs"] is not None and options["jobs"] < 1:
        raise CDRError(f"jobs={options['jobs']} should be at least 1.")
    return options


def _changed(
    study: Study, options: Mapping[str, Any], passed: Mapping[str, Any]
) -> tuple[Study, Mapping[str, Any], Collection[int]]:
    """Puts the options into the study.

    Returns:
        The study; the options that it is changed by; the seeds to run now, where they are some of the study's own and
        nothing else is changed: its tables keep the others then. Empty for all.
    """
    if options["dataset"] is not None:
        study = study.on(dict.fromkeys(_listed(options["dataset"], "dataset")))
    if options["seeds"] is None:
        return study, options, ()
    other = study.with_seeds(_listed(options["seeds"], "seeds"))
    known = {seed for scene in study.scenes for seed in study.seeds_of(scene)}
    if set(other.seeds) <= known and default_name(study, {**options, "seeds": None}, passed) == study.name:
        return study, {**options, "seeds": None}, set(other.seeds)
    return other, options, ()


def _listed(text: str, key: str) -> list[str]:
    words = words_in(text)
    if not words:
        raise CDRError(f"--{key}={text} names nothing.")
    return words


def default_name(study: Study, options: Mapping[str, Any], passed: Mapping[str, Any]) -> str:
    """Returns the folder's name.

    A look with other seeds or settings has a name of its own, and does not replace the tables of the study itself.
    """
    changes = {key: options[key] for key in ("dataset", "seeds") if options[key] is not None}
    changes |= {key: value for key, value in passed.items() if key not in MACHINE_KEYS - {"torch_threads"}}
    parts = [re.sub(r"[^\w.=-]+", "_", f"{key}={value}") for key, value in sorted(changes.items())]
    return "-".join([study.name, *parts])[:120]


def default_folder(name: str) -> Path:
    """Returns where a study's results lie if nothing else is said: ``results/NAME``.

    Results that an earlier version left in ``studies/NAME`` are gone on with there, so that runs that were kept count.
    """
    folder, former = RESULTS / name, FORMER_RESULTS / name
    if folder.exists() or not (former / CELLS).exists():
        return folder
    print(f"Goes on in {former}, where an earlier version kept it; move the folder to {folder} if you like.")
    return former


def _command(name: str | Path, options: Mapping[str, Any], passed: Mapping[str, Any]) -> str:
    """Returns the command that made the tables, without what lies on the machine."""
    said = {key: options[key] for key in ("dataset", "seeds") if options[key] is not None}
    said |= {key: value for key, value in passed.items() if key not in MACHINE_KEYS - {"torch_threads"}}
    return shlex.join(
        ["recbole-cdr", "study", str(name), *(f"--{key}={value}" for key, value in said.items())]
    )


# -- what is said -----------------------------------------------------------------------------------------------------


def dry_run(state: State, wanted: Iterable[str]) -> str:
    """Returns a line per cell: whether it is done, its name and its command."""
    wanted = set(wanted)
    lines, seen = [], set()
    for cell in state.cells:
        same = (cell.identity, cell.source)
        if state.line(cell) is not None:
            status = "done"
        elif cell.name not in wanted:
            status = "left out"
        else:
            status = "the same as one above" if same in seen else "to do"
        seen.add(same)
        lines.append(f"{status}: {line_of(cell)}")
    lines += [f"{'done' if one.done(state) else 'to do'}: analysis {one.name}" for one in analyses_of(state)]
    unprepared = [source.dataset for source, digest in state.digests.items() if digest is None]
    if unprepared:
        lines.append(
            f"Not prepared here, so what is kept of any data counts: {', '.join(dict.fromkeys(unprepared))}."
        )
    todo = sum(line.startswith("to do: ") for line in lines)
    return "\n".join([*lines, f"{len(state.cells)} runs, {todo} to do. Folder: {state.folder}"])


def _conclude(state: State, files: Iterable[str], wanted: Collection[str]) -> None:
    print(f"\nWritten to {state.folder}: {', '.join(files)}")
    if state.store.damaged:
        print(
            f"{state.store.damaged} lines of its cells.jsonl could not be read; their runs count as not done."
        )
    missing = [cell.name in wanted for cell in state.missing()]
    if any(missing):
        print(f"{sum(missing)} of {len(state.cells)} runs are missing; the same command goes on with them.")
    if not all(missing):
        print(
            f"{missing.count(False)} of {len(state.cells)} runs are missing and were not asked for (--only, --seeds)."
        )
    for name, reason in state.failed.items():
        print(f"Failed: {name}: {reason}")
        print("".join(f"    {line}\n" for line in state.output.get(name, [])), end="")


def _outcome(state: State, pairs: Iterable[Pair]) -> dict[str, Any]:
    return {
        "folder": state.folder,
        "groups": [group for group, _ in pairs],
        "done": sum(state.line(cell) is not None for cell in state.cells),
        "missing": [cell.name for cell in state.missing()],
        "failed": dict(state.failed),
    }


# -- the work ---------------------------------------------------------------------------------------------------------


LAST_LINES = 12  # of a failed process, to be shown
Progress = Callable[[], None]


def do(state: State, wanted: Sequence[Cell], jobs: int | None, *, bar: bool, progress: Progress) -> None:
    """Runs the cells that are not done, then the analyses of what is.

    Args:
        wanted: the cells that may be run.
        jobs: at a time; None: as many as there are processors for.
        bar: whether to show a progress bar.
        progress: called after every run.

    Raises:
        CDRError: the data cannot be had.
        KeyboardInterrupt: the user's; nothing runs any more then.
    """
    state.gather(state.missing())
    state.prepare(state.missing(wanted))
    state.gather(state.missing(wanted))
    may = {cell.name for cell in wanted}
    analyses = [
        one
        for one in analyses_of(state)
        if all(cell.name in may for cell in one.cells) and not one.done(state)
    ]
    bare = [cell for one in analyses for cell in one.without_weights(state)]
    state.prepare(bare)
    todo = state.missing(wanted)
    known = {cell.key(state.data(cell)) for cell in todo}
    for cell in bare:
        if cell.key(state.data(cell)) not in known:
            known.add(cell.key(state.data(cell)))
            todo.append(cell)
    threads = _threads(state.cells)
    at_once = jobs or max(1, _processors() // threads)
    work = [_job_of_cell(state, cell) for cell in todo]
    _follow(state, work, at_once, threads, bar, progress)
    ready = []
    for one in analyses:
        lacking = [cell.name for cell in one.cells if state.line(cell) is None]
        if lacking:
            state.failed[one.name] = f"there is no run of {'; '.join(lacking)}"
        elif not one.done(state):
            ready.append(_job_of_analysis(state, one))
    _follow(state, ready, at_once, threads, bar, progress)


def _threads(cells: Sequence[Cell]) -> int:
    return max(1, int(cells[0].settings["torch_threads"]))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def child(words: Sequence[str]) -> list[str]:
    """Returns the command of a process that does what `recbole-cdr` does with these words, and ends with this one."""
    return [sys.executable, "-m", "recbole_cdr_ext.cli.child", str(os.getpid()), *words]


def _job_of_cell(state: State, cell: Cell) -> Job:
    folder = state.run_folder(cell)
    assert folder is not None

    def command() -> list[str] | None:
        rest = settings_to_finish(folder)
        if rest is None:  # another study has made it meanwhile
            return None
        words = () if "resume" in rest else cell.words
        return child(["run", *words, *cell.machine, *(f"--{key}={value}" for key, value in rest.items())])

    return Job(cell.name, command, folder, cell)


def _job_of_analysis(state: State, one: Analysis) -> Job:
    return Job(one.name, lambda: child(one.words(state)), None, one)


def _follow(
    state: State, jobs: Sequence[Job], at_once: int, threads: int, bar: bool, progress: Progress
) -> None:
    if not jobs:
        return
    label = set_color(state.study.name, "pink")
    with (
        tqdm(total=len(jobs), ncols=100, desc=label, disable=not bar) as shown,
        closing(run_all(jobs, at_once, threads)) as ends,
    ):
        for ended in ends:
            said = _take(state, ended)
            shown.write(f"{ended.job.name}: {said} ({ended.seconds:.0f} s)", file=sys.stdout)
            shown.update()
            progress()


def _take(state: State, ended: Ended) -> str:
    """Keeps what a job has made; returns what to say of it."""
    name, of = ended.job.name, ended.job.tag
    state.failed.pop(name, None)
    state.output.pop(name, None)
    if ended.status == 0:
        try:
            if isinstance(of, Analysis):
                of.mark_done(state)
                return str(of.folder)
            if state.keep(of):
                return score(state, of)
        except CDRError as error:
            state.failed[name] = str(error)
    state.failed.setdefault(name, ended.reason())
    state.output[name] = ended.lines()[-LAST_LINES:]
    return f"{set_color('failed', 'red')}: {state.failed[name]}"


def score(state: State, cell: Cell) -> str:
    """Returns a cell's first metric, of the first group, mean over the domains."""
    run = state.run(cell)
    assert run is not None
    metric = (state.study.metrics or cell.metrics)[0]
    table = run.result["test"]
    group = (state.study.groups or tuple(next(iter(table.values()))))[0]
    values = [of[group][metric] for of in table.values() if of.get(group, {}).get(metric) is not None]
    return f"{spelt(metric)} {sum(values) / len(values):.4f}" if values else "done"
