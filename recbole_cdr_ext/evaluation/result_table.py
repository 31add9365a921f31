"""What a run says at its end: a table to read, and a table of instances to compute with."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics
from recbole_cdr_ext.evaluation.ranking import Ranks
from recbole_cdr_ext.files import replacing

WIDTH = 100


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


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _shortened(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"


def instance_frame(
    dataset: CrossDomainDataset,
    instances: Instances,
    ranks: Ranks,
    metrics: RankingMetrics,
    groups: Mapping[str, np.ndarray],
    part: str,
) -> pd.DataFrame:
    """Returns one row per instance, in external ids: what significance tests and plots read.

    Columns: part, user, domain, target; one boolean per group; ``history_DOMAIN`` lengths (the target not
    counted); candidates, rank; each metric that an instance has for itself; fallback (ranked by popularity).
    """
    names = np.array(dataset.domains, dtype=object)
    columns: dict[str, Any] = {
        "part": np.full(len(instances), part, dtype=object),
        "user": dataset.id2token(dataset.uid_field, instances.user),
        "domain": names[instances.domain],
        "target": dataset.item_token(instances.target),
        **groups,
        **{f"history_{name}": instances.lengths[:, k] for k, name in enumerate(dataset.domains)},
        "candidates": ranks.candidates,
        "rank": ranks.rank,
        **metrics.per_instance(ranks.rank),
        "fallback": ranks.fallback,
    }
    return pd.DataFrame(columns)


def write_instances(frame: pd.DataFrame, folder: str | Path, name: str = "instances") -> Path:
    """Writes a per-instance table as parquet, as CSV without pyarrow; returns the file's path.

    Raises:
        CDRError: it cannot be written.
    """
    parquet = importlib.util.find_spec("pyarrow") is not None
    path = Path(folder) / f"{name}.{'parquet' if parquet else 'csv'}"
    with replacing(path) as temporary:
        if parquet:
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False)
    return path


def read_instances(folder: str | Path, name: str = "instances") -> pd.DataFrame:
    """Returns a per-instance table that :func:`write_instances` wrote.

    Raises:
        CDRError: there is none, or it can't be read.
    """
    parquet, csv = (Path(folder) / f"{name}.{kind}" for kind in ("parquet", "csv"))
    path = parquet if parquet.exists() else csv
    if not path.exists():
        raise CDRError(f"{folder} has no per-instance table ({parquet.name} or {csv.name}).")
    try:
        if path == parquet:
            return pd.read_parquet(path)
        # Names are text, also those that look like numbers or like what pandas takes for a gap.
        names = dict.fromkeys(("part", "user", "domain", "target", "item"), str)
        return pd.read_csv(path, dtype=names, keep_default_na=False)
    except ImportError as error:
        raise CDRError(
            f"reading {path} takes pyarrow: pip install 'recbole_cdr_ext[parquet]' (or pip install pyarrow)."
        ) from error
    except (OSError, ValueError) as error:  # pandas' and pyarrow's own errors are ValueErrors
        raise CDRError(f"{path} can't be read: {' '.join(str(error).split())}") from error


from recbole_cdr_ext.evaluation.metric import spelt
