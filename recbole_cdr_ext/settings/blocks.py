"""RecBole-CDR's ``source_domain:`` and ``target_domain:`` blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_cdr_ext.errors import CDRError

BLOCKS = ("source_domain", "target_domain")


def dataset_of_blocks(settings: Mapping[str, Any]) -> str | None:
    """Returns the dataset that two blocks stand for, their names joined by ``_``; None without two."""
    blocks = [settings.get(block) for block in BLOCKS]
    names = [str(block["dataset"]) for block in blocks if isinstance(block, Mapping) and "dataset" in block]
    return "_".join(names) if len(names) == 2 else None


def expand_blocks(settings: dict[str, Any], external: Mapping[str, Any]) -> None:
    """Turns RecBole-CDR's two blocks into ``domains``, ``source``, ``target`` and ``domain_settings``.

    Args:
        external: the user's settings, which the blocks may not contradict.

    Raises:
        CDRError: a block is missing or names no dataset, or they contradict the user's settings.
    """
    blocks = [settings.pop(block, None) for block in BLOCKS]
    if blocks == [None, None]:
        return
    for name, block in zip(BLOCKS, blocks, strict=True):
        if not isinstance(block, Mapping) or not isinstance(block.get("dataset"), str):
            raise CDRError(f"{name}: should be a block with 'dataset: NAME' in it; both blocks are needed.")
    names = [block["dataset"] for block in blocks]
    expanded: dict[str, Any] = {"domains": names, "source": names[0], "target": names[1]}
    for key, value in expanded.items():
        if external.get(key) not in (None, value):
            raise CDRError(f"{key}={external[key]} contradicts the blocks {' and '.join(BLOCKS)}: {value}.")
    settings.update(expanded)
    by_domain = {
        block["dataset"]: {key: value for key, value in block.items() if key != "dataset"} for block in blocks
    }
    more = settings.get("domain_settings") or {}
    settings["domain_settings"] = {name: {**by_domain[name], **(more.get(name) or {})} for name in names}
