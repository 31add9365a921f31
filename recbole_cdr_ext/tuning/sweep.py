"""A sweep before it begins: options, search space and settings, checked before any data are read."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recbole_cdr_ext import compat
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.runs.experiment import check_metrics
from recbole_cdr_ext.settings.command_options import TUNE_OPTIONS as OPTIONS
from recbole_cdr_ext.settings.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.settings.reading import (
    file_names,
    find_config_file,
    parse_arguments,
    parse_value,
    read_mapping,
)
from recbole_cdr_ext.splits.maker import RATING_SPLIT_KEYS, SPLIT_KEYS
from recbole_cdr_ext.tuning.records import TRIALS
from recbole_cdr_ext.tuning.space import Settings, Space, check_space, find_space, read_space

compat.apply()


SWEEP, SETTINGS, LOG = "sweep.json", "settings.yaml", "sweep.log"
BEST, SCHEDULE, PAGE, SUMMARY = "best.yaml", "best_schedule.json", "report.html", "summary.md"
SEARCHES, SCHEDULERS = ("random", "grid", "optuna"), ("asha", "pbt", "none")
DEFAULT_TRIALS = 40
DEFAULTS: dict[str, Any] = {key.key: parse_value(key.default) for key in OPTIONS}

# What all trials share: it decides the data or the question, and scores of different questions say nothing.
SHARED_KEYS = {
    *RUNTIME_KEYS, *SPLIT_KEYS, *RATING_SPLIT_KEYS, "model", "dataset", "candidate_seed", "eval_args", "metrics",
    "topk", "valid_metric", "eval_batch_size", "load_col", "simulated",
}  # fmt: skip
# Settings of a single run, which a sweep gives its trials itself.
_OF_A_RUN = ("run_id", "checkpoint_dir", "result_file")
# What says how a sweep runs, and may be another when it goes on.
_HOW = ("jobs", "ray_address", "dashboard", "resume", "out")


@dataclass(frozen=True)
class Sweep:
    """A sweep that can begin: checked, with nothing left to be refused but by the data.

    Attributes:
        model: name or class.
        settings: the user's, besides the searched ones, as a property file would hold them.
        config: all settings of a trial, the searched ones at their defaults.
        plan: settings of all trials, where they do not depend on scores.
        staged: whether the model's stages are the same for all trials.
        options: those of the command, with their defaults.
    """

    model: str | type
    dataset: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    config: CDRConfig
    space: Space
    plan: tuple[Settings, ...]
    staged: bool
    options: Mapping[str, Any]
    folder: Path

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that conditions name and that are not searched."""
        return _fixed(self.space, self.config)

    @property
    def larger_is_better(self) -> bool:
        """The direction of ``valid_metric``."""
        return bool(self.config["valid_metric_bigger"])

    def identity(self) -> dict[str, Any]:
        """Returns what has to be the same when a sweep goes on, as JSON can hold it."""
        named = (*_HOW, "model", "dataset", "space")
        identity = {
            "model": self.config["model"],
            "dataset": self.dataset,
            "folder": str(self.folder),
            "settings": self.settings,
            "space": [asdict(parameter) for parameter in self.space.parameters],
            **{key: value for key, value in self.options.items() if key not in named},
            "torch_threads": self.machine["torch_threads"],
        }
        return _as_json(identity)

    def resolved(self) -> dict[str, Any]:
        """Returns the settings that decide a trial's result, the searched ones at their defaults, as JSON."""
        settings = self.config.to_dict().items()
        return _as_json({key: value for key, value in settings if key not in RUNTIME_KEYS})

    def how(self) -> dict[str, Any]:
        """Returns how the sweep runs and where its space lies: what may be another when it goes on."""
        return {"jobs": self.options["jobs"], "space": str(Path(self.space.source).absolute())}


def require(search: str) -> None:
    """Makes sure that what a sweep needs is installed.

    Raises:
        CDRError: it is not.
    """
    for name in ("ray", "pyarrow", "plotly", *(("optuna",) if search == "optuna" else ())):
        if importlib.util.find_spec(name) is None:
            raise CDRError(
                f"`recbole-cdr tune` needs {name}, which is not installed: pip install 'recbole_cdr_ext[tune]'."
            )


# -- checks ---------------------------------------------------------------------------------------------------------


def prepare(
    model: str | type | None,
    dataset: str | None,
    options: Mapping[str, Any],
    config_file_list: Any = None,
    config_dict: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
) -> Sweep:
    """Returns a sweep whose options, space and settings have been checked; reads no data.

    Raises:
        CDRError: one of them cannot be.
    """
    _check_options(options)
    arguments = {**dict(config_dict or {}), **parse_arguments(argv)}
    for key in _OF_A_RUN:
        if key in arguments:
            raise CDRError(
                f"{key} is a setting of a single run: leave it out; --out names the sweep's folder."
            )
    user = CDRConfig(model, dataset, config_file_list, config_dict, argv)
    check_metrics(user)
    name, data = user["model"], user["dataset"]
    settings = _user_settings(user, config_file_list, arguments)
    out = options["out"] or Path("tuning") / f"{name}-{data}-{options['search']}"
    folder = Path(out).absolute()
    machine = {
        "data_path": str(Path(user["data_root"]).absolute()),
        "cache_dir": str(Path(user["cache_dir"]).absolute()),
        "checkpoint_dir": str(folder / TRIALS),
        "torch_threads": int(user["torch_threads"] or max(1, int(options["cpus_per_trial"]))),
        "use_gpu": bool(options["gpus_per_trial"]) and bool(user["use_gpu"]),
        "gpu_id": user["gpu_id"],
        "show_progress": False,
        "tensorboard": False,
    }
    model = model if isinstance(model, type) else name
    configs: dict[str, CDRConfig] = {}

    def settings_with(searched: Settings) -> CDRConfig:
        key = repr(searched)
        if key not in configs:
            configs[key] = CDRConfig(model, data, config_file_list, {**arguments, **machine, **searched})
        return configs[key]

    config = settings_with({})
    space = read_space(find_space(options["space"], name))
    space = check_space(
        space,
        lambda searched: settings_with(searched).final_config_dict,
        user_keys=set(arguments),
        shared=SHARED_KEYS,
        known=set(config.final_config_dict),
    )
    # With a fixed seed, these are the same whenever they are drawn.
    plan = _plan(space, options, config)
    ran = {_stages(settings_with(searched)) for searched in space.probes(_fixed(space, config))}
    return Sweep(model, data, settings, machine, config, space, plan, len(ran) < 2, options, folder)


def _check_options(options: Mapping[str, Any]) -> None:
    for key, known in (("search", SEARCHES), ("scheduler", SCHEDULERS)):
        if options[key] not in known:
            raise CDRError(
                f"{key}={options[key]} should be one of {', '.join(known)}.{did_you_mean(options[key], known)}"
            )
    if options["scheduler"] == "pbt" and options["search"] != "random":
        raise CDRError(
            f"scheduler=pbt draws settings itself and changes them on the way: search={options['search']} has no say. "
            "Leave it out, or choose --scheduler=asha."
        )
    for key, low in (("trials", 1), ("jobs", 1), ("grace_epochs", 1), ("search_seed", 0)):
        if options[key] is not None and options[key] < low:
            raise CDRError(f"{key}={options[key]} should be at least {low}.")
    if not options["cpus_per_trial"] > 0:
        raise CDRError(f"cpus_per_trial={options['cpus_per_trial']} should be above 0.")
    gpus = options["gpus_per_trial"]
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise CDRError(f"gpus_per_trial={gpus} should be at least 0, and whole above 1.")


def _user_settings(user: CDRConfig, config_file_list: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the user's settings, from files, keywords and the command line, typed."""
    settings: dict[str, Any] = {}
    for file in [*file_names(config_file_list), *file_names(arguments.get("config_files"))]:
        settings |= read_mapping(find_config_file(file))
    typed = user.to_dict()
    for key, value in arguments.items():
        settings[key] = (
            typed[key] if key in typed else parse_value(value) if isinstance(value, str) else value
        )
    for key in ("model", "dataset", "config_files"):
        settings.pop(key, None)
    return settings


def _plan(space: Space, options: Mapping[str, Any], config: CDRConfig) -> tuple[Settings, ...]:
    n_trials, seed = options["trials"] or DEFAULT_TRIALS, int(options["search_seed"])
    if options["search"] == "optuna" or options["scheduler"] == "pbt":
        return ()
    if options["search"] == "random":
        return tuple(space.sample(n_trials, seed, _fixed(space, config)))
    points = space.grid(_fixed(space, config))
    if options["trials"] and len(points) > options["trials"]:
        raise CDRError(
            f"The grid of {space.source} has {len(points)} points, more than --trials={options['trials']}: leave "
            "trials out, make the space smaller, or say --search=random."
        )
    return tuple(points)


def _fixed(space: Space, config: CDRConfig) -> dict[str, Any]:
    named = {key for parameter in space.parameters for key in parameter.condition}
    return {key: config[key] for key in named - set(space.keys)}


def _stages(config: CDRConfig) -> str:
    """Tells apart settings whose stages are not the same."""
    stages = config.model_class.stages(config)
    return repr([(stage.model, sorted(stage.settings.items()), config[stage.seed_key]) for stage in stages])


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain
