"""The options of the commands that have more of their own than settings of a run.

Imports nothing heavy: ``--help`` reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.reading import Documented, check_type, types_in


def read_options(
    command: str, declared: Iterable[Documented], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the value of every option of a command that is called from Python.

    Text is read as on the command line; a list or a number may stand where the command line has text with commas.

    Raises:
        CDRError: an argument is no option (with the nearest name), or of another type.
    """
    options = {option.key: option for option in declared}
    for key in arguments:
        if key not in options:
            raise CDRError(f"Unknown option '{key}' of {command}.{did_you_mean(key, options)}")
    values = {}
    for key, option in options.items():
        types = types_in(option.types)
        value = arguments.get(key, option.default)
        if (
            str in types
            and isinstance(value, list | tuple | Path | int | float)
            and not isinstance(value, bool)
        ):
            value = joined(key, value)
        values[key] = check_type(key, value, types, command, is_text=isinstance(value, str))
    return values


def joined(key: str, value: str | Path | float | Sequence[object] | None) -> str | None:
    """Returns an option as the command line has it: what a list holds with commas between; None as it is.

    Raises:
        CDRError: a part of the list has a comma in it, and would be two.
    """
    if not isinstance(value, list | tuple):
        return None if value is None else str(value)
    parts = [str(part) for part in value]
    for part in parts:
        if "," in part:
            raise CDRError(f"{key}: '{part}' has a comma in it, which stands between two of them.")
    return ",".join(parts)


def _option(key: str, default: str, types: str, meaning: str) -> Documented:
    return Documented(key, default, types, meaning, "Options")


def _of_runs(key: str, types: str, meaning: str) -> Documented:
    return Documented(key, "~", f"{types} or None", f"{meaning}; None: the run's own.", "Runs")


_OUT = _option("out", "~", "str or None", "Folder of the files; None: one in analyses/.")
_EPSILONS = _option("epsilons", "0,0.25,0.5,0.75,1", "str", "Attack rates of FGSM, with commas between.")
_RELATIVE = _option(
    "relative",
    "False",
    "bool",
    "Whether an attack rate is a share of each vector's own length, or a step in every coordinate.",
)
_RUNS = _option("runs", "~", "str or None", "Names in checkpoint_dir, or folders, with commas between.")
_LABELS = _option(
    "labels",
    "~",
    "str or None",
    "What figures and tables call the runs, with commas between; None: the model and what tells it apart.",
)
_SAVED = (
    _of_runs("data_path", "str", "Folder of the datasets"),
    _of_runs("cache_dir", "str", "Folder of the vectors that stages learned"),
    _of_runs("use_gpu", "bool", "Whether to use a GPU where there is one"),
    _of_runs("torch_threads", "int", "Threads of torch"),
)

# What an analysis takes besides checkpoint_dir and show_progress.
ANALYSIS_OPTIONS: Mapping[str, tuple[Documented, ...]] = {
    "fgsm": (_RUNS, _LABELS, _EPSILONS, _RELATIVE, _OUT, *_SAVED),
    "landscape": (
        _RUNS,
        _LABELS,
        _option("points", "21", "int", "Points of the grid per axis; odd."),
        _option("extent", "1.0", "float", "Where the axes end, in lengths of each user's vector."),
        _option("samples", "2000", "int", "How many of the test ratings; all if there are fewer."),
        _option("seed", "0", "int", "Seed of directions and sample, the same for all runs."),
        _OUT,
        *_SAVED,
    ),
    "latents": (
        _RUNS,
        _LABELS,
        _option("part", "test", "str", "Whose instances: train, valid or test."),
        _OUT,
        *_SAVED,
    ),
    "lipschitz": (
        _RUNS,
        _LABELS,
        _option("rho", "0.25", "float", "Radius of the ball that is searched, the same for all runs."),
        _option("rho_relative", "False", "bool", "Whether rho is a share of each vector's own length."),
        _option("pgd_steps", "5", "int", "Steps of projected gradient ascent."),
        _option(
            "pgd_step_size",
            "~",
            "float or None",
            "Length of a step per coordinate; None: 2.5 rho / (k sqrt(d)).",
        ),
        _option("part", "train", "str", "Whose ratings: train (what the mapping learned from), valid, test."),
        _OUT,
        *_SAVED,
    ),
    "sensitivity": (
        _option("model", "SCDR", "str", "What is trained: a bridge; all read pgd_steps and rho."),
        _option("dataset", "~", "str or None", "The dataset."),
        _option("pgd_steps", "1,2,3,5", "str", "Steps k in training, with commas between."),
        _option("rhos", "1,5", "str", "Radii rho in training, with commas between."),
        _option(
            "pgd_step_size",
            "0.3",
            "float or None",
            "Length of a step per coordinate in training; 0.3 fits the paper; None: 2.5 rho / (k sqrt(d)).",
        ),
        _option(
            "stages",
            "mapping",
            "str",
            "Where k and rho are the grid's: mapping, or both (in pre-training large ones diverge).",
        ),
        _EPSILONS,
        _RELATIVE,
        _option(
            "ball", "1.0", "float", "Radius in which the Lipschitz estimates of all cells are made alike."
        ),
        _OUT,
    ),
}


def analysis_options(kind: str) -> tuple[Documented, ...]:
    """Returns the options of an analysis.

    Raises:
        CDRError: there is none of that kind (with the nearest name).
    """
    if kind not in ANALYSIS_OPTIONS:
        raise CDRError(
            f"Unknown analysis '{kind}'.{did_you_mean(kind, ANALYSIS_OPTIONS)} Known: {', '.join(ANALYSIS_OPTIONS)}."
        )
    return ANALYSIS_OPTIONS[kind]


def _study_option(key: str, types: str, meaning: str, default: str = "~") -> Documented:
    return Documented(key, default, types, meaning, "Options")


# What the command takes besides checkpoint_dir, show_progress and the settings of runs.
STUDY_OPTIONS: tuple[Documented, ...] = (
    _study_option("dataset", "str or None", "Datasets, with commas between, in place of the study's."),
    _study_option(
        "seeds",
        "str or None",
        "Seeds of training, with commas between: some of the study's to do now, or others in place of them.",
    ),
    _study_option("jobs", "int or None", "Runs at a time; None: as many as there are processors for."),
    _study_option(
        "out",
        "str or None",
        "Folder of tables and results; None: results/NAME, with the settings in its name where some are given.",
    ),
    _study_option(
        "only",
        "str or None",
        "Regular expression; only runs whose line in --dry_run it is found in are run. The tables show all there are.",
    ),
    _study_option(
        "adopt",
        "bool",
        "Whether finished runs in --checkpoint_dir with the settings of the study's count, whatever made them; that "
        "they had the same data can't be told.",
        "False",
    ),
    _study_option("dry_run", "bool", "Whether to say what would be run, and run nothing.", "False"),
)


def _search_option(key: str, default: str, types: str, meaning: str, section: str = "Search") -> Documented:
    return Documented(key, default, types, meaning, section)


def _machine_option(key: str, default: str, types: str, meaning: str) -> Documented:
    return _search_option(key, default, types, meaning, "Trials at once")


TUNE_OPTIONS: tuple[Documented, ...] = (
    _search_option("model", "~", "str or None", "The model."),
    _search_option("dataset", "~", "str or None", "The data."),
    _search_option(
        "space",
        "~",
        "str or None",
        "File of the search space, as YAML (.yaml) or as RecBole's hyper files; None: properties/hyper/MODEL.yaml.",
    ),
    _search_option("trials", "~", "int or None", "How many settings to try; None: 40, or all of a grid."),
    _search_option(
        "search", "random", "str", "Who proposes settings: random, grid, or optuna (learns from past trials)."
    ),
    _search_option(
        "scheduler",
        "asha",
        "str",
        "Who ends trials early: asha (the worse ones), pbt (which copies the better ones and changes settings on the "
        "way), or none.",
    ),
    _search_option(
        "grace_epochs", "5", "int", "Epochs that asha leaves every trial, and pbt lies between two changes."
    ),
    _search_option("search_seed", "2024", "int", "Seed of the proposed settings."),
    _machine_option(
        "jobs", "~", "int or None", "Trials at a time; None: as many as there are processors for."
    ),
    _machine_option("cpus_per_trial", "1.0", "float", "Processors of a trial; torch gets a thread for each."),
    _machine_option("gpus_per_trial", "0.0", "float", "GPUs of a trial; 0.5 puts two on one."),
    _machine_option(
        "ray_address",
        "~",
        "str or None",
        "HOST:PORT of a running Ray cluster, whose machines must see --out; None: Ray is started here, on 127.0.0.1.",
    ),
    _machine_option("dashboard", "False", "bool", "Whether Ray's dashboard is started, on 127.0.0.1."),
    _search_option(
        "out", "~", "str or None", "Folder of the sweep; None: tuning/MODEL-DATASET-SEARCH.", "Output"
    ),
    _search_option(
        "resume",
        "False",
        "bool",
        "Whether to go on with the interrupted sweep in --out, by its own settings.",
        "Output",
    ),
)
