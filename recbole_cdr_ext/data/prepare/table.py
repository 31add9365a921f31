"""Plain tables: one CSV or TSV file per domain, and Amazon's ratings-only files, which are such tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from recbole_cdr_ext.data.delimited import Delimited, first_line, read_columns
from recbole_cdr_ext.data.prepare.content import Content
from recbole_cdr_ext.data.prepare.description import Description
from recbole_cdr_ext.errors import CDRError, did_you_mean

TOKENS = ("user_id", "item_id")
NUMBERS = ("rating", "timestamp")
AMAZON_RATINGS = {
    "separator": ",",
    "header": False,
    "columns": {"user_id": 0, "item_id": 1, "rating": 2, "timestamp": 3},
}


def read_tables(description: Description, files: dict[str, Path], layout: str, progress: bool) -> Content:
    """Reads the kind ``table``: columns by name (``header: true``) or by position from 0 (``header: false``).

    Rows without user or item are left out and counted; any other fault is an error. With ``own_item_ids`` the domain's
    name goes before each item, so that a number that two files give to different things is no token of both.

    Raises:
        CDRError: names file and line of what cannot be read.
    """
    source = {"separator": ",", "header": True, "own_item_ids": False, **description.source}
    _check(source, description)
    frames: dict[str, pd.DataFrame] = {}
    dropped: dict[str, int] = {}
    for domain in tqdm(description.domains, desc="reading", unit="file", disable=not progress):
        frames[domain], dropped[domain] = _read(files[domain], source)
        if source["own_item_ids"]:
            frames[domain]["item_id"] = f"{domain}-" + frames[domain]["item_id"].astype(str)
    return Content(frames, {"rows_without_id": dropped})


def read_amazon_ratings(
    description: Description, files: dict[str, Path], layout: str, progress: bool
) -> Content:
    """Reads the kind ``amazon_ratings``: user, item, rating, timestamp without header, as Amazon 2014 is published."""
    preset = {**description.source, **AMAZON_RATINGS}
    described = Description(**{**vars(description), "source": preset})
    return read_tables(described, files, layout, progress)


def _check(source: Mapping[str, Any], description: Description) -> None:
    where = f"{description.origin}: the 'source' block"
    separator, columns = source["separator"], source["columns"]
    if not isinstance(separator, str) or len(separator) != 1:
        raise CDRError(f'{where}: the separator {separator!r} must be one character, such as "," or "\\t".')
    if not isinstance(source["own_item_ids"], bool):
        raise CDRError(f"{where}: own_item_ids is {source['own_item_ids']!r} and should be true or false.")
    if not isinstance(columns, Mapping) or not set(TOKENS) <= set(columns):
        raise CDRError(f"{where}: 'columns' must say which columns are user_id and item_id.")
    for name, column in columns.items():
        if name not in TOKENS + NUMBERS:
            raise CDRError(
                f"{where}: 'columns' may name {', '.join(TOKENS + NUMBERS)}, not '{name}'."
                f"{did_you_mean(name, TOKENS + NUMBERS)}"
            )
        if not source["header"] and (not isinstance(column, int) or column < 0):
            raise CDRError(
                f"{where}: without a header, a column is a position counted from 0, not {column!r}."
            )
    _check_needed(columns, description)


def _check_needed(columns: Mapping[str, Any], description: Description) -> None:
    """Checks that the columns serve the order and the tasks: a run would find that late."""
    for needed, column, reason in (
        (description.order != "none", "timestamp", f"order: {description.order}"),
        ("rating" in description.tasks, "rating", "task: rating"),
    ):
        if needed and column not in columns:
            raise CDRError(
                f"{description.origin}: {reason} needs the column {column}, and 'columns' of the 'source' block "
                f"names only {', '.join(columns)}."
            )


def _read(path: Path, source: Mapping[str, Any]) -> tuple[pd.DataFrame, int]:
    """Returns one domain's table and the number of rows left out."""
    separator, header = source["separator"], bool(source["header"])
    head = first_line(path, separator, quoted=True)
    positions = (
        _by_name(path, head, source["columns"]) if header else _by_position(path, head, source["columns"])
    )
    form = Delimited(len(head), separator, header, quoted=True)
    tokens = {name: positions[name] for name in TOKENS}
    numbers = {name: positions[name] for name in NUMBERS if name in positions}
    frame, dropped = read_columns(path, form, tokens, numbers, drop_empty=True)
    if frame.empty:
        raise CDRError(f"{path}: the file holds no interactions; get it again.")
    return frame, dropped


def _by_name(path: Path, head: list[str], columns: Mapping[str, str]) -> dict[str, int]:
    names = [name.strip() for name in head]
    for ours, theirs in columns.items():
        if str(theirs) not in names:
            raise CDRError(
                f"{path}:1: the header has no column '{theirs}' for {ours} (it has {', '.join(names)}); "
                f"correct the header, or 'columns' in the property file.{did_you_mean(str(theirs), names)}"
            )
    return {ours: names.index(str(theirs)) for ours, theirs in columns.items()}


def _by_position(path: Path, head: list[str], columns: Mapping[str, int]) -> dict[str, int]:
    for ours, position in columns.items():
        if position >= len(head):
            raise CDRError(
                f"{path}:1: there is no column {position} for {ours}, the line has {len(head)} fields "
                "(positions count from 0); the line is truncated, or the separator in the property file is "
                "another."
            )
    return dict(columns)
