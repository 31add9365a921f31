"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recbole_cdr_ext.errors import CDRError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; what is written there takes the place of ``path`` at the end.

    After an error, or Ctrl-C, ``path`` is as it was and the temporary file is gone.

    Raises:
        CDRError: the file cannot be written (disk full, no permission); the message names it.
    """
    path = Path(path)
    # Unique, so that two processes that write the same file do not write into one another.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Holds a folder for this process; the system lets go of it when the process ends, however it does.

    Args:
        what: the kind of work that is done in it, for the message.

    Raises:
        CDRError: another process holds it, or it can't be written to.
    """
    path = folder / ".lock"
    try:
        opened = path.open("w")
    except OSError as error:
        raise unwritable(path, error) from error
    with opened as file:
        if not hold(file.fileno()) or not _is_at(file.fileno(), path):
            raise CDRError(
                f"Another {what} is at work in {folder}: wait for its end, or choose another folder."
            )
        try:
            yield
        finally:
            with suppress(OSError):  # gone with its folder, or open, where that forbids it
                path.unlink()


def _is_at(descriptor: int, path: Path) -> bool:
    """Returns whether an open file still has its name, which a process that ended just now may have removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def hold(descriptor: int) -> bool:
    """Takes the lock of an open file, which ends with the process; False if another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def make_folder(path: str | Path) -> Path:
    """Makes a folder, and those above it, and makes sure that files can be written to it.

    Raises:
        CDRError: that is not possible; the message names the folder.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def unwritable(path: str | Path, error: OSError) -> CDRError:
    """Returns the error to raise when ``path`` could not be written."""
    return CDRError(
        f"cannot write {path}: {error.strerror or error}. What was written before is untouched; make room or "
        "get permission there, or choose another place."
    )
