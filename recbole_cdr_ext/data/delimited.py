"""Delimited text to columns: parsed in one go by pandas, read again line by line only to find what is wrong.

The fast path cannot name the line it stumbles over in most cases, the slow one can; so the second is run only
when the first fails or finds a value that no column may hold.
"""

from __future__ import annotations

import csv
import gzip
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from recbole_cdr_ext.errors import CDRError

# What opening or decompressing a damaged file may raise; none of them names the file.
_READ_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError)


@dataclass(frozen=True)
class Delimited:
    """The shape of a delimited text file.

    Args:
        width: number of fields in each line.
        separator: one character.
        header: whether the first line names the columns.
        quoted: whether fields may stand in double quotes, as CSV allows and atomic files do not.
    """

    width: int
    separator: str = "\t"
    header: bool = True
    quoted: bool = False

    @property
    def quoting(self) -> int:
        """The constant that both ``csv`` and pandas take."""
        return csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE


def open_text(path: Path) -> TextIO:
    """Opens a text file, gzipped if its name ends in ``.gz``; a byte order mark is skipped.

    Raises:
        CDRError: the file does not exist or cannot be opened.
    """
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")
    except FileNotFoundError:
        raise CDRError(
            f"{path}: there is no such file; check the name, or prepare the dataset first."
        ) from None
    except OSError as error:
        raise CDRError(f"{path}: cannot be opened: {error.strerror or error}.") from error


def first_line(path: Path, separator: str, quoted: bool) -> list[str]:
    """Returns the fields of the first line.

    Raises:
        CDRError: the file is missing, empty, or no text.
    """
    with open_text(path) as handle:
        _, fields = next(numbered_lines(path, handle, separator, quoted), (1, []))
    if not any(field.strip() for field in fields):
        raise CDRError(f"{path}:1: the file is empty; get or write it again.")
    return fields


def numbered_lines(
    path: Path, handle: TextIO, separator: str = ",", quoted: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Yields the lines of an open file, split into fields, each with the number (from 1) of the line it begins in.

    Raises:
        CDRError: the file is damaged.
    """
    reader = csv.reader(handle, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    line = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (*_READ_ERRORS, csv.Error) as error:
            raise unreadable(path, line, error) from error
        yield line, fields
        line = reader.line_num + 1  # a quoted field may have run over several lines


def unreadable(path: Path, line: int, error: BaseException) -> CDRError:
    """Returns the error for a file whose bytes are damaged from ``line`` (1-based) on."""
    if isinstance(error, UnicodeDecodeError):
        line = _undecodable_line(path, default=line)
        return CDRError(f"{path}:{line}: the text is not UTF-8 ({error.reason}); convert the file to UTF-8.")
    return CDRError(
        f"{path}:{line}: the file cannot be read any further ({error}); it is damaged, get it again."
    )


def _undecodable_line(path: Path, default: int) -> int:
    """Returns the first line that is not UTF-8; text is decoded in blocks, so the reader cannot know."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
        for line, content in enumerate(handle, start=1):
            try:
                content.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return default


def read_columns(
    path: Path, form: Delimited, tokens: Mapping[str, int], numbers: Mapping[str, int], *, drop_empty: bool
) -> tuple[pd.DataFrame, int]:
    """Reads the named columns of a file.

    Args:
        path: the file, gzipped or not.
        form: how the file is laid out.
        tokens: position (0-based) of each column that is kept as text, exactly as written.
        numbers: position of each column of finite numbers.
        drop_empty: whether a line with an empty token is left out and counted; otherwise it is an error.

    Returns:
        The frame (tokens ``str``, numbers ``float64``, in the file's order) and how many lines were left out.

    Raises:
        CDRError: names file and line of whatever cannot be read.
    """
    try:
        frame = _parse(path, form, tokens, numbers)
    except (*_READ_ERRORS, ValueError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        _locate(path, form, tokens, numbers, drop_empty)
        raise CDRError(f"{path}: cannot be read as a table: {str(error).strip()}.") from error
    empty = np.zeros(len(frame), dtype=bool)
    for name in tokens:
        empty |= (frame[name] == "").to_numpy()
    finite = all(np.isfinite(frame[name].to_numpy()).all() for name in numbers)
    if not finite or empty.any():
        # A short line looks like one with empty fields here; only the slow reader tells them apart.
        _locate(path, form, tokens, numbers, drop_empty)
    if empty.any():
        frame = frame.loc[~empty].reset_index(drop=True)
    return frame, int(empty.sum())


def _parse(
    path: Path, form: Delimited, tokens: Mapping[str, int], numbers: Mapping[str, int]
) -> pd.DataFrame:
    number_positions = set(numbers.values())
    with warnings.catch_warnings():
        # pandas only warns when the first line is too long, and then drops what is too much.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            path,
            sep=form.separator,
            header=None,
            names=list(range(form.width)),
            index_col=False,
            skiprows=int(form.header),
            dtype={p: "float64" if p in number_positions else "str" for p in range(form.width)},
            na_filter=False,  # 'NA' and '' are text here
            quoting=form.quoting,
            engine="c",
            encoding="utf-8-sig",
        )
    # A name may stand for a column that another name stands for too, so no renaming in place.
    return pd.DataFrame({name: frame[position] for name, position in {**tokens, **numbers}.items()})


def _locate(
    path: Path,
    form: Delimited,
    tokens: Mapping[str, int],
    numbers: Mapping[str, int],
    drop_empty: bool,
) -> None:
    """Raises for the first bad line; returns if there is none."""
    with open_text(path) as handle:
        for line, fields in numbered_lines(path, handle, form.separator, form.quoted):
            if fields and not (form.header and line == 1):
                _check_line(f"{path}:{line}", fields, form, tokens, numbers, drop_empty)


def _check_line(
    where: str,
    fields: list[str],
    form: Delimited,
    tokens: Mapping[str, int],
    numbers: Mapping[str, int],
    drop_empty: bool,
) -> None:
    if len(fields) != form.width:
        raise wrong_width(where, len(fields), form.width)
    for name, position in tokens.items():
        if not fields[position] and not drop_empty:
            raise CDRError(f"{where}: the {name} is empty; give one or remove the line.")
    for name, position in numbers.items():
        check_number(where, name, fields[position])


def wrong_width(where: str, n_fields: int, expected: int) -> CDRError:
    """Returns the error for a line with too few or too many fields."""
    fields = "1 field" if n_fields == 1 else f"{n_fields} fields"
    return CDRError(
        f"{where}: {fields} instead of {expected}; the line is truncated or malformed, mend or remove it."
    )


def check_number(where: str, name: str, text: object) -> float:
    """Returns ``text`` as a finite number.

    Raises:
        CDRError: it is none; the message begins with ``where`` (file and line) and names the column.
    """
    try:
        # Python alone reads 1_000 as a number.
        value = math.nan if "_" in str(text) else float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise CDRError(
            f"{where}: the {name} {str(text)!r} is no finite number; correct it or remove the line."
        )
    return value
