"""The metrics of a part by domain and user group, which both tasks give, and the one number of it that models are
chosen by."""

from __future__ import annotations

from typing import Any

import numpy as np

# {domain: {group: {"n": instances, metric: figure or None}}}
Table = dict[str, dict[str, dict[str, Any]]]


def mean_over_domains(table: Table, metric: str) -> float:
    """Returns the mean of a metric over the domains that have a figure, NaN if none has.

    It is what models are chosen by: of the group "all", or of the only one there is.
    """
    widest = [next(iter(groups.values())) for groups in table.values()]
    figures = [cell[metric] for cell in widest if cell["n"] and cell[metric] is not None]
    return float(np.mean(figures)) if figures else float("nan")
