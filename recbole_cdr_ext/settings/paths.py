"""Where the files that belong to the package lie, in a checkout and in a wheel; the order of a prepared folder."""

from __future__ import annotations

import json
from pathlib import Path

from recbole_cdr_ext.errors import CDRError, did_you_mean

PREPARED = "statistics.json"  # what `prepare` writes of a dataset, in its folder
_PACKAGE = Path(__file__).resolve().parent.parent


def properties_dir() -> Path:
    """Returns the folder of property files: inside the package in a wheel, beside it in a checkout.

    Raises:
        CDRError: neither exists, so the installation is damaged.
    """
    for folder in (_PACKAGE / "properties", _PACKAGE.parent / "properties"):
        if (folder / "dataset").is_dir():
            return folder
    raise CDRError(
        f"the property files are missing: neither {_PACKAGE / 'properties'} nor "
        f"{_PACKAGE.parent / 'properties'} exists; install recbole_cdr_ext again."
    )


def model_property_file(folder: Path, name: str, task: str) -> Path | None:
    """Returns the property file of a model in ``folder``: NAME_TASK.yaml, else NAME.yaml, None without either."""
    candidates = (folder / f"{stem}.yaml" for stem in (f"{name}_{task}", name))
    return next((path for path in candidates if path.is_file()), None)


def dataset_property_files() -> dict[str, Path]:
    """Returns the property file of each described dataset, by dataset name, in alphabetical order."""
    return {path.stem: path for path in sorted((properties_dir() / "dataset").glob("*.yaml"))}


def dataset_property_file(name: str) -> Path:
    """Returns the property file of one dataset.

    Raises:
        CDRError: there is none of that name (with the nearest known name).
    """
    known = dataset_property_files()
    if name not in known:
        raise CDRError(
            f"dataset '{name}' has no property file in "
            f"{properties_dir() / 'dataset'}.{did_you_mean(name, known)}"
        )
    return known[name]


def prepared_order(folder: str | Path) -> str | None:
    """Returns the order that a prepared dataset was described with; None where nothing says so."""
    try:
        report = json.loads((Path(folder) / PREPARED).read_text(encoding="utf-8"))
        order: str = report["order"]
        return order
    except (OSError, ValueError, TypeError, KeyError):  # atomic files that someone else wrote
        return None
