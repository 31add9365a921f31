"""Sweeps: from a search space to the best settings, in a folder that another call goes on from.

What a sweep has found lies in its own folder and not in Ray's state alone: each trial's record and checkpoint in
``trials``, the records of ended trials in ``trials.jsonl``. Ray's state, in ``ray``, says whom it would ask next. So
nothing that has ended is trained again, whenever the driver was killed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recbole_cdr_ext import compat
from recbole_cdr_ext._settings import (
    file_names,
    find_config_file,
    parse_arguments,
    parse_value,
    read_mapping,
)
from recbole_cdr_ext.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.data.ratings import RATING_SPLIT_KEYS
from recbole_cdr_ext.data.split import SPLIT_KEYS
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.experiment import check_fit, check_metrics, load_data, log_parts, set_threads
from recbole_cdr_ext.files import locked, make_folder, replacing
from recbole_cdr_ext.run_log import logging_to
from recbole_cdr_ext.stages import run_stages
from recbole_cdr_ext.tuning import page
from recbole_cdr_ext.tuning.options import OPTIONS
from recbole_cdr_ext.tuning.records import CUT, ENDED, FAILED, TRIALS, Record, best_first, ended
from recbole_cdr_ext.tuning.space import Settings, Space, check_space, find_space, read_space
from recbole_cdr_ext.tuning.table import trial_table
from recbole_cdr_ext.tuning.trial import Shared, portable, write_yaml

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
        settings: the user's own besides the searched ones, as a property file would hold them.
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
        """What has to be the same when a sweep goes on."""
        named = (*_HOW, "model", "dataset", "space")
        return {
            "model": self.config["model"],
            "dataset": self.dataset,
            "folder": str(self.folder),
            "settings": _as_json(self.settings),
            "space": _as_json([asdict(parameter) for parameter in self.space.parameters]),
            **{key: value for key, value in self.options.items() if key not in named},
            "torch_threads": self.machine["torch_threads"],
        }


def tune(
    model: str | type | None = None,
    dataset: str | None = None,
    *,
    config_file_list: Sequence[str | Path] | str | Path | None = None,
    config_dict: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Searches for the best settings of a model on a dataset: what ``recbole-cdr tune`` does.

    Args:
        model, dataset, config_file_list, config_dict, argv: as for :class:`CDRConfig`; what they set goes to every
            trial.
        options: of :data:`recbole_cdr_ext.tuning.options.OPTIONS`.

    Returns:
        ``best`` (a record as :class:`Record` has it), ``trials`` (all records, best first), ``folder``, ``files``
        and the ``command`` that runs the best.

    Raises:
        CDRError: something the user can mend, before any long work where that is possible; or every trial failed.
        KeyboardInterrupt: Ctrl-C; its text says how to go on.
    """
    unknown = next((key for key in options if key not in DEFAULTS), None)
    if unknown:
        raise CDRError(f"Unknown option '{unknown}' of tune.{did_you_mean(unknown, DEFAULTS)}")
    options = {**DEFAULTS, **options}
    model, dataset = model or options["model"], dataset or options["dataset"]
    require(str(options["search"]))
    if options["resume"]:
        model, dataset, options, config_dict = _stored(
            model, dataset, options, config_dict, argv, config_file_list
        )
        argv, config_file_list = (), None
    sweep = prepare(model, dataset, options, config_file_list, config_dict, argv)
    make_folder(sweep.folder)
    with locked(sweep.folder, "sweep"):
        state = _begin(sweep)
        if not state["finished"]:
            try:
                with logging_to(sweep.folder / LOG, "INFO", console=False):
                    _search(sweep)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"interrupted; go on with {_how_to_resume(sweep.folder)}") from None
        return _conclude(sweep)


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
    given = {**dict(config_dict or {}), **parse_arguments(argv)}
    for key in _OF_A_RUN:
        if key in given:
            raise CDRError(
                f"{key} is a setting of a single run: leave it out; --out names the sweep's folder."
            )
    user = CDRConfig(model, dataset, config_file_list, config_dict, argv)
    check_metrics(user)
    name, data = user["model"], user["dataset"]
    settings = _user_settings(user, config_file_list, given)
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
    made: dict[str, CDRConfig] = {}

    def settings_with(searched: Settings) -> CDRConfig:
        key = repr(searched)
        if key not in made:
            made[key] = CDRConfig(model, data, config_file_list, {**given, **machine, **searched})
        return made[key]

    config = settings_with({})
    space = read_space(find_space(options["space"], name))
    space = check_space(
        space,
        lambda searched: settings_with(searched).final_config_dict,
        given=set(given),
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


def _user_settings(user: CDRConfig, config_file_list: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the user gave, in files and besides, typed."""
    settings: dict[str, Any] = {}
    for file in [*file_names(config_file_list), *file_names(given.get("config_files"))]:
        settings |= read_mapping(find_config_file(file))
    typed = user.to_dict()
    for key, value in given.items():
        settings[key] = (
            typed[key] if key in typed else parse_value(value) if isinstance(value, str) else value
        )
    for key in ("model", "dataset", "config_files"):
        settings.pop(key, None)
    return settings


def _plan(space: Space, options: Mapping[str, Any], config: CDRConfig) -> tuple[Settings, ...]:
    wanted, seed = options["trials"] or DEFAULT_TRIALS, int(options["search_seed"])
    if options["search"] == "optuna" or options["scheduler"] == "pbt":
        return ()
    if options["search"] == "random":
        return tuple(space.sample(wanted, seed, _fixed(space, config)))
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


# -- the folder -----------------------------------------------------------------------------------------------------


def _begin(sweep: Sweep) -> dict[str, Any]:
    """Returns the state of the sweep in the folder: of a new one, or of the same one that was begun before.

    Raises:
        CDRError: the folder holds another sweep.
    """
    path, identity = sweep.folder / SWEEP, sweep.identity()
    if not path.exists():
        resolved = _as_json(_resolved(sweep))
        state = {"finished": False, "identity": _as_json(identity), "how": _how(sweep), "resolved": resolved}
        _write_json(state, path)
        write_yaml(
            sweep.settings, sweep.folder / SETTINGS, "The settings that every trial of this sweep has."
        )
        return state
    state = _read_json(path)
    before = state["identity"]
    for key in sorted(set(before) | set(identity)):
        if before.get(key) != _as_json(identity).get(key):
            raise CDRError(
                f"{sweep.folder} holds another sweep ({key}: {_short(before.get(key))}, not "
                f"{_short(identity.get(key))}): choose another --out, or delete that folder."
            )
    now = _as_json(_resolved(sweep))
    for key, value in state.get("resolved", {}).items():
        if not state["finished"] and now.get(key) != value:
            raise CDRError(
                f"{sweep.folder} was begun by a version of this package where {key} is {_short(value)} unless it is "
                f"given, and here it is {_short(now.get(key))}; its trials could not be compared. Go on with "
                "that version, or choose another --out."
            )
    what = "is finished" if state["finished"] else "was begun before and goes on"
    print(f"The sweep in {_relative(sweep.folder)} {what}: {len(ended(sweep.folder))} trials have ended.")
    return state


def _stored(model, dataset, options, config_dict, argv, config_file_list):
    """Returns what the sweep in ``out`` was begun with, for ``resume``; anything given besides must agree."""
    if not options["out"]:
        raise CDRError(
            "Which sweep is to go on? Say --resume --out=FOLDER, or repeat its command without --resume."
        )
    path = Path(options["out"]) / SWEEP
    if not path.exists():
        raise CDRError(f"There is no sweep to resume in {options['out']}: no {SWEEP} there.")
    state = _read_json(path)
    identity, how = state["identity"], state["how"]
    changed = {key: value for key, value in options.items() if value != DEFAULTS[key]}
    options = {**DEFAULTS, **{key: identity[key] for key in DEFAULTS if key in identity}, **how, **changed}
    given = {**dict(config_dict or {}), **parse_arguments(argv)}
    for file in [*file_names(config_file_list), *file_names(given.pop("config_files", None))]:
        given = {**read_mapping(find_config_file(file)), **given}
    named = model.__name__ if isinstance(model, type) else model
    for key, value in (("model", named), ("dataset", dataset)):
        if value not in (None, identity[key]):
            raise CDRError(f"{key}={value} contradicts the sweep in {path.parent} ({key}={identity[key]}).")
    return (
        model or identity["model"],
        dataset or identity["dataset"],
        options,
        {**identity["settings"], **given},
    )


def _resolved(sweep: Sweep) -> dict[str, Any]:
    """The settings that decide a trial's result, the searched ones at their defaults."""
    return {key: value for key, value in sweep.config.to_dict().items() if key not in RUNTIME_KEYS}


def _how(sweep: Sweep) -> dict[str, Any]:
    return {"jobs": sweep.options["jobs"], "space": str(Path(sweep.space.source).absolute())}


def _how_to_resume(folder: Path) -> str:
    return f"the same command, or `recbole-cdr tune --resume --out={_relative(folder)}`"


# -- the work -------------------------------------------------------------------------------------------------------


def _search(sweep: Sweep) -> None:
    from recbole_cdr_ext.tuning import ray_tune

    if sweep.options["ray_address"]:
        ray_tune.check_address(str(sweep.options["ray_address"]))
    wanted = len(sweep.plan) or sweep.options["trials"] or DEFAULT_TRIALS
    asked = sweep.options["trials"] or DEFAULT_TRIALS
    few = (
        " (there are no more different ones)"
        if sweep.options["search"] == "random" and wanted < asked
        else ""
    )
    better = "larger" if sweep.larger_is_better else "smaller"
    print(
        f"{sweep.config['model']} on {sweep.dataset}: {wanted} trials{few} of {', '.join(sweep.space.keys)}; the score "
        f"is {sweep.config['valid_metric']} of the validation part, {better} is better.",
        flush=True,
    )
    ray_tune.search(sweep, share(sweep), wanted)


def share(sweep: Sweep) -> Shared:
    """Returns what all trials share: data and split, with what the stages make of it where that is the same for all.

    Raises:
        CDRError: the data cannot be had, or are not what the model needs.
    """
    config, model_class = sweep.config, sweep.config.model_class
    set_threads(config)
    dataset, split = load_data(config)
    check_fit(model_class, dataset, split)
    logging.getLogger().info(str(dataset))
    log_parts(dataset, split)
    if sweep.staged:
        split = run_stages(config, dataset, split, model_class)
    return Shared(
        model=sweep.model,
        name=sweep.dataset,
        settings=sweep.settings,
        machine=sweep.machine,
        folder=sweep.folder / TRIALS,
        dataset=portable(dataset),
        split=split,
        staged=sweep.staged,
        plan=sweep.plan,
    )


def _conclude(sweep: Sweep) -> dict[str, Any]:
    """Writes what the sweep has found, and prints it.

    Raises:
        CDRError: every trial failed.
    """
    folder, found = sweep.folder, best_first(ended(sweep.folder), sweep.larger_is_better)
    print(trial_table(found, sweep.space.keys))
    if not found or found[0].score is None or found[0].status == FAILED:
        reasons = sorted({record.reason for record in found})
        raise CDRError(
            f"Every trial failed: {'; '.join(reasons) or 'none was begun'}. Their logs: {folder / TRIALS}"
        )
    best = found[0]
    notes = _write_best(sweep, best)
    threads = sweep.machine["torch_threads"]
    command = (
        f"recbole-cdr run --model={sweep.config['model']} --dataset={sweep.dataset} "
        f"--config_files={_relative(folder / BEST)} --torch_threads={threads}"
    )
    about = page.About(
        model=sweep.config["model"],
        dataset=sweep.dataset,
        metric=sweep.config["valid_metric"],
        larger_is_better=sweep.larger_is_better,
        parameters=sweep.space.parameters,
        command=command,
        notes=notes,
        how=f"search {sweep.options['search']}, scheduler {sweep.options['scheduler']}, search_seed "
        f"{sweep.options['search_seed']}, torch_threads {threads}",
    )
    page.write_page(found, about, folder / PAGE)
    page.write_summary(found, about, folder / SUMMARY)
    state = _read_json(folder / SWEEP)
    _write_json({**state, "finished": True}, folder / SWEEP)
    files = [BEST, *([SCHEDULE] if (folder / SCHEDULE).exists() else []), ENDED, PAGE, SUMMARY]
    print(
        f"\nThe best: trial {best.trial}, {sweep.config['valid_metric']} {best.score:.6f} on the validation part"
    )
    for note in notes:
        print(note)
    print(f"Written to {_relative(folder)}: {', '.join(files)}")
    print(f"To run it, test part included:\n  {command}")
    return {"best": best, "trials": found, "folder": folder, "files": files, "command": command}


def _write_best(sweep: Sweep, best: Record) -> list[str]:
    """Writes ``best.yaml``; returns what its reader must know."""
    settings = {**sweep.settings, **best.settings}
    settings.setdefault("seed", sweep.config["seed"])
    notes = []
    if best.status == CUT or best.stopped == "time":
        settings["epochs"] = best.epochs
        for key in ("max_seconds", "max_processor_seconds"):
            settings.pop(key, None)
        if not best.by_epochs:
            notes.append(
                "It was ended before its last epoch, and its model has phases that `epochs` does not cut where it was: "
                "a run of best.yaml may reach another score. --scheduler=none lets every trial end by itself."
            )
    if len(best.schedule) > 1:
        steps = [{"from_epoch": epoch + 1, **then} for epoch, then in best.schedule]
        with replacing(sweep.folder / SCHEDULE) as temporary:
            temporary.write_text(json.dumps(steps, indent=1) + "\n", encoding="utf-8")
        notes.append(
            f"Its settings changed on the way ({SCHEDULE}): best.yaml holds the last ones, and a run of it need not "
            "reach this score."
        )
    if sweep.machine["use_gpu"]:
        notes.append(
            "It ran on a GPU, where sums depend on the order of additions: a run's score may differ a little."
        )
    score = f"{sweep.config['valid_metric']} {best.score!r} on the validation part"
    header = f"Trial {best.trial} of a sweep of {sweep.config['model']} on {sweep.dataset}: {score}."
    write_yaml(settings, sweep.folder / BEST, "\n".join([header, *notes]))
    return notes


# -- small things ---------------------------------------------------------------------------------------------------


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CDRError(f"{path} is damaged ({error}): delete the folder to begin anew.") from error


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else text[:77] + "..."


def _relative(path: Path) -> str:
    """A path as a command in the working directory may name it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
