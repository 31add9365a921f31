"""The settings of RecBole 1.2.0: their types and meanings, and the keys that its models read without declaring them.

RecBole says the former in comments of its property files and the latter nowhere but in its source. Both stand in
``recbole_1_2_0.json``, which ``python -m recbole_cdr_ext.settings.recbole_source`` wrote; a test writes it again.
Imports nothing heavy: ``--help`` reads it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from recbole_cdr_ext.settings.reading import Documented

VERSION = "1.2.0"
FILE = Path(__file__).with_name("recbole_1_2_0.json")


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def recbole_rows(file: str) -> dict[str, Documented]:
    """Returns the keys of one of RecBole's property files, such as ``model/BPR.yaml``, with types and meanings."""
    rows = _content()["files"].get(file, {})
    return {
        key: Documented(key, default, types, meaning, section="")
        for key, (default, types, meaning) in rows.items()
    }


def keys_read_by(model: type) -> set[str]:
    """Returns the keys that a model of RecBole's, or one derived from it, reads from its configuration."""
    reads = _content()["reads"]
    bases = [base for base in model.__mro__ if base.__module__.startswith("recbole.model.")]
    return {key for base in bases for key in reads.get(base.__name__, ())}
