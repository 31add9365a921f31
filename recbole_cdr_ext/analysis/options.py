"""The options of ``recbole-cdr analyse``. Imports nothing heavy: ``--help`` reads them."""

from __future__ import annotations

from collections.abc import Mapping

from recbole_cdr_ext._settings import Documented


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
OPTIONS: Mapping[str, tuple[Documented, ...]] = {
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
