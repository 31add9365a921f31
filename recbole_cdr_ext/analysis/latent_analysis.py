"""The analysis of I2VAE's latents, as tables and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from recbole_cdr_ext.analysis.latents import (
    dimension_table,
    latent_table,
    latents,
    open_latent_runs,
    recall_table,
)
from recbole_cdr_ext.analysis.output import (
    Options,
    check_part,
    output_folder,
    print_folder,
    print_table,
    progress,
    run_options,
    write_csv,
)
from recbole_cdr_ext.pages.curves import Curves

# What a run's history calls the latents, and figures.
_LATENT_OF = {"z": "z^x", "z_t": "z_t^y", "z_a": "z_a^x"}


def analyse_latents(options: Options, _: Sequence[str]) -> Path:
    """Measures whether the latents of runs carry anything, and how many targets their generator recalls."""
    part = options["part"]
    check_part(part)
    runs = open_latent_runs(*run_options(options))
    config = runs[0].experiment.config
    folder = output_folder("latents", [run.name for run in runs], config, options)
    parts: dict[str, list[pd.DataFrame]] = {"": [], "_dimensions": [], "_epochs": [], "_recall": []}
    for run in progress(runs, "latents", options):
        run_latents = latents(run.experiment, part)
        run_tables = {
            "": latent_table(run_latents),
            "_dimensions": dimension_table(run_latents),
            "_epochs": run.epochs,
            "_recall": recall_table(run.experiment),
        }
        for name, table in run_tables.items():
            if table is not None and len(table):
                table.insert(0, "model", run.label)
                parts[name].append(table)
    tables = {name: pd.concat(rows, ignore_index=True) for name, rows in parts.items() if rows}
    for name, table in tables.items():
        write_csv(table, folder / f"latents{name}.csv")
    curves = Curves(
        f"Latents, {config['dataset']}, split={config['split']}",
        f"KL in nats, mean over the {part} instances. Active: dimensions whose posterior mean varies by more than "
        "0.01.",
    )
    _draw(curves, tables, several=len(runs) > 1)
    curves.write(folder / "latents.png", folder / "latents.html")
    print_table(tables[""].to_dict("records"))
    print_folder(folder)
    return folder


def _draw(curves: Curves, tables: Mapping[str, pd.DataFrame], *, several: bool) -> None:
    def name(model: str, rest: str) -> str:
        return f"{model}: {rest}" if several else rest

    y = "KL (nats)"
    for domain, dimensions in tables["_dimensions"].groupby("domain", sort=False):
        title = f"KL by dimension, {domain}"
        curves.panel(title, "dimensions, the largest KL first", y, group="kl", zero=True)
        for (model, latent), rows in dimensions.groupby(["model", "latent"], sort=False):
            curves.line(name(model, latent), rows["rank"], rows["kl"])
    if "_epochs" in tables:
        facts = tables["_epochs"]
        for title, unit, prefix in (
            ("KL while training", y, "kl "),
            ("Active dimensions while training", "dimensions", "active "),
        ):
            curves.panel(title, "epoch", unit, zero=True)
            measured = facts[facts["fact"].str.startswith(prefix)]
            for (model, fact), rows in measured.groupby(["model", "fact"], sort=False):
                curves.line(name(model, _LATENT_OF[fact.removeprefix(prefix)]), rows["epoch"], rows["value"])
    if "_recall" in tables:
        curves.panel("Targets among the recalled items", "recalled items", "share of instances", zero=True)
        for (model, part), rows in tables["_recall"].groupby(["model", "part"], sort=False):
            curves.line(name(model, f"{part} targets"), rows["depth"], rows["rate"])
