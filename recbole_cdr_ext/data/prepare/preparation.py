"""The `prepare` command: from a description and raw files to a folder of atomic files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_cdr_ext.data.atomic import write_inter
from recbole_cdr_ext.data.prepare.amazon import read_amazon_5core
from recbole_cdr_ext.data.prepare.content import Content, Reader
from recbole_cdr_ext.data.prepare.description import LAYOUTS, Description, has_layout, load_description
from recbole_cdr_ext.data.prepare.download import download_raw, find_raw, how_to_get
from recbole_cdr_ext.data.prepare.movielens import read_movielens
from recbole_cdr_ext.data.prepare.rows import read_rows
from recbole_cdr_ext.data.prepare.simulate import read_simulated
from recbole_cdr_ext.data.prepare.staging import staged_folder
from recbole_cdr_ext.data.prepare.summary import build_report, format_report
from recbole_cdr_ext.data.prepare.table import read_amazon_ratings, read_tables
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.reading import PREPARED

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
    """Where the ``.inter`` files of a layout lie."""
    folder = Path(data_path) / name
    return folder / "rows" if layout == "rows" else folder


def is_prepared(description: Description, data_path: str | Path, layout: str = "users") -> bool:
    """Whether all files of a layout are there."""
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
        """Whatever this layout does not make itself stays: the other layout, and the user's own files."""
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
