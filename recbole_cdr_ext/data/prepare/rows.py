"""Published sequence rows: one line per training or test instance, with the user's sequence in each domain.

A user has one row or several (one per domain whose last item is the target), in the train file, the test file
or both, and they need not agree: a row that simulates a cold start has been cut to its target in one domain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from recbole_cdr_ext.data.delimited import numbered_lines, open_text, wrong_width
from recbole_cdr_ext.data.prepare.content import Content, Fact
from recbole_cdr_ext.data.prepare.description import Description
from recbole_cdr_ext.errors import CDRError, did_you_mean

PARTS = ("train", "test")


def read_rows(description: Description, files: dict[str, Path], layout: str, progress: bool) -> Content:
    """Reads the kind ``rows``.

    Layout ``users`` merges a user's rows to the longest sequence per domain (the first such, train before
    test); layout ``rows`` keeps every row as it is. In both, the timestamp is the position in the sequence.

    Raises:
        CDRError: names file and line of what cannot be read.
    """
    columns = _columns(description)
    rows = pd.concat(
        [_read(part, files[part], columns, description.domains, progress) for part in PARTS],
        ignore_index=True,
    )
    lengths = {domain: rows[domain].map(len).to_numpy() for domain in description.domains}
    has_target = np.select([rows["target_domain"] == d for d in lengths], list(lengths.values())) > 0
    facts = _facts(rows, lengths, has_target)
    if layout == "rows":
        return Content(_instances(rows[has_target].reset_index(drop=True), description.domains), facts)
    return Content({d: _longest(rows, d, lengths[d]) for d in description.domains}, facts)


def _columns(description: Description) -> dict[str, str]:
    """Returns the header's name by ours (``user_id``, ``target``, each domain), as the property file says."""
    columns = description.source["columns"]
    column_names = ("user_id", "target", *description.domains)
    if not isinstance(columns, Mapping) or sorted(columns) != sorted(column_names):
        raise CDRError(
            f"{description.origin}: the 'source' block: 'columns' must name the columns of "
            f"{', '.join(column_names)}."
        )
    return {ours: str(theirs) for ours, theirs in columns.items()}


def _read(
    part: str, path: Path, columns: dict[str, str], domains: tuple[str, ...], progress: bool
) -> pd.DataFrame:
    """Returns one row per line: row_id, user_id, target_domain, part, and a list of item tokens per domain."""
    records = []
    with open_text(path) as handle:
        lines = numbered_lines(path, handle)
        at = _header(path, next(lines, (1, []))[1], columns)
        for line, fields in tqdm(lines, desc=path.name, unit=" rows", disable=not progress):
            if fields:
                row = _row(f"{path}:{line}", fields, at, domains)
                records.append((f"{part}-{line}", part, *row))
    if not records:
        raise CDRError(f"{path}:2: the file has a header but no rows; get it again.")
    return pd.DataFrame(records, columns=["row_id", "part", "user_id", "target_domain", *domains])


def _header(path: Path, head: list[str], columns: dict[str, str]) -> dict[str, int]:
    """Returns the position by our name, and under ``""`` the number of columns."""
    names = [name.strip() for name in head]
    if not any(names):
        raise CDRError(f"{path}:1: the file is empty; get it again.")
    for theirs in columns.values():
        if theirs not in names:
            raise CDRError(
                f"{path}:1: the header has no column '{theirs}' (it has {', '.join(names)}); correct the "
                f"header, or 'columns' in the property file.{did_you_mean(theirs, names)}"
            )
    return {ours: names.index(theirs) for ours, theirs in columns.items()} | {"": len(names)}


def _row(where: str, fields: list[str], at: dict[str, int], domains: tuple[str, ...]) -> tuple:
    if len(fields) != at[""]:
        raise wrong_width(where, len(fields), at[""])
    user, target = fields[at["user_id"]], fields[at["target"]].strip()
    if not user:
        raise CDRError(f"{where}: the user is empty; give one or remove the line.")
    if not target.isdecimal() or int(target) >= len(domains):
        raise CDRError(
            f"{where}: the target domain {target!r} is none of 0 to {len(domains) - 1} "
            f"(the positions of {', '.join(domains)}); correct it or remove the line."
        )
    return (user, domains[int(target)], *(_sequence(where, domain, fields[at[domain]]) for domain in domains))


def _sequence(where: str, domain: str, text: str) -> list[str]:
    """Turns ``"[12, 7]"`` into ``["12", "7"]``."""
    try:
        items = json.loads(text)
    except ValueError as error:
        raise CDRError(
            f"{where}: the {domain} sequence {_shortened(text)} is no valid JSON list ({error}); mend or "
            "remove the line."
        ) from error
    # bool is an int to Python, but no item.
    if not isinstance(items, list) or not all(
        type(item) is int or (type(item) is str and item) for item in items
    ):
        raise CDRError(
            f"{where}: the {domain} sequence {_shortened(text)} is no JSON list of item ids; mend or remove "
            "the line."
        )
    return [str(item) for item in items]


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:30]}...{text[-7:]}")


def _facts(rows: pd.DataFrame, lengths: dict[str, np.ndarray], has_target: np.ndarray) -> dict[str, Fact]:
    users = rows["user_id"]
    several = users.duplicated(keep=False)
    # Lists are compared through their text: they cannot be hashed.
    texts = pd.DataFrame({domain: rows.loc[several, domain].map(" ".join) for domain in lengths})
    disagree = texts.groupby(users[several]).nunique().gt(1).any(axis=1)
    total = pd.Series(sum(lengths.values()), index=users).groupby(level=0).max()
    return {
        "rows": rows["part"].value_counts().reindex(PARTS).to_dict(),
        "users_with_several_rows": int(users[several].nunique()),
        "users_whose_rows_disagree": int(disagree.sum()),
        "users_in_train_and_test": len(
            set(users[rows["part"] == "train"]) & set(users[rows["part"] == "test"])
        ),
        "users_without_history": int((total == 0).sum()),
        "rows_without_target": int((~has_target).sum()),
    }


def _longest(rows: pd.DataFrame, domain: str, lengths: np.ndarray) -> pd.DataFrame:
    """Returns the longest sequence of each user who has one, one event per line."""
    order = np.argsort(-lengths, kind="stable")
    first_rows = rows.iloc[order].drop_duplicates("user_id").sort_index()
    return _events(first_rows, domain, ["user_id"])


def _instances(rows: pd.DataFrame, domains: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    frames = {domain: _events(rows, domain, ["row_id", "user_id"]) for domain in domains}
    return frames | {"rows": rows[["row_id", "user_id", "target_domain", "part"]]}


def _events(rows: pd.DataFrame, domain: str, keys: list[str]) -> pd.DataFrame:
    """Returns one line per event: ``keys``, ``item_id``, ``timestamp`` (position from 0 in the row's sequence)."""
    rows = rows[rows[domain].map(len) > 0]
    events = rows[[*keys, domain]].explode(domain).rename(columns={domain: "item_id"})
    events["timestamp"] = events.groupby(level=0).cumcount().astype("float64")
    return events.astype(dict.fromkeys([*keys, "item_id"], "str")).reset_index(drop=True)
