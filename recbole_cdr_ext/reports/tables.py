"""The tables of a report: their numbers, and the marks of what is more than chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric import in_percent, larger_is_better, spelt
from recbole_cdr_ext.evaluation.significance import Spread, align, compare, is_per_instance
from recbole_cdr_ext.reports.groups import Group
from recbole_cdr_ext.runs.finished import FinishedRun

LEVELS = ((0.01, 2), (0.05, 1))  # p below, marks
# Numbers by domain, group and metric, as result.json has them.
ResultTable = Mapping[str, Mapping[str, Mapping[str, Any]]]
BETTER, WORSE = "*", "↓"
CAPPED, FALLBACK = "‡", "†"
# The column of a per-instance table that a metric of the results is the mean of.
TESTED = {"mae": "absolute_error", "rmse": "squared_error"}


@dataclass
class TableCell:
    """A number of a table: ``place`` is 1 for the best of the models, 2 for the second, else 0."""

    spread: Spread | None
    text: str = "–"
    place: int = 0
    mark: str = ""


@dataclass
class Row:
    """A model, or a floor (popularity, means) that it has to be above.

    Attributes:
        flags: † and ‡, as the legend explains them.
        cells: by (group, metric).
    """

    label: str
    seeds: int
    floor: bool
    cells: dict[tuple[str, str], TableCell]
    flags: str = ""


@dataclass
class Block:
    """The table of one domain."""

    domain: str
    counts: dict[str, int]
    metrics: list[str]
    rows: list[Row]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(group, metric) of each column."""
        return [(group, metric) for group in self.counts for metric in self.metrics]


@dataclass
class Table:
    """The tables of a group of runs.

    Attributes:
        blocks: one per domain.
        comparisons: as :func:`recbole_cdr_ext.evaluation.significance.compare` returns them, None if there are none.
        baseline: the label that models are compared with; None: the best with the second best.
        notes: why there are no marks, or not those that were asked for.
    """

    title: str
    blocks: list[Block]
    comparisons: pd.DataFrame | None = None
    baseline: str | None = None
    notes: list[str] = field(default_factory=list)

    def legend(self) -> list[str]:
        """Returns what the table's signs mean, of those that it has."""
        rows = [row for block in self.blocks for row in block.rows]
        metrics = list(dict.fromkeys(metric for block in self.blocks for metric in block.metrics))
        lines = [
            "Mean ± sample standard deviation over the seeds (their number n after the name; without ± one seed). "
            + _in_percent(metrics)
            + "Best bold, second best underlined, floors in italics."
        ]
        if self.comparisons is not None:
            against = f"than {self.baseline}" if self.baseline else "than the second best"
            lines.append(
                f"{BETTER} / {BETTER * 2}: better {against}"
                + (f", {WORSE} / {WORSE * 2}: worse" if self.baseline else "")
                + f", p < .05 / .01 in the paired t-test and in Wilcoxon's signed-rank test over the test "
                f"users (instances averaged over the seeds), both after Holm's correction over the "
                f"{len(self.comparisons)} comparisons of this table."
            )
        if any(FALLBACK in row.flags for row in rows):
            lines.append(f"{FALLBACK} popularity ranked some instances, which the model cannot.")
        if any(CAPPED in row.flags for row in rows):
            lines.append(f"{CAPPED} a cap on time ended training.")
        return lines


def _in_percent(metrics: Sequence[str]) -> str:
    """Returns the sentence that says which metrics are in percent."""
    percent = [metric for metric in metrics if in_percent(metric)]
    if not percent:
        return ""
    if all(in_percent(metric) for metric in metrics if "@" in metric):
        return "Ranking metrics in percent. "
    return f"In percent: {', '.join(map(spelt, percent))}. "


# -- from runs ------------------------------------------------------------------------------------------------------


def tables_of(group: Group, baseline: str | None = None, *, compared: bool = True) -> list[Table]:
    """Returns the table of a group; under split=published also the one among the items of the test file.

    Args:
        baseline: a label, or a model that has one label here; None, or one that has no run here: none.
        compared: whether the models are compared by significance tests.
    """
    against, notes = baseline_of(group, baseline)
    table = Table(group.title, _blocks(group, "test", "popularity"), baseline=against, notes=notes)
    if compared:
        _mark(table, group)
    tables = [table]
    second = "test_among_test_items"
    if all(second in run.result for run in group.runs):
        title = f"{group.title}, negatives from the items of the test file"
        tables.append(Table(title, _blocks(group, second, "popularity_among_test_items")))
    return tables


def baseline_of(group: Group, baseline: str | None) -> tuple[str | None, list[str]]:
    """Returns the label that a name means in a group, None for none, and what has to be said of that."""
    if baseline is None or baseline in group.members:
        return baseline, []
    labels = [label for label, runs in group.members.items() if runs[0].model == baseline]
    if len(labels) == 1:
        return labels[0], []
    if labels:
        return None, [
            f"'{baseline}' is several here ({'; '.join(labels)}): name one of them as the baseline."
        ]
    return None, [f"The baseline '{baseline}' has no run here."]


def _blocks(group: Group, part: str, popularity: str) -> list[Block]:
    metrics, blocks = group.metrics, []
    for domain, names in group.cells.items():
        columns = [(name, metric) for name in names for metric in metrics]
        rows = []
        for label, runs in group.members.items():
            row = _row(label, [run.result[part] for run in runs], domain, columns)
            row.flags = FALLBACK * any(_fell_back(run, domain) for run in runs)
            row.flags += CAPPED * any(run.result.get("stopped") == "time" for run in runs)
            rows.append(row)
        _place(rows, columns)
        for label, tables in _floors(group, popularity).items():
            rows.append(_row(label, tables, domain, columns, floor=True))
        blocks.append(Block(domain, {name: group.n(domain, name) for name in names}, metrics, rows))
    return blocks


def _row(
    label: str,
    tables: Sequence[ResultTable],
    domain: str,
    columns: Iterable[tuple[str, str]],
    *,
    floor: bool = False,
) -> Row:
    cells = {}
    for name, metric in columns:
        values: list[Any] = [table.get(domain, {}).get(name, {}).get(metric) for table in tables]
        if not values or None in values:
            cells[name, metric] = TableCell(None)
            continue
        spread = Spread.of(values)
        # A floor that has nothing random in it was not repeated, however many runs it stands beside.
        if floor and len(set(values)) == 1:
            spread = Spread.of(values[:1])
        cells[name, metric] = TableCell(spread, written(metric, spread))
    return Row(
        label, max((c.spread.n for c in cells.values() if c.spread), default=len(tables)), floor, cells
    )


def written(metric: str, spread: Spread) -> str:
    """Returns a number as tables show it: shares and ranking metrics in percent, errors and the like as they are."""
    factor, digits = (100, 2) if in_percent(metric) else (1, 4)
    text = f"{factor * spread.mean:.{digits}f}"
    return text if spread.std is None else f"{text} ± {factor * spread.std:.{digits}f}"


def _floors(group: Group, popularity: str) -> dict[str, list[ResultTable]]:
    """Returns what a model has to be above, with the table of one run per seed."""
    by_name: dict[str, dict[int, ResultTable]] = {}
    for run in group.runs:
        floors = run.result.get("floors") or {}
        if popularity in run.result:
            floors = {**floors, "Popularity": run.result[popularity]}
        for name, table in floors.items():
            # A floor that is among the models as well stands there.
            if name not in group.members:
                by_name.setdefault(name, {}).setdefault(run.seed, table)
    return {name: list(of_seed.values()) for name, of_seed in by_name.items()}


def _fell_back(run: FinishedRun, domain: str) -> bool:
    counts = run.result.get("fallback")
    for key in ("test", domain, "all"):
        counts = counts.get(key) if isinstance(counts, Mapping) else None
    return bool(counts)


def _place(rows: Sequence[Row], columns: Iterable[tuple[str, str]]) -> None:
    """Finds best and second best, of what the digits shown tell apart."""
    for column in columns:
        cells = [row.cells[column] for row in rows if row.cells[column].spread]
        shown = {id(cell): float(cell.text.split(" ")[0]) for cell in cells}
        order = sorted(set(shown.values()), reverse=larger_is_better(column[1]))
        for cell in cells if len(cells) > 1 else []:
            cell.place = order.index(shown[id(cell)]) + 1 if shown[id(cell)] in order[:2] else 0


def _mark(table: Table, group: Group) -> None:
    """Compares the models and marks what is more than chance."""
    frames: dict[str, list[pd.DataFrame]] = {}
    for label in group.members:
        try:
            frames[label] = group.instances_of(label)
        except CDRError as error:
            table.notes.append(f"{label} is not compared: {error}")
    if len(frames) < 2:
        return
    if table.baseline is not None and table.baseline not in frames:
        table.baseline = None
    metrics = [
        metric for metric in group.metrics if all(_has(runs, metric) for runs in group.members.values())
    ]
    untested = [
        metric
        for metric in metrics
        if not all(
            is_per_instance(frame, TESTED.get(metric, metric)) for of in frames.values() for frame in of
        )
    ]
    if untested:
        table.notes.append(
            f"No significance tests of {', '.join(map(spelt, untested))}: per-instance tables have no values of it."
        )
    metrics = [metric for metric in metrics if metric not in untested]
    if not metrics:
        return
    try:
        aligned = align(frames, metrics=[TESTED.get(metric, metric) for metric in metrics])
        compared = compare(aligned, table.baseline)
        order = {block.domain: place for place, block in enumerate(table.blocks)}
        table.comparisons = compared.sort_values("domain", key=lambda d: d.map(order), kind="stable")
    except CDRError as error:
        table.notes.append(f"There are no significance tests: {error}")
        return
    cells = {
        (block.domain, name, TESTED.get(metric, metric), row.label): row.cells[name, metric]
        for block in table.blocks
        for row in block.rows
        for name, metric in block.columns
        if not row.floor
    }
    for test in table.comparisons.itertuples():
        cell = cells.get((test.domain, test.group, test.metric, test.model))
        if cell is not None:
            level = next((marks for p, marks in LEVELS if test.p < p), 0)
            cell.mark = (BETTER if test.better else WORSE) * level


def _has(runs: Sequence[FinishedRun], metric: str) -> bool:
    return all(
        metric in cell for r in runs for groups in r.result["test"].values() for cell in groups.values()
    )


def warnings_of(group: Group) -> list[str]:
    """Returns what its runs say of themselves, and what leaked."""
    leaks: dict[str, Any] = {}
    for run in group.runs:
        leaks |= run.leaks
    said = [f"Leaks: {'; '.join(f'{what}: {n}' for what, n in leaks.items())}."] if leaks else []
    return [*said, *group.notes]
