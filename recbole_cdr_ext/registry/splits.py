"""Splits by name: this package's, and those that other packages bring.

A package brings a split by an entry point in the group ``recbole_cdr_ext.splits``, whose name is what ``split=`` is
set to::

    [options.entry_points]
    recbole_cdr_ext.splits =
        half = my_package.half:HalfSplit

It names a class derived from :class:`recbole_cdr_ext.splits.maker.InteractionSplitMaker` or ``RatingSplitMaker``, whose
docstrings say what a split must be. Nothing is imported before a split is asked for.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.registry import discovery

if TYPE_CHECKING:
    from recbole_cdr_ext.splits.maker import SplitMaker

PACKAGE = __name__.split(".")[0]
ENTRY_POINTS = f"{PACKAGE}.splits"
# Named as entry points name other packages': the registry stands below the splits.
ROOM = f"{PACKAGE}.splits"
BASE = f"{PACKAGE}.splits.maker:SplitMaker"


@dataclass(frozen=True)
class SplitInfo:
    """What ``recbole-cdr splits`` says of a split.

    Attributes:
        task: the task that it serves.
        leaky: whether held-out targets can be reached from what trains; the leak audit only counts them then.
        ordered: whether it needs data whose interactions have an order.
        layout: the layout of prepared data that it reads, "users" or "rows".
        origin: the package that brings it.
        summary: what it does, in a sentence.
    """

    name: str
    task: str
    leaky: bool
    ordered: bool
    layout: str
    origin: str
    summary: str


def split_names() -> list[str]:
    """Returns the names that :func:`get_split` knows: this package's, then other packages'."""
    return [*_built_in(), *_plugins()]


def get_split(name: str) -> type[SplitMaker]:
    """Returns the class that makes a split.

    Raises:
        CDRError: there is no such split, the package that brings it can't be imported, or what it names makes none.
    """
    if name in _built_in():
        return _built_in()[name]
    others = _plugins()
    if name not in others:
        raise CDRError(f"split={name!r} should be one of {', '.join([*_built_in(), *others])}.")
    return _checked(name, discovery.load(others[name], "split"))


def list_splits() -> list[SplitInfo]:
    """Describes every split that can be used; one of another package's that can't is left out."""
    infos = []
    others = _plugins()
    for name in [*_built_in(), *others]:
        try:
            maker = get_split(name)
        except CDRError as error:
            logging.getLogger(__name__).info("%s is left out: %s", name, error)
            continue
        infos.append(
            SplitInfo(
                name=name,
                task=maker.task,
                leaky=maker.leaky,
                ordered=maker.needs_order,
                layout=maker.layout,
                origin=discovery.origin(others[name]) if name in others else PACKAGE,
                summary=(inspect.getdoc(maker) or "").partition("\n")[0],
            )
        )
    return infos


@cache
def _built_in() -> dict[str, type[SplitMaker]]:
    """Returns this package's splits, each called as its module is; those of a task together, the default first."""
    base: type[SplitMaker] = pkgutil.resolve_name(BASE)
    makers = {
        cls.__module__.rpartition(".")[2]: cls
        for cls in discovery.concrete_classes(ROOM)
        if issubclass(cls, base) and cls is not base
    }

    def place(name: str) -> tuple[str, bool, bool, str]:
        return makers[name].task, makers[name].leaky, name != "user", name

    return {name: makers[name] for name in sorted(makers, key=place)}


def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    return discovery.plugins(ENTRY_POINTS, _built_in())


def _checked(name: str, maker: object) -> type[SplitMaker]:
    base: type[SplitMaker] = pkgutil.resolve_name(BASE)
    if isinstance(maker, type) and issubclass(maker, base) and not inspect.isabstract(maker):
        return maker
    raise CDRError(
        f"split={name}: {maker!r} makes no split: it should be a class derived from InteractionSplitMaker or "
        "RatingSplitMaker that says how to draw."
    )
