"""RecBole's atomic interaction files: reading, writing, describing.

An atomic ``.inter`` file is tab separated; its header names each column with its type: ``user_id:token``,
``item_id:token``, ``rating:float``, ``timestamp:float``. Tokens are kept as they are written: ``0012`` is not
12, and ``NA`` is a name like any other.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_cdr_ext.data.delimited import Delimited, first_line, read_columns
from recbole_cdr_ext.errors import CDRError, did_you_mean

TYPES = ("token", "float", "token_seq", "float_seq")
STATISTICS = ("users", "items", "overlapping_users", "interactions", "mean_length", "density")


def read_inter(
    path: str | Path,
    *,
    required: Iterable[str] = ("user_id", "item_id"),
    columns: Collection[str] | None = None,
) -> pd.DataFrame:
    """Reads one ``.inter`` file.

    Args:
        path: the file.
        required: columns that must be there.
        columns: the columns to read; None: all.

    Returns:
        One row per interaction in the file's order, columns named without their types; ``token`` columns are
        ``str``, ``float`` columns ``float64``; sequences (``token_seq``, ``float_seq``) stay unsplit text.

    Raises:
        CDRError: the file is missing, empty, has a bad header (column missing, given twice, or without a
            type), or a line with a wrong number of fields, an empty token, or a value that is no finite
            number. The message names file and line.
    """
    path = Path(path)
    types = _header(path, tuple(required))
    position = {name: index for index, name in enumerate(types) if columns is None or name in columns}
    numbers = {name: index for name, index in position.items() if types[name] == "float"}
    tokens = {name: index for name, index in position.items() if name not in numbers}
    frame, _ = read_columns(path, Delimited(len(types)), tokens, numbers, drop_empty=False)
    if frame.empty:
        raise CDRError(f"{path}:2: the file has a header but no interactions; prepare the dataset again.")
    return frame[list(position)]


def _header(path: Path, required: tuple[str, ...]) -> dict[str, str]:
    """Returns each column's type by its name, in the file's order."""
    types: dict[str, str] = {}
    for entry in first_line(path, "\t", quoted=False):
        name, colon, type_ = entry.strip().partition(":")
        if not (name and colon and type_ in TYPES):
            raise CDRError(
                f"{path}:1: the header entry {entry!r} is not of the form NAME:TYPE with TYPE one of "
                f"{', '.join(TYPES)}; write for instance 'user_id:token' (columns are separated by tabs)."
            )
        if name in types:
            raise CDRError(f"{path}:1: the header names the column '{name}' twice; remove or rename one.")
        types[name] = type_
    for name in required:
        if name not in types:
            raise CDRError(
                f"{path}:1: the header has no column '{name}' (it has {', '.join(types)}); add or rename it."
                f"{did_you_mean(name, types)}"
            )
    return types


def write_inter(path: str | Path, frame: pd.DataFrame) -> None:
    """Writes ``frame`` as an atomic file: numeric columns as ``float``, all others as ``token``.

    Whole numbers are written without a decimal point, others so that reading gives the same value back. The
    file appears under its name only when it is complete.

    Raises:
        CDRError: a token is empty or holds a tab or line break, or a number is not finite.
        OSError: the file cannot be written.
    """
    path = Path(path)
    columns: dict[str, pd.Series] = {}
    for name, column in frame.items():
        if pd.api.types.is_numeric_dtype(column):
            columns[f"{name}:float"] = _plain_numbers(path, str(name), column)
        else:
            columns[f"{name}:token"] = _plain_tokens(path, str(name), column)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # quoting=3 is csv.QUOTE_NONE: atomic files know no quotes, and no token needs one (checked above).
        pd.DataFrame(columns).to_csv(
            partial, sep="\t", index=False, quoting=3, quotechar=None, lineterminator="\n", encoding="utf-8"
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _plain_numbers(path: Path, name: str, column: pd.Series) -> pd.Series:
    values = column.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise CDRError(
            f"{path}: not written: the {name} in row {row} is {values[row]}, which is no finite number."
        )
    if np.all(values == np.rint(values)) and np.all(np.abs(values) < 2**53):
        return pd.Series(values.astype(np.int64))
    return pd.Series(values)


def _plain_tokens(path: Path, name: str, column: pd.Series) -> pd.Series:
    column = column.astype("str").reset_index(drop=True)
    # Distinct values only: there are far fewer of them than rows.
    for token in column.fillna("").unique():
        if not token or re.search(r"[\t\r\n]", token):
            raise CDRError(
                f"{path}: not written: {token!r} cannot be a {name}, because a token may neither be empty "
                "nor hold a tab or a line break; rename it in the source."
            )
    return column


def statistics(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Sizes of each domain, in the form of Table 4 of the I2VAE paper.

    Args:
        frames: per domain, a table with ``user_id`` and ``item_id``.

    Returns:
        One row per domain (the index) with ``users``, ``items``, ``overlapping_users`` (those that another
        domain has too), ``interactions`` (rows, duplicates included), ``mean_length`` (interactions per user)
        and ``density`` (interactions over users x items, a fraction). They are 0 for an empty domain.
    """
    users = {domain: set(frame["user_id"].unique()) for domain, frame in frames.items()}
    rows = {}
    for domain, frame in frames.items():
        others = set().union(*(users[other] for other in frames if other != domain))
        n_users, n_items, n_rows = len(users[domain]), frame["item_id"].nunique(), len(frame)
        rows[domain] = {
            "users": n_users,
            "items": n_items,
            "overlapping_users": len(users[domain] & others),
            "interactions": n_rows,
            "mean_length": n_rows / n_users if n_users else 0.0,
            "density": n_rows / (n_users * n_items) if n_rows else 0.0,
        }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(STATISTICS))


def format_statistics(table: pd.DataFrame) -> str:
    """Returns the table of :func:`statistics` as text with aligned columns, without a trailing line break."""
    head = ("domain", "users", "items", "overlap", "interactions", "length", "density")
    lines: list[tuple[str, ...]] = [head]
    for domain, row in table.iterrows():
        counts = [f"{int(row[name]):,}" for name in STATISTICS[:4]]
        lines.append((str(domain), *counts, f"{row['mean_length']:.2f}", f"{row['density']:.3%}"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )


def fingerprint(folder: str | Path) -> str:
    """Returns the SHA-256 over the names and contents of a folder's ``.inter`` files (not those of its sub-folders).

    Raises:
        CDRError: the folder has no ``.inter`` file, or one cannot be read.
    """
    files = sorted(Path(folder).glob("*.inter"))
    if not files:
        raise CDRError(f"{folder}: holds no .inter file; prepare the dataset first.")
    total = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise CDRError(f"{path}: cannot be read: {error.strerror or error}.") from error
        total.update(f"{path.name}\0{content}\n".encode())
    return total.hexdigest()
