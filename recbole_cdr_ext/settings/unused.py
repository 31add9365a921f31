"""What RecBole knows and this library does otherwise: settings that would be ignored are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_cdr_ext.errors import CDRError

_FIXED_COLUMNS = (
    "the columns of .inter files are called user_id, item_id, rating and timestamp; `prepare` renames them"
)
ONLY_INTERACTIONS = (
    "interactions are all that is read, not the files of users, items, features or knowledge graphs"
)
_UNSCALED = "ratings and timestamps are read as they stand"
_SAVED = "a run keeps its folder, and a split is drawn anew from split_seed"

# Settings of RecBole's without effect here, each with the reason or what to say instead.
UNUSED: Mapping[str, str] = {
    "MAX_ITEM_LIST_LENGTH": "say max_history_length",
    "rm_dup_inter": "of the interactions of a user and an item the first is kept, or the mean of the ratings (rating)",
    "unload_col": "name the columns to read in load_col",
    "unused_col": "name the columns to read in load_col",
    "threshold": "rating predicts ratings, and next_item takes every interaction; val_interval drops some",
    "benchmark_filename": "the splits are made here: say split",
    "repeatable": "test targets are never of the history",
    "shuffle": "training is shuffled, evaluation is not",
    "encoding": "atomic files are UTF-8",
    "enable_scaler": "enable_amp computes in bfloat16, which needs no scaling",
    "field_separator": "atomic files are separated by tabs",
    "seq_separator": ONLY_INTERACTIONS,
    "seq_len": ONLY_INTERACTIONS,
    "RATING_FIELD": _FIXED_COLUMNS,
    "TIME_FIELD": _FIXED_COLUMNS,
    **dict.fromkeys(("normalize_field", "normalize_all", "discretization"), _UNSCALED),
    **dict.fromkeys(
        (
            "additional_feat_suffix", "preload_weight", "numerical_features", "ENTITY_ID_FIELD", "RELATION_ID_FIELD",
            "HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD", "entity_kg_num_interval", "relation_kg_num_interval",
            "kg_reverse_r", "alias_of_user_id", "alias_of_item_id", "alias_of_entity_id", "alias_of_relation_id",
        ),
        ONLY_INTERACTIONS,
    ),
    **dict.fromkeys(
        ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path"), _SAVED
    ),
    **dict.fromkeys(("log_wandb", "wandb_project"), "say tensorboard=True"),
}  # fmt: skip

# What RecBole takes where none of its files says it.
UNDECLARED = {"encoding": "utf-8"}


def check_unused(
    external: Mapping[str, Any], defaults: Mapping[str, Any], origins: Mapping[str, str]
) -> None:
    """Checks that the user sets nothing that would be ignored; a default, said again, passes.

    Args:
        external: the user's settings.
        origins: where each setting was given, for the message.

    Raises:
        CDRError: a setting of :data:`UNUSED` has another value than RecBole's default.
    """
    for key in external.keys() & UNUSED.keys():
        if external[key] not in (None, defaults.get(key, UNDECLARED.get(key))):
            raise CDRError(f"{key}={external[key]!r} ({origins[key]}) has no effect here: {UNUSED[key]}.")


def check_load_col(columns: Any, where: str) -> None:
    """Checks ``load_col``: None, or ``{inter: [column, ...]}``.

    Raises:
        CDRError: it is something else, or lacks user_id or item_id.
    """
    if columns is None:
        return
    inter = columns.get("inter") if isinstance(columns, Mapping) else None
    if not isinstance(inter, (list, tuple)) or set(columns) != {"inter"}:
        raise CDRError(
            f"{where}load_col={columns!r} should be None or {{inter: [user_id, item_id, ...]}}: {ONLY_INTERACTIONS}."
        )
    missing = [column for column in ("user_id", "item_id") if column not in inter]
    if missing:
        raise CDRError(f"{where}load_col={columns!r} lacks {' and '.join(missing)}, which every run reads.")
