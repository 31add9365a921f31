"""The pieces that a run is made of, for those who call them one by one: data, split, and a model on them."""

from __future__ import annotations

import torch

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.prepare import Ensured, ensure_dataset
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.registry.splits import get_split
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import RatingSplit, Split, TrainingData
from recbole_cdr_ext.tasks import get_task
from recbole_cdr_ext.tasks.task import Experiment
from recbole_cdr_ext.trainer.trainer import seed_everything

compat.apply()

_DOMAINS_TAKEN = {"one": (1, 1), "two": (2, 2), "two or more": (2, None)}


def check_metrics(config: CDRConfig) -> None:
    """Raises a CDRError for metrics that the task cannot compute."""
    get_task(config["task"]).metrics(config)


def build(
    config: CDRConfig,
    dataset: CrossDomainDataset | None = None,
    split: Split | RatingSplit | None = None,
    *,
    staged: bool = False,
) -> Experiment:
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
    task = get_task(config["task"])
    model_class: type[CrossDomainRecommender] = config.model_class
    check_fit(model_class, dataset, split)
    if not staged:
        split = task.run_stages(config, dataset, split, model_class)
    split = model_class.prepare_data(config, dataset, split)
    # After all that may draw, so that a stage from the cache and one trained just now leave the same start.
    seed_everything(int(config["seed"]))
    model = model_class(config, TrainingData.of(dataset, split)).to(config["device"])
    return task.experiment(config, dataset, split, model)


# -- data ----------------------------------------------------------------------------------------------------------


def load_data(config: CDRConfig) -> tuple[CrossDomainDataset, Split | RatingSplit]:
    """Returns the dataset that the settings ask for, prepared first if need be, and its split.

    Raises:
        CDRError: the data cannot be had, are malformed, do not fit the settings, or the split leaks.
    """
    ensure_data(config, allow_simulated=False)
    dataset = CrossDomainDataset(config)
    return dataset, get_task(config["task"]).make_split(config, dataset)


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


def check_fit(
    model_class: type[CrossDomainRecommender], dataset: CrossDomainDataset, split: Split | RatingSplit
) -> None:
    """Refuses data that a model cannot learn from, by what the model says of itself.

    Raises:
        CDRError: the dataset has too few or too many domains, or the split no overlapping training users.
    """
    low, high = _DOMAINS_TAKEN.get(model_class.domains, (1, None))
    if dataset.n_domains < low or (high is not None and dataset.n_domains > high):
        raise CDRError(
            f"{model_class.__name__} takes {model_class.domains} domain(s), dataset '{dataset.dataset_name}' "
            f"has {dataset.n_domains}: {', '.join(dataset.domains)}. Choose among them with 'domains'."
        )
    if model_class.needs_overlap and not split.n_overlapping:
        raise CDRError(
            f"{model_class.__name__} learns from users with interactions in several domains, and the "
            f"training data of '{dataset.dataset_name}' have none."
        )


# -- what a run sets up --------------------------------------------------------------------------------------------


def log_parts(config: CDRConfig, dataset: CrossDomainDataset, split: Split | RatingSplit) -> None:
    """Logs what a split holds."""
    get_task(config["task"]).log_split(dataset, split)


def set_threads(config: CDRConfig) -> None:
    """Sets how many threads torch computes with, if the settings say so."""
    if config["torch_threads"]:
        torch.set_num_threads(int(config["torch_threads"]))
