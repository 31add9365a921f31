"""What a setting's value may be: its type, its range, and what it may stand beside. All checked before any work."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.registry import metrics as metric_registry
from recbole_cdr_ext.registry.splits import get_split, list_splits
from recbole_cdr_ext.settings.reading import TASKS, parse_value

# -- types ----------------------------------------------------------------------------------------------------------

# Types that RecBole takes and its comments don't mention.
MORE_TYPES: Mapping[str, set[type | None]] = {
    "gpu_id": {int, list},
    "train_neg_sample_args": {None},
    "user_inter_num_interval": {None},
    "item_inter_num_interval": {None},
    "load_col": {None},
    "topk": {int},
}


def check_type(key: str, value: Any, allowed: Collection[type | None], origin: str, *, is_text: bool) -> Any:
    """Returns the value of a setting in one of its types.

    Args:
        allowed: the types, None among them where the value may be None; empty for any.
        origin: where the value was given, for the message.
        is_text: whether ``value`` is text to be read as YAML, as it comes from a command line.

    Raises:
        CDRError: it has none of these types.
    """
    allowed = set(allowed) | MORE_TYPES.get(key, set()) if allowed else set()
    read = parse_value(value) if is_text else value
    if isinstance(read, str) and is_text and value[:1] not in ("'", '"'):
        read = value  # as it stands: YAML would take " #" for a comment
    if not allowed or _has_type(read, allowed):
        return read
    if is_text and str in allowed and (read is not None or not value.strip()):
        return value  # "[5,inf)", a run_id of digits and a separating blank are text, whatever YAML makes of them
    if is_text and list in allowed and re.fullmatch(r"\(.*\)", value.strip(), re.DOTALL):
        return check_type(key, f"[{value.strip()[1:-1]}]", allowed, origin, is_text=True)  # a Python tuple
    expected = " or ".join(sorted("None" if kind is None else kind.__name__ for kind in allowed))
    raise CDRError(f"{key}={value!r} ({origin}) should be of type {expected}.")


def _has_type(value: Any, allowed: Collection[type | None]) -> bool:
    if value is None:
        return None in allowed
    if isinstance(value, bool):  # a bool is an int to Python, and a mistake here
        return bool in allowed
    if isinstance(value, int):
        return int in allowed or float in allowed
    if isinstance(value, tuple):
        return list in allowed
    return isinstance(value, tuple(kind for kind in allowed if kind is not None))


# -- ranges ---------------------------------------------------------------------------------------------------------

Rule = tuple[Callable[[Any], bool], str]


def _at_least(low: float) -> Rule:
    return (lambda value: low <= value < math.inf), f"at least {low}"


def _above_zero() -> Rule:
    return (lambda value: 0 < value < math.inf), "above 0"


def _ratio(*, zero: bool = True) -> Rule:
    if zero:
        return (lambda value: 0 <= value <= 1), "between 0 and 1"
    return (lambda value: 0 < value <= 1), "above 0 and at most 1"


def _one_of(*choices: str) -> Rule:
    return (lambda value: value in choices), "one of " + ", ".join(choices)


def _shares(value: Any) -> bool:
    return (
        len(value) == 3
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in value)
        and math.isclose(sum(value), 1, abs_tol=1e-6)
    )


def _names(value: Any) -> bool:
    named = all(isinstance(v, str) and v and not re.search(r"[/\\:]", v) for v in value)
    return len(value) > 0 and named and len(set(value)) == len(value)


def _range(value: Any) -> bool:
    return len(value) == 2 and all(isinstance(v, (int, float)) for v in value) and value[0] < value[1]


_NUMBER = r"[-+]?(?:inf|\d+(?:\.\d*)?(?:e[-+]?\d+)?)"
_INTERVAL = re.compile(rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]", re.IGNORECASE)


def _intervals(value: Any) -> bool:
    """Whether a text is RecBole's intervals: it only warns of others, and filters nothing."""
    found = [_INTERVAL.fullmatch(part.strip()) for part in str(value).split(";")]
    return all(match and float(match[1]) <= float(match[2]) for match in found)


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_INTERVALS = ("user_inter_num_interval", "item_inter_num_interval")
_FILTER: Rule = _intervals, "an interval such as [5,inf), or several with ; between"
_SEED: Rule = (lambda value: 0 <= value < 2**32), "between 0 and 2**32 - 1"

# One line per setting that not every value of its type suits. None always passes: the types say where it may stand.
RULES: Mapping[str, Rule] = {
    "task": _one_of("next_item", "rating"),
    "state": (
        (lambda value: str(value).upper() in _LEVELS),
        "one of " + ", ".join(_LEVELS),
    ),
    "domains": (_names, "a list of one or more different names, without slashes and colons"),
    "order": _one_of("clock", "merged", "none"),
    "split_ratio": (_shares, "three numbers above 0 whose sum is 1"),
    "cold_start_ratio": _ratio(),
    "overlap_ratio": _ratio(),
    "density": _ratio(zero=False),
    "train_targets": _one_of("last", "all"),
    "targets_per_sequence": _at_least(0),
    "max_history_length": _at_least(1),
    "seed": _SEED,
    "split_seed": _SEED,
    "candidate_seed": _SEED,
    "psg_seed": _SEED,
    "epochs": _at_least(0),
    "train_batch_size": _at_least(1),
    "train_neg_num": _at_least(1),
    "learner": _one_of("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),
    "learning_rate": _above_zero(),
    "weight_decay": _at_least(0),
    "weight_averaging": ((lambda value: 0 <= value < 1), "at least 0 and below 1"),
    "eval_step": _at_least(0),
    "stopping_step": _at_least(0),
    "max_seconds": _at_least(0),
    "max_processor_seconds": _at_least(0),
    "sharpness": _one_of("none", "sam", "asam", "pgd"),
    "rho": _at_least(0),
    "rho_scope": _one_of("row", "batch"),
    "pgd_steps": _at_least(0),
    "pgd_step_size": _above_zero(),
    "beta": ((lambda value: 0 < value < 1), "above 0 and below 1"),
    "rating_range": (_range, "two numbers, the lowest and the highest rating"),
    "bias_map": _one_of("ratings", "biases", "identity"),
    "backbone": _one_of("MF", "LightGCN", "NGCF"),
    "edge_weight": _one_of("binary", "rating"),
    "init_std": _above_zero(),
    "pretrain_learning_rate": _above_zero(),
    "pretrain_learner": _one_of("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),
    "pretrain_reduction": _one_of("sum", "mean"),
    "pretrain_reg_weight": _at_least(0),
    "pretrain_batch_size": _at_least(1),
    "pretrain_epochs": _at_least(0),
    "pretrain_stopping_step": _at_least(0),
    "pretrain_valid_ratio": ((lambda value: 0 <= value < 1), "at least 0 and below 1"),
    "pretrain_sharpness": _one_of("none", "sam", "asam", "pgd"),
    "rho_pretrain": _at_least(0),
    "pretrain_pgd_steps": _at_least(0),
    "factorized": _one_of("source", "target"),
    "cold_user": _one_of("untrained", "mean"),
    "mapping_hidden_size": _at_least(1),
    "reduction": _one_of("sum", "mean"),
    "baseline_scope": _one_of("target", "all"),
    "eval_batch_size": _at_least(1),
    "metric_decimal_place": _at_least(0),
    "torch_threads": _at_least(0),
    **dict.fromkeys(_INTERVALS, _FILTER),
}


def check_ranges(settings: Mapping[str, Any], where: str = "") -> None:
    """Checks every setting of :data:`RULES`.

    Args:
        where: what the message begins with.

    Raises:
        CDRError: a value is outside of its range.
    """
    for key, (holds, text) in RULES.items():
        value = settings.get(key)
        if value is not None and not holds(value):
            raise CDRError(f"{where}{key}={value!r} should be {text}.")


# A step's size is no count, and RecBole's number of processes may be -1.
_SIZE = re.compile(r"(?!\w*step_size|world_size)(\w+_)?(size|dimension)")


def check_sizes(settings: Mapping[str, Any]) -> None:
    """Checks what all models, RecBole's too, call by the same names: sizes, numbers, heads and dropout.

    ``embedding_size`` may be 0 for ratings, where the biases are a model of their own.

    Raises:
        CDRError: one is out of range, or heads don't divide the size that they share.
    """
    for key, value in settings.items():
        parts = value if isinstance(value, (list, tuple)) else [value]
        numbers = [part for part in parts if isinstance(part, (int, float)) and not isinstance(part, bool)]
        low = 1
        if key == "n_layers" and settings.get("n_heads") is None:
            low = 0  # of a graph's propagation: the tables themselves
        elif key == "embedding_size" and settings.get("biases") is not None:
            low = 0
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


# -- what RecBole knows and this library does otherwise ----------------------------------------------------------------

_FIXED_COLUMNS = (
    "the columns of .inter files are called user_id, item_id, rating and timestamp; `prepare` renames them"
)
_ONLY_INTERACTIONS = (
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
    "seq_separator": _ONLY_INTERACTIONS,
    "seq_len": _ONLY_INTERACTIONS,
    "RATING_FIELD": _FIXED_COLUMNS,
    "TIME_FIELD": _FIXED_COLUMNS,
    **dict.fromkeys(("normalize_field", "normalize_all", "discretization"), _UNSCALED),
    **dict.fromkeys(
        (
            "additional_feat_suffix", "preload_weight", "numerical_features", "ENTITY_ID_FIELD", "RELATION_ID_FIELD",
            "HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD", "entity_kg_num_interval", "relation_kg_num_interval",
            "kg_reverse_r", "alias_of_user_id", "alias_of_item_id", "alias_of_entity_id", "alias_of_relation_id",
        ),
        _ONLY_INTERACTIONS,
    ),
    **dict.fromkeys(
        ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path"), _SAVED
    ),
    **dict.fromkeys(("log_wandb", "wandb_project"), "say tensorboard=True"),
}  # fmt: skip

# What RecBole takes where none of its files says it.
_UNDECLARED = {"encoding": "utf-8"}


def check_unused(given: Mapping[str, Any], defaults: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Checks that the user sets nothing that would be ignored; a default, said again, passes.

    Args:
        origins: where each setting was given, for the message.

    Raises:
        CDRError: a setting of :data:`UNUSED` has another value than RecBole's default.
    """
    for key in given.keys() & UNUSED.keys():
        if given[key] not in (None, defaults.get(key, _UNDECLARED.get(key))):
            raise CDRError(f"{key}={given[key]!r} ({origins[key]}) has no effect here: {UNUSED[key]}.")


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
            f"{where}load_col={columns!r} should be None or {{inter: [user_id, item_id, ...]}}: {_ONLY_INTERACTIONS}."
        )
    missing = [column for column in ("user_id", "item_id") if column not in inter]
    if missing:
        raise CDRError(f"{where}load_col={columns!r} lacks {' and '.join(missing)}, which every run reads.")


# -- what stands beside what ----------------------------------------------------------------------------------------


def suggestion(key: str, known: Collection[str], renamed: Mapping[str, str]) -> str:
    """Returns the end of a message on an unknown setting: its name here, or the nearest known one."""
    return f" It is called '{renamed[key]}' here." if key in renamed else did_you_mean(key, known)


# The settings that a domain may have for itself.
OF_A_DOMAIN = ("val_interval", *_INTERVALS, "load_col")
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
    for name, own in (settings.get("domain_settings") or {}).items():
        if name not in settings["domains"]:
            raise CDRError(
                f"domain_settings: unknown domain '{name}'.{did_you_mean(name, settings['domains'])}"
            )
        if own is not None and not isinstance(own, Mapping):
            raise CDRError(
                f"domain_settings: '{name}' has {own!r}, and should have settings: {{key: value}}."
            )
        for key, value in (own or {}).items():
            if key not in known:
                raise CDRError(
                    f"Unknown setting '{key}' of domain '{name}'.{suggestion(key, known, renamed)}"
                )
            general = settings.get(key, _UNDECLARED.get(key))
            if key not in (*OF_A_DOMAIN, *_OF_A_BLOCK) and value not in (None, general):
                reason = UNUSED.get(
                    key, f"a domain has {', '.join(OF_A_DOMAIN)} for itself, the rest is of the run"
                )
                raise CDRError(f"{key}={value!r} of domain '{name}' has no effect: {reason}.")
        where = f"domain_settings of '{name}': "
        check_ranges({key: (own or {}).get(key) for key in _INTERVALS}, where)
        check_load_col((own or {}).get("load_col"), where)
    for key in ("source", "target"):
        if settings.get(key) is not None and settings[key] not in settings["domains"]:
            raise CDRError(f"{key}={settings[key]} is none of the domains {', '.join(settings['domains'])}.")


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
