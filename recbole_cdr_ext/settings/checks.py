"""What a setting may be beyond its type: its range, and what it may stand beside. All checked before any work."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.registry import metrics as metric_registry
from recbole_cdr_ext.registry.splits import get_split, list_splits
from recbole_cdr_ext.settings.declaration import Declared
from recbole_cdr_ext.settings.reading import TASKS

# -- what has no effect --------------------------------------------------------------------------------------------


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


# -- ranges ---------------------------------------------------------------------------------------------------------

_NUMBER = r"[-+]?(?:inf|\d+(?:\.\d*)?(?:e[-+]?\d+)?)"
_INTERVAL = re.compile(rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]", re.IGNORECASE)


def _are_intervals(value: Any) -> bool:
    """Returns whether a text is one of intervals to RecBole, which only warns of others and then filters nothing."""
    matches = [_INTERVAL.fullmatch(part.strip()) for part in str(value).split(";")]
    return all(match and float(match[1]) <= float(match[2]) for match in matches)


# RecBole's settings of how many interactions a user or an item has.
INTERVALS = ("user_inter_num_interval", "item_inter_num_interval")


def check_intervals(settings: Mapping[str, Any], where: str = "") -> None:
    """Checks the settings of :data:`INTERVALS`, which no class declares; None passes.

    Args:
        where: what the message begins with.

    Raises:
        CDRError: a value is no text of intervals.
    """
    for key in INTERVALS:
        value = settings.get(key)
        if value is not None and not _are_intervals(value):
            raise CDRError(
                f"{where}{key}={value!r} should be an interval such as [5,inf), or several with ; between."
            )


def check_declared(settings: Mapping[str, Any], declarations: Sequence[Mapping[str, Declared]]) -> None:
    """Checks every setting that a class declares: for all runs, for the task, and for the model.

    Raises:
        CDRError: a value is outside of a declared range.
    """
    for rows in declarations:
        for key, row in rows.items():
            value = settings.get(key)
            if value is not None and not row.holds(value):
                raise CDRError(f"{key}={value!r} should be {row.range or f'of type {row.words}'}.")


# A step's size is no count, and RecBole's number of processes may be -1.
_SIZE = re.compile(r"(?!\w*step_size|world_size)(\w+_)?(size|dimension)")


def check_sizes(settings: Mapping[str, Any], declared_keys: Collection[str] = ()) -> None:
    """Checks what all models, RecBole's too, call by the same names: sizes, numbers, heads and dropout.

    Args:
        declared_keys: settings whose range a class declares.

    Raises:
        CDRError: one is out of range, or heads don't divide the size that they share.
    """
    for key, value in settings.items():
        if key in declared_keys:
            continue
        parts = value if isinstance(value, (list, tuple)) else [value]
        numbers = [part for part in parts if isinstance(part, (int, float)) and not isinstance(part, bool)]
        low = 1
        if key == "n_layers" and settings.get("n_heads") is None:
            low = 0  # of a graph's propagation: the tables themselves
        elif "dropout" in key:
            if not all(0 <= number < 1 for number in numbers):
                raise CDRError(f"{key}={value!r} should be at least 0 and below 1.")
            continue
        elif re.fullmatch(r"\w+_(epochs|steps)|softmax_negatives", key):
            low = 0
        elif key not in ("n_layers", "n_heads") and not _SIZE.fullmatch(key):
            continue
        if not all(number >= low for number in numbers):
            raise CDRError(f"{key}={value!r} should be at least {low}.")
    heads = settings.get("n_heads")
    shared = next((key for key in ("hidden_size", "embedding_size") if settings.get(key) is not None), None)
    if heads is not None and shared and settings[shared] % heads:
        raise CDRError(f"{shared}={settings[shared]} is no multiple of n_heads={heads}, which share it.")


# -- what stands beside what ----------------------------------------------------------------------------------------


def suggestion(key: str, known: Collection[str], renamed: Mapping[str, str]) -> str:
    """Returns the end of a message on an unknown setting: its name here, or the nearest known one."""
    return f" It is called '{renamed[key]}' here." if key in renamed else did_you_mean(key, known)


def _listed(names: Sequence[str]) -> str:
    """Returns names as a sentence has them: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def check_split(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Checks that no setting is ignored by the split, or contradicts it.

    Args:
        defaults: the settings of the property files; these always pass.

    Raises:
        CDRError: one is or does.
    """
    split = settings["split"]
    maker = get_split(split)
    if maker.task != settings["task"]:
        by_task = {task: [info.name for info in list_splits() if info.task == task] for task in TASKS}
        raise CDRError(
            f"split={split} does not serve task={settings['task']}: split={' or '.join(by_task['rating'])} is the "
            f"split of ratings, {_listed(by_task['next_item'])} are those of next_item. Leave it out."
        )
    for key in maker.without_effect:
        # The default passes, so that the settings of one run can be those of another (see to_dict).
        if settings[key] and settings[key] != defaults[key]:
            raise CDRError(f"{key} has no effect with split={split}: leave it out.")
    if settings["order"] == "none" and maker.needs_order:
        raise CDRError(f"split={split} needs an order, and the dataset says order: none. Use split=user.")
    if settings["order"] == "none" and settings["time_respecting"]:
        raise CDRError("time_respecting=True needs an order, and the dataset says order: none. Leave it out.")


# -- evaluation -----------------------------------------------------------------------------------------------------

# RecBole's name for what our split does, where there is one. Its ratio splits cut each user's interactions; our
# `user` split draws users, so none of them is the same.
_SAME_SPLIT = {"leave_one_out": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}}


def check_eval_args(eval_args: Mapping[str, Any], split: str, origin: str) -> None:
    """Checks a user's ``eval_args``: known keys, a known mode, and no split that contradicts ``split``.

    Raises:
        CDRError: one of these does not hold.
    """
    for key in eval_args:
        if key not in ("mode", "split", "order", "group_by"):
            raise CDRError(f"eval_args ({origin}) has no key '{key}'.{did_you_mean(key, ['mode', 'split'])}")
        if key != "mode" and eval_args[key] != _SAME_SPLIT.get(split, {}).get(key):
            raise CDRError(
                f"eval_args: {{{key}: {eval_args[key]}}} ({origin}) contradicts split={split}. Leave it out and choose "
                "split=user, leave_one_out or published; eval_args keeps the mode only."
            )
    mode = eval_args.get("mode", "full")
    for value in mode.values() if isinstance(mode, Mapping) else [mode]:
        if not re.fullmatch(r"full|labeled|(uni|pop)[1-9]\d*", str(value)):
            raise CDRError(
                f"eval_args: {{mode: {value}}} ({origin}) should be full, labeled, uniN or popN (N negatives)."
            )


def check_metrics(metrics: list[str], topk: list[int], valid_metric: str) -> None:
    """Checks the metrics, and that the one for early stopping is among them.

    Raises:
        CDRError: a metric is unknown, a cut-off is no positive integer, or ``valid_metric`` is not computed.
    """
    if not metrics:
        raise CDRError("metrics should name one metric or more.")
    if not topk or not all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in topk):
        raise CDRError(f"topk={topk} should hold positive integers.")
    for metric in metrics:
        metric_registry.get_metric(metric)
    name, _, cut = valid_metric.partition("@")
    if name.lower() not in {metric.lower() for metric in metrics}:
        raise CDRError(f"valid_metric={valid_metric} is not among metrics={metrics}.")
    cutoffs = metric_registry.get_metric(name).cutoffs
    if cut and not cutoffs:
        raise CDRError(f"valid_metric={valid_metric}: {name} has no cut-off. Say valid_metric={name}.")
    if cutoffs and cut not in map(str, topk):
        raise CDRError(f"valid_metric={valid_metric} should end in @k with k among topk={topk}.")
