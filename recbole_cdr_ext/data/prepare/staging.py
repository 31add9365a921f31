"""Folders that are there completely or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recbole_cdr_ext.errors import CDRError


@contextmanager
def staged_folder(target: Path, carry: Callable[[Path], bool]) -> Iterator[Path]:
    """Gives an empty folder beside ``target`` to write into; on leaving, it takes ``target``'s place.

    On any error, Ctrl-C included, ``target`` is as it was and nothing else remains, not even the parent
    folder if it had to be made.

    Args:
        target: the folder to make or replace.
        carry: which entries of an existing ``target`` (paths within it) the new folder takes over.

    Raises:
        CDRError: the disk is full, or writing is not permitted.
    """
    tag = f"{os.getpid()}-{secrets.token_hex(4)}"
    staging = target.with_name(f".{target.name}.preparing-{tag}")
    replaced = target.with_name(f".{target.name}.replaced-{tag}")
    made_parents: list[Path] = []
    try:
        made_parents = _make_parents(target.parent)
        staging.mkdir()
        yield staging
        if target.is_dir():
            for entry in filter(carry, sorted(target.iterdir())):
                _copy(entry, staging / entry.name)
            os.rename(target, replaced)
        os.rename(staging, target)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if replaced.is_dir() and not target.exists():
            os.rename(replaced, target)
        for folder in made_parents:
            _remove_if_empty(folder)
        if isinstance(error, OSError):
            raise CDRError(
                f"{target}: cannot be written: {error.strerror or error} ({error.filename or staging}); "
                "nothing was kept. Free some space, or choose a folder that may be written to (--data_path)."
            ) from error
        raise


def _make_parents(folder: Path) -> list[Path]:
    """Makes a folder and those above it; returns the new ones, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _copy(entry: Path, to: Path) -> None:
    if entry.is_dir():
        shutil.copytree(entry, to)
    else:
        shutil.copy2(entry, to)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # someone else has put something there
        folder.rmdir()
