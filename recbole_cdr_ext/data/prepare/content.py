"""What every kind of source hands over to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from recbole_cdr_ext.data.prepare.description import Description

# A number for the whole dataset, or one per domain (or per part of the published rows).
Fact = int | Mapping[str, int]


@dataclass
class Content:
    """The tables of one dataset in one layout.

    Args:
        frames: per domain (and ``rows`` in layout rows), the table that becomes ``NAME.inter``.
        facts: what was found in the raw data and what was done about it: counts by name (see ``report``).
    """

    frames: dict[str, pd.DataFrame]
    facts: Mapping[str, Fact] = field(default_factory=dict)


# (description, raw files by key, layout, whether to show progress) -> tables
Reader = Callable[[Description, dict[str, Path], str, bool], Content]
