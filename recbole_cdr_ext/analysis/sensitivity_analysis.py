"""The analysis of how much k and ρ matter, as a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from recbole_cdr_ext.analysis.output import (
    Options,
    numbers,
    output_folder,
    print_folder,
    print_table,
    write_csv,
)
from recbole_cdr_ext.analysis.sensitivity import GridPoint, grid_points, sensitivity
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.pages.curves import Curves


def analyse_sensitivity(options: Options, words: Sequence[str]) -> Path:
    """Trains and measures a grid of steps k and radii ρ.

    Args:
        words: the settings of the runs as command-line words.
    """
    epsilons = [epsilon for epsilon in numbers("epsilons", options["epsilons"], float) if epsilon > 0]
    if options["stages"] not in ("mapping", "both"):
        raise CDRError(f"stages={options['stages']} should be one of mapping, both.")
    if not options["ball"] > 0:
        raise CDRError(f"ball={options['ball']} should be above 0.")
    grid = grid_points(
        options["model"],
        options["dataset"],
        numbers("pgd_steps", options["pgd_steps"], int),
        numbers("rhos", options["rhos"], float),
        step_size=options["pgd_step_size"],
        both_stages=options["stages"] == "both",
        words=words,
        settings={"show_progress": False, "checkpoint_dir": options["checkpoint_dir"]},
    )
    config = grid[0].config
    folder = output_folder("sensitivity", [point.folder.name for point in grid], config, options)
    table = sensitivity(
        grid,
        epsilons,
        relative=bool(options["relative"]),
        radius=options["ball"],
        show_progress=options["show_progress"],
    )
    scene = ("model", "dataset", "beta", "split_seed", "seed", "biases")
    for place, key in enumerate(scene):
        table.insert(place, key, config[key])
    table.insert(len(scene), "stages", options["stages"])
    write_csv(table, folder / "sensitivity.csv")
    _describe(table, grid, epsilons, options).write(folder / "sensitivity.png", folder / "sensitivity.html")
    _print(table, epsilons)
    print_folder(folder)
    return folder


def _print(table: pd.DataFrame, epsilons: Sequence[float]) -> None:
    columns = [
        "rho",
        "k",
        "mae",
        *(f"mae_eps={epsilon:g}" for epsilon in epsilons),
        "lipschitz",
        "lipschitz_own",
    ]
    rows = table[columns].astype(object).where(table[columns].notna(), None)
    rows["rho"] = [f"{rho:g}" for rho in table["rho"]]
    print_table(rows.to_dict("records"))
    for row in table[table["note"] != ""].itertuples():
        print(f"* k={row.k}, rho={row.rho:g}: {row.note}")


def _describe(
    table: pd.DataFrame, grid: Sequence[GridPoint], epsilons: Sequence[float], options: Options
) -> Curves:
    config, alpha = grid[0].config, options["pgd_step_size"]
    steps, rhos = sorted(table["k"].unique()), sorted(table["rho"].unique())
    curves = Curves(
        f"{config['model']}: steps k and radius ρ, {config['dataset']}, β={config['beta']:g}, "
        f"biases={config['biases']}",
        f"α = {'2.5 ρ / (k √d)' if alpha is None else format(alpha, 'g')}; k and ρ are those of "
        f"{'both stages' if options['stages'] == 'both' else 'the mapping'}."
        f"{' Missing points: training failed.' if (table['note'] != '').any() else ''}",
    )

    def draw_by_rho(column: str) -> None:
        for rho in rhos:
            rows = table[table["rho"] == rho]
            curves.line(f"ρ = {rho:g}", rows["k"], rows[column])

    x, error = "k (steps of PGD in training)", "MAE (rating points)"
    for title, column in (
        (f"Lipschitz estimate, one ball (ρ = {options['ball']:g}) for all", "lipschitz"),
        ("Lipschitz estimate, each cell's own ball (as Fig. 6)", "lipschitz_own"),
    ):
        slope = "mean of ‖f(u + δ*) - f(u)‖ / ‖δ*‖"
        curves.panel(title, x, slope, ticks=steps, group="slope", zero=True)
        draw_by_rho(column)
    curves.panel("Test error (as Fig. 7)", x, error, ticks=steps)
    draw_by_rho("mae")
    for name, column in (("item mean", "item_mean"), ("biases alone", "bias_only")):
        for value in table[column].dropna().iloc[:1]:
            curves.level(name, value)
    unit = "ε (share of uˢ's length)" if options["relative"] else "ε (step per coordinate of uˢ)"
    for rho in rhos:
        title = f"FGSM attack, ρ = {rho:g} (as Fig. 8)"
        curves.panel(title, unit, error, ticks=[0, *epsilons], group="fgsm")
        for row in table[table["rho"] == rho].to_dict("records"):
            values = [row["mae"], *(row[f"mae_eps={epsilon:g}"] for epsilon in epsilons)]
            curves.line(f"k = {row['k']}", [0, *epsilons], values)
    return curves
