"""The files that show a study: ``tables.md``, ``tables.tex``, ``report.html`` and figures of what was varied."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from recbole_cdr_ext import __version__
from recbole_cdr_ext.evaluation.metric import in_percent, spelt
from recbole_cdr_ext.evaluation.significance import Spread
from recbole_cdr_ext.files import replacing
from recbole_cdr_ext.pages.curves import Curves
from recbole_cdr_ext.reports.groups import Collection
from recbole_cdr_ext.reports.report_page import page
from recbole_cdr_ext.reports.table_text import latex, markdown_table, md
from recbole_cdr_ext.reports.tables import Block, Table
from recbole_cdr_ext.settings.reading import text_of
from recbole_cdr_ext.studies.cells import Cell
from recbole_cdr_ext.studies.state import State, analyses_of
from recbole_cdr_ext.studies.study_tables import Pair, matrices, places

MARKDOWN, LATEX, PAGE = "tables.md", "tables.tex", "report.html"
# Columns of analyses that the scene, the settings and the seeds above say already.
_OF_RUNS = {
    "run",
    "dataset",
    "source",
    "target",
    "beta",
    "split_seed",
    "seed",
    "biases",
    "d",
    "direction_seed",
}


def write(state: State, pairs: Sequence[Pair], *, final: bool) -> list[str]:
    """Writes the files of a study into its folder.

    Args:
        pairs: its tables.
        final: whether figures and the page, which take longer, are written as well.

    Returns:
        Their names; nothing is written while there is no run.
    """
    if not pairs:
        return []
    beside = matrices(state, pairs)
    figures = _draw(state, pairs) if final and beside and _has("matplotlib", "plotly") else _drawn(state)
    images = {path.stem: path for path in figures}
    finished = [analysis for analysis in analyses_of(state) if analysis.done(state)]
    analysed = {analysis.name: analysis.image for analysis in finished if analysis.image.exists()}
    written = {
        MARKDOWN: _markdown(state, pairs, beside, {**images, **analysed}),
        LATEX: latex([*beside, *pairs]),
    }
    if final and _has("plotly"):
        written[PAGE] = _page(state, pairs, beside, {**images, **analysed})
    for name, text in written.items():
        with replacing(state.folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [*written, *(path.name for path in figures)]


def _has(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


# -- Markdown -------------------------------------------------------------------------------------------------------


def _markdown(state: State, pairs: Sequence[Pair], beside: Sequence[Pair], images: dict[str, Path]) -> str:
    lines = [f"# {md(state.study.title)}", "", _origin(state)]
    failed = [f"- {md(name)}: {md(reason)}" for name, reason in state.failed.items()]
    lines += ["", "Failed:", "", *failed] if failed else []
    for group, tables in beside:
        for table in tables:
            lines += ["", *markdown_table(group, table)]
    for name, path in images.items():
        lines += ["", f"![{md(name)}](<{path.relative_to(state.folder).as_posix()}>)"]
        lines += _numbers(path.with_suffix(".csv"))
    commands = {group_title(place): _commands(rows) for place, rows in places(state).items()}
    if beside:
        lines += ["", "<details><summary>The tables of the single values, with their tests</summary>"]
    for group, tables in pairs:
        for table in tables:
            lines += ["", *markdown_table(group, table)]
        lines += [
            "",
            "<details><summary>Commands</summary>",
            "",
            "```",
            *commands[group.title],
            "```",
            "",
            "</details>",
        ]
    if beside:
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _numbers(path: Path) -> list[str]:
    """Returns an analysis's numbers as a table, without what says of which runs they are."""
    if not path.exists():
        return []
    table = pd.read_csv(path).dropna(axis="columns", how="all")
    columns = [name for name in table if name not in _OF_RUNS]
    rows = [
        [md(f"{value:.4g}" if isinstance(value, float) else str(value)) for value in row]
        for row in table[columns].itertuples(index=False)
    ]
    heads = [f"| {' | '.join(map(md, columns))} |", "|---" * len(columns) + "|"]
    return ["", *heads, *(f"| {' | '.join(row)} |" for row in rows)]


def group_title(place: tuple[str, str | None]) -> str:
    """Returns what the group of a table's runs is called."""
    return ", ".join(part for part in place if part)


def _commands(rows: dict[str, list[Cell]]) -> list[str]:
    """Returns one command per row, with its first seed."""
    return [cells[0].command for cells in rows.values()]


def _origin(state: State) -> str:
    done = len(state.cells) - sum(state.line(cell) is None for cell in state.cells)
    threads = state.cells[0].settings["torch_threads"]
    left = len(state.cells) - done
    said = f" {left} {'is' if left == 1 else 'are'} missing." if left else ""
    return (
        f"{done} of {len(state.cells)} runs, seeds {state.study.seeds_in_words}, "
        f"with torch_threads={threads}.{said} Made by `{state.command}`."
    )


# -- HTML -----------------------------------------------------------------------------------------------------------


def _page(state: State, pairs: Sequence[Pair], beside: Sequence[Pair], images: dict[str, Path]) -> str:
    collection = Collection(
        [group for group, _ in pairs], [(Path(name), why) for name, why in state.failed.items()]
    )
    summaries = [table for _, tables in beside for table in tables]
    origin = f"Made by recbole_cdr_ext {__version__}"
    return page(state.study.title, origin, collection, [tables for _, tables in pairs], summaries, images)


# -- figures --------------------------------------------------------------------------------------------------------


def _drawn(state: State) -> list[Path]:
    return sorted(state.folder.glob("figure*.png")) if state.study.vary else []


def _draw(state: State, pairs: Sequence[Pair]) -> list[Path]:
    """Draws a figure per scene: a panel for each varied setting and domain, of the first metric and user group."""
    for path in _drawn(state):
        path.unlink()
    figures: list[Path] = []
    tables = {group.title: tables[0] for group, tables in pairs}
    for scene in state.study.scenes:
        curves = Curves(f"{state.study.title}: {scene}")
        varied = {
            key: [
                (value, tables[f"{scene}, {key}={text_of(value)}"])
                for value in values
                if f"{scene}, {key}={text_of(value)}" in tables
            ]
            for key, values in state.study.vary.items()
        }
        shown = [table for there in varied.values() for _, table in there]
        for domain in dict.fromkeys(block.domain for table in shown for block in table.blocks):
            for key, there in varied.items():
                if any(block.domain == domain for _, table in there for block in table.blocks):
                    _panel(curves, key, domain, there, list(state.study.rows))
        if curves.has_spread:
            curves.note = "Error bars: one standard deviation over the seeds."
        if curves.panels:
            several = len(state.study.scenes) > 1
            name = f"figure-{re.sub(r'[^a-zA-Z0-9.=_]+', '-', scene).strip('-')}" if several else "figure"
            if any(path.stem == name for path in figures):
                name += f"-{len(figures)}"
            path = state.folder / f"{name}.png"
            curves.write(path, path.with_suffix(".html"))
            figures.append(path)
    return figures


def _panel(
    curves: Curves, key: str, domain: str, tables: Sequence[tuple[object, Table]], rows: Sequence[str]
) -> None:
    blocks = [(value, block) for value, table in tables for block in table.blocks if block.domain == domain]
    first = blocks[0][1]
    group, metric = first.columns[0]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in blocks)
    ticks = [float(value) if numeric else float(i) for i, (value, _) in enumerate(blocks)]  # type: ignore[arg-type]
    factor = 100 if in_percent(metric) else 1
    unit = f"{spelt(metric)}{' (%)' if factor == 100 else ''}"
    curves.panel(
        f"{domain}, {group}", key, unit, ticks=ticks, names=[text_of(value) for value, _ in blocks],
        group=f"{domain} {metric}",
    )  # fmt: skip
    for label in rows:
        spreads = [_spread(block, label, (group, metric)) for _, block in blocks]
        points = [(x, spread) for x, spread in zip(ticks, spreads, strict=True) if spread is not None]
        if points:
            curves.line(
                label,
                [x for x, _ in points],
                [factor * spread.mean for _, spread in points],
                [None if spread.std is None else factor * spread.std for _, spread in points],
            )


def _spread(block: Block, label: str, column: tuple[str, str]) -> Spread | None:
    row = next((row for row in block.rows if row.label == label and not row.floor), None)
    cell = row.cells.get(column) if row else None
    return None if cell is None else cell.spread


# -- the terminal ---------------------------------------------------------------------------------------------------


def as_text(state: State, pairs: Sequence[Pair]) -> str:
    """Returns the first metric of all tables as text: what was varied side by side, where something was."""
    shown = matrices(state, pairs) or pairs
    parts = [_text(table, block) for _, tables in shown for table in tables for block in table.blocks]
    return "\n\n".join(["", *parts]) if parts else "There is no run yet."


def _text(table: Table, block: Block) -> str:
    metric = block.metrics[0]
    lines = []
    for row in block.rows:
        cells = [row.cells[name, metric] for name in block.counts]
        best = [f"{cell.text}{cell.mark}{' ←' if cell.place == 1 else ''}" for cell in cells]
        lines.append([row.label if row.floor else f"{row.label}{row.flags} ({row.seeds})", *best])
    heads = [f"{name} (n={n:,})" for name, n in block.counts.items()]
    text = tabulate(lines, headers=[spelt(metric), *heads], disable_numparse=True)
    return f"{table.title}: {block.domain}\n{text}"
