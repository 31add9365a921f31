"""Tables on the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as a table with their keys above; lists with commas, truth values in words."""
    cells = [{title: _cell(value) for title, value in row.items()} for row in rows]
    return str(tabulate(cells, headers="keys"))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else textwrap.shorten(str(value), 80, placeholder=" ...")
