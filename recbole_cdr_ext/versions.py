"""What a result was made with."""

from __future__ import annotations

import importlib.metadata
import platform

from recbole_cdr_ext import __version__

PACKAGES = ("recbole", "torch", "numpy", "scipy", "pandas")


def versions() -> dict[str, str]:
    """Returns the versions of Python, this library, and what it computes with; nothing of them is imported."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "recbole_cdr_ext": __version__, **packages}
