"""The tables of a report: their numbers and marks, and how Markdown and LaTeX write them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.result_table import spelt
from recbole_cdr_ext.evaluation.significance import Spread, align, compare
from recbole_cdr_ext.reports.groups import Group
from recbole_cdr_ext.runs.finished import FinishedRun

LEVELS = ((0.01, 2), (0.05, 1))  # p below, marks
BETTER, WORSE = "*", "↓"
CAPPED, FALLBACK = "‡", "†"
# The column of a per-instance table that a metric of the results is the mean of.
TESTED = {"mae": "absolute_error", "rmse": "squared_error"}


@dataclass
class Cell:
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
    cells: dict[tuple[str, str], Cell]
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
            + ("Ranking metrics in percent. " if any("@" in metric for metric in metrics) else "")
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
    found = [table]
    second = "test_among_test_items"
    if all(second in run.result for run in group.runs):
        title = f"{group.title}, negatives from the items of the test file"
        found.append(Table(title, _blocks(group, second, "popularity_among_test_items")))
    return found


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
    label: str, tables: Sequence[Mapping], domain: str, columns: Iterable, *, floor: bool = False
) -> Row:
    cells = {}
    for name, metric in columns:
        values = [table.get(domain, {}).get(name, {}).get(metric) for table in tables]
        if not values or None in values:
            cells[name, metric] = Cell(None)
            continue
        spread = Spread.of(values)
        # A floor that has nothing random in it was not repeated, however many runs it stands beside.
        if floor and len(set(values)) == 1:
            spread = Spread.of(values[:1])
        cells[name, metric] = Cell(spread, written(metric, spread))
    return Row(
        label, max((c.spread.n for c in cells.values() if c.spread), default=len(tables)), floor, cells
    )


def written(metric: str, spread: Spread) -> str:
    """Returns a number as tables show it: ranking metrics in percent, errors as they are."""
    factor, digits = (100, 2) if "@" in metric else (1, 4)
    text = f"{factor * spread.mean:.{digits}f}"
    return text if spread.std is None else f"{text} ± {factor * spread.std:.{digits}f}"


def _floors(group: Group, popularity: str) -> dict[str, list[Mapping]]:
    """What a model has to be above, with the table of one run per seed."""
    found: dict[str, dict[int, Mapping]] = {}
    for run in group.runs:
        own = run.result.get("floors") or {}
        if popularity in run.result:
            own = {**own, "Popularity": run.result[popularity]}
        for name, table in own.items():
            # A floor that is among the models as well stands there.
            if name not in group.members:
                found.setdefault(name, {}).setdefault(run.seed, table)
    return {name: list(of_seed.values()) for name, of_seed in found.items()}


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
        order = sorted(set(shown.values()), reverse="@" in column[1])
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
    for one in table.comparisons.itertuples():
        cell = cells.get((one.domain, one.group, one.metric, one.model))
        if cell is not None:
            level = next((marks for p, marks in LEVELS if one.p < p), 0)
            cell.mark = (BETTER if one.better else WORSE) * level


def _has(runs: Sequence[FinishedRun], metric: str) -> bool:
    return all(
        metric in cell for r in runs for groups in r.result["test"].values() for cell in groups.values()
    )


# -- Markdown -------------------------------------------------------------------------------------------------------


def markdown(title: str, groups: Sequence[tuple[Group, Sequence[Table]]]) -> str:
    """Returns all tables as a Markdown page."""
    lines = [f"# {md(title)}"]
    for group, tables in groups:
        for table in tables:
            lines += ["", *markdown_table(group, table)]
    return "\n".join(lines) + "\n"


def markdown_table(group: Group, table: Table) -> list[str]:
    """Returns the lines of a section with one of a group's tables, its legend, and what has to be said of it."""
    lines = [f"## {md(table.title)}", ""]
    if group.simulated:
        lines += ["**SIMULATED DATA: these numbers say nothing about real users.**", ""]
    for block in table.blocks:
        heads = [
            f"{md(name)} (n={n:,}) {md(spelt(metric))}"
            for name, n in block.counts.items()
            for metric in block.metrics
        ]
        lines.append(f"| {md(block.domain)} | " + " | ".join(heads) + " |")
        lines.append("|---|" + "---:|" * len(heads))
        lines += [_markdown_row(row, block) for row in block.rows]
        lines.append("")
    lines += [md(line) + "  " for line in table.legend()]
    lines += ["", *(f"- {md(note)}" for note in [*table.notes, *warnings_of(group)])]
    while not lines[-1]:
        lines.pop()
    return lines


def _markdown_row(row: Row, block: Block) -> str:
    cells = []
    for column in block.columns:
        cell = row.cells[column]
        text = (
            f"**{cell.text}**" if cell.place == 1 else f"<u>{cell.text}</u>" if cell.place == 2 else cell.text
        )
        cells.append(text + md(cell.mark))
    name = f"{md(row.label)}{row.flags} ({row.seeds})"
    return f"| {f'*{md(row.label)}*' if row.floor else name} | " + " | ".join(cells) + " |"


def md(text: str) -> str:
    """Returns text that Markdown shows as it is."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", flat)


def warnings_of(group: Group) -> list[str]:
    """Returns what its runs say of themselves, and what leaked."""
    leaks: dict[str, Any] = {}
    for run in group.runs:
        leaks |= run.leaks
    said = [f"Leaks: {'; '.join(f'{what}: {n}' for what, n in leaks.items())}."] if leaks else []
    return [*said, *group.notes]


# -- LaTeX ----------------------------------------------------------------------------------------------------------

# Brackets and stars in braces, because they mean something else behind the \\ of the row above.
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}", "*": "{*}",
    "±": r"$\pm$", "–": "--", "…": r"\ldots{}", "→": r"$\rightarrow$",
    FALLBACK: r"$^{\dagger}$", CAPPED: r"$^{\ddagger}$", WORSE: r"$\downarrow$",
}  # fmt: skip


def latex(groups: Sequence[tuple[Group, Sequence[Table]]]) -> str:
    """Returns all tables for a document that loads ``booktabs``, and nothing else."""
    lines = [
        r"% \input this file; the preamble needs \usepackage{booktabs}.",
        *(line for group, tables in groups for table in tables for line in _latex_table(group, table)),
    ]
    return "\n".join(lines) + "\n"


def _latex_table(group: Group, table: Table) -> list[str]:
    names = list(dict.fromkeys(name for block in table.blocks for name in block.counts))
    metrics = table.blocks[0].metrics if table.blocks else []
    width, per = len(names) * len(metrics), len(metrics)
    simulated = r"\textbf{SIMULATED DATA.} " if group.simulated else ""
    caption = " ".join(_tex(line) for line in [f"{table.title}.", *table.legend()])
    spans = [(2 + i * per, 1 + (i + 1) * per) for i in range(len(names))]
    lines = [
        "", r"\begin{table*}[t]", r"\centering\small\setlength{\tabcolsep}{4pt}", rf"\caption{{{simulated}{caption}}}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * width}@{{}}}}", r"\toprule",
        " & ".join(["", *(rf"\multicolumn{{{per}}}{{c}}{{{_tex(name)}}}" for name in names)]) + r" \\",
        "".join(rf"\cmidrule(lr){{{a}-{b}}}" for a, b in spans),
        " & ".join(["", *(_tex(spelt(metric)) for _ in names for metric in metrics)]) + r" \\",
    ]  # fmt: skip
    for block in table.blocks:
        counts = [f"$n = {block.counts[name]}$" if name in block.counts else "" for name in names]
        heads = [rf"\multicolumn{{{per}}}{{c}}{{{count}}}" for count in counts]
        lines += [r"\midrule", " & ".join([rf"\emph{{{_tex(block.domain)}}}", *heads]) + r" \\"]
        lines += [
            _latex_row(row, [(name, metric) for name in names for metric in metrics]) for row in block.rows
        ]
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}"]


def _latex_row(row: Row, columns: Sequence[tuple[str, str]]) -> str:
    name = (
        rf"\emph{{{_tex(row.label)}}}" if row.floor else f"{_tex(row.label)}{_tex(row.flags)} ({row.seeds})"
    )
    cells = [name]
    for column in columns:
        cell = row.cells.get(column)
        if cell is None or cell.spread is None:
            cells.append("--")
            continue
        mean, _, std = cell.text.partition(" ± ")
        mean = (
            rf"\textbf{{{mean}}}"
            if cell.place == 1
            else rf"\underline{{{mean}}}"
            if cell.place == 2
            else mean
        )
        spread = rf"\,{{\scriptsize$\pm$\,{std}}}" if std else ""
        mark = cell.mark.replace(WORSE, r"\downarrow ")
        cells.append(mean + spread + (f"$^{{{mark}}}$" if mark else ""))
    return " & ".join(cells) + r" \\"


def _tex(text: str) -> str:
    """Text that LaTeX sets as it is; letters that it has no sign for lose their accents, or become a question mark."""
    parts = []
    for letter in " ".join(str(text).split()):
        if letter in _TEX:
            parts.append(_TEX[letter])
        elif letter.isascii():
            parts.append(letter)
        else:
            plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
            parts.append("".join(_TEX.get(one, one) for one in plain) or "?")
    return "".join(parts)
