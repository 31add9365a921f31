"""What other packages bring by entry points: found by name, imported when it is asked for."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Collection
from importlib.metadata import EntryPoint

from recbole_cdr_ext.errors import CDRError


def entry_points(group: str, taken: Collection[str]) -> dict[str, EntryPoint]:
    """Returns other packages' entries of a group by name. Not cached: a package installed meanwhile is found.

    Args:
        taken: names that are this package's; an entry of such a name is ignored with a warning.
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


def load(entry: EntryPoint, kind: str) -> object:
    """Returns what an entry names.

    Args:
        kind: what messages call it: "model", "metric".

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


def origin(entry: EntryPoint) -> str:
    """Returns the name of the package that brings an entry."""
    return entry.dist.name if entry.dist else entry.module.split(".")[0]
