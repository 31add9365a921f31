"""Metrics by name: RecBole's, and those that other packages bring.

A package brings a metric by an entry point in the group ``recbole_cdr_ext.metrics``, whose name is the metric's::

    [options.entry_points]
    recbole_cdr_ext.metrics =
        MyMetric = my_package.my_metric:MyMetric

Settings may write a name in any case. Nothing is imported before a metric is asked for.
"""

from __future__ import annotations

import inspect
import logging
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.registry.discovery import concrete_classes, load, origin, plugins

if TYPE_CHECKING:
    from recbole_cdr_ext.evaluation.metric import Metric

PACKAGE = __name__.split(".")[0]
ENTRY_POINTS = f"{PACKAGE}.metrics"
# Named as entry points name other packages' metrics: the registry stands below evaluation.
ROOM = f"{PACKAGE}.evaluation"
OF_RECBOLE = f"{ROOM}.recbole_metrics"
BASE = f"{PACKAGE}.evaluation.metric:Metric"


@dataclass(frozen=True)
class MetricInfo:
    """What ``recbole-cdr metrics`` says of a metric; ``origin`` is the package that brings it."""

    name: str
    task: str
    needs: str
    larger_is_better: bool
    origin: str
    summary: str


def get_metric(name: str) -> type[Metric]:
    """Returns the class of a metric.

    Args:
        name: its name, in any case, without a cut-off.

    Raises:
        CDRError: there is no such metric (with the nearest name), or the package that brings it can't be imported.
    """
    key = str(name).lower()
    if key in _built_in():
        return _built_in()[key]
    entry = _plugins().get(key)
    if entry is None:
        raise CDRError(f"Unknown metric '{name}'.{did_you_mean(key, metric_names())}")
    return _checked(load(entry, "metric"), entry)


def metric_names() -> list[str]:
    """Returns the names that :func:`get_metric` knows, in lower case as results write them."""
    return [*_built_in(), *_plugins()]


def recbole_counterpart(name: str) -> str:
    """Returns a metric that RecBole knows and that is, like the named one, of rankings or of values.

    Raises:
        CDRError: as :func:`get_metric`.
    """
    return "MAE" if get_metric(name).needs == "value" else "Hit"


def list_metrics() -> list[MetricInfo]:
    """Describes every metric that can be used; one of another package that can't is left out."""
    infos = [
        _describe(metric, "recbole" if metric.__module__ == OF_RECBOLE else PACKAGE)
        for metric in _built_in().values()
    ]
    for key, entry in _plugins().items():
        try:
            infos.append(_describe(get_metric(key), origin(entry)))
        except CDRError as error:
            logging.getLogger(__name__).info("%s is left out: %s", entry.name, error)
    return infos


@cache
def _built_in() -> dict[str, type[Metric]]:
    base: type[Metric] = pkgutil.resolve_name(BASE)
    return {
        cls.__name__.lower(): cls
        for cls in concrete_classes(ROOM)
        if issubclass(cls, base) and cls is not base
    }


def _plugins() -> dict[str, EntryPoint]:
    taken = {metric.__name__ for metric in _built_in().values()}
    entries = {name.lower(): entry for name, entry in plugins(ENTRY_POINTS, taken).items()}
    return {key: entry for key, entry in entries.items() if key not in _built_in()}


def _checked(metric: object, entry: EntryPoint) -> type[Metric]:
    base: type[Metric] = pkgutil.resolve_name(BASE)
    if not (isinstance(metric, type) and issubclass(metric, base)) or inspect.isabstract(metric):
        raise CDRError(
            f"'{entry.name}' of package {origin(entry)} is no metric: {entry.value} should be a class derived from "
            "RankMetric, SetMetric or ValueMetric that implements its method."
        )
    if metric.__name__ != entry.name:
        raise CDRError(
            f"The metric {metric.__name__} of package {origin(entry)} has the entry point '{entry.name}': the two "
            "names should be one."
        )
    return metric


def _describe(metric: type[Metric], package: str) -> MetricInfo:
    return MetricInfo(
        name=metric.__name__,
        task="rating" if metric.needs == "value" else "next_item",
        needs=metric.needs,
        larger_is_better=metric.larger_is_better,
        origin=package,
        summary=(inspect.getdoc(metric) or "").partition("\n")[0],
    )
