"""A dataset that is asked for: used if prepared, else prepared, else replaced by a simulated stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_cdr_ext.data.prepare.description import Description, load_description, prepared_folders
from recbole_cdr_ext.data.prepare.download import find_raw, how_to_get
from recbole_cdr_ext.data.prepare.preparation import check_layout, is_prepared, layout_folder, prepare
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.reading import dataset_property_files


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
    """A folder of the user's own atomic files, for which no property file in the package is needed."""
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
        f"The raw files of '{described.name}' were not stand_in; looked for: {'; '.join(looked_for)}.",
        how_to_get(described),
        f"Running on the simulated '{name}' instead: its results say nothing about '{described.name}'.",
    ]
    return Ensured(stand_in.folder, name, True, notes + stand_in.notes)
