"""``recbole-cdr analyse``: from runs to tables and figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from recbole.utils import set_color
from tabulate import tabulate
from tqdm import tqdm

from recbole_cdr_ext.analysis import figures
from recbole_cdr_ext.analysis.attack import fgsm
from recbole_cdr_ext.analysis.bridges import Run, describe, median_norm, open_runs, ratings_of
from recbole_cdr_ext.analysis.landscape import PAIRS, landscape
from recbole_cdr_ext.analysis.latents import (
    dimension_table,
    latent_table,
    latents,
    open_latent_runs,
    recall_table,
)
from recbole_cdr_ext.analysis.lipschitz import lipschitz
from recbole_cdr_ext.analysis.sensitivity import Cell, cells, sensitivity
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import make_folder
from recbole_cdr_ext.pages.curves import Curves, require, write_csv
from recbole_cdr_ext.settings.reading import words_in
from recbole_cdr_ext.tasks.by_name import get_task
from recbole_cdr_ext.trainer.sharpness import PGD

Options = Mapping[str, Any]


def analyse(kind: str, options: Options, words: Sequence[str] = ()) -> Path:
    """Makes one analysis: writes KIND.csv, KIND.png and KIND.html, prints the table.

    Args:
        kind: one of :data:`recbole_cdr_ext.settings.command_options.ANALYSIS_OPTIONS`.
        options: all options of that kind by name, of their types.
        words: for sensitivity, the settings of the runs as command-line words.

    Returns:
        The folder of the files: ``out``, or a name made of what is analysed, in ``analyses/``.

    Raises:
        CDRError: something the user can mend; raised before any work where that is possible.
    """
    require()
    return _MAKERS[kind](options, words)


def numbers(key: str, text: Any, kind: Callable[[str], Any] = float) -> list[Any]:
    """Returns the numbers in text such as "0,0.5,1" or "[0, 0.5, 1]".

    Raises:
        CDRError: there is none, one stands there twice or is below 0, or something is no such number.
    """
    parts = [part for part in str(text).strip("[]() ").replace(",", " ").split() if part]
    try:
        found = [kind(part) for part in parts]
    except ValueError:
        found = []
    # Written so that "not a number" is refused as well.
    if not found or len(set(found)) < len(found) or not all(0 <= value < float("inf") for value in found):
        what = "whole numbers" if kind is int else "numbers"
        raise CDRError(f"{key}={text} should be different {what} of at least 0, with commas between them.")
    return sorted(found)


# -- the analyses ---------------------------------------------------------------------------------------------------


def _fgsm(options: Options, _: Sequence[str]) -> Path:
    epsilons = numbers("epsilons", options["epsilons"])
    relative = bool(options["relative"])
    runs = _runs(options)
    folder = _folder("fgsm", runs, options)
    found = []
    for run in _progress(runs, "fgsm", options):
        table = fgsm(run.experiment, epsilons, relative=relative)
        found.append(pd.DataFrame([describe(run)] * len(table)).join(table))
    table = pd.concat(found, ignore_index=True)
    write_csv(table, folder / "fgsm.csv")
    unit = "ε: length of η / length of uˢ" if relative else "ε (step per coordinate of uˢ)"
    curves = Curves(f"FGSM attack on source vectors, {_scene(runs)}", _note(runs))
    curves.panel("Attack rate", unit, "MAE (rating points)", ticks=epsilons, group="mae")
    mean = _mean_error(runs[0])
    for run in runs:
        own = table[table["run"] == run.name]
        curves.line(run.label, own["epsilon"], own["mae"])
    curves.level("global mean", mean)
    if not relative:
        curves.panel("The same, as a share of the vectors' length", "length of η / median length of uˢ",
                     "MAE (rating points)", group="mae")  # fmt: skip
        for run in runs:
            own = table[table["run"] == run.name]
            curves.line(run.label, own["length_over_norm"], own["mae"])
        curves.level("global mean", mean)
    curves.write(folder / "fgsm.png", folder / "fgsm.html")
    rows = []
    for run in runs:
        own = table[table["run"] == run.name]
        rows.append(
            {
                "MAE under attack": run.label,
                "d": run.model.size,
                "median length": own["median_norm"].iloc[0],
                **{f"ε={line.epsilon:g}": line.mae for line in own.itertuples()},
            }
        )
    return _done(folder, rows)


def _landscape(options: Options, _: Sequence[str]) -> Path:
    for key, low in (("points", 3), ("samples", 1), ("seed", 0)):
        if options[key] < low:
            raise CDRError(f"{key}={options[key]} should be at least {low}.")
    if options["points"] % 2 == 0:
        raise CDRError(f"points={options['points']} should be odd: the middle one is the vectors themselves.")
    if not options["extent"] > 0:
        raise CDRError(f"extent={options['extent']} should be above 0.")
    runs = _runs(options)
    sizes = {run.name: run.model.size for run in runs}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise CDRError(
            f"the runs have source vectors of different size ({said}): no direction is the same for all of them. "
            "Draw them apart."
        )
    folder = _folder("landscape", runs, options)
    settings = {key: options[key] for key in ("points", "extent", "samples", "seed")}
    found = {run.name: landscape(run.experiment, **settings) for run in _progress(runs, "landscape", options)}
    rows, grids = [], []
    for run in runs:
        one = found[run.name]
        rises = {f"rise_{distance:g}": rise for distance, rise in one.rises.items()}
        rises |= {f"rise_{distance:g}_se": error for distance, error in one.errors.items()}
        rows.append(
            {
                **describe(run),
                "direction_seed": options["seed"],
                "n": one.n,
                "median_norm": one.median_norm,
                "mae_centre": one.centre,
                **rises,
                "mae_lowest": one.mae.min(),
                "mae_highest": one.mae.max(),
            }
        )
        zeta, gamma = one.axis.repeat(len(one.axis)), list(one.axis) * len(one.axis)
        grids.append(
            pd.DataFrame(
                {
                    "model": run.label,
                    "run": run.name,
                    "zeta": zeta,
                    "gamma": gamma,
                    "mae": one.mae.ravel(),
                }
            )
        )
    write_csv(pd.DataFrame(rows), folder / "landscape.csv")
    write_csv(pd.concat(grids, ignore_index=True), folder / "landscape_grid.csv")
    figures.landscapes(
        {run.label: found[run.name] for run in runs},
        f"Loss around the source vectors, {_scene(runs)}",
        _note(runs, f"{rows[0]['n']:,} test ratings, directions of seed {options['seed']}. Rises: means over "
              f"{PAIRS} random directions and their opposites, at distances in lengths of uˢ."),
        folder / "landscape.png",
        folder / "landscape.html",
    )  # fmt: skip
    shown = ("n", "median_norm", "mae_centre", "rise_0.5", "rise_0.5_se", "rise_1", "rise_1_se", "mae_lowest",
             "mae_highest")  # fmt: skip
    return _done(folder, [{"model": row["model"], **{key: row[key] for key in shown}} for row in rows])


def _lipschitz(options: Options, _: Sequence[str]) -> Path:
    _check_part(options["part"])
    ball = _ball(options)
    runs = _runs(options)
    folder = _folder("lipschitz", runs, options)
    rows = []
    for run in _progress(runs, "lipschitz", options):
        measured = lipschitz(run.experiment, ball, part=options["part"])
        keys = ("part", "rho", "rho_relative", "pgd_steps", "pgd_step_size")
        rows.append({**describe(run), **{key: options[key] for key in keys}, **measured})
    table = pd.DataFrame(rows)
    write_csv(table, folder / "lipschitz.csv")
    figures.slopes(
        table,
        f"Lipschitz estimates (Eq. 22), {_scene(runs)}",
        _note(runs, f"δ*: {ball.steps} steps of projected ascent, ρ = {ball.rho:g}{' ‖uˢ‖' if ball.relative else ''}, "
              f"on the {options['part']} ratings."),
        folder / "lipschitz.png",
        folder / "lipschitz.html",
    )  # fmt: skip
    shown = ("n", "median_norm", "delta", "lipschitz", "lipschitz_p95", "lipschitz_max", "rating_slope", "mae",
             "mae_at_delta")  # fmt: skip
    return _done(folder, [{"model": row["model"], **{key: row[key] for key in shown}} for row in rows])


def _latents(options: Options, _: Sequence[str]) -> Path:
    part = options["part"]
    _check_part(part)
    runs = open_latent_runs(*_named(options))
    first = runs[0].experiment.config
    folder = _named_folder("latents", [run.name for run in runs], first, options)
    tables: dict[str, list[pd.DataFrame]] = {"": [], "_dimensions": [], "_epochs": [], "_recall": []}
    for run in _progress(runs, "latents", options):
        found = latents(run.experiment, part)
        recall = recall_table(run.experiment)
        made = {
            "": latent_table(found),
            "_dimensions": dimension_table(found),
            "_epochs": run.epochs,
            "_recall": recall,
        }
        for name, table in made.items():
            if table is not None and len(table):
                table.insert(0, "model", run.label)
                tables[name].append(table)
    whole = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items() if parts}
    for name, table in whole.items():
        write_csv(table, folder / f"latents{name}.csv")
    curves = Curves(
        f"Latents, {first['dataset']}, split={first['split']}",
        f"KL in nats, mean over the {part} instances. Active: dimensions whose posterior mean varies by more than "
        "0.01.",
    )
    _draw_latents(curves, whole, several=len(runs) > 1)
    curves.write(folder / "latents.png", folder / "latents.html")
    return _done(folder, whole[""].to_dict("records"))


def _draw_latents(curves: Curves, tables: Mapping[str, pd.DataFrame], several: bool) -> None:
    def name(model: str, rest: str) -> str:
        return f"{model}: {rest}" if several else rest

    for domain, own in tables["_dimensions"].groupby("domain", sort=False):
        curves.panel(
            f"KL by dimension, {domain}",
            "dimensions, the largest KL first",
            "KL (nats)",
            group="kl",
            zero=True,
        )
        for (model, latent), one in own.groupby(["model", "latent"], sort=False):
            curves.line(name(model, latent), one["rank"], one["kl"])
    if "_epochs" in tables:
        for title, y, what in (
            ("KL while training", "KL (nats)", "kl "),
            ("Active dimensions while training", "dimensions", "active "),
        ):
            curves.panel(title, "epoch", y, zero=True)
            own = tables["_epochs"][tables["_epochs"]["fact"].str.startswith(what)]
            for (model, fact), one in own.groupby(["model", "fact"], sort=False):
                curves.line(name(model, _LATENT_OF[fact.removeprefix(what)]), one["epoch"], one["value"])
    if "_recall" in tables:
        curves.panel("Targets among the recalled items", "recalled items", "share of instances", zero=True)
        for (model, part), one in tables["_recall"].groupby(["model", "part"], sort=False):
            curves.line(name(model, f"{part} targets"), one["depth"], one["rate"])


# What a run's history calls the latents, and figures.
_LATENT_OF = {"z": "z^x", "z_t": "z_t^y", "z_a": "z_a^x"}


def _sensitivity(options: Options, words: Sequence[str]) -> Path:
    epsilons = [e for e in numbers("epsilons", options["epsilons"]) if e > 0]
    relative = bool(options["relative"])
    if options["stages"] not in ("mapping", "both"):
        raise CDRError(f"stages={options['stages']} should be one of mapping, both.")
    if not options["ball"] > 0:
        raise CDRError(f"ball={options['ball']} should be above 0.")
    grid = cells(
        options["model"],
        options["dataset"],
        numbers("pgd_steps", options["pgd_steps"], int),
        numbers("rhos", options["rhos"]),
        step_size=options["pgd_step_size"],
        both_stages=options["stages"] == "both",
        words=words,
        settings={"show_progress": False, "checkpoint_dir": options["checkpoint_dir"]},
    )
    config = grid[0].config
    folder = _named_folder("sensitivity", [cell.folder.name for cell in grid], config, options)
    scene = {key: config[key] for key in ("model", "dataset", "beta", "split_seed", "seed", "biases")}
    table = sensitivity(
        grid, epsilons, relative=relative, radius=options["ball"], show_progress=options["show_progress"]
    )
    for place, (key, value) in enumerate(scene.items()):
        table.insert(place, key, value)
    table.insert(len(scene), "stages", options["stages"])
    write_csv(table, folder / "sensitivity.csv")
    _draw_sensitivity(table, grid, epsilons, options, folder)
    columns = ["rho", "k", "mae", *(f"mae_eps={e:g}" for e in epsilons), "lipschitz", "lipschitz_own"]
    shown = table[columns].astype(object).where(table[columns].notna(), None)
    shown["rho"] = [f"{rho:g}" for rho in table["rho"]]
    print(_text(shown.to_dict("records")))
    failed = table[table["note"] != ""]
    for row in failed.itertuples():
        print(f"* k={row.k}, rho={row.rho:g}: {row.note}")
    print(f"\nWritten: {folder}")
    return folder


def _draw_sensitivity(
    table: pd.DataFrame, grid: Sequence[Cell], epsilons: Sequence[float], options: Options, folder: Path
) -> None:
    config = grid[0].config
    steps, rhos = sorted(table["k"].unique()), sorted(table["rho"].unique())
    alpha = options["pgd_step_size"]
    title = (
        f"{config['model']}: steps k and radius ρ, {config['dataset']}, β={config['beta']:g}, "
        f"biases={config['biases']}"
    )
    curves = Curves(
        title,
        f"α = {'2.5 ρ / (k √d)' if alpha is None else format(alpha, 'g')}; k and ρ are those of "
        f"{'both stages' if options['stages'] == 'both' else 'the mapping'}."
        f"{' Missing points: training failed.' if (table['note'] != '').any() else ''}",
    )

    def by_rho(column: str) -> None:
        for rho in rhos:
            own = table[table["rho"] == rho]
            curves.line(f"ρ = {rho:g}", own["k"], own[column])

    for title, column in (
        (f"Lipschitz estimate, one ball (ρ = {options['ball']:g}) for all", "lipschitz"),
        ("Lipschitz estimate, each cell's own ball (as Fig. 6)", "lipschitz_own"),
    ):
        slope = "mean of ‖f(u + δ*) - f(u)‖ / ‖δ*‖"
        curves.panel(title, "k (steps of PGD in training)", slope, ticks=steps, group="slope", zero=True)
        by_rho(column)
    curves.panel("Test error (as Fig. 7)", "k (steps of PGD in training)", "MAE (rating points)", ticks=steps)
    by_rho("mae")
    for name, column in (("item mean", "item_mean"), ("biases alone", "bias_only")):
        for value in table[column].dropna().iloc[:1]:
            curves.level(name, value)
    unit = "ε (share of uˢ's length)" if options["relative"] else "ε (step per coordinate of uˢ)"
    for rho in rhos:
        curves.panel(
            f"FGSM attack, ρ = {rho:g} (as Fig. 8)",
            unit,
            "MAE (rating points)",
            ticks=[0, *epsilons],
            group="fgsm",
        )
        for row in table[table["rho"] == rho].to_dict("records"):
            values = [row["mae"], *(row[f"mae_eps={e:g}"] for e in epsilons)]
            curves.line(f"k = {row['k']}", [0, *epsilons], values)
    curves.write(folder / "sensitivity.png", folder / "sensitivity.html")


_MAKERS: Mapping[str, Callable[[Options, Sequence[str]], Path]] = {
    "fgsm": _fgsm,
    "landscape": _landscape,
    "latents": _latents,
    "lipschitz": _lipschitz,
    "sensitivity": _sensitivity,
}


# -- what they share ------------------------------------------------------------------------------------------------


def _runs(options: Options) -> list[Run]:
    names, checkpoint_dir, called, given = _named(options)
    return open_runs(names, checkpoint_dir, called, **given)


def _named(options: Options) -> tuple[list[str], str, list[str] | None, dict[str, Any]]:
    """The names of the runs, the folder that they are in, their labels, and the settings to use instead of theirs."""
    given = {
        key: options[key]
        for key in ("data_path", "cache_dir", "use_gpu", "torch_threads")
        if options.get(key) is not None
    }
    called = words_in(options.get("labels"))
    return words_in(options["runs"]), options["checkpoint_dir"], called or None, given


def _check_part(part: str) -> None:
    if part not in ("train", "valid", "test"):
        raise CDRError(f"part={part} should be one of train, valid, test.")


def _ball(options: Options) -> PGD:
    if not options["rho"] > 0 or not options["pgd_steps"] > 0:
        raise CDRError(f"rho={options['rho']} and pgd_steps={options['pgd_steps']} should be above 0.")
    if options["pgd_step_size"] is not None and not options["pgd_step_size"] > 0:
        raise CDRError(f"pgd_step_size={options['pgd_step_size']} should be above 0, or None.")
    return PGD(
        options["rho"], options["pgd_steps"], options["pgd_step_size"], relative=bool(options["rho_relative"])
    )


def _progress(runs: Sequence[Any], label: str, options: Options) -> Any:
    return tqdm(runs, ncols=100, desc=set_color(label, "pink"), disable=not options["show_progress"])


def _scene(runs: Sequence[Run]) -> str:
    first = describe(runs[0])
    same = len({run.experiment.config["biases"] for run in runs}) == 1
    biases = f", biases={first['biases']}" if same else ""
    return f"{first['source']} → {first['target']}, β={first['beta']:g}{biases}"


def _note(runs: Sequence[Run], more: str = "") -> str:
    lengths = ", ".join(
        f"{run.label} {median_norm(run.model, ratings_of(run.experiment, 'test')):.2f}" for run in runs
    )
    note = f"Median length of the test users' uˢ: {lengths}. Biases are not moved."
    if any(run.experiment.config["model"] == "PTUPCDR" for run in runs):
        note += " PTUPCDR: uˢ is moved, Mᵤ held fixed."
    return f"{note} {more}".strip()


def _mean_error(run: Run) -> float:
    """The MAE of predicting the training mean for everybody: above it, a model is worse than no model."""
    ratings = ratings_of(run.experiment, "test").rating
    return float((ratings - run.model.target_mean).abs().double().mean())


def _folder(kind: str, runs: Sequence[Run], options: Options) -> Path:
    return _named_folder(kind, [run.name for run in runs], runs[0].experiment.config, options)


def _named_folder(kind: str, names: Sequence[str], config: Any, options: Options) -> Path:
    """Makes the folder: the same analysis of the same runs finds the same one, another analysis another one."""
    if options["out"]:
        return make_folder(options["out"])
    decides = {key: str(value) for key, value in options.items() if key not in ("out", "show_progress")}
    key = hashlib.sha256(json.dumps([kind, list(names), decides], sort_keys=True).encode()).hexdigest()[:6]
    scene = get_task(config["task"]).scene(config)
    return make_folder(Path("analyses") / f"{kind}-{config['dataset']}-{scene}-{key}")


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    return tabulate(rows, headers="keys", floatfmt=".4f", missingval="-")


def _done(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    print(_text(rows))
    print(f"\nWritten: {folder}")
    return folder
