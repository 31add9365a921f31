"""The pieces that a run is made of, for those who call them one by one: data, split, and a model on them."""

from __future__ import annotations

from typing import Any

import torch

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.prepare import Ensured, ensure_dataset
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.ranking_metrics import RankingMetrics
from recbole_cdr_ext.evaluation.rating_metrics import ValueMetrics
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.registry.splits import get_split
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.interaction_split import Split
from recbole_cdr_ext.splits.making import make_rating_split, make_split
from recbole_cdr_ext.splits.rating_split import RatingSplit
from recbole_cdr_ext.tasks import next_item, rating
from recbole_cdr_ext.tasks.next_item import NextItemExperiment
from recbole_cdr_ext.tasks.rating import RatingExperiment
from recbole_cdr_ext.trainer.stages import run_stages
from recbole_cdr_ext.trainer.trainer import seed_everything

compat.apply()

Experiment = NextItemExperiment | RatingExperiment

_DOMAINS_TAKEN = {"one": (1, 1), "two": (2, 2), "two or more": (2, None)}


def check_metrics(config: CDRConfig) -> None:
    """Raises a CDRError for metrics that the task cannot compute."""
    (RankingMetrics if config["task"] == "next_item" else ValueMetrics)(config)


def load_data(config: CDRConfig) -> tuple[CrossDomainDataset, Any]:
    """Returns the dataset that the settings ask for, prepared first if need be, and its split.

    Raises:
        CDRError: the data cannot be had, are malformed, do not fit the settings, or the split leaks.
    """
    ensure_data(config, allow_simulated=False)
    dataset = CrossDomainDataset(config)
    make = make_split if config["task"] == "next_item" else make_rating_split
    return dataset, make(config, dataset)


def ensure_data(config: CDRConfig, *, allow_simulated: bool) -> Ensured:
    """Has the dataset that the settings ask for prepared, and says which one is there."""
    return ensure_dataset(
        config["dataset"],
        data_path=config["data_root"],
        raw=config["raw"],
        download=bool(config["download"]),
        layout=get_split(config["split"]).layout,
        allow_simulated=allow_simulated,
        progress=bool(config["show_progress"]),
    )


def build(
    config: CDRConfig,
    dataset: CrossDomainDataset | None = None,
    split: Split | RatingSplit | None = None,
    *,
    staged: bool = False,
) -> Any:
    """Returns an untrained model with all it needs, its stages trained.

    Args:
        config: the settings.
        dataset, split: as :func:`load_data` returns them; loaded if not given.
        staged: whether ``split`` holds already what the model's stages make of it.

    Returns:
        A :class:`NextItemExperiment` or a :class:`RatingExperiment`, by the settings' task.

    Raises:
        CDRError: as :func:`load_data`; or the data are not what the model needs.
    """
    check_metrics(config)
    if dataset is None or split is None:
        dataset, split = load_data(config)
    model_class = config.model_class
    check_fit(model_class, dataset, split)
    if not staged:
        split = run_stages(config, dataset, split, model_class)
    dataset.split = split
    split = model_class.prepare_data(config, dataset, split)
    dataset.split = split
    # After all that may draw, so that a stage from the cache and one trained just now leave the same start.
    seed_everything(int(config["seed"]))
    model = model_class(config, dataset).to(config["device"])
    if isinstance(split, Split):
        return NextItemExperiment.of(config, dataset, split, model)
    return RatingExperiment.of(config, dataset, split, model)


# -- checks --------------------------------------------------------------------------------------------------


def check_fit(model_class: type[CrossDomainRecommender], dataset: CrossDomainDataset, split) -> None:
    """Refuses data that a model cannot learn from, by what the model says of itself."""
    low, high = _DOMAINS_TAKEN.get(model_class.domains, (1, None))
    if dataset.n_domains < low or (high is not None and dataset.n_domains > high):
        raise CDRError(
            f"{model_class.__name__} takes {model_class.domains} domain(s), dataset '{dataset.dataset_name}' "
            f"has {dataset.n_domains}: {', '.join(dataset.domains)}. Choose among them with 'domains'."
        )
    # A split of ratings has overlapping training users, or could not be made.
    if model_class.needs_overlap and isinstance(split, Split) and not next_item.n_overlapping(split):
        raise CDRError(
            f"{model_class.__name__} learns from users with interactions in several domains, and the "
            f"training data of '{dataset.dataset_name}' have none."
        )


def log_parts(dataset: CrossDomainDataset, split: Split | RatingSplit) -> None:
    """Logs what a split holds."""
    if isinstance(split, Split):
        next_item.log_parts(dataset, split)
    else:
        rating.log_parts(dataset, split)


def set_threads(config: CDRConfig) -> None:
    """Sets how many threads torch computes with, if the settings say so."""
    if config["torch_threads"]:
        torch.set_num_threads(int(config["torch_threads"]))
