"""The `prepare` command: from a description and raw files to a folder of atomic files, written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_cdr_ext.data.atomic import write_inter
from recbole_cdr_ext.data.prepare.amazon import read_amazon_5core
from recbole_cdr_ext.data.prepare.content import Content, Reader, build_report, format_report
from recbole_cdr_ext.data.prepare.description import (
    LAYOUTS,
    Description,
    has_layout,
    load_description,
    prepared_folders,
)
from recbole_cdr_ext.data.prepare.download import download_raw, find_raw, how_to_get
from recbole_cdr_ext.data.prepare.movielens import read_movielens
from recbole_cdr_ext.data.prepare.rows import read_rows
from recbole_cdr_ext.data.prepare.simulate import read_simulated
from recbole_cdr_ext.data.prepare.table import read_amazon_ratings, read_tables
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.reading import PREPARED, dataset_property_files


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
    new_parents: list[Path] = []
    try:
        new_parents = _make_parents(target.parent)
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
        for folder in new_parents:
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


READERS: dict[str, Reader] = {
    "rows": read_rows,
    "table": read_tables,
    "amazon_ratings": read_amazon_ratings,
    "amazon_5core": read_amazon_5core,
    "movielens": read_movielens,
    "simulate": read_simulated,
}


def prepare(
    name: str,
    *,
    raw: str | Path | None = None,
    data_path: str | Path = "dataset_atomic",
    layout: str = "users",
    download: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    description: Mapping[str, Any] | None = None,
) -> Path:
    """Makes a dataset's atomic files.

    Everything that was read is stored; filters act when a task loads the files. Beside the ``.inter`` files
    stand ``statistics.txt`` and ``statistics.json``: sizes, and what was found and done.

    Args:
        name: the dataset: that of a property file, or any name if ``description`` is given.
        raw: folder with the raw files or with a folder ``name`` of them; default: that of RECBOLE_CDR_RAW.
        data_path: folder of all prepared datasets.
        layout: ``users`` (one sequence per user and domain) or ``rows`` (published rows as they are).
        download: fetch the raw files from the property file's addresses if they are not found.
        overwrite: replace what is prepared already.
        progress: show progress bars and print the report.
        description: contents of a property file, for a dataset that has none.

    Returns:
        The folder of the layout: ``data_path/name``, or ``data_path/name/rows``.

    Raises:
        CDRError: unknown dataset or layout, prepared already, raw files missing or malformed (with file and
            line), download failed, or nothing can be written. No half-written folder is left behind.
    """
    described = load_description(name, description)
    check_layout(described, layout)
    folder = Path(data_path) / name
    if is_prepared(described, data_path, layout) and not overwrite:
        raise CDRError(
            f"{layout_folder(data_path, name, layout)}: '{name}' is prepared already; pass --overwrite=True "
            "to make it again."
        )
    files = _raw_files(described, raw, Path(data_path), download, progress)
    content = READERS[described.kind](described, files, layout, progress)
    report = build_report(described, layout, content, files)
    _write(folder, layout, content, report)
    if progress:
        print(format_report(report))
    return layout_folder(data_path, name, layout)


def layout_folder(data_path: str | Path, name: str, layout: str) -> Path:
    """Returns where the ``.inter`` files of a layout lie."""
    folder = Path(data_path) / name
    return folder / "rows" if layout == "rows" else folder


def is_prepared(description: Description, data_path: str | Path, layout: str = "users") -> bool:
    """Returns whether all files of a layout are there."""
    return has_layout(Path(data_path) / description.name, description.domains, layout)


def check_layout(description: Description, layout: str) -> None:
    """Raises CDRError unless the layout exists and the dataset can have it."""
    if layout not in LAYOUTS:
        raise CDRError(f"--layout={layout}: use one of {', '.join(LAYOUTS)}.{did_you_mean(layout, LAYOUTS)}")
    if layout not in description.layouts:
        raise CDRError(
            f"--layout={layout}: '{description.name}' has no published rows (its source is of kind "
            f"'{description.kind}'); use --layout=users."
        )


def _raw_files(
    description: Description, raw: str | Path | None, data_path: Path, download: bool, progress: bool
) -> dict[str, Path]:
    if not description.files:
        return {}
    files, looked_for = find_raw(description, raw, data_path)
    if files:
        return files
    if download:
        return download_raw(description, data_path, progress)
    raise CDRError(
        f"the raw files of '{description.name}' were not found; looked for: {'; '.join(looked_for)}. "
        f"{how_to_get(description)}"
    )


def _write(folder: Path, layout: str, content: Content, report: Mapping[str, Any]) -> None:
    def carry(entry: Path) -> bool:
        """Tells whether an entry stays: whatever this layout does not make itself, such as the user's own files."""
        if layout == "rows":
            return entry.name != "rows"
        return not (entry.suffix == ".inter" or entry.name in (PREPARED, "statistics.txt"))

    with staged_folder(folder, carry) as staging:
        inside = staging / "rows" if layout == "rows" else staging
        inside.mkdir(exist_ok=True)
        for stem, frame in content.frames.items():
            write_inter(inside / f"{stem}.inter", frame)
        (inside / PREPARED).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (inside / "statistics.txt").write_text(format_report(report), encoding="utf-8")


@dataclass(frozen=True)
class Ensured:
    """A dataset that is there.

    Args:
        folder: where the ``.inter`` files of the asked-for layout lie.
        name: the dataset's name; ``NAME_sim`` if a simulated one stands in for NAME.
        simulated: whether the data is made up (a stand-in, or asked for as such).
        notes: what the user should be told, one sentence each.
    """

    folder: Path
    name: str
    simulated: bool
    notes: list[str] = field(default_factory=list)


def ensure_dataset(
    name: str,
    *,
    data_path: str | Path,
    raw: str | Path | None = None,
    download: bool = False,
    layout: str = "users",
    allow_simulated: bool = False,
    description: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Ensured:
    """Makes sure that a dataset is prepared.

    Args:
        name: the dataset.
        data_path, raw, download, layout, description, progress: as in :func:`prepare`.
        allow_simulated: use ``NAME_sim``, if there is such a property file, when the data cannot be had.

    Raises:
        CDRError: unknown dataset; data that is found but malformed; or data that is not to be had (the
            message says what was looked for and how to get it).
    """
    data_path = Path(data_path)
    if description is None and name not in dataset_property_files():
        return _undescribed(name, data_path, layout)
    described = load_description(name, description)
    check_layout(described, layout)
    folder = layout_folder(data_path, name, layout)
    if is_prepared(described, data_path, layout):
        return Ensured(folder, name, described.simulated)
    files, looked_for = find_raw(described, raw, data_path) if described.files else ({}, [])
    to_be_had = bool(files) or not described.files or (download and described.urls)
    if not to_be_had and raw is None and allow_simulated:
        stand_in = _stand_in(described, data_path, layout, looked_for, progress)
        if stand_in:
            return stand_in
    try:
        # Also words the error if the data is not to be had.
        prepare(
            name,
            raw=raw,
            data_path=data_path,
            layout=layout,
            download=download,
            progress=progress,
            description=description,
        )
    except CDRError:
        # Another process may have prepared it in the meantime.
        if not is_prepared(described, data_path, layout):
            raise
    return Ensured(folder, name, described.simulated, [f"'{name}' was prepared in {folder}."])


def _undescribed(name: str, data_path: Path, layout: str) -> Ensured:
    """Takes a folder of the user's own atomic files, for which no property file in the package is needed."""
    folders = prepared_folders(data_path)
    folder = layout_folder(data_path, name, layout)
    if folder.is_dir() and any(folder.glob("*.inter")):
        return Ensured(folder, name, False)
    known = sorted({*dataset_property_files(), *folders})
    raise CDRError(
        f"unknown dataset '{name}': there is neither a property file nor a prepared folder {folder}; known "
        f"are {', '.join(known)}.{did_you_mean(name, known)}"
    )


def _stand_in(
    described: Description, data_path: Path, layout: str, looked_for: list[str], progress: bool
) -> Ensured | None:
    name = f"{described.name}_sim"
    if name not in dataset_property_files() or layout not in load_description(name).layouts:
        return None
    stand_in = ensure_dataset(name, data_path=data_path, layout=layout, progress=progress)
    notes = [
        f"The raw files of '{described.name}' were not found; looked for: {'; '.join(looked_for)}.",
        how_to_get(described),
        f"Running on the simulated '{name}' instead: its results say nothing about '{described.name}'.",
    ]
    return Ensured(stand_in.folder, name, True, notes + stand_in.notes)
