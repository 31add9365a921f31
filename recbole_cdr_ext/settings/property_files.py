"""The property files that are written from classes of settings, and what help texts and pages read of them.

``make properties`` writes the files and, beside them, ``properties/models.json`` with the rows of this package's
models, so that ``--help`` reads these without importing anything heavy.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from recbole_cdr_ext.settings.declaration import Settings, documented, property_file
from recbole_cdr_ext.settings.reading import TASKS, Documented, model_property_file, properties_dir
from recbole_cdr_ext.settings.recbole_1_2_0 import recbole_rows
from recbole_cdr_ext.settings.run_settings import TASK_SETTINGS, RunSettings

# -- reading -------------------------------------------------------------------------------------------------------


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


# -- writing -------------------------------------------------------------------------------------------------------


def written_files() -> dict[str, str]:
    """Returns the text of every file that is written from classes, by its path in ``properties/``."""
    models = model_settings()
    rows = {
        stem: {key: (row.default, row.types, row.meaning) for key, row in documented(settings).items()}
        for stem, settings in models.items()
    }
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    text = re.sub(r'(": )\[\n\s*(".*"),\n\s*(".*"),\n\s*(".*")\n\s*\]', r"\1[\2, \3, \4]", text)
    return {
        "overall.yaml": property_file(RunSettings),
        **{f"task/{task}.yaml": property_file(settings) for task, settings in TASK_SETTINGS.items()},
        **{f"model/{stem}.yaml": property_file(settings) for stem, settings in models.items()},
        ROWS: text + "\n",
    }


def model_settings() -> dict[str, type[Settings]]:
    """Returns the class of settings of each property file of a model, by the file's stem."""
    from recbole_cdr_ext.registry import models as model_registry

    settings: dict[str, type[Settings]] = dict(pkgutil.resolve_name(model_registry.BASELINE_SETTINGS))
    for name in model_registry.package_model_names():
        for task, model in model_registry.model_classes(name).items():
            if declaration := model_registry.settings_class(name, model):
                path = model_property_file(properties_dir() / "model", name, task)
                settings[path.stem if path else name] = declaration
    return dict(sorted(settings.items()))


def write(folder: Path) -> None:
    """Writes the files into a folder of property files."""
    for name, text in written_files().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(properties_dir())
