"""Tables of trials, while a sweep runs and at its end."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from recbole_cdr_ext.tuning.records import FAILED, Record

_LONGEST_REASON = 60


def trial_table(records: Sequence[Record], keys: Sequence[str], form: str = "simple") -> str:
    """Returns a table with a row per trial: its searched settings, epochs, best score and status."""
    rows = [
        [
            record.trial,
            *(shown(record.settings.get(key, "-")) for key in keys),
            record.epochs,
            score(record),
            state(record),
        ]
        for record in records
    ]
    headers = ["trial", *keys, "epochs", "score", "status"]
    return str(tabulate(rows, headers=headers, tablefmt=form, disable_numparse=True))


def score(record: Record) -> str:
    """Returns the best score of a trial, as tables show it."""
    return "-" if record.score is None else f"{record.score:.6f}"


def state(record: Record) -> str:
    """Returns the status of a trial, with why it failed in one line."""
    if record.status != FAILED:
        return record.status
    reason = record.reason
    return f"failed: {reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 3] + '...'}"


def shown(value: object) -> str:
    """Returns a setting's value, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
