"""Sweeps: from a search space to the best settings, in a folder that another call goes on from.

What a sweep has reached lies in its folder and not in Ray's state alone: each trial's record and checkpoint in
``trials``, the records of ended trials in ``trials.jsonl``. Ray's state, in ``ray``, says whom it would ask next. So
nothing that has ended is trained again, whenever the driver was killed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_cdr_ext import compat
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.files import locked, make_folder, replacing
from recbole_cdr_ext.runs.experiment import check_fit, load_data, log_parts, set_threads
from recbole_cdr_ext.runs.record import logging_to
from recbole_cdr_ext.settings.reading import (
    file_names,
    find_config_file,
    parse_arguments,
    read_mapping,
)
from recbole_cdr_ext.tasks import get_task
from recbole_cdr_ext.tuning import sweep_page
from recbole_cdr_ext.tuning.records import CUT, ENDED, FAILED, TRIALS, Record, best_first, ended, trial_table
from recbole_cdr_ext.tuning.sweep import (
    BEST,
    DEFAULT_TRIALS,
    DEFAULTS,
    LOG,
    PAGE,
    SCHEDULE,
    SETTINGS,
    SUMMARY,
    SWEEP,
    Sweep,
    prepare,
    require,
)
from recbole_cdr_ext.tuning.trial import Shared, write_yaml

compat.apply()


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
        options: of :data:`recbole_cdr_ext.settings.command_options.TUNE_OPTIONS`.

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


# -- the folder -----------------------------------------------------------------------------------------------------


def _begin(sweep: Sweep) -> dict[str, Any]:
    """Returns the state of the sweep in the folder: of a new one, or of the same one that was begun before.

    Raises:
        CDRError: the folder holds another sweep.
    """
    path, identity = sweep.folder / SWEEP, sweep.identity()
    if not path.exists():
        state: dict[str, Any] = {
            "finished": False,
            "identity": identity,
            "how": sweep.how(),
            "resolved": sweep.resolved(),
        }
        _write_json(state, path)
        write_yaml(
            sweep.settings, sweep.folder / SETTINGS, "The settings that every trial of this sweep has."
        )
        return state
    state = _read_json(path)
    before = state["identity"]
    for key in sorted(set(before) | set(identity)):
        if before.get(key) != identity.get(key):
            raise CDRError(
                f"{sweep.folder} holds another sweep ({key}: {_short(before.get(key))}, not "
                f"{_short(identity.get(key))}): choose another --out, or delete that folder."
            )
    now = sweep.resolved()
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


def _stored(
    model: str | type | None,
    dataset: str | None,
    options: Mapping[str, Any],
    config_dict: Mapping[str, Any] | None,
    argv: Sequence[str],
    config_file_list: Sequence[str | Path] | str | Path | None,
) -> tuple[str | type, str, dict[str, Any], dict[str, Any]]:
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
    arguments = {**dict(config_dict or {}), **parse_arguments(argv)}
    for file in [*file_names(config_file_list), *file_names(arguments.pop("config_files", None))]:
        arguments = {**read_mapping(find_config_file(file)), **arguments}
    named = model.__name__ if isinstance(model, type) else model
    for key, value in (("model", named), ("dataset", dataset)):
        if value not in (None, identity[key]):
            raise CDRError(f"{key}={value} contradicts the sweep in {path.parent} ({key}={identity[key]}).")
    return (
        model or identity["model"],
        dataset or identity["dataset"],
        options,
        {**identity["settings"], **arguments},
    )


def _how_to_resume(folder: Path) -> str:
    return f"the same command, or `recbole-cdr tune --resume --out={_relative(folder)}`"


# -- the work -------------------------------------------------------------------------------------------------------


def _search(sweep: Sweep) -> None:
    from recbole_cdr_ext.tuning import ray_tune

    if sweep.options["ray_address"]:
        ray_tune.check_address(str(sweep.options["ray_address"]))
    n_trials = len(sweep.plan) or sweep.options["trials"] or DEFAULT_TRIALS
    requested = sweep.options["trials"] or DEFAULT_TRIALS
    few = (
        " (there are no more different ones)"
        if sweep.options["search"] == "random" and n_trials < requested
        else ""
    )
    better = "larger" if sweep.larger_is_better else "smaller"
    print(
        f"{sweep.config['model']} on {sweep.dataset}: {n_trials} trials{few} of {', '.join(sweep.space.keys)}; the "
        f"score is {sweep.config['valid_metric']} of the validation part, {better} is better.",
        flush=True,
    )
    ray_tune.search(sweep, share(sweep), n_trials)


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
    log_parts(config, dataset, split)
    if sweep.staged:
        split = get_task(config["task"]).run_stages(config, dataset, split, model_class)
    return Shared(
        model=sweep.model,
        name=sweep.dataset,
        settings=sweep.settings,
        machine=sweep.machine,
        folder=sweep.folder / TRIALS,
        dataset=dataset.portable(),
        split=split,
        staged=sweep.staged,
        plan=sweep.plan,
    )


def _conclude(sweep: Sweep) -> dict[str, Any]:
    """Writes the best settings, the page and the summary of a sweep, and prints its table.

    Raises:
        CDRError: every trial failed.
    """
    folder, trials = sweep.folder, best_first(ended(sweep.folder), sweep.larger_is_better)
    print(trial_table(trials, sweep.space.keys))
    if not trials or trials[0].score is None or trials[0].status == FAILED:
        reasons = sorted({record.reason for record in trials})
        raise CDRError(
            f"Every trial failed: {'; '.join(reasons) or 'none was begun'}. Their logs: {folder / TRIALS}"
        )
    best = trials[0]
    notes = _write_best(sweep, best)
    threads = sweep.machine["torch_threads"]
    command = (
        f"recbole-cdr run --model={sweep.config['model']} --dataset={sweep.dataset} "
        f"--config_files={_relative(folder / BEST)} --torch_threads={threads}"
    )
    about = sweep_page.About(
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
    sweep_page.write_page(trials, about, folder / PAGE)
    sweep_page.write_summary(trials, about, folder / SUMMARY)
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
    return {"best": best, "trials": trials, "folder": folder, "files": files, "command": command}


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CDRError(f"{path} is damaged ({error}): delete the folder to begin anew.") from error
    return content


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else text[:77] + "..."


def _relative(path: Path) -> str:
    """Returns a path as a command in the working directory may name it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
