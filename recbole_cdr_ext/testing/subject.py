"""Planted data with a known answer, and a model on them: built, trained and scored as a run does it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_cdr_ext.data import atomic
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.registry.models import get_model
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.maker import make_split
from recbole_cdr_ext.splits.split import Split, groups
from recbole_cdr_ext.tasks import get_task
from recbole_cdr_ext.tasks.next_item import NextItemExperiment
from recbole_cdr_ext.tasks.rating import RatingExperiment
from recbole_cdr_ext.tasks.task import Experiment
from recbole_cdr_ext.testing import subject as planted
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

N_TOPICS = 4
NAMES = ("books", "films", "songs")
# Domains of different sizes: what holds for one by chance of its size does not for the other.
SIZES = (40, 52, 44)

Rows = list[tuple[str, str, float]]


@dataclass(frozen=True)
class Plan:
    """What a task's models are checked on.

    Attributes:
        value: the column beside users and items, "timestamp" or "rating".
        settings: of a quick training from which a model that works learns the topics.
        domains: gives the rows by domain, from their number and whether users overlap.
    """

    value: str
    settings: Mapping[str, Any]
    domains: Callable[[int, bool], dict[str, Rows]]


def topic_of(token: str) -> int:
    """Returns the topic of a user or an item."""
    return int(token[1:]) % N_TOPICS


def topics(n_domains: int, *, overlap: bool = True, n_users: int = 160, seed: int = 0) -> dict[str, Rows]:
    """Returns (user, item, time) rows by domain; user and item number modulo four are their topics.

    A user has five to nine items of the own topic, in random order, in every domain; every fifth user in one domain
    alone, and without ``overlap`` every user.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, Rows] = {name: [] for name in NAMES[:n_domains]}
    for user in range(n_users):
        alone = n_domains > 1 and (not overlap or user % 5 == 4)
        for k, name in enumerate(rows):
            if alone and user // 5 % n_domains != k:
                continue
            topical = np.arange(user % N_TOPICS, SIZES[k], N_TOPICS)
            items = rng.choice(topical, int(rng.integers(5, 10)), replace=False)
            times = np.sort(rng.choice(100_000, len(items), replace=False))
            rows[name] += [
                (f"u{user}", f"{name[0]}{item}", float(t)) for item, t in zip(items, times, strict=True)
            ]
    return rows


def ratings(*, n_users: int = 120, seed: int = 0) -> dict[str, Rows]:
    """Returns (user, item, rating) rows of two domains: a user rates the own topic high, and others low."""
    rng = np.random.default_rng(seed)
    rows: dict[str, Rows] = {name: [] for name in NAMES[:2]}
    for user in range(n_users):
        for k, name in enumerate(rows):
            if user % 5 == 4 and user // 5 % 2 != k:
                continue
            for item in rng.choice(SIZES[k], int(rng.integers(8, 14)), replace=False):
                liked = item % N_TOPICS == user % N_TOPICS
                value = (4.5 if liked else 2.5) + rng.normal(0, 0.4)
                rows[name].append((f"u{user}", f"{name[0]}{item}", float(np.clip(np.round(value), 1, 5))))
    return rows


PLANS: Mapping[str, Plan] = {
    "next_item": Plan(
        value="timestamp",
        settings={
            "order": "clock", "split": "user", "split_ratio": [0.6, 0.2, 0.2], "cold_start_ratio": 0.5,
            "eval_args": {"mode": "full"}, "train_batch_size": 256, "learning_rate": 0.005, "epochs": 40,
            "stopping_step": 8,
        },
        domains=lambda n_domains, overlap: topics(n_domains, overlap=overlap),
    ),
    "rating": Plan(
        value="rating",
        settings={"order": "none", "beta": 0.3, "pretrain_epochs": 30, "epochs": 30},
        domains=lambda n_domains, overlap: ratings(),
    ),
}  # fmt: skip


def write(folder: Path, domains: dict[str, Rows], value: str) -> None:
    """Writes a data set as atomic files; ``value`` is "timestamp" or "rating"."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in domains.items():
        frame = pd.DataFrame(rows, columns=["user_id", "item_id", value])
        atomic.write_inter(folder / f"{name}.inter", frame.astype({value: float}))


TOP = 5  # chance ranks an own topic's item among them with probability 1 / N_TOPICS each


class Subject:
    """A model, the settings that it is checked with, and a folder for what that writes.

    Args:
        model: its name in the registry, or its class.
        folder: exists; data, caches and checkpoints go there.
        task: of a model that has several.
        settings: overrides of the model's property file, where its defaults need thousands of users.
    """

    def __init__(self, model: str | type, folder: str | Path, *, task: str | None = None, **settings: Any):
        self.model, self.folder, self.settings = model, Path(folder), settings
        self.task = task or get_model(model).task
        self.name = model if isinstance(model, str) else model.__name__
        self.history: list[dict[str, Any]] = []

    # -- pieces of a run ---------------------------------------------------------------------------------------------

    def config(self, data: str = "topics", **settings: Any) -> CDRConfig:
        """Returns the settings of a quick, quiet run on a planted data set, which is written if it is not there."""
        domains = self._written(data)
        common = {
            "data_path": str(self.folder), "checkpoint_dir": str(self.folder / "saved"),
            "cache_dir": str(self.folder / "cache"), "domains": domains, "task": self.task, "use_gpu": False,
            "show_progress": False, "tensorboard": False,
        }  # fmt: skip
        common |= planted.PLANS[self.task].settings
        return CDRConfig(self.model, data, config_dict={**common, **self.settings, **settings})

    def short(self, epochs: int) -> dict[str, Any]:
        """Returns the settings of a training that ends after a few epochs."""
        return {**get_task(self.task).short(epochs)}

    def _written(self, data: str) -> list[str]:
        plan = planted.PLANS[self.task]
        domains = plan.domains({"one": 1, "three": 3}.get(data, 2), data != "apart")
        folder = self.folder / data
        if not folder.exists():
            planted.write(folder, domains, plan.value)
        return list(domains)

    def build(self, data: str = "topics", **settings: Any) -> Experiment:
        """Returns an untrained experiment."""
        return build(self.config(data, **settings))

    def fit(self, experiment: Experiment) -> list[dict[str, Any]]:
        """Trains an experiment's model; returns an entry per epoch."""
        trainer = CrossDomainTrainer(experiment.config, experiment.model, self.folder)
        logging.getLogger().setLevel(logging.WARNING)
        trainer.fit(
            experiment.split, experiment.training_batches(), experiment.validate, verbose=False, saved=False
        )
        return trainer.history

    def fitted(self, data: str = "topics", **settings: Any) -> Experiment:
        """Returns a new experiment, trained."""
        experiment = self.build(data, **settings)
        self.fit(experiment)
        return experiment

    @cached_property
    def trained(self) -> Experiment:
        """The experiment on "topics", trained once for all checks that do not change it."""
        experiment = self.build()
        self.history = self.fit(experiment)
        return experiment

    @property
    def model_class(self) -> type[CrossDomainRecommender]:
        """The class as configured."""
        model_class: type[CrossDomainRecommender] = self.config().model_class
        return model_class

    def instances(self, data: str) -> tuple[CrossDomainDataset, Split]:
        """Returns a planted data set of the next-item task and its split."""
        config = self.config(data)
        dataset = CrossDomainDataset(config)
        return dataset, make_split(config, dataset)


# -- what is read off an experiment ------------------------------------------------------------------------------


def as_next_item(experiment: Experiment) -> NextItemExperiment:
    """Returns an experiment of the next-item task as such."""
    assert isinstance(experiment, NextItemExperiment)
    return experiment


def as_rating(experiment: Experiment) -> RatingExperiment:
    """Returns an experiment of the rating task as such."""
    assert isinstance(experiment, RatingExperiment)
    return experiment


def test_batches(experiment: Experiment) -> Iterator[Batch]:
    """Yields the test instances as batches of one domain each, on the model's device."""
    for batch in as_next_item(experiment).loader("test"):
        yield batch.to(experiment.config["device"])


test_batches.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest thinks of its name


@torch.no_grad()
def scores(model: CrossDomainRecommender, batch: Batch) -> torch.Tensor:
    """Returns the scores of all the domain's items in evaluation, (B, n_k); 0 for instances that it disowns."""
    was_training = model.training
    model.eval()
    try:
        able = model.can_score(batch)
        scored = model.score(batch)
        return scored if able is None else scored * able.unsqueeze(1)
    finally:
        model.train(was_training)


def all_scores(experiment: Experiment) -> list[torch.Tensor]:
    """Returns the scores of all test instances, batch by batch."""
    return [scores(experiment.model, batch) for batch in test_batches(experiment)]


def on_topic(experiment: Experiment, *, cold: bool) -> float:
    """Returns the share of the own topic among the five best items, over the test instances that are cold, or are not.

    Instances that the model disowns count as chance.
    """
    dataset, split = experiment.dataset, as_next_item(experiment).split
    instances, is_cold = split.test, groups(split, split.test)["cold"]
    shares: list[float] = []
    for batch in test_batches(experiment):
        rows = batch["index"].cpu().numpy()
        able = experiment.model.can_score(batch)
        best = scores(experiment.model, batch).topk(TOP, dim=1).indices.cpu().numpy()
        first = experiment.model.item_offsets[batch.target_domain]
        for place, row in enumerate(rows):
            if is_cold[row] != cold:
                continue
            if able is not None and not able[place]:
                shares.append(1 / planted.N_TOPICS)
                continue
            user = planted.topic_of(dataset.id2token(dataset.uid_field, int(instances.user[row])))
            items = dataset.item_token(best[place] + first)
            shares.append(float(np.mean([planted.topic_of(token) == user for token in items])))
    return float(np.mean(shares)) if shares else float("nan")
