"""Whether latents carry anything: KL and active dimensions, by latent and dimension, what a generator recalled, and
the analysis that shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_cdr_ext.analysis.bridges import check_ended, check_labels, distinct_names, find_runs, labels
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
from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.i2vae import I2VAE
from recbole_cdr_ext.model.parts.layers import ACTIVE_VARIANCE, Gaussian, kl
from recbole_cdr_ext.pages.curves import Curves
from recbole_cdr_ext.registry import models as model_registry
from recbole_cdr_ext.runs.folder import finished_result, stored_settings
from recbole_cdr_ext.serving.recommendation import load_model
from recbole_cdr_ext.splits.split import PARTS, last_of_sequences
from recbole_cdr_ext.tasks.next_item import NextItemExperiment


@dataclass(frozen=True)
class LatentRun:
    """A saved run of I2VAE, loaded.

    Attributes:
        name: its folder's name; with its path, if another run has that name.
        label: what figures call it.
        experiment: its model with the best weights, and its data.
        epochs: what its training measured, one row per epoch and fact.
    """

    name: str
    label: str
    experiment: NextItemExperiment
    epochs: pd.DataFrame


def open_latent_runs(
    names: Sequence[str],
    checkpoint_dir: str | Path,
    run_labels: Sequence[str] | None,
    settings: dict[str, Any],
) -> list[LatentRun]:
    """Loads runs of I2VAE.

    Args:
        names: folders, or their names in ``checkpoint_dir``.
        run_labels: their labels; None: what tells them apart.
        settings: run-time settings in place of the stored ones.

    Raises:
        CDRError: there is no such run, one is named twice, or is no finished run of I2VAE with latents; found before
            any data are read.
    """
    folders = find_runs(names, checkpoint_dir)
    check_labels(run_labels, len(folders))
    stored = [stored_settings(folder) for folder in folders]
    for folder, of_run in zip(folders, stored, strict=True):
        where = f"run '{folder.name}' ({of_run['model']}) can't be analysed"
        if not issubclass(model_registry.get_model(of_run["model"], of_run.get("task")), I2VAE):
            raise CDRError(f"{where}: it has no latents that this reads; I2VAE has.")
        if of_run.get("variational") is False:
            raise CDRError(f"{where}: variational=False leaves no latents.")
        check_ended(where, folder)
    names = distinct_names(folders)
    return [
        LatentRun(name, label, _load_latent_run(folder, **settings), _epochs(folder))
        for name, label, folder in zip(names, run_labels or labels(stored, names), folders, strict=True)
    ]


def _load_latent_run(folder: Path, **settings: Any) -> NextItemExperiment:
    experiment = load_model(folder, **settings)
    assert isinstance(experiment, NextItemExperiment)  # the task of I2VAE
    return experiment


def _epochs(folder: Path) -> pd.DataFrame:
    result = finished_result(folder) or {}
    rows = [
        {"epoch": entry["epoch"], "fact": fact, "value": value}
        for entry in result.get("history", [])
        for fact, value in entry.get("facts", {}).items()
    ]
    return pd.DataFrame(rows, columns=["epoch", "fact", "value"])


# As in the paper's notation, X being the target's domain.
NAMES = {"own": "z^x", "transfer": "z_t^y", "augmented": "z_a^x"}


@dataclass(frozen=True)
class Latent:
    """One latent of one domain over the instances of a part.

    Attributes:
        mean: (N, d) posterior means.
        kl: (N, d) KL to the prior in nats, by dimension.
    """

    name: str
    domain: str
    mean: np.ndarray
    kl: np.ndarray

    @property
    def active(self) -> int:
        """Dimensions whose posterior mean varies by more than 0.01 (Burda et al., ICLR 2016)."""
        return int((self.mean.var(0) > ACTIVE_VARIANCE).sum()) if len(self.mean) else 0


@torch.no_grad()
def latents(experiment: NextItemExperiment, part: str) -> list[Latent]:
    """Returns the latents of the instances of a part, those with the histories that a latent needs."""
    model: Any = experiment.model
    assert isinstance(model, I2VAE)
    model.eval()
    batches: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for batch in experiment.loader(part):
        batch = batch.to(experiment.config["device"])
        x, posteriors = batch.target_domain, model.posteriors(batch)
        rows = posteriors.has_own
        pairs = [("own", posteriors.interest[rows], model.own_prior[x]())]
        if posteriors.augmented is not None:
            pairs.append(("augmented", posteriors.augmented[rows], model.augmented_prior[x]()))
        if posteriors.transfer is not None:
            pairs.append(("transfer", posteriors.transfer, None))
        for name, q, p in pairs:
            batches.setdefault((name, x), []).append(
                (q.mean.cpu().numpy(), _by_dimension(q, p).cpu().numpy())
            )
    order = sorted(batches, key=lambda key: (key[1], list(NAMES).index(key[0])))
    return [
        Latent(
            NAMES[name],
            experiment.dataset.domains[x],
            *map(np.concatenate, zip(*batches[name, x], strict=True)),
        )
        for name, x in order
    ]


def _by_dimension(q: Gaussian, p: Gaussian | None) -> torch.Tensor:
    """KL(q ‖ p) of each dimension, (N, d); p = None is N(0, I)."""
    one = Gaussian(q.mean.unsqueeze(-1), q.logvar.unsqueeze(-1))
    return kl(one, None if p is None else Gaussian(p.mean.unsqueeze(-1), p.logvar.unsqueeze(-1)))


def latent_table(measured: list[Latent]) -> pd.DataFrame:
    """Returns one row per latent and domain: n, its KL in nats (mean over instances), its active dimensions, d."""
    return pd.DataFrame(
        {
            "domain": latent.domain,
            "latent": latent.name,
            "n": len(latent.mean),
            "kl": float(latent.kl.sum(1).mean()) if len(latent.kl) else float("nan"),
            "active": latent.active,
            "d": latent.mean.shape[1],
        }
        for latent in measured
    )


def dimension_table(measured: list[Latent]) -> pd.DataFrame:
    """Returns one row per latent, domain and dimension, the one with the largest KL first: its mean KL in nats."""
    tables = []
    for latent in measured:
        values = np.sort(latent.kl.mean(0))[::-1] if len(latent.kl) else np.full(latent.kl.shape[1], np.nan)
        rank = np.arange(1, len(values) + 1)
        tables.append(
            pd.DataFrame({"domain": latent.domain, "latent": latent.name, "rank": rank, "kl": values})
        )
    return pd.concat(tables, ignore_index=True)


def recall_table(experiment: NextItemExperiment) -> pd.DataFrame | None:
    """Returns the share of instances, of those with recalled items, whose target is among the first r, by part and r.

    Of training instances only each sequence's last counts, as in the leak audit. None without a generator.
    """
    if experiment.split.test.recalled is None:
        return None
    tables = []
    for part in PARTS:
        instances = experiment.split.part(part)
        if part == "train":
            instances = instances.take(last_of_sequences(instances))
        hit = recalled_targets(instances)[np.asarray(instances.recalled).any(1)]
        rates = hit.cumsum(1).mean(0) if len(hit) else np.zeros(hit.shape[1])
        depth = np.arange(1, hit.shape[1] + 1)
        tables.append(pd.DataFrame({"part": part, "n": len(hit), "depth": depth, "rate": rates}))
    return pd.concat(tables, ignore_index=True)


def recalled_targets(instances: Instances) -> np.ndarray:
    """Returns whether the target is the item recalled at each place, (n, r)."""
    assert instances.recalled is not None
    hit: np.ndarray = instances.recalled == instances.target[:, None]
    return hit


# -- the analysis -----------------------------------------------------------------------------------------------------


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
