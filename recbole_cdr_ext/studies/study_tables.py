"""The tables of a study: one for each scene and varied value, and what was varied side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from recbole_cdr_ext.evaluation.significance import Spread
from recbole_cdr_ext.reports.groups import Group, notes_of, shared_settings
from recbole_cdr_ext.reports.tables import Block, Row, Table, TableCell, tables_of, written
from recbole_cdr_ext.runs.finished import FinishedRun
from recbole_cdr_ext.settings.reading import text_of
from recbole_cdr_ext.studies.cells import Cell as StudyCell
from recbole_cdr_ext.studies.state import State

Pair = tuple[Group, list[Table]]
Place = tuple[str, str | None]
_SHOWN = ("test", "popularity", "test_among_test_items", "popularity_among_test_items")


def places(state: State) -> dict[Place, dict[str, list[StudyCell]]]:
    """Returns the cells of each table, by row."""
    by_place: dict[Place, dict[str, list[StudyCell]]] = {}
    for cell in state.cells:
        rows = by_place.setdefault(cell.place, {row: [] for row in state.study.rows})
        rows[cell.row].append(cell)
    return by_place


def tables_by_group(state: State) -> list[Pair]:
    """Returns the tables of every scene and varied value that has a run, rows without one as gaps."""
    pairs = []
    for place, rows in places(state).items():
        group = _group(state, place, rows)
        if group is not None:
            tables = tables_of(group, state.study.baseline, compared=state.study.part == "test")
            for table in tables:
                _add_gaps(table, list(rows))
            _quote(tables[0], {label: of.get(place[0], {}) for label, of in state.study.quoted.items()})
            pairs.append((group, tables))
    return pairs


def _group(state: State, place: Place, rows: Mapping[str, Sequence[StudyCell]]) -> Group | None:
    members: dict[str, list[Any]] = {}
    missing = []
    for row, cells in rows.items():
        runs = {cell.seed: run for cell in cells if (run := state.run(cell)) is not None}
        if runs:
            members[row] = [_as_shown(state, runs[seed]) for seed in sorted(runs)]
        lacking = [cell.seed for cell in cells if cell.seed not in runs]
        if lacking:
            missing.append(f"{row} (seeds {', '.join(map(str, lacking))})" if runs else row)
    if not members:
        return None
    first = next(iter(members.values()))[0]
    scene, varied = place
    group = Group(
        task=first.task,
        dataset=first.result["dataset"],
        split=first.result["split"],
        simulated=any(run.result.get("simulated") for runs in members.values() for run in runs),
        title=scene if varied is None else f"{scene}, {varied}",
        facts=shared_settings(first),
        members=members,
    )
    if scene in state.study.notes:
        group.notes.append(" ".join(state.study.notes[scene].split()))
    if state.study.part == "valid":
        group.notes.append("Scores of the validation part; the test part was not evaluated.")
    group.notes += notes_of(group)
    if missing:
        group.notes.append(f"There is no run yet of: {'; '.join(missing)}.")
    if len({run.value("split_seed") for run in group.runs}) > 1:
        group.notes.append(
            "Each seed has a split of its own: spreads are over both, the numbers of instances are those of the first"
            + (
                ", and tests are over the users of all splits, each of whom counts once."
                if state.study.part == "test"
                else "."
            )
        )
    return group


def _as_shown(state: State, run: FinishedRun) -> FinishedRun:
    """Returns the run with the metrics and groups that the study shows, in its order."""
    metrics, groups = state.study.metrics, state.study.groups

    def table(of: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
        return {
            domain: {
                group: {name: cell[name] for name in ("n", *metrics)} if metrics else dict(cell)
                for group in groups or cells
                if (cell := cells.get(group)) is not None
            }
            for domain, cells in of.items()
        }

    result = dict(run.result)
    result |= {name: table(result[name]) for name in _SHOWN if name in result}
    if result.get("floors"):
        result["floors"] = {name: table(of) for name, of in result["floors"].items()}
    return replace(run, result=result)


def _add_gaps(table: Table, rows: Sequence[str]) -> None:
    """Puts rows into the study's order, with gaps for those without a run; floors come last."""
    for block in table.blocks:
        there = {row.label: row for row in block.rows if not row.floor}
        empty = {column: TableCell(None) for column in block.columns}
        floors = [row for row in block.rows if row.floor]
        block.rows = [there.get(label) or Row(label, 0, False, dict(empty)) for label in rows] + floors


def _quote(table: Table, quoted: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds figures of others, which take no part in best and second best."""
    for label, domains in quoted.items():
        if not domains:
            continue
        for block in table.blocks:
            row = Row(label, 0, True, {})
            for group, metric in block.columns:
                value = domains.get(block.domain, {}).get(group, {}).get(metric)
                spread = None if value is None else Spread.of([value])
                row.cells[group, metric] = (
                    TableCell(spread, written(metric, spread)) if spread else TableCell(None)
                )
            block.rows.append(row)


# -- what was varied, side by side ----------------------------------------------------------------------------------


def matrices(state: State, pairs: Sequence[Pair]) -> list[Pair]:
    """Returns, for each scene, varied setting and user group, a table of the rows by the setting's values."""
    matrices: list[Pair] = []
    by_title = {group.title: (group, tables[0]) for group, tables in pairs}
    for scene in state.study.scenes:
        for key, values in state.study.vary.items():
            there = {
                text_of(value): by_title[f"{scene}, {key}={text_of(value)}"]
                for value in values
                if f"{scene}, {key}={text_of(value)}" in by_title
            }
            if not there:
                continue
            first, tables = next(iter(there.values()))[0], {text: table for text, (_, table) in there.items()}
            names = list(
                dict.fromkeys(g for table in tables.values() for b in table.blocks for g in b.counts)
            )
            several = len(names) > 1
            by_group = [
                Table(f"{scene}, by {key}{f': {name}' if several else ''}", _blocks(tables, name))
                for name in names
            ]
            matrices.append((replace(first, members={}, notes=[], title=f"{scene}, by {key}"), by_group))
    return matrices


def _blocks(tables: Mapping[str, Table], name: str) -> list[Block]:
    """Returns a block per domain: rows by value and metric, taken from the tables of the values."""
    domains = list(dict.fromkeys(block.domain for table in tables.values() for block in table.blocks))
    blocks = []
    for domain in domains:
        of_value = {
            text: block
            for text, table in tables.items()
            for block in table.blocks
            if block.domain == domain and name in block.counts
        }
        if not of_value:
            continue
        metrics = next(iter(of_value.values())).metrics
        labels = {(row.floor, row.label): None for block in of_value.values() for row in block.rows}
        rows = []
        for floor, label in sorted(labels, key=lambda one: one[0]):
            cells, seeds, flags = {}, 0, ""
            for text, block in of_value.items():
                row = next((row for row in block.rows if (row.floor, row.label) == (floor, label)), None)
                for metric in metrics:
                    cell = row.cells[name, metric] if row else TableCell(None)
                    cells[text, metric] = replace(cell, mark="")  # the tests' marks stand in the tables below
                if row:
                    seeds, flags = max(seeds, row.seeds), "".join(dict.fromkeys(flags + row.flags))
            rows.append(Row(label, seeds, floor, cells, flags))
        counts = {text: block.counts[name] for text, block in of_value.items()}
        blocks.append(Block(domain, counts, metrics, rows))
    return blocks
