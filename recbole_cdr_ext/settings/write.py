"""Writes the property files from the classes that declare settings: ``make properties``."""

from __future__ import annotations

import json
import pkgutil
import re
from pathlib import Path

from recbole_cdr_ext.registry import models as model_registry
from recbole_cdr_ext.settings.declaration import Settings, documented, property_file
from recbole_cdr_ext.settings.model_help import ROWS
from recbole_cdr_ext.settings.paths import model_property_file, properties_dir
from recbole_cdr_ext.settings.run_settings import RunSettings
from recbole_cdr_ext.settings.task_settings import TASK_SETTINGS


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
    settings: dict[str, type[Settings]] = dict(pkgutil.resolve_name(model_registry.BASELINE_SETTINGS))
    for name in model_registry.own_model_names():
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
