"""What a model's settings are, for help texts and pages.

Imports nothing heavy: of this package's models the rows stand in ``properties/models.json``, which ``make properties``
writes beside the property files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from recbole_cdr_ext.settings.paths import model_property_file, properties_dir
from recbole_cdr_ext.settings.reading import TASKS, Documented
from recbole_cdr_ext.settings.recbole_settings import recbole_rows

ROWS = "models.json"


@cache
def _rows() -> dict[str, dict[str, list[str]]]:
    content: dict[str, Any] = json.loads((properties_dir() / ROWS).read_text(encoding="utf-8"))
    return content


def model_rows(name: str, task: str) -> dict[str, Documented]:
    """Returns the settings of a model for a task by key; empty for one without settings of its own.

    Args:
        name: of one of this package's models, or of RecBole's.
    """
    path = model_property_file(properties_dir() / "model", name, task)
    return property_file_rows(path.stem) if path else recbole_rows(f"model/{name}.yaml")


def property_file_rows(stem: str) -> dict[str, Documented]:
    """Returns the settings in one of the property files of models that are written from classes, by key."""
    return {
        key: Documented(key, default, types, meaning, section="")
        for key, (default, types, meaning) in _rows().get(stem, {}).items()
    }


def described_models(name: str) -> Mapping[str, Mapping[str, Documented]]:
    """Returns the settings of a model by the name of their file, NAME or NAME_TASK, for each of its tasks.

    The registry, which imports models, is asked only where it must be.

    Raises:
        CDRError: there is no such model.
    """
    files = (model_property_file(properties_dir() / "model", name, task) for task in TASKS)
    stems = dict.fromkeys(path.stem for path in files if path)
    if stems:
        return {stem: property_file_rows(stem) for stem in stems}
    if rows := recbole_rows(f"model/{name}.yaml"):
        return {name: rows}
    from recbole_cdr_ext.registry import models as model_registry
    from recbole_cdr_ext.settings.defaults import model_layers

    layers = [
        layer
        for task, cls in model_registry.model_classes(name).items()
        for layer in model_layers(name, cls, task)
    ]
    return {name: {key: row for layer in layers for key, row in layer.documented().items()}} if layers else {}
