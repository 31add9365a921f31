"""What all analyses share: their options, the folder of their files, and what they print."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from recbole.utils import set_color
from tabulate import tabulate
from tqdm import tqdm

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import make_folder, replacing
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import words_in
from recbole_cdr_ext.tasks import get_task

Options = Mapping[str, Any]
T = TypeVar("T")
# The run-time settings of a stored run that an analysis may be given others for.
REPLACEABLE = ("data_path", "cache_dir", "use_gpu", "torch_threads")


class RunOptions(NamedTuple):
    """Which runs are analysed.

    Attributes:
        names: folders, or their names in ``checkpoint_dir``.
        labels: what figures call them; None: what tells them apart.
        settings: run-time settings in place of the stored ones.
    """

    names: list[str]
    checkpoint_dir: str
    labels: list[str] | None
    settings: dict[str, Any]


def run_options(options: Options) -> RunOptions:
    """Returns what an analysis's options say of its runs."""
    settings = {key: options[key] for key in REPLACEABLE if options.get(key) is not None}
    labels = words_in(options.get("labels")) or None
    return RunOptions(words_in(options["runs"]), options["checkpoint_dir"], labels, settings)


def numbers(key: str, text: object, kind: Callable[[str], T]) -> list[T]:
    """Returns the numbers in text such as "0,0.5,1" or "[0, 0.5, 1]", sorted.

    Args:
        kind: int or float.

    Raises:
        CDRError: there is none, one stands there twice or is below 0, or something is no such number.
    """
    parts = [part for part in str(text).strip("[]() ").replace(",", " ").split() if part]
    try:
        values: list[Any] = [kind(part) for part in parts]
    except ValueError:
        values = []
    # Written so that "not a number" is refused as well.
    if not values or len(set(values)) < len(values) or not all(0 <= value < float("inf") for value in values):
        what = "whole numbers" if kind is int else "numbers"
        raise CDRError(f"{key}={text} should be different {what} of at least 0, with commas between them.")
    return sorted(values)


def check_part(part: str) -> None:
    """Refuses what is no part of a split."""
    if part not in ("train", "valid", "test"):
        raise CDRError(f"part={part} should be one of train, valid, test.")


def progress(runs: Sequence[T], label: str, options: Options) -> Iterable[T]:
    """Returns the runs, with a bar that says how many are done."""
    bar: Iterable[T] = tqdm(
        runs, ncols=100, desc=set_color(label, "pink"), disable=not options["show_progress"]
    )
    return bar


def output_folder(kind: str, names: Sequence[str], config: CDRConfig, options: Options) -> Path:
    """Makes the folder: the same analysis of the same runs finds the same one, another analysis another one."""
    if options["out"]:
        return make_folder(options["out"])
    decides = {key: str(value) for key, value in options.items() if key not in ("out", "show_progress")}
    key = hashlib.sha256(json.dumps([kind, list(names), decides], sort_keys=True).encode()).hexdigest()[:6]
    scene = get_task(config["task"]).scene(config)
    return make_folder(Path("analyses") / f"{kind}-{config['dataset']}-{scene}-{key}")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Writes a table."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of equal keys."""
    print(tabulate(rows, headers="keys", floatfmt=".4f", missingval="-"))


def print_folder(folder: Path) -> None:
    """Says where the files are."""
    print(f"\nWritten: {folder}")
