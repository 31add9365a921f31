"""How much k and ρ, the steps and the radius of SCDR's search for the worst vectors, matter (SCDR, V.E)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from recbole.utils import set_color
from tqdm import tqdm

from recbole_cdr_ext.analysis.bridges import CHUNK, check_bridge, load_bridge
from recbole_cdr_ext.analysis.output import (
    Options,
    numbers,
    output_folder,
    print_folder,
    print_table,
    write_csv,
)
from recbole_cdr_ext.analysis.robustness import EPSILONS, fgsm, lipschitz
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.pages.curves import Curves
from recbole_cdr_ext.runs.folder import finished_result, settings_to_finish
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.tasks.rating import RatingExperiment
from recbole_cdr_ext.trainer.sharpness import PGD

# Set point by point, so none can be given as one value.
VARIED = ("rho", "rho_pretrain", "pretrain_pgd_steps", "sharpness", "run_id", "resume", "result_file")
COMMON_STEPS = 5


@dataclass(frozen=True)
class GridPoint:
    """One pair of k and ρ: its settings, and the folder of its run."""

    steps: int
    rho: float
    config: CDRConfig
    folder: Path


def grid_points(
    model: str,
    dataset: str | None,
    steps: Sequence[int],
    rhos: Sequence[float],
    *,
    step_size: float | None,
    both_stages: bool = False,
    words: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> list[GridPoint]:
    """Returns the points of the grid, ρ by ρ; nothing is trained.

    A point's run is named by model, dataset, k, ρ and a hash of all that decides its numbers, so that the same
    grid finds it again and another grid does not.

    Args:
        step_size: α of every point; None: 2.5 ρ / (k √d).
        both_stages: whether k and ρ are those of the pre-training as well, or of the mapping alone.
        words: further settings, as on the command line.
        settings: further settings, below ``words``.

    Raises:
        CDRError: a setting is unknown, wrong, or one of those that vary; the model is no bridge.
    """
    keys = [word[2:].partition("=")[0] for word in words] + list(settings or {})
    set_here = {*VARIED, "pretrain_sharpness"} if both_stages else VARIED
    varied = next((key for key in keys if key in set_here), None)
    if varied:
        raise CDRError(
            f"'{varied}' is set for each cell by the analysis: leave it out (--pgd_steps, --rhos)."
        )
    points = []
    for rho in rhos:
        for k in steps:
            point_settings = {
                "sharpness": "pgd",
                "pgd_steps": int(k),
                "rho": float(rho),
                "pgd_step_size": step_size,
            }
            if both_stages:
                point_settings |= {
                    "pretrain_sharpness": "pgd",
                    "pretrain_pgd_steps": int(k),
                    "rho_pretrain": float(rho),
                }
            quiet = {"allow_simulated": False, "state": "WARNING"}
            changes = {**quiet, **(settings or {}), **point_settings}
            config = CDRConfig(model, dataset, config_dict=changes, argv=words)
            check_bridge(f"{config['model']} can't be analysed", config.model_class, config.to_dict())
            name = f"sensitivity-{config['model']}-{config['dataset']}-k{k}-rho{rho:g}-{config.fingerprint()[:10]}"
            config = config.replaced(run_id=name)
            points.append(GridPoint(int(k), float(rho), config, Path(config["checkpoint_dir"]) / name))
    return points


def train(point: GridPoint) -> None:
    """Trains a point's run, goes on with it, or finds it finished.

    Raises:
        CDRError: as a run does; a loss that is not finite among others.
    """
    rest = settings_to_finish(point.folder)
    if rest is None:
        return
    settings = {
        key: value
        for key, value in point.config.to_dict().items()
        if key not in ("model", "dataset", "run_id")
    }
    with redirect_stdout(io.StringIO()):  # the points' tables come together at the end
        run_recbole_cdr(point.config["model"], point.config["dataset"], config_dict={**settings, **rest})


def measure(
    point: GridPoint, epsilons: Sequence[float] = EPSILONS, *, relative: bool = False, radius: float = 1.0
) -> dict[str, Any]:
    """Returns the numbers of a trained point.

    Args:
        radius: of the ball in which all points are searched alike.

    Returns:
        n, median_norm, mae and rmse of the test, ``mae_eps=ε`` for each attack rate, lipschitz (all points searched in
        one ball), lipschitz_own (with the point's own k, ρ and α, as in the paper), epochs, and the MAE of two floors:
        item_mean and bias_only (a robust model that is not below them says little).
    """
    experiment = load_bridge(point.folder)
    attacked = fgsm(experiment, (0.0, *epsilons), relative=relative)
    result = finished_result(point.folder)
    assert result is not None
    return {
        "n": int(attacked["n"].iloc[0]),
        "median_norm": attacked["median_norm"].iloc[0],
        "mae": attacked["mae"].iloc[0],
        "rmse": attacked["rmse"].iloc[0],
        **{f"mae_eps={line.epsilon:g}": line.mae for line in attacked.iloc[1:].itertuples()},
        "lipschitz": lipschitz(experiment, PGD(radius, COMMON_STEPS))["lipschitz"],
        "lipschitz_own": _in_own_ball(point, experiment),
        "epochs": result["epochs_run"],
        "item_mean": _floor(result, "ItemMean"),
        "bias_only": _floor(result, "BiasOnly"),
    }


def sensitivity(
    grid: Sequence[GridPoint],
    epsilons: Sequence[float] = EPSILONS,
    *,
    relative: bool = False,
    radius: float = 1.0,
    show_progress: bool = True,
) -> pd.DataFrame:
    """Trains and measures all points of a grid; what is trained already is not trained again.

    Returns:
        One row per point: run, k, rho, alpha, the columns of :func:`measure`, and note: why there is no number where
        training failed (large ρ makes the loss infinite).

    Raises:
        CDRError: every point failed.
        KeyboardInterrupt: Ctrl-C; the same grid goes on from there.
    """
    lines: list[dict[str, Any]] = []
    first_error: CDRError | None = None
    with tqdm(grid, ncols=100, desc=set_color("cells", "pink"), disable=not show_progress) as bar:
        for point in bar:
            bar.set_postfix_str(f"k={point.steps}, rho={point.rho:g}")
            line = {
                "run": point.folder.name,
                "k": point.steps,
                "rho": point.rho,
                "alpha": point.config["pgd_step_size"],
                "note": "",
            }
            try:
                train(point)
                line |= measure(point, epsilons, relative=relative, radius=radius)
            except CDRError as error:
                first_error = first_error or error
                line["note"] = " ".join(str(error).split())
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"interrupted in the cell k={point.steps}, rho={point.rho:g}; the same command goes on from there."
                ) from None
            lines.append(line)
    if first_error is not None and all(line["note"] for line in lines):
        raise first_error
    table = pd.DataFrame(lines)
    return table[[*(column for column in table if column != "note"), "note"]]


def _in_own_ball(point: GridPoint, experiment: RatingExperiment) -> float:
    if not point.steps or not point.rho:
        return math.nan  # trained without any search
    config = point.config
    scope, relative = config["rho_scope"], bool(config["rho_relative"])
    ball = PGD(point.rho, point.steps, config["pgd_step_size"], scope=scope, relative=relative)
    # A ball of a batch is as large as in training only with as many rows.
    size = int(config["train_batch_size"]) if scope == "batch" else CHUNK
    return float(lipschitz(experiment, ball, chunk=size)["lipschitz"])


def _floor(result: Mapping[str, Any], name: str) -> float | None:
    error: float | None = result["floors"][name][result["target"]]["cold"].get("mae")
    return error  # None: not among the run's metrics


# -- the analysis -----------------------------------------------------------------------------------------------------


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
