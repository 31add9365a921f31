"""A report as one HTML page with its charts, which needs neither a network nor other files."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recbole_cdr_ext.evaluation.metric import in_percent, spelt
from recbole_cdr_ext.pages.figures import COLOURS, plain
from recbole_cdr_ext.pages.page import Drawing, render
from recbole_cdr_ext.reports.groups import Collection, Group, differing
from recbole_cdr_ext.reports.tables import Table, warnings_of
from recbole_cdr_ext.runs.finished import FinishedRun
from recbole_cdr_ext.settings.reading import short, text_of

PATTERNS = ("", "/", "x", ".")  # for more models than there are colours
DASHES = ("solid", "dash", "dot", "dashdot")
FLOOR = "#b5bcc4"
Figure = dict[str, Any]


def figures(group: Group, table: Table) -> list[Figure]:
    """Returns a figure of bars per metric, and the learning curves if the runs keep them."""
    looks = {label: number for number, label in enumerate(group.members)}
    metrics = table.blocks[0].metrics if table.blocks else []
    bars = [_bars(table, metric, looks) for metric in metrics]
    curves = _curves(group, looks)
    return bars + [curves] * bool(curves["data"])


def _bars(table: Table, metric: str, looks: Mapping[str, int]) -> Figure:
    """Draws bars with error bars of one standard deviation over the seeds, per domain and user group."""
    factor = 100 if in_percent(metric) else 1
    traces = []
    for number, row in enumerate(table.blocks[0].rows):
        domains, names, means, stds = [], [], [], []
        for block in table.blocks:
            cells = block.rows[number].cells
            for name in block.counts:
                spread = cells[name, metric].spread
                domains.append(plain(block.domain))
                names.append(plain(name))
                means.append(spread and factor * spread.mean)
                stds.append(factor * spread.std if spread and spread.std is not None else None)
        look = looks.get(row.label, len(looks))
        marker: dict[str, Any] = {"color": FLOOR if row.floor else COLOURS[look % len(COLOURS)]}
        if not row.floor and look >= len(COLOURS):
            marker["pattern"] = {"shape": PATTERNS[look // len(COLOURS) % len(PATTERNS)]}
        trace = {
            "type": "bar", "name": plain(row.label), "x": [domains, names], "y": means, "marker": marker,
            "error_y": {"type": "data", "array": stds, "thickness": 1.2, "width": 3},
            "hovertemplate": "%{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
        }  # fmt: skip
        traces.append(trace)
    title = f"{spelt(metric)}{' (%)' if factor == 100 else ''} on the test part"
    return {"data": traces, "layout": _layout(title, {}, {"rangemode": "tozero"}, barmode="group")}


def _curves(group: Group, looks: Mapping[str, int]) -> Figure:
    """Draws the validation scores over all epochs of a run, the seeds of one label in one colour."""
    traces = []
    metric = str(group.runs[0].settings.get("valid_metric") or "validation score")
    for label, runs in group.members.items():
        shown = False
        for run in runs:
            epochs, scores, texts = _history(run)
            if not epochs:
                continue
            look = looks[label]
            line = {
                "color": COLOURS[look % len(COLOURS)], "dash": DASHES[look // len(COLOURS) % len(DASHES)], "width": 1.6,
            }  # fmt: skip
            traces.append(
                {
                    "type": "scatter", "mode": "lines", "name": plain(label), "legendgroup": plain(label),
                    "showlegend": not shown, "x": epochs, "y": scores, "text": texts, "line": line,
                    "hovertemplate": "epoch %{x}: %{y:.4g}, %{text}<extra>%{fullData.name}</extra>",
                }
            )  # fmt: skip
            shown = True
    x = {"title": {"text": "epoch, counted over all phases", "standoff": 6}}
    y = {"title": {"text": plain(spelt(metric.lower()))}}
    return {"data": traces, "layout": _layout("Validation while training", x, y)}


def _history(run: FinishedRun) -> tuple[list[int], list[float], list[str]]:
    """Returns the epochs that were validated, their scores, and what they are called."""
    epochs: list[int] = []
    scores: list[float] = []
    texts: list[str] = []
    history = run.result.get("history")
    for number, entry in enumerate(history if isinstance(history, list) else [], 1):
        score = entry.get("valid_score") if isinstance(entry, Mapping) else None
        if isinstance(score, int | float) and math.isfinite(score):
            epochs.append(number)
            scores.append(score)
            texts.append(plain(f"seed {run.seed}, phase {entry.get('phase')}"))
    return epochs, scores, texts


def _layout(title: str, x: Mapping[str, Any], y: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    grid = {"gridcolor": "#e6e9ed", "zerolinecolor": "#b3bcc6", "automargin": True}
    return {
        "title": {"text": title, "font": {"size": 15}, "x": 0, "xref": "paper"},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1b2733"},
        "paper_bgcolor": "#fff", "plot_bgcolor": "#fff", "margin": {"t": 50, "r": 10, "b": 40, "l": 50},
        "legend": {"orientation": "h", "y": -0.25, "yanchor": "top"}, "hovermode": "closest",
        "xaxis": {**grid, "showgrid": False, **x}, "yaxis": {**grid, **y}, **more,
    }  # fmt: skip


# A cell of a sortable table: a text; a number's text and the number; None for a gap.
Entry = str | tuple[str, float] | None
Entries = dict[str, Entry]


@dataclass(frozen=True)
class Section:
    """What a page shows of a group of runs.

    Attributes:
        tables: the first one has the notes and the tests.
        facts: the settings that the runs have in common.
        comparisons, settings, runs: rows of sortable tables; None where there is no such table.
        details: of each run.
    """

    group: Group
    tables: Sequence[Table]
    drawings: Sequence[Drawing]
    facts: str
    warnings: Sequence[str]
    comparisons: Sequence[Entries] | None
    settings: Sequence[Entries]
    runs: Sequence[Entries]
    details: Sequence[RunDetails]


@dataclass(frozen=True)
class RunDetails:
    """What a page shows of one run."""

    label: str
    run: FinishedRun
    seconds: str
    versions: str
    settings: str


def page(
    title: str,
    origin: str,
    collection: Collection,
    tables: Sequence[Sequence[Table]],
    summaries: Sequence[Table] = (),
    images: Mapping[str, Path] | None = None,
) -> str:
    """Returns the page.

    Args:
        origin: when and by what.
        tables: of each group of ``collection``.
        summaries: tables that stand above the groups.
        images: by name, PNG files that stand below these.

    Raises:
        CDRError: plotly is not installed.
    """
    groups = zip(collection.groups, tables, strict=True)
    sections = [_section(number, group, of_group) for number, (group, of_group) in enumerate(groups)]
    runs = [run for group in collection.groups for run in group.runs]
    skipped: list[Entries] = [{"folder": str(folder), "reason": why} for folder, why in collection.skipped]
    return render(
        "report.html.j2",
        title,
        [drawing for section in sections for drawing in section.drawings],
        origin=origin,
        n_runs=len(runs),
        skipped=skipped,
        summaries=summaries,
        images={name: _embedded(path) for name, path in (images or {}).items()},
        sections=sections,
        versions=_versions(runs),
    )


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _section(number: int, group: Group, tables: Sequence[Table]) -> Section:
    facts = "; ".join(f"{k} {short(v, 60)}" for k, v in group.facts.items() if v not in (None, {}))
    drawings = [
        Drawing(f"f{number}-{i}", figure["layout"]["title"]["text"], figure)
        for i, figure in enumerate(figures(group, tables[0]))
    ]
    return Section(
        group,
        tables,
        drawings,
        f"Task {group.task}; {facts}",
        [*tables[0].notes, *warnings_of(group)],
        _comparisons(tables[0]),
        _settings(group),
        [_run(label, run) for label, runs in group.members.items() for run in runs],
        [_details(label, run) for label, runs in group.members.items() for run in runs],
    )


def _comparisons(table: Table) -> list[Entries] | None:
    """Returns all numbers of the tests."""
    if table.comparisons is None:
        return None
    rows: list[Entries] = []
    for test in table.comparisons.to_dict("records"):
        numbers = {
            "difference": test["difference"], "95 % from": test["low"], "to": test["high"], "t-test p": test["t_p"],
            "Holm p": test["t_holm"], "Wilcoxon p": test["wilcoxon_p"], "Holm p ": test["wilcoxon_holm"],
            "d_z": test["d_z"], "rank-biserial": test["rank_biserial"],
        }  # fmt: skip
        metric = {"absolute_error": "absolute error", "squared_error": "squared error"}.get(test["metric"])
        rows.append(
            {
                **{
                    "domain": test["domain"],
                    "group": test["group"],
                    "metric": metric or spelt(test["metric"]),
                },
                **{"model": test["model"], "than": test["other"], "n": (f"{test['n']:,}", test["n"])},
                **{name: _number(value) for name, value in numbers.items()},
            }
        )
    return rows


def _number(value: float) -> Entry:
    return None if np.isnan(value) else (f"{value:.3g}", value)


def _settings(group: Group) -> list[Entries]:
    """Returns the settings that are not the same everywhere, of those that several labels have."""
    first = {label: runs[0] for label, runs in group.members.items()}
    rows: list[Entries] = []
    for key in differing(list(first.values())):
        texts = {
            label: short(run.settings[key], 60) if key in run.settings else "" for label, run in first.items()
        }
        if len({text for text in texts.values() if text}) > 1:
            rows.append({"setting": key, **texts})
    return rows


def _run(label: str, run: FinishedRun) -> Entries:
    result, seconds = run.result, _mapping(run.result.get("seconds"))
    return {
        "model": label,
        "seed": (str(run.seed), run.seed),
        "run": run.name,
        "best validation": _measured(result.get("best_valid_score"), 4),
        "epochs": _measured(result.get("epochs_run"), 0),
        "stopped": str(result.get("stopped") or "–"),
        "training (s)": _measured(seconds.get("training"), 1),
        "total (s)": _measured(seconds.get("total"), 1),
    }


def _measured(value: object, digits: int) -> Entry:
    if not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return f"{value:,.{digits}f}", float(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _details(label: str, run: FinishedRun) -> RunDetails:
    seconds, versions = _mapping(run.result.get("seconds")), _mapping(run.result.get("versions"))
    return RunDetails(
        label,
        run,
        ", ".join(f"{name} {text_of(value)}" for name, value in seconds.items()),
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        yaml.safe_dump(dict(run.settings), sort_keys=True, allow_unicode=True, width=110),
    )


def _versions(runs: Iterable[FinishedRun]) -> str:
    """Says which versions the runs were made with, and how many with each."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for name, version in _mapping(run.result.get("versions")).items():
            counts.setdefault(str(name), Counter())[str(version)] += 1
    return ", ".join(
        f"{name} "
        + " / ".join(f"{version} ({n} runs)" if len(of) > 1 else version for version, n in of.items())
        for name, of in counts.items()
    )
