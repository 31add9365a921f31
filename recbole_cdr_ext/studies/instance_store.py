"""What paired tests read of a study's runs: one SQLite file, ``instances.sqlite``.

Its table ``runs`` has, for each run, the ranks of its test instances (of ratings: the sums of each test user's absolute
and squared errors, in thousandths of a rating point and their squares). Its table ``sets`` has the instances
themselves (of ratings: the users, how many ratings they were asked for, and a checksum of these), once for all runs
that were asked the same.
"""

from __future__ import annotations

import functools
import hashlib
import io
import lzma
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import make_folder, unwritable

INSTANCES = "instances.sqlite"
FORMER_INSTANCES = "instances"  # the folder of an earlier version, with two files per run
WAIT = 60.0  # seconds for another process to end its writing
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sets (digest TEXT PRIMARY KEY, csv_xz BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    key TEXT PRIMARY KEY, digest TEXT NOT NULL REFERENCES sets, width INTEGER NOT NULL, planes_xz BLOB NOT NULL
);
"""
_TEXT = dict.fromkeys(("domain", "user", "target", "asked"), str)


@dataclass(frozen=True)
class InstanceRecord:
    """The stored form of one run's test instances.

    Attributes:
        digest: the SHA-256 of the instances' CSV.
        csv_xz: the instances as CSV, compressed.
        width: the number of bytes of a value.
        planes_xz: the values, compressed; bytes of one place stand together, which compresses best.
    """

    digest: str
    csv_xz: bytes
    width: int
    planes_xz: bytes

    @classmethod
    def of(cls, values: np.ndarray, table: pd.DataFrame) -> InstanceRecord:
        """Packs whole numbers, of as few bytes as the largest takes, and the instances that they belong to."""
        text = table.to_csv(index=False, lineterminator="\n").encode()
        width, planes = _pack(values)
        return cls(hashlib.sha256(text).hexdigest(), lzma.compress(text), width, planes)

    def values(self) -> np.ndarray:
        """Returns the whole numbers, (m,).

        Raises:
            ValueError, lzma.LZMAError: the record is damaged.
        """
        planes = np.frombuffer(lzma.decompress(self.planes_xz), np.uint8).reshape(self.width, -1)
        return np.ascontiguousarray(planes.T).view(f"<u{self.width}").ravel().astype(np.int64)

    def table(self) -> pd.DataFrame:
        """Returns the instances, a row each.

        Raises:
            ValueError, lzma.LZMAError, EOFError: the record is damaged.
        """
        return _read_csv(self.digest, self.csv_xz)


class InstanceStore:
    """The file of a study's per-instance data. Each call opens and closes it, so that it is whole between calls."""

    def __init__(self, folder: Path):
        self.path = folder / INSTANCES

    def keys(self) -> set[str]:
        """Returns the keys of the runs that are there.

        Raises:
            CDRError: the file is damaged.
        """
        if not self.path.exists():
            return set()
        with self._reading() as connection:
            return {key for (key,) in connection.execute("SELECT key FROM runs")}

    def find(self, key: str) -> InstanceRecord | None:
        """Returns a run's record, None if it is not there.

        Raises:
            CDRError: the file is damaged.
        """
        if not self.path.exists():
            return None
        with self._reading() as connection:
            row = connection.execute(
                "SELECT digest, csv_xz, width, planes_xz FROM runs JOIN sets USING (digest) WHERE key = ?",
                (key,),
            ).fetchone()
        return None if row is None else InstanceRecord(*row)

    def add(self, key: str, record: InstanceRecord) -> None:
        """Stores a run's record in place of an earlier one, as a whole or, if it is interrupted, not at all.

        Raises:
            CDRError: the file is damaged, or can't be written.
        """
        make_folder(self.path.parent)
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT)) as connection:
                connection.executescript(_SCHEMA)
                with connection:
                    connection.execute(
                        "INSERT OR IGNORE INTO sets VALUES (?, ?)", (record.digest, record.csv_xz)
                    )
                    connection.execute(
                        "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)",
                        (key, record.digest, record.width, record.planes_xz),
                    )
        except sqlite3.OperationalError as error:
            raise unwritable(self.path, OSError(0, str(error))) from error
        except sqlite3.DatabaseError as error:
            raise damaged(self.path, error) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        # What a killed process left half written is taken back by the next to open the file, which then writes to it.
        journal = self.path.with_name(f"{INSTANCES}-journal")
        mode = "rw" if journal.exists() else "ro"
        address = f"{self.path.absolute().as_uri()}?mode={mode}"
        try:
            with closing(sqlite3.connect(address, timeout=WAIT, uri=True)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise damaged(self.path, error) from error


def damaged(path: Path, error: Exception | str) -> CDRError:
    """Returns the error to raise for per-instance data that can't be read."""
    return CDRError(
        f"{path} can't be read: {' '.join(str(error).split())}. Take the file from where it is whole, such as version "
        "control, or delete the study's folder to have its runs made anew."
    )


def former_record(folder: Path, key: str, digest: str) -> InstanceRecord | None:
    """Returns what an earlier version kept of a run's instances in a study's folder, None if it is not there.

    Raises:
        CDRError: its files can't be read.
    """
    inside = folder / FORMER_INSTANCES
    values, table = inside / f"run-{key[:12]}.npz", inside / f"set-{digest[:12]}.csv.xz"
    if not values.exists() or not table.exists():
        return None
    try:
        with np.load(values) as file:
            planes = file["planes"]
        return InstanceRecord(digest, table.read_bytes(), len(planes), lzma.compress(planes.tobytes()))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise damaged(values, error) from error


def _pack(values: np.ndarray) -> tuple[int, bytes]:
    width = np.min_scalar_type(int(values.max(initial=0))).itemsize
    planes = values.astype(f"<u{width}").view(np.uint8).reshape(len(values), width).T
    return width, lzma.compress(np.ascontiguousarray(planes).tobytes())


@functools.lru_cache(maxsize=8)
def _read_csv(digest: str, csv_xz: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(lzma.decompress(csv_xz)), dtype=_TEXT, keep_default_na=False)
