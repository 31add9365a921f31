"""The figures of a report, as plotly's JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from recbole_cdr_ext.evaluation.result_table import in_percent, spelt
from recbole_cdr_ext.pages.figures import COLOURS, plain
from recbole_cdr_ext.reports.groups import Group
from recbole_cdr_ext.reports.tables import Table
from recbole_cdr_ext.runs.finished import FinishedRun

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
