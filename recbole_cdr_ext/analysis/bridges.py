"""Saved runs that can stand side by side in an analysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.bridge import Bridge
from recbole_cdr_ext.model.rating.floors import BiasOnly
from recbole_cdr_ext.model.rating_recommender import RatingBatch, RatingRecommender, whole_batch
from recbole_cdr_ext.registry import models as model_registry
from recbole_cdr_ext.runs.folder import DEFAULT_CHECKPOINT_DIR, find_run, stored_settings
from recbole_cdr_ext.serving.recommendation import load_model
from recbole_cdr_ext.settings.config import RUNTIME_KEYS
from recbole_cdr_ext.splits.maker import RATING_SPLIT_KEYS
from recbole_cdr_ext.tasks.rating import RatingExperiment
from recbole_cdr_ext.trainer import checkpoint

CHUNK = 16_384  # rows of a forward pass
ANALYSED = "Bridges can be analysed: models that map a source vector, with embedding_size above 0."


@dataclass(frozen=True)
class OpenedRun:
    """A saved run of a bridge, loaded.

    Attributes:
        name: its folder's name; with its path, if another run has that name.
        label: what figures call it: the model, with the settings that tell apart runs of one model.
        experiment: its model with the best weights, and its data.
    """

    name: str
    label: str
    experiment: RatingExperiment

    @property
    def model(self) -> Bridge:
        """The trained model."""
        return bridge_of(self.experiment)


def open_runs(
    names: Sequence[str],
    checkpoint_dir: str | Path = DEFAULT_CHECKPOINT_DIR,
    run_labels: Sequence[str] | None = None,
    **settings: Any,
) -> list[OpenedRun]:
    """Loads the runs that are to be analysed side by side.

    Args:
        names: folders, or their names in ``checkpoint_dir``.
        run_labels: their labels; None: see :func:`labels`.
        settings: run-time settings in place of the stored ones (``data_path``, ``use_gpu``, ...).

    Raises:
        CDRError: there is no such run, one is named twice, is no trained bridge, or the runs have different
            splits; found from the stored settings, before any data are read.
    """
    folders = find_runs(names, checkpoint_dir)
    check_labels(run_labels, len(folders))
    stored = [stored_settings(folder) for folder in folders]
    for folder, of_run in zip(folders, stored, strict=True):
        check_trained(folder, of_run)
    for folder, of_run in zip(folders[1:], stored[1:], strict=True):
        for key in ("dataset", *RATING_SPLIT_KEYS):
            if of_run.get(key) != stored[0].get(key):
                raise _other_split(
                    folder, folders[0], f"{key}={of_run.get(key)} and {key}={stored[0].get(key)}"
                )
    loaded = [load_bridge(folder, **settings) for folder in folders]
    for folder, experiment in zip(folders, loaded, strict=True):
        if experiment.split.fingerprint != loaded[0].split.fingerprint:
            raise _other_split(folder, folders[0], "their data differ")
    names = distinct_names(folders)
    return [
        OpenedRun(*parts) for parts in zip(names, run_labels or labels(stored, names), loaded, strict=True)
    ]


def load_bridge(folder: Path, **settings: Any) -> RatingExperiment:
    """Returns the experiment of a saved run of a bridge, with its best weights.

    Args:
        settings: run-time settings in place of the stored ones.
    """
    experiment = load_model(folder, **settings)
    assert isinstance(experiment, RatingExperiment)  # the task of all bridges
    return experiment


def find_runs(names: Sequence[str], checkpoint_dir: str | Path) -> list[Path]:
    """Returns the folders of runs.

    Raises:
        CDRError: none is named, there is no such run, or one is named twice.
    """
    folders = [find_run(name, checkpoint_dir).resolve() for name in names]
    if not folders:
        raise CDRError("Which runs? Say --runs=RUN,RUN: names of folders that `recbole-cdr run` wrote.")
    twice = next((folder for i, folder in enumerate(folders) if folder in folders[:i]), None)
    if twice:
        raise CDRError(f"run '{twice.name}' stands in --runs twice.")
    return folders


def check_labels(run_labels: Sequence[str] | None, n: int) -> None:
    """Refuses labels that are not one for each of n runs, all different; None, none being requested, is right."""
    if run_labels is not None and (len(run_labels) != n or len(set(run_labels)) != n):
        raise CDRError(f"--labels={','.join(run_labels)} should name each of the {n} runs, all differently.")


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Returns the folders' names, or their paths where two have one name."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def check_trained(folder: Path, stored: Mapping[str, Any]) -> None:
    """Refuses a run that is no bridge's, or not trained to its end."""
    where = f"run '{folder.name}' ({stored['model']}) can't be analysed"
    check_bridge(where, model_registry.get_model(stored["model"], stored.get("task")), stored)
    check_ended(where, folder)


def check_ended(where: str, folder: Path) -> None:
    """Refuses a run that is not trained to its end; ``where`` is what the message begins with."""
    if not (folder / checkpoint.MODEL).exists():
        raise CDRError(f"{where}: its training has not ended. Go on with --resume={folder}.")


def check_bridge(where: str, model: type, settings: Mapping[str, Any]) -> None:
    """Refuses a model without source vectors that could be moved.

    Args:
        where: what the message begins with.
        settings: read for ``embedding_size``.
    """
    if not issubclass(model, RatingRecommender):
        raise CDRError(f"{where}: it predicts next items, not ratings. {ANALYSED}")
    if not issubclass(model, Bridge):
        raise CDRError(f"{where}: it maps no source vector. {ANALYSED}")
    # BiasOnly has no vectors whatever its settings say.
    if settings.get("embedding_size") == 0 or issubclass(model, BiasOnly):
        raise CDRError(f"{where}: it has no vectors (d = 0). {ANALYSED}")


def labels(stored: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Returns a short title for each run: its model, and what tells it apart from other runs of that model."""
    titles = []
    for of_run, name in zip(stored, names, strict=True):
        same = [other for other in stored if other["model"] == of_run["model"]]
        keys = [key for key in of_run if key not in RUNTIME_KEYS]
        differing = [key for key in keys if any(other.get(key) != of_run[key] for other in same)]
        settings = ", ".join(f"{key}={of_run[key]}" for key in differing)
        # More than two settings fill a legend and say less than a name does.
        distinction = settings if 0 < len(differing) <= 2 else name
        titles.append(f"{of_run['model']} ({distinction})" if len(same) > 1 else str(of_run["model"]))
    unique = len(set(titles)) == len(titles)
    return titles if unique else [f"{t} [{name}]" for t, name in zip(titles, names, strict=True)]


# -- what analyses read of a run ----------------------------------------------------------------------------------


def bridge_of(experiment: RatingExperiment) -> Bridge:
    """Returns the experiment's model, as what it has been checked to be."""
    model: Any = experiment.model
    bridge: Bridge = model
    return bridge


def ratings_of(experiment: RatingExperiment, part: str) -> RatingBatch:
    """Returns ratings as one batch on the model's device.

    Args:
        part: "test" or "valid", or "train" for those that mappings are learned from (D^o).
    """
    if part != "train":
        batch: RatingBatch = experiment.batch(part)
        return batch
    split = experiment.split
    rows = whole_batch(split.shared_ratings(), int(split.item_offset[split.target]), split.target)
    return rows.to(experiment.config["device"])


def chunks(batch: RatingBatch, size: int = CHUNK) -> Iterator[RatingBatch]:
    """Cuts a batch into slices of at most ``size`` rows."""
    for start in range(0, len(batch), size):
        yield batch.take(slice(start, start + size))


@torch.no_grad()
def median_norm(model: Bridge, batch: RatingBatch) -> float:
    """Returns the median of ‖u^s‖ over the users of a batch, each once."""
    _, first = np.unique(batch.user.cpu().numpy(), return_index=True)
    rows = model.source_rows(batch.take(torch.from_numpy(first).to(batch.user.device)))
    return float(np.median(rows.norm(dim=1).cpu().numpy()))


def describe(run: OpenedRun) -> dict[str, Any]:
    """Returns what every table says of a run, in its first columns."""
    config = run.experiment.config
    return {
        "model": run.label,
        "run": run.name,
        "dataset": config["dataset"],
        "source": run.experiment.dataset.domains[run.experiment.split.source],
        "target": run.experiment.dataset.domains[run.experiment.split.target],
        "beta": config["beta"],
        "split_seed": config["split_seed"],
        "seed": config["seed"],
        "biases": config["biases"],
        "d": run.model.size,
    }


def _other_split(folder: Path, first: Path, reason: str) -> CDRError:
    return CDRError(
        f"the runs '{folder.name}' and '{first.name}' have different splits ({reason}): their numbers are of "
        "different ratings and can't stand side by side."
    )
