"""Doing what is left of a study."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing

from recbole.utils import set_color
from tqdm import tqdm

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.result_table import spelt
from recbole_cdr_ext.runs.folder import RESULT, SETTINGS
from recbole_cdr_ext.studies.analyses import Analysis, analyses_of
from recbole_cdr_ext.studies.cells import Cell
from recbole_cdr_ext.studies.processes import Ended, Job, run_all
from recbole_cdr_ext.studies.state import State

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
    """The command of a process that does what `recbole-cdr` does with these words, and ends with this one."""
    return [sys.executable, "-m", "recbole_cdr_ext.cli.child", str(os.getpid()), *words]


def _job_of_cell(state: State, cell: Cell) -> Job:
    folder = state.run_folder(cell)
    assert folder is not None

    def command() -> list[str] | None:
        if (folder / RESULT).exists():  # another study has made it meanwhile
            return None
        machine = [*cell.machine, f"--checkpoint_dir={folder.parent}"]
        if (folder / SETTINGS).exists():
            return child(["run", f"--resume={folder.name}", *machine])
        return child(["run", *cell.words, f"--run_id={folder.name}", *machine])

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
    """A cell's first metric, of the first group, mean over the domains."""
    run = state.run(cell)
    assert run is not None
    metric = (state.study.metrics or cell.metrics)[0]
    table = run.result["test"]
    group = (state.study.groups or tuple(next(iter(table.values()))))[0]
    values = [of[group][metric] for of in table.values() if of.get(group, {}).get(metric) is not None]
    return f"{spelt(metric)} {sum(values) / len(values):.4f}" if values else "done"
