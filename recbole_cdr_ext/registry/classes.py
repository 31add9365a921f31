"""What this package itself brings: the classes in the modules of a room, so that a new file is enough."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator


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
