"""What a run says at its end: a table to read; and how tables write the names and figures of metrics."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.registry import metrics as metric_registry

WIDTH = 100
_SPELT = {
    "hit": "HR",
    "ndcg": "NDCG",
    "mrr": "MRR",
    "map": "MAP",
    "recall": "Recall",
    "precision": "Precision",
    "gauc": "GAUC",
    "itemcoverage": "ItemCoverage",
    "averagepopularity": "AveragePopularity",
    "shannonentropy": "ShannonEntropy",
    "giniindex": "GiniIndex",
    "tailpercentage": "TailPercentage",
}


def result_table(result: Mapping[str, Any], part: str = "test") -> str:
    """Returns a run's result as text of at most 100 columns: domain × group × metrics, popularity's beside.

    Args:
        result: as ``run_recbole_cdr`` returns it.
        part: "test" or "valid"; popularity is shown for the test instances, where it was computed.
    """
    table = result[part]
    popularity = result.get("popularity") if part == "test" else None
    fallback = (result.get("fallback") or {}).get(part) or {}
    simulated = ", SIMULATED DATA" if result.get("simulated") else ""
    title = f"{result['model']} on {result['dataset']}{simulated}: {part}, split={result['split']}"
    names = [name for name in next(iter(next(iter(table.values())).values())) if name != "n"]
    lines = [title]
    for block in _blocks(names, table, with_popularity=popularity is not None):
        rows = [_header(block, popularity is not None)]
        for domain, groups in table.items():
            for group, cell in groups.items():
                mark = "†" if fallback.get(domain, {}).get(group) else " "
                values = [_value(cell[name]) + mark for name in block]
                if popularity is not None:
                    values += [_value(popularity[domain][group][name]) for name in block]
                first = domain if group == next(iter(groups)) else ""
                rows.append([_shortened(first), group, f"{cell['n']:,}", *values])
        lines += ["", *_aligned(rows, first_of_group=len(next(iter(table.values()))))]
    lines += _footnotes(result, fallback, table)
    return "\n".join(lines)


def result_tables(result: Mapping[str, Any]) -> str:
    """Returns the test table; under split=published also the one among the items of the test file.

    Of a run without an evaluation of the test part, the validation table.
    """
    if result.get("task") == "rating":
        return rating_table(result)
    if "test" not in result:
        return result_table(result, "valid")
    tables = [result_table(result)]
    if "test_among_test_items" in result:
        second = {
            "test": result["test_among_test_items"],
            "popularity": result["popularity_among_test_items"],
        }
        title = {"split": f"{result['split']}, negatives from the items of the test file", "notes": []}
        tables.append(result_table({**result, **second, **title}))
    return "\n\n".join(tables)


def rating_table(result: Mapping[str, Any]) -> str:
    """Returns the result of a run on ratings as text: the model's metrics, and those of the floors."""
    simulated = ", SIMULATED DATA" if result.get("simulated") else ""
    title = (
        f"{result['model']} on {result['dataset']}{simulated}: {result['source']} -> {result['target']}, "
        f"beta={result['beta']:g}, ratings of cold-start users"
    )
    tables = {result["model"]: result["test"], **(result.get("floors") or {})} if "test" in result else {}
    cells = {name: next(iter(table.values()))["cold"] for name, table in tables.items()}
    valid = next(iter(result["valid"].values()))["cold"]
    names = [name for name in valid if name != "n"]
    rows = [["model", "part", "n", *(name.upper() for name in names)]]
    rows.append([result["model"], "valid", f"{valid['n']:,}", *(_value(valid[name]) for name in names)])
    for name, cell in cells.items():
        rows.append([name, "test", f"{cell['n']:,}", *(_value(cell[metric]) for metric in names)])
    lines = [title, "", *_aligned(rows, first_of_group=len(rows))]
    return "\n".join(lines + _footnotes({"notes": result.get("notes")}, {}, result["valid"]))


def _blocks(names: list[str], table: Mapping[str, Any], *, with_popularity: bool) -> list[list[str]]:
    """Cuts the metrics so that each block of columns fits the width."""
    head = 2 + max(len(_shortened(d)) for d in [*table, "domain"]) + 2 + len("tailed") + 2 + 9
    per_metric = max(len(spelt(name)) for name in names) + 3
    if with_popularity:
        per_metric += len("Pop ") + per_metric
    size = max(1, (WIDTH - head) // per_metric)
    return [names[i : i + size] for i in range(0, len(names), size)]


def _header(names: list[str], with_popularity: bool) -> list[str]:
    header = ["domain", "group", "n", *(f"{spelt(name)} " for name in names)]
    return header + [f"Pop {spelt(name)}" for name in names] * with_popularity


def _aligned(rows: list[list[str]], first_of_group: int) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
        if number % first_of_group == 0 and number < len(rows) - 1:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    return lines


def _footnotes(result: Mapping[str, Any], fallback: Mapping[str, Any], table: Mapping[str, Any]) -> list[str]:
    notes = []
    count = sum(groups.get("all", 0) for groups in fallback.values())
    if count:
        total = sum(groups["all"]["n"] for groups in table.values())
        notes.append(
            f"† {count:,} of {total:,} instances have no score from the model: training popularity ranked "
            "them."
        )
    notes += [f"* {note}" for note in result.get("notes") or []]
    wrapped = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in notes]
    return ["", *wrapped] if wrapped else []


def spelt(name: str) -> str:
    """Returns a metric's name as papers write it: NDCG@10, HR@10, MAE."""
    metric, at, k = name.partition("@")
    return f"{_SPELT.get(metric, metric)}@{k}" if at else metric.upper()


def in_percent(name: str) -> bool:
    """Returns whether reports show a metric of results times 100.

    Of a metric that is not installed, as a run of another machine may have, the name says it.
    """
    try:
        return metric_registry.get_metric(name.partition("@")[0]).percent
    except CDRError:
        return "@" in name


def larger_is_better(name: str) -> bool:
    """Returns the direction of a metric of results; of one that is not installed, the name says it."""
    try:
        return metric_registry.get_metric(name.partition("@")[0]).larger_is_better
    except CDRError:
        return "@" in name


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _shortened(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"
