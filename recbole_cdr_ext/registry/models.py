"""Models by name: this package's, those that other packages bring, and RecBole's own.

A package brings a model by an entry point in the group ``recbole_cdr_ext.models``, whose name is the model's::

    [options.entry_points]
    recbole_cdr_ext.models =
        MyModel = my_package.my_model:MyModel

Its class names the class that declares its settings (see :func:`settings_class`); their defaults may also stand in
``MyModel.yaml`` beside the module (see :func:`property_files`). Nothing is imported before a model is asked for.

One name may stand for a class per task, as EMCDR does for ratings and for next items; the task says which is meant.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import pkgutil
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_cdr_ext import compat
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.registry import discovery
from recbole_cdr_ext.settings.declaration import Settings
from recbole_cdr_ext.settings.reading import model_property_file, properties_dir

if TYPE_CHECKING:
    from recbole_cdr_ext.model.recommender import CrossDomainRecommender

PACKAGE = __name__.split(".")[0]
ENTRY_POINTS = f"{PACKAGE}.models"
# This package's models and what the registry asks of any are named as entry points name other packages': the
# registry stands below models, which read settings, which look models up.
FAMILIES = (f"{PACKAGE}.model.next_item", f"{PACKAGE}.model.rating")
BASE = f"{PACKAGE}.model.recommender:CrossDomainRecommender"
ADAPTER = f"{PACKAGE}.baselines.adapter:adapt"
BASELINE_SETTINGS = f"{PACKAGE}.baselines.settings:SETTINGS"
# The families of RecBole's models that rank items from interactions alone.
RECBOLE_PACKAGES = ("recbole.model.general_recommender", "recbole.model.sequential_recommender")


@dataclass(frozen=True)
class ModelInfo:
    """What ``recbole-cdr models`` says of a model; ``origin`` is the package that brings it."""

    name: str
    task: str
    domains: str
    cold_start: bool
    needs_overlap: bool
    paper: str
    origin: str


def get_model(name: str | type, task: str | None = None) -> type[CrossDomainRecommender]:
    """Returns the class of a model.

    Args:
        name: its name, as its class is spelt; or a class, which is returned as it is (RecBole's in its adapter).
        task: which class is meant where the name stands for several; else it is not looked at.

    Raises:
        CDRError: there is no such model (with the nearest name), the task does not say which one is meant, or the
            package that brings it can't be imported.
    """
    model = _resolve(name, task)
    return model if _is_ours(model) else _adapt(model)


def recbole_class(name: str | type, task: str | None = None) -> type | None:
    """Returns the RecBole class behind a model of RecBole's kind, None for a cross-domain model.

    Raises:
        CDRError: as :func:`get_model`.
    """
    model = _resolve(name, task)
    return None if _is_ours(model) else model


def model_classes(name: str | type) -> dict[str, type]:
    """Returns a model's class for each task that it does, as its author wrote it (RecBole's without its adapter).

    Raises:
        CDRError: as :func:`get_model`.
    """
    if not isinstance(name, str):
        return _by_task(_checked(name))
    if name in _built_in():
        return _built_in()[name]
    if name in (plugins := _plugins()):
        return _by_task(_checked(discovery.load(plugins[name], "model")))
    if name in recbole_modules():
        compat.apply()
        return _by_task(getattr(importlib.import_module(recbole_modules()[name]), name))
    raise CDRError(f"Unknown model '{name}'.{did_you_mean(name, model_names())}")


def model_names() -> list[str]:
    """Returns the names that :func:`get_model` knows: this package's, other packages', RecBole's."""
    return list(dict.fromkeys([*_built_in(), *_plugins(), *recbole_modules()]))


def package_model_names() -> list[str]:
    """Returns the names of this package's models."""
    return list(_built_in())


def list_models() -> list[ModelInfo]:
    """Describes every model that can be used; one of RecBole's or another package's that can't is left out."""
    infos = []
    for name in model_names():
        try:
            classes = dict.fromkeys(model_classes(name).values())
            infos += [_describe(name, get_model(model)) for model in classes]
        except (CDRError, ImportError) as error:
            logging.getLogger(__name__).info("%s is left out: %s", name, error)
    return infos


def property_files(name: str, model: type, task: str) -> list[Path]:
    """Returns the property files with a model's defaults, in the order in which they are read.

    RecBole's own, this package's ``properties/model/NAME.yaml``, and ``NAME.yaml`` beside the module of a model from
    another package. Where a folder holds a file of the task, ``NAME_TASK.yaml``, that one is read in place of
    ``NAME.yaml``. They override the defaults of :func:`settings_class`; a model with neither has no
    settings.

    Args:
        model: the class as it was written, not RecBole's in its adapter.
    """
    import recbole

    folders = [Path(recbole.__file__).parent / "properties" / "model", properties_dir() / "model"]
    if _is_ours(model):
        del folders[0]
    package = model.__module__.split(".")[0]
    if package not in ("recbole", PACKAGE) and (source := inspect.getsourcefile(model)):
        folders.append(Path(source).parent)
    files = (model_property_file(folder, name, task) for folder in folders)
    return [path for path in files if path]


def settings_class(name: str, model: type) -> type[Settings] | None:
    """Returns the class that declares a model's settings, None if there is none.

    Args:
        model: the class as it was written, not RecBole's in its adapter.
    """
    declaration = getattr(model, "settings_class", None)
    if declaration is None and not _is_ours(model):
        declaration = pkgutil.resolve_name(BASELINE_SETTINGS).get(name)
    return declaration


def _resolve(name: str | type, task: str | None) -> type:
    """Returns a model's class as its author wrote it, that of the task where there are several."""
    classes = model_classes(name)
    if len(set(classes.values())) == 1:
        return next(iter(classes.values()))
    if task not in classes:
        raise CDRError(
            f"{name} is a model for each of several tasks: choose --task={' or --task='.join(classes)}."
        )
    return classes[task]


def _by_task(model: type) -> dict[str, type]:
    """Returns the class by the task, or tasks, that it says it does; RecBole's say nothing."""
    tasks = getattr(model, "task", "next_item")
    return dict.fromkeys([tasks] if isinstance(tasks, str) else tasks, model)


# -- this package's -------------------------------------------------------------------------------------------------


@cache
def _built_in() -> dict[str, dict[str, type]]:
    """Returns the models in :data:`FAMILIES` by name and task."""
    compat.apply()
    models: dict[str, dict[str, type]] = {}
    for family in FAMILIES:
        for cls in filter(_is_ours, discovery.concrete_classes(family)):
            models.setdefault(cls.__name__, {}).update(_by_task(cls))
    return dict(sorted(models.items()))


# -- other packages' ------------------------------------------------------------------------------------------------


def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    """Returns other packages' models by name."""
    return discovery.plugins(ENTRY_POINTS, _built_in())


def _checked(model: object) -> type:
    """Returns ``model`` if it is a model's class.

    Raises:
        CDRError: it is none.
    """
    compat.apply()
    from recbole.model.abstract_recommender import AbstractRecommender

    if isinstance(model, type) and issubclass(model, AbstractRecommender):
        return model
    raise CDRError(f"{model!r} is no model: it should be a class derived from CrossDomainRecommender.")


def _is_ours(model: type) -> bool:
    return issubclass(model, pkgutil.resolve_name(BASE))


# -- RecBole's ------------------------------------------------------------------------------------------------------


@cache
def recbole_modules() -> dict[str, str]:
    """Returns RecBole's models and their modules, read from its source without importing a single one of them.

    A RecBole model's module has its name in lower case.
    """
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise CDRError("RecBole is not installed: pip install recbole==1.2.0")
    modules = {}
    for package in RECBOLE_PACKAGES:
        folder = Path(spec.origin).parent.joinpath(*package.split(".")[1:])
        for path in folder.glob("*.py"):
            for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
                if name.lower() == path.stem:
                    modules[name] = f"{package}.{path.stem}"
    return dict(sorted(modules.items()))


def _adapt(model: type) -> type[CrossDomainRecommender]:
    compat.apply()
    adapted: type[CrossDomainRecommender] = pkgutil.resolve_name(ADAPTER)(model)
    return adapted


# -- describing -----------------------------------------------------------------------------------------------------


def _describe(name: str, model: type[CrossDomainRecommender]) -> ModelInfo:
    recbole, plugin = recbole_class(name, model.task), _plugins().get(name)
    origin = "recbole" if recbole else discovery.origin(plugin) if plugin else "recbole_cdr_ext"
    return ModelInfo(
        name=name,
        task=model.task,
        domains=model.domains,
        cold_start=model.cold_start,
        needs_overlap=model.needs_overlap,
        paper=model.paper,
        origin=origin,
    )
