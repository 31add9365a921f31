"""How models, splits and metrics are discovered: this package's in its rooms, other packages' by entry points."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
import pkgutil
from collections.abc import Container, Iterator

from recbole_cdr_ext.errors import CDRError

# -- this package's ------------------------------------------------------------------------------------------------


def concrete_classes(room: str) -> Iterator[type]:
    """Yields the public, concrete classes that the modules of a room define themselves, in their order.

    Args:
        room: the name of a package of this package's, ``recbole_cdr_ext.splits`` say.
    """
    package = importlib.import_module(room)
    for member in pkgutil.walk_packages(package.__path__, f"{room}."):
        module = importlib.import_module(member.name)
        for name, cls in vars(module).items():
            defined_here = inspect.isclass(cls) and cls.__module__ == module.__name__
            if defined_here and not name.startswith("_") and not inspect.isabstract(cls):
                yield cls


# -- other packages' -----------------------------------------------------------------------------------------------


def plugins(group: str, taken: Container[str]) -> dict[str, importlib.metadata.EntryPoint]:
    """Returns the entry points of a group by name. Nothing is cached: a package installed meanwhile is found.

    Args:
        taken: the names of this package, which no other can have.
    """
    entries = {}
    for entry in importlib.metadata.entry_points(group=group):
        if entry.name in taken:
            logging.getLogger(__name__).warning(
                "%s (%s) is ignored: that name is taken.", entry.name, entry.value
            )
        else:
            entries[entry.name] = entry
    return entries


def load(entry: importlib.metadata.EntryPoint, kind: str) -> object:
    """Returns what an entry point names.

    Args:
        kind: what it should be ("model", say), for the message.

    Raises:
        CDRError: it can't be imported.
    """
    try:
        return entry.load()
    except Exception as error:  # whatever another package's import raises
        raise CDRError(
            f"The {kind} '{entry.name}' of package {origin(entry)} can't be imported from {entry.value}: "
            f"{type(error).__name__}: {error}"
        ) from error


def origin(entry: importlib.metadata.EntryPoint) -> str:
    """Returns the name of the package that brings an entry point."""
    return entry.dist.name if entry.dist else entry.module.split(".")[0]
