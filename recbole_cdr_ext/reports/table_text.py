"""The tables of a report as Markdown and as LaTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from recbole_cdr_ext.evaluation.metric import spelt
from recbole_cdr_ext.reports.groups import Group
from recbole_cdr_ext.reports.tables import CAPPED, FALLBACK, WORSE, Block, Row, Table, warnings_of

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
    caption = " ".join(tex(line) for line in [f"{table.title}.", *table.legend()])
    spans = [(2 + i * per, 1 + (i + 1) * per) for i in range(len(names))]
    lines = [
        "", r"\begin{table*}[t]", r"\centering\small\setlength{\tabcolsep}{4pt}", rf"\caption{{{simulated}{caption}}}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * width}@{{}}}}", r"\toprule",
        " & ".join(["", *(rf"\multicolumn{{{per}}}{{c}}{{{tex(name)}}}" for name in names)]) + r" \\",
        "".join(rf"\cmidrule(lr){{{a}-{b}}}" for a, b in spans),
        " & ".join(["", *(tex(spelt(metric)) for _ in names for metric in metrics)]) + r" \\",
    ]  # fmt: skip
    for block in table.blocks:
        counts = [f"$n = {block.counts[name]}$" if name in block.counts else "" for name in names]
        heads = [rf"\multicolumn{{{per}}}{{c}}{{{count}}}" for count in counts]
        lines += [r"\midrule", " & ".join([rf"\emph{{{tex(block.domain)}}}", *heads]) + r" \\"]
        lines += [
            _latex_row(row, [(name, metric) for name in names for metric in metrics]) for row in block.rows
        ]
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}"]


def _latex_row(row: Row, columns: Sequence[tuple[str, str]]) -> str:
    name = rf"\emph{{{tex(row.label)}}}" if row.floor else f"{tex(row.label)}{tex(row.flags)} ({row.seeds})"
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


def tex(text: str) -> str:
    """Returns text that LaTeX sets as it is; letters without a sign of its own lose their accents,
    or become a question mark.
    """
    parts = []
    for letter in " ".join(str(text).split()):
        if letter in _TEX:
            parts.append(_TEX[letter])
        elif letter.isascii():
            parts.append(letter)
        else:
            plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
            parts.append("".join(_TEX.get(sign, sign) for sign in plain) or "?")
    return "".join(parts)
