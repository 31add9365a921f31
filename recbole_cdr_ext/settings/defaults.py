"""Where the defaults of a run come from: RecBole's files, and this package's and other packages' classes and files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import recbole
from recbole.utils import ModelType

from recbole_cdr_ext.registry import models as model_registry
from recbole_cdr_ext.settings.declaration import Declared, Settings, declared, defaults, yaml_text
from recbole_cdr_ext.settings.reading import (
    Documented,
    check_type,
    properties_dir,
    read_mapping,
    type_of,
    types_in,
)
from recbole_cdr_ext.settings.recbole_1_2_0 import recbole_rows
from recbole_cdr_ext.settings.run_settings import TASK_SETTINGS, RunSettings

_RECBOLE = Path(recbole.__file__).parent / "properties"


@dataclass(frozen=True)
class Layer:
    """Defaults that come together; each layer overrides those before it.

    Attributes:
        origin: what messages call it.
        types: the types of its settings that it says itself; of the others, those of the layers before and of its
            own values hold.
        declared: what its class declares, empty without one.
    """

    origin: str
    values: Mapping[str, Any]
    types: Mapping[str, Collection[type | None]]
    declared: Mapping[str, Declared] = field(default_factory=dict)

    def documented(self) -> dict[str, Documented]:
        """Returns the rows of help texts, of which those that no class declares say the default alone."""
        return {
            key: self.declared[key].documented()
            if key in self.declared
            else Documented(key, yaml_text(value), "", "", "")
            for key, value in self.values.items()
        }


def shared_layers(model: str, model_type: ModelType, task: str) -> list[Layer]:
    """Returns the defaults that hold for all models of a task, the general ones first."""
    properties = properties_dir()
    layers = [
        _of_recbole("overall.yaml"),
        _of_recbole("dataset/sample.yaml"),
        *(_of_recbole(f"quick_start_config/{name}") for name in _type_files(model, model_type)),
        _of_class(RunSettings, properties / "overall.yaml"),
    ]
    if task in TASK_SETTINGS:
        layers.append(_of_class(TASK_SETTINGS[task], properties / "task" / f"{task}.yaml"))
    return layers


def model_layers(name: str, model: type, task: str) -> list[Layer]:
    """Returns the defaults of a model: RecBole's own, then those of the class that declares its settings.

    Args:
        model: the class as it was written, not RecBole's in its adapter.
    """
    files = model_registry.property_files(name, model, task)
    layers = [_of_recbole(f"model/{path.name}") for path in files if path.parent.parent == _RECBOLE]
    others = [path for path in files if path.parent.parent != _RECBOLE]
    settings = model_registry.settings_class(name, model)
    if settings or others:
        layers.append(_of_class(settings, *others))
    return layers


def _of_class(settings: type[Settings] | None, *files: Path) -> Layer:
    """Returns what a class declares, with the values of the property files that were written from it, or by hand.

    Raises:
        CDRError: a value in a file is not of its declared type, or the file can't be read.
    """
    rows = declared(settings) if settings else {}
    values = defaults(settings) if settings else {}
    for path in files:
        for key, value in read_mapping(path).items():
            types = rows[key].types if key in rows else ()
            values[key] = check_type(key, value, types, str(path), is_text=False)
    origin = str(files[-1]) if files else settings.__name__ if settings else ""
    return Layer(origin, values, {key: row.types for key, row in rows.items()}, rows)


def _of_recbole(name: str) -> Layer:
    """Returns the defaults in one of RecBole's property files."""
    path = _RECBOLE / name
    values = read_mapping(path)
    rows = recbole_rows(name)
    types: dict[str, set[type | None]] = {}
    for key, value in values.items():
        written = types_in(rows[key].types) if key in rows else set()
        # A None that nothing explains says nothing about the type.
        types[key] = written | {type_of(value)} if written or value is not None else set()
    return Layer(str(path), values, types)


def _type_files(model: str, model_type: ModelType) -> list[str]:
    """Returns RecBole's files of defaults for a type of models."""
    if model_type != ModelType.SEQUENTIAL:
        return []
    if model in ("DIN", "DIEN"):
        return ["sequential_DIN.yaml"]
    return ["sequential_embedding_model.yaml" if model in ("GRU4RecKG", "KSR") else "sequential.yaml"]
