"""The options of ``recbole-cdr tune``. Imports nothing heavy: ``--help`` reads them."""

from __future__ import annotations

from recbole_cdr_ext._settings import Documented


def _option(key: str, default: str, types: str, meaning: str, section: str = "Search") -> Documented:
    return Documented(key, default, types, meaning, section)


def _machine(key: str, default: str, types: str, meaning: str) -> Documented:
    return _option(key, default, types, meaning, "Trials at once")


OPTIONS: tuple[Documented, ...] = (
    _option("model", "~", "str or None", "The model."),
    _option("dataset", "~", "str or None", "The data."),
    _option(
        "space",
        "~",
        "str or None",
        "File of the search space, as YAML (.yaml) or as RecBole's hyper files; None: properties/hyper/MODEL.yaml.",
    ),
    _option("trials", "~", "int or None", "How many settings to try; None: 40, or all of a grid."),
    _option(
        "search", "random", "str", "Who proposes settings: random, grid, or optuna (learns from past trials)."
    ),
    _option(
        "scheduler",
        "asha",
        "str",
        "Who ends trials early: asha (the worse ones), pbt (which copies the better ones and changes settings on the "
        "way), or none.",
    ),
    _option(
        "grace_epochs", "5", "int", "Epochs that asha leaves every trial, and pbt lies between two changes."
    ),
    _option("search_seed", "2024", "int", "Seed of the proposed settings."),
    _machine("jobs", "~", "int or None", "Trials at a time; None: as many as there are processors for."),
    _machine("cpus_per_trial", "1.0", "float", "Processors of a trial; torch gets a thread for each."),
    _machine("gpus_per_trial", "0.0", "float", "GPUs of a trial; 0.5 puts two on one."),
    _machine(
        "ray_address",
        "~",
        "str or None",
        "HOST:PORT of a running Ray cluster, whose machines must see --out; None: Ray is started here, on 127.0.0.1.",
    ),
    _machine("dashboard", "False", "bool", "Whether Ray's dashboard is started, on 127.0.0.1."),
    _option("out", "~", "str or None", "Folder of the sweep; None: tuning/MODEL-DATASET-SEARCH.", "Output"),
    _option(
        "resume",
        "False",
        "bool",
        "Whether to go on with the interrupted sweep in --out, by its own settings.",
        "Output",
    ),
)
