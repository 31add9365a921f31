"""What a trainer says of its epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.utils import set_color

Table = dict[str, dict[str, dict[str, Any]]]


def with_names(line: str, names: Mapping[str, float]) -> str:
    """Returns RecBole's line on numbered losses with the names of the terms in place of the numbers."""
    for place, name in enumerate(names, start=1):
        line = line.replace(set_color(f"train_loss{place}", "blue"), set_color(name, "blue"))
    return line


def validation_line(seconds: float, score: float, result: Table | None, metric: str, improved: bool) -> str:
    """Returns what is said of a validation: its score, and that of each domain if there are several.

    Args:
        result: the table that the score is the mean of; None for a score of the model's own.
        metric: ``valid_metric``, in small letters.
    """
    first_groups = ((domain, next(iter(cells.values()))) for domain, cells in (result or {}).items())
    parts = [f"{domain} {cell[metric]:.4f}" for domain, cell in first_groups if cell["n"]]
    detail = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    label, time_label = set_color("valid_score", "blue"), set_color("time", "blue")
    return (
        f" {set_color('evaluating', 'green')} "
        f"[{time_label}: {seconds:.2f}s, {label}: {score:.6f}{detail}]" + (" best" if improved else "")
    )


def facts_of(facts: Mapping[str, float]) -> str:
    """Returns what is said of what a model measured in an epoch; nothing if that is nothing."""
    return " [" + ", ".join(f"{name} {value:.3g}" for name, value in facts.items()) + "]" if facts else ""
