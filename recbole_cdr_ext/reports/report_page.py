"""A report as one HTML page that needs neither a network nor other files.

Whatever comes from files goes through :func:`tag` or :func:`_json`, which escape it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recbole_cdr_ext.evaluation.result_table import spelt
from recbole_cdr_ext.pages.assets import SCRIPT, STYLE
from recbole_cdr_ext.pages.html import POLICY, Markup, json_element, plotly_script, tag
from recbole_cdr_ext.reports.charts import figures
from recbole_cdr_ext.reports.groups import Collection, Group, differing
from recbole_cdr_ext.reports.tables import Block, Cell, Row, Table, warnings_of
from recbole_cdr_ext.runs.finished import FinishedRun
from recbole_cdr_ext.settings.reading import short, text_of


def page(
    title: str,
    made: str,
    found: Collection,
    tables: Sequence[Sequence[Table]],
    before: Sequence[Markup] = (),
) -> str:
    """Returns the page.

    Args:
        made: when and by what.
        tables: of each group of ``found``.
        before: what stands above the groups.

    Raises:
        CDRError: plotly is not installed.
    """
    data: list[Markup] = []
    sections = [
        _section(number, group, its, data)
        for number, (group, its) in enumerate(zip(found.groups, tables, strict=True))
    ]
    n = sum(len(group.runs) for group in found.groups)
    links = [tag("li", tag("a", group.title, href=f"#g{i}")) for i, group in enumerate(found.groups)]
    body = [
        tag("h1", title),
        tag("p", f"{made}; {n} runs, {len(found.skipped)} skipped.", class_="facts"),
        tag("nav", tag("ul", links), aria_label="Contents") if len(links) > 1 else None,
        _skipped(found.skipped),
        *before,
        *sections,
        _versions([run for group in found.groups for run in group.runs]),
        *data,
        Markup(f"<script>{plotly_script()}</script><script>{SCRIPT}</script>"),
    ]
    head = [
        Markup(f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        # An icon of its own, or browsers ask for one.
        Markup('<link rel="icon" href="data:,">'),
        tag("title", title),
        Markup(f"<style>{STYLE}</style>"),
    ]
    whole = tag("html", tag("head", head), tag("body", [part for part in body if part]), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


# -- sections -------------------------------------------------------------------------------------------------------


def _section(number: int, group: Group, tables: Sequence[Table], data: list[Markup]) -> Markup:
    drawn = []
    for i, figure in enumerate(figures(group, tables[0])):
        name = f"f{number}-{i}"
        data.append(json_element(figure, name))
        what = figure["layout"]["title"]["text"]
        drawn.append(tag("div", class_="figure", data_figure=name, role="img", aria_label=what))
    facts = "; ".join(f"{k} {short(v, 60)}" for k, v in group.facts.items() if v not in (None, {}))
    warnings = [*tables[0].notes, *warnings_of(group)]
    parts = [
        tag("h2", group.title),
        tag("p", "SIMULATED DATA: these numbers say nothing about real users.", class_="simulated")
        if group.simulated
        else None,
        tag("p", f"Task {group.task}; {facts}", class_="facts"),
        tag("div", tag("ul", [tag("li", text) for text in warnings]), class_="warning") if warnings else None,
        *(part for i, table in enumerate(tables) for part in table_markup(table, with_title=i > 0)),
        _comparisons(tables[0]),
        tag("h3", "Figures"),
        tag(
            "p", "Error bars: one standard deviation over the seeds. Click a name to hide it.", class_="facts"
        ),
        tag("div", drawn, class_="figures"),
        _settings(group),
        _runs(group),
    ]
    return tag("section", [part for part in parts if part], id=f"g{number}")


def table_markup(table: Table, *, with_title: bool) -> list[Markup]:
    """Returns a table per domain, and what its signs mean."""
    legend = tag("div", [tag("p", line) for line in table.legend()], class_="legend")
    title = [tag("h3", table.title)] if with_title else []
    return [*title, *(_block(block) for block in table.blocks), legend]


def _block(block: Block) -> Markup:
    """The table of a domain; each click on a metric's head sorts it."""
    per = len(block.metrics)
    groups = [
        tag("th", f"{name} (n = {n:,})", class_="span", colspan=per, scope="colgroup")
        for name, n in block.counts.items()
    ]
    heads = [_head("model", 0)]
    for i, (_, metric) in enumerate(block.columns):
        heads.append(_head(spelt(metric), i + 1, "descending" if "@" in metric else "ascending"))
    caption = tag("caption", tag("b", block.domain))
    head = tag("thead", tag("tr", tag("td"), groups), tag("tr", heads))
    rows = [_block_row(row, block) for row in block.rows]
    return _scrolled(tag("table", caption, head, tag("tbody", rows), class_="sortable"), block.domain)


def _block_row(row: Row, block: Block) -> Markup:
    seeds = None if row.floor else tag("span", f" ({row.seeds})", class_="spread")
    name = tag("td", row.label, row.flags, seeds)
    return tag(
        "tr",
        name,
        [_cell(row.cells[column]) for column in block.columns],
        class_="floor" if row.floor else None,
    )


def _cell(cell: Cell) -> Markup:
    if cell.spread is None:
        return tag("td", cell.text)
    mean, _, std = cell.text.partition(" ± ")
    kind = {1: "best", 2: "second"}.get(cell.place)
    spread = tag("span", f" ± {std}", class_="spread") if std else None
    mark = tag("sup", cell.mark) if cell.mark else None
    return tag("td", tag("span", mean, class_=kind), spread, mark, data_value=repr(cell.spread.mean))


def _head(text: str, column: int, first: str = "ascending", kind: str | None = None) -> Markup:
    button = tag("button", text, type="button")
    return tag("th", button, scope="col", data_column=column, data_first=first, class_=kind)


def _plain_table(rows: Sequence[Mapping[str, object]], what: str) -> Markup:
    """A sortable table of texts and numbers; a cell is a value, or (shown, to sort by)."""
    texts = {name for name, value in rows[0].items() if isinstance(value, str)}
    heads = [_head(name, i, kind="text" if name in texts else None) for i, name in enumerate(rows[0])]
    lines = []
    for row in rows:
        cells = []
        for value in row.values():
            shown, by = value if isinstance(value, tuple) else (value, None)
            if isinstance(shown, str) and by is None:
                cells.append(tag("td", shown, class_="text"))
            else:
                cells.append(
                    tag("td", "–" if shown is None else shown, data_value="" if by is None else repr(by))
                )
        lines.append(tag("tr", cells))
    return _scrolled(
        tag("table", tag("thead", tag("tr", heads)), tag("tbody", lines), class_="sortable"), what
    )


def _scrolled(table: Markup, what: str) -> Markup:
    """A wide table can be scrolled, also by keys."""
    return tag("div", table, class_="scroll", role="region", aria_label=what, tabindex="0")


def _comparisons(table: Table) -> Markup | None:
    """All numbers of the tests."""
    if table.comparisons is None:
        return None
    rows: list[dict[str, object]] = []
    for one in table.comparisons.to_dict("records"):
        numbers = {
            "difference": one["difference"], "95 % from": one["low"], "to": one["high"], "t-test p": one["t_p"],
            "Holm p": one["t_holm"], "Wilcoxon p": one["wilcoxon_p"], "Holm p ": one["wilcoxon_holm"],
            "d_z": one["d_z"], "rank-biserial": one["rank_biserial"],
        }  # fmt: skip
        metric = {"absolute_error": "absolute error", "squared_error": "squared error"}.get(one["metric"])
        rows.append(
            {
                **{"domain": one["domain"], "group": one["group"], "metric": metric or spelt(one["metric"])},
                **{"model": one["model"], "than": one["other"], "n": (f"{one['n']:,}", one["n"])},
                **{name: _number(value) for name, value in numbers.items()},
            }
        )
    about = (
        "Differences of the values as fractions (not percent), model - other, averaged over the seeds. n: the "
        "test users, who are taken to be independent of each other. d_z: mean difference over its standard "
        "deviation. Rank-biserial: (W+ - W-) / (W+ + W-), from -1 to 1."
    )
    return tag(
        "details",
        tag("summary", f"Significance: {len(rows)} comparisons with intervals, p-values and effect sizes"),
        tag("p", about, class_="facts"),
        _plain_table(rows, "Significance"),
    )


def _number(value: float) -> tuple[str, float] | None:
    return None if np.isnan(value) else (f"{value:.3g}", value)


def _settings(group: Group) -> Markup:
    """The settings that are not the same everywhere, of those that several labels have."""
    first = {label: runs[0] for label, runs in group.members.items()}
    rows = []
    for key in differing(list(first.values())):
        texts = {
            label: short(run.settings[key], 60) if key in run.settings else "" for label, run in first.items()
        }
        if len({text for text in texts.values() if text}) > 1:
            rows.append({"setting": key, **texts})
    if not rows:
        return tag("p", "No setting differs that several of these models have.", class_="facts")
    return tag(
        "details",
        tag("summary", f"Settings that differ ({len(rows)})"),
        _plain_table(rows, "Settings that differ"),
    )


def _runs(group: Group) -> Markup:
    rows: list[dict[str, object]] = []
    details = []
    for label, runs in group.members.items():
        for run in runs:
            found = run.result
            seconds = _mapping(found.get("seconds"))
            rows.append(
                {
                    "model": label,
                    "seed": (run.seed, run.seed),
                    "run": run.name,
                    "best validation": _measured(found.get("best_valid_score"), 4),
                    "epochs": _measured(found.get("epochs_run"), 0),
                    "stopped": str(found.get("stopped") or "–"),
                    "training (s)": _measured(seconds.get("training"), 1),
                    "total (s)": _measured(seconds.get("total"), 1),
                }
            )
            details.append(_run(label, run, seconds))
    return tag(
        "div",
        tag("h3", "Runs"),
        _plain_table(rows, "Runs"),
        tag("details", tag("summary", "Commands, seconds, versions and all settings of every run"), details),
    )


def _measured(value: object, digits: int) -> tuple[str, float] | None:
    if not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return f"{value:,.{digits}f}", float(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _run(label: str, run: FinishedRun, seconds: Mapping[str, Any]) -> Markup:
    settings = yaml.safe_dump(dict(run.settings), sort_keys=True, allow_unicode=True, width=110)
    versions = ", ".join(f"{k} {v}" for k, v in _mapping(run.result.get("versions")).items())
    spent = ", ".join(f"{name} {text_of(value)}" for name, value in seconds.items())
    parts = [
        tag("pre", run.command()),
        tag("p", f"Folder: {run.folder}", class_="facts"),
        tag("p", f"Seconds: {spent}", class_="facts") if spent else None,
        tag("p", f"Versions: {versions}", class_="facts") if versions else None,
        *(tag("p", f"Note: {note}", class_="facts") for note in run.notes),
        *(tag("p", f"Leak: {what}: {n}", class_="facts") for what, n in run.leaks.items()),
        tag("details", tag("summary", f"All {len(run.settings)} settings"), tag("pre", settings)),
    ]
    return tag("details", tag("summary", f"{label}, seed {run.seed}"), [part for part in parts if part])


def _skipped(skipped: Sequence[tuple[Path, str]]) -> Markup | None:
    if not skipped:
        return None
    rows = [{"folder": str(folder), "reason": reason} for folder, reason in skipped]
    what = f"{len(skipped)} skipped, with the reason"
    return tag("details", tag("summary", what), _plain_table(rows, "Skipped runs"), class_="warning")


def _versions(runs: Iterable[FinishedRun]) -> Markup | None:
    """Which versions the runs were made with, and how many with each."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for name, version in _mapping(run.result.get("versions")).items():
            counts.setdefault(str(name), Counter())[str(version)] += 1
    said = [
        f"{name} "
        + " / ".join(f"{version} ({n} runs)" if len(of) > 1 else version for version, n in of.items())
        for name, of in counts.items()
    ]
    return tag("section", tag("h2", "Versions"), tag("p", ", ".join(said) + ".")) if said else None
