"""Where the runs of a study have their data from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from recbole_cdr_ext.data.prepare import ensure_dataset
from recbole_cdr_ext.data.prepare.preparation import layout_folder


@dataclass(frozen=True)
class Source:
    """A dataset's files, as one layout has them."""

    dataset: str
    root: str
    layout: str
    domains: tuple[str, ...]

    def digest(self) -> str | None:
        """A hash of the atomic files; None if they are not there."""
        names = [f"{name}.inter" for name in (*self.domains, *(["rows"] if self.layout == "rows" else []))]
        folder, found = layout_folder(self.root, self.dataset, self.layout), hashlib.sha256()
        for name in sorted(names):
            try:
                with (folder / name).open("rb") as file:
                    found.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
            except FileNotFoundError:
                return None
        return found.hexdigest()


def prepare(source: Source, raw: str | None, download: bool) -> None:
    """Has a source prepared.

    Raises:
        CDRError: it cannot be had.
    """
    ensure_dataset(
        source.dataset,
        data_path=source.root,
        raw=raw,
        download=download,
        layout=source.layout,
        progress=False,
    )
