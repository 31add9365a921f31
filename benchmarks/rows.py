"""What the scripts that make results/ share: their options, and rows that a killed run leaves whole."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Hashable
from pathlib import Path


def options(
    doc: str, *, seeds: int = 3, jobs: int | None = None, only: str = "commands"
) -> argparse.ArgumentParser:
    """Returns a parser with --seeds, --only and, where runs can stand side by side, --jobs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help="at most so many seeds (%(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help=f"regular expression on the {only}")
    if jobs:
        parser.add_argument(
            "--jobs", type=int, default=jobs, help="runs at a time, one thread each (%(default)s)"
        )
    return parser


def read_rows(
    path: Path, key: Callable[[dict], Hashable] = lambda row: row["command"]
) -> dict[Hashable, dict]:
    """Returns the finished rows by key; of rows with the same key the last counts."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # half a line: killed while it was written, so its cell is run again
            continue
        found[key(row)] = row
    return found


def append_row(path: Path, row: dict) -> None:
    """Adds a row to the file; one that follows half a line starts on a new one."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
