"""What is known of a sweep's trials, kept in its folder, and how tables show it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import make_folder, replacing
from recbole_cdr_ext.trainer import checkpoint

# -- records -------------------------------------------------------------------------------------------------------


TRIALS, ENDED, RECORD = "trials", "trials.jsonl", "trial.json"
RUNNING, FINISHED, CUT, FAILED = "running", "finished", "cut", "failed"


@dataclass
class Record:
    """What there is to know of a trial; kept in its folder, and in ``trials.jsonl`` once it has ended.

    Attributes:
        trial: its name.
        settings: the searched settings.
        status: "running", "finished", "cut" (ended by the scheduler) or "failed".
        score: the best validation score so far; None before the first.
        epochs: of the last phase, so far.
        stopped: as the trainer says it: "early", "epochs" or "time"; "" before its end.
        curve: [epoch, validation score] of each validated epoch of the last phase; epochs count from 1.
        seconds: of training and validation.
        reason: why it failed.
        by_epochs: whether ``epochs`` alone gives a run that ends where this trial was cut.
        schedule: [epochs, settings]: after so many epochs the settings became these; pbt changes them.
    """

    trial: str
    settings: dict[str, Any]
    status: str = RUNNING
    score: float | None = None
    epochs: int = 0
    stopped: str = ""
    curve: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""
    by_epochs: bool = True
    schedule: list[list[Any]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Writes the record into the trial's folder."""
        with replacing(folder / RECORD) as temporary:
            temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def read_record(folder: Path) -> Record | None:
    """Returns the record of a trial; None if there is none."""
    try:
        return Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CDRError(
            f"{folder / RECORD} is damaged ({error}): delete {folder} to make the trial anew."
        ) from error


def ended(folder: Path) -> list[Record]:
    """Returns the records of the trials that have ended."""
    return [record for record in records(folder) if record.status != RUNNING]


def records(folder: Path) -> list[Record]:
    """Returns the records of all trials that were begun, in the order of their names."""
    read = (read_record(path) for path in sorted((folder / TRIALS).glob("*")))
    return [record for record in read if record is not None]


def end_trial(folder: Path, name: str, reason: str = "") -> Record | None:
    """Notes that a trial has ended: by itself, by the scheduler, or, with a reason, by failing outside of itself.

    Returns:
        Its record; None if it was never begun.
    """
    place = folder / TRIALS / name
    record = read_record(place)
    if record is None:
        if not reason:
            return None
        record = Record(name, {})
        make_folder(place)
    if record.status == RUNNING:
        record.status, record.reason = (FAILED, reason) if reason else (CUT, "")
        record.write(place)
    lines = [json.dumps(asdict(record)) + "\n" for record in ended(folder)]
    with replacing(folder / ENDED) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    # Forty trials' checkpoints fill disks, and `best.yaml` makes the best one's weights again.
    for file in (checkpoint.LAST, checkpoint.MODEL):
        (place / file).unlink(missing_ok=True)
    return record


def best_first(trials: Iterable[Record], larger_is_better: bool) -> list[Record]:
    """Returns records in order: the best score first, of equal ones the first trial's; failed ones last."""

    def place(record: Record) -> tuple[bool, bool, float, str]:
        score = record.score if record.score is not None else 0.0
        return (
            record.status == FAILED,
            record.score is None,
            -score if larger_is_better else score,
            record.trial,
        )

    return sorted(trials, key=place)


# -- tables --------------------------------------------------------------------------------------------------------


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
