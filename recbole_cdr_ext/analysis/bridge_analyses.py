"""The analyses of saved bridges: FGSM, landscapes and Lipschitz estimates, as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_cdr_ext.analysis.bridges import OpenedRun, describe, median_norm, open_runs, ratings_of
from recbole_cdr_ext.analysis.output import (
    Options,
    check_part,
    numbers,
    output_folder,
    print_folder,
    print_table,
    progress,
    run_options,
    write_csv,
)
from recbole_cdr_ext.analysis.robustness import PAIRS, Landscape, fgsm, landscape, lipschitz
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.pages.curves import Curves
from recbole_cdr_ext.pages.figures import Axis, Dots, Surfaces
from recbole_cdr_ext.trainer.sharpness import PGD

# -- FGSM -------------------------------------------------------------------------------------------------------------


def analyse_fgsm(options: Options, _: Sequence[str]) -> Path:
    """Attacks the source vectors of runs at several rates."""
    epsilons = numbers("epsilons", options["epsilons"], float)
    relative = bool(options["relative"])
    runs = _open(options)
    folder = _folder("fgsm", runs, options)
    by_run: dict[str, pd.DataFrame] = {}
    for run in progress(runs, "fgsm", options):
        attacked = fgsm(run.experiment, epsilons, relative=relative)
        by_run[run.name] = pd.DataFrame([describe(run)] * len(attacked)).join(attacked)
    write_csv(pd.concat(by_run.values(), ignore_index=True), folder / "fgsm.csv")
    curves = Curves(f"FGSM attack on source vectors, {_scene(runs)}", _note(runs))
    _draw_attacks(curves, runs, by_run, epsilons, relative=relative)
    curves.write(folder / "fgsm.png", folder / "fgsm.html")
    print_table(
        [
            {
                "MAE under attack": run.label,
                "d": run.model.size,
                "median length": by_run[run.name]["median_norm"].iloc[0],
                **{f"ε={line.epsilon:g}": line.mae for line in by_run[run.name].itertuples()},
            }
            for run in runs
        ]
    )
    print_folder(folder)
    return folder


def _draw_attacks(
    curves: Curves,
    runs: Sequence[OpenedRun],
    by_run: Mapping[str, pd.DataFrame],
    epsilons: Sequence[float],
    *,
    relative: bool,
) -> None:
    mean = _mean_error(runs[0])
    rate = "ε: length of η / length of uˢ" if relative else "ε (step per coordinate of uˢ)"
    curves.panel("Attack rate", rate, "MAE (rating points)", ticks=epsilons, group="mae")
    for run in runs:
        curves.line(run.label, by_run[run.name]["epsilon"], by_run[run.name]["mae"])
    curves.level("global mean", mean)
    if relative:
        return
    share = "length of η / median length of uˢ"
    curves.panel("The same, as a share of the vectors' length", share, "MAE (rating points)", group="mae")
    for run in runs:
        curves.line(run.label, by_run[run.name]["length_over_norm"], by_run[run.name]["mae"])
    curves.level("global mean", mean)


def _mean_error(run: OpenedRun) -> float:
    """Returns the MAE of predicting the training mean for everybody: above it, a model is worse than no model."""
    ratings = ratings_of(run.experiment, "test").rating
    return float((ratings - run.model.target_mean).abs().double().mean())


# -- landscapes -------------------------------------------------------------------------------------------------------


def analyse_landscape(options: Options, _: Sequence[str]) -> Path:
    """Measures the loss around the source vectors of runs."""
    _check_grid(options)
    runs = _open(options)
    _check_sizes(runs)
    folder = _folder("landscape", runs, options)
    settings = {key: options[key] for key in ("points", "extent", "samples", "seed")}
    measured = [landscape(run.experiment, **settings) for run in progress(runs, "landscape", options)]
    pairs = list(zip(runs, measured, strict=True))
    rows = [_landscape_row(run, surface, options["seed"]) for run, surface in pairs]
    write_csv(pd.DataFrame(rows), folder / "landscape.csv")
    grids = [_landscape_grid(run, surface) for run, surface in pairs]
    write_csv(pd.concat(grids, ignore_index=True), folder / "landscape_grid.csv")
    note = (
        f"{rows[0]['n']:,} test ratings, directions of seed {options['seed']}. Rises: means over {PAIRS} random "
        "directions and their opposites, at distances in lengths of uˢ."
    )
    figure = landscapes(
        {run.label: surface for run, surface in pairs},
        f"Loss around the source vectors, {_scene(runs)}",
        _note(runs, note),
    )
    figure.write(folder / "landscape.png", folder / "landscape.html")
    columns = ("model", "n", "median_norm", "mae_centre", "rise_0.5", "rise_0.5_se", "rise_1", "rise_1_se",
               "mae_lowest", "mae_highest")  # fmt: skip
    print_table([{key: row[key] for key in columns} for row in rows])
    print_folder(folder)
    return folder


def _check_grid(options: Options) -> None:
    for key, low in (("points", 3), ("samples", 1), ("seed", 0)):
        if options[key] < low:
            raise CDRError(f"{key}={options[key]} should be at least {low}.")
    if options["points"] % 2 == 0:
        raise CDRError(f"points={options['points']} should be odd: the middle one is the vectors themselves.")
    if not options["extent"] > 0:
        raise CDRError(f"extent={options['extent']} should be above 0.")


def _check_sizes(runs: Sequence[OpenedRun]) -> None:
    sizes = {run.name: run.model.size for run in runs}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise CDRError(
            f"the runs have source vectors of different size ({said}): no direction is the same for all of them. "
            "Draw them apart."
        )


def _landscape_row(run: OpenedRun, surface: Landscape, seed: int) -> dict[str, Any]:
    return {
        **describe(run),
        "direction_seed": seed,
        "n": surface.n,
        "median_norm": surface.median_norm,
        "mae_centre": surface.centre,
        **{f"rise_{distance:g}": rise for distance, rise in surface.rises.items()},
        **{f"rise_{distance:g}_se": error for distance, error in surface.errors.items()},
        "mae_lowest": surface.mae.min(),
        "mae_highest": surface.mae.max(),
    }


def _landscape_grid(run: OpenedRun, surface: Landscape) -> pd.DataFrame:
    zeta, gamma = surface.axis.repeat(len(surface.axis)), list(surface.axis) * len(surface.axis)
    places = {"zeta": zeta, "gamma": gamma, "mae": surface.mae.ravel()}
    return pd.DataFrame({"model": run.label, "run": run.name, **places})


# -- Lipschitz estimates ----------------------------------------------------------------------------------------------


def analyse_lipschitz(options: Options, _: Sequence[str]) -> Path:
    """Estimates how far the mappings of runs carry apart what lies close together."""
    check_part(options["part"])
    ball = _ball(options)
    runs = _open(options)
    folder = _folder("lipschitz", runs, options)
    rows = []
    for run in progress(runs, "lipschitz", options):
        measured = lipschitz(run.experiment, ball, part=options["part"])
        keys = ("part", "rho", "rho_relative", "pgd_steps", "pgd_step_size")
        rows.append({**describe(run), **{key: options[key] for key in keys}, **measured})
    table = pd.DataFrame(rows)
    write_csv(table, folder / "lipschitz.csv")
    radius = f"{ball.rho:g}{' ‖uˢ‖' if ball.relative else ''}"
    note = f"δ*: {ball.steps} steps of projected ascent, ρ = {radius}, on the {options['part']} ratings."
    figure = slopes(table, f"Lipschitz estimates (Eq. 22), {_scene(runs)}", _note(runs, note))
    figure.write(folder / "lipschitz.png", folder / "lipschitz.html")
    columns = ("model", "n", "median_norm", "delta", "lipschitz", "lipschitz_p95", "lipschitz_max", "rating_slope",
               "mae", "mae_at_delta")  # fmt: skip
    print_table([{key: row[key] for key in columns} for row in rows])
    print_folder(folder)
    return folder


def _ball(options: Options) -> PGD:
    if not options["rho"] > 0 or not options["pgd_steps"] > 0:
        raise CDRError(f"rho={options['rho']} and pgd_steps={options['pgd_steps']} should be above 0.")
    if options["pgd_step_size"] is not None and not options["pgd_step_size"] > 0:
        raise CDRError(f"pgd_step_size={options['pgd_step_size']} should be above 0, or None.")
    return PGD(
        options["rho"], options["pgd_steps"], options["pgd_step_size"], relative=bool(options["rho_relative"])
    )


# -- what they share --------------------------------------------------------------------------------------------------


def _open(options: Options) -> list[OpenedRun]:
    names, checkpoint_dir, run_labels, settings = run_options(options)
    return open_runs(names, checkpoint_dir, run_labels, **settings)


def _folder(kind: str, runs: Sequence[OpenedRun], options: Options) -> Path:
    return output_folder(kind, [run.name for run in runs], runs[0].experiment.config, options)


def _scene(runs: Sequence[OpenedRun]) -> str:
    first = describe(runs[0])
    same = len({run.experiment.config["biases"] for run in runs}) == 1
    biases = f", biases={first['biases']}" if same else ""
    return f"{first['source']} → {first['target']}, β={first['beta']:g}{biases}"


def _note(runs: Sequence[OpenedRun], more: str = "") -> str:
    lengths = ", ".join(
        f"{run.label} {median_norm(run.model, ratings_of(run.experiment, 'test')):.2f}" for run in runs
    )
    note = f"Median length of the test users' uˢ: {lengths}. Biases are not moved."
    if any(run.experiment.config["model"] == "PTUPCDR" for run in runs):
        note += " PTUPCDR: uˢ is moved, Mᵤ held fixed."
    return f"{note} {more}".strip()


# -- figures ----------------------------------------------------------------------------------------------------------


ZETA = Axis("ζ", "ζ (lengths of u$^s$ along g$_1$)", "ζ (lengths of u<sup>s</sup>)")
GAMMA = Axis("γ", "γ (lengths of u$^s$ along g$_2$)", "γ")


def slopes(table: pd.DataFrame, title: str, note: str) -> Dots:
    """Shows the columns of :func:`recbole_cdr_ext.analysis.robustness.lipschitz`, a line for each row of ``table``.

    Left, the slopes of the mapping; in the middle, those of the ratings; right, the error before and after δ*.
    """
    dots = Dots(title, table["model"].tolist(), note)
    dots.panel(
        "Lipschitz estimate of the mapping",
        "‖f(u) - f(u + δ*)‖ / ‖δ*‖",
        {
            "mean": (table["lipschitz"], 0),
            "95th percentile": (table["lipschitz_p95"], 4),
            "largest": (table["lipschitz_max"], 6),
        },
        zero=True,
    )
    slope = "|r̂(u) - r̂(u + δ*)| / ‖δ*‖ (rating points)"
    dots.panel("Slope of the rating", slope, {"mean": (table["rating_slope"], 0)}, zero=True)
    # Errors are told apart better without the way from 0.
    dots.panel(
        "Error before and after δ*",
        "MAE (rating points)",
        {"at uˢ": (table["mae"], 1), "at uˢ + δ*": (table["mae_at_delta"], 3)},
    )
    return dots


def landscapes(by_label: Mapping[str, Landscape], title: str, note: str) -> Surfaces:
    """Shows each landscape as a surface and, below, as contours."""
    surfaces = Surfaces(title, ZETA, GAMMA, ("MAE", "rating points"), note)
    for label, surface in by_label.items():
        rises = ", ".join(f"{rise:+.3f} at {distance:g}" for distance, rise in surface.rises.items())
        caption = f"MAE {surface.centre:.3f}; {rises}"
        surfaces.surface(label, caption, surface.axis, surface.mae)
    return surfaces
