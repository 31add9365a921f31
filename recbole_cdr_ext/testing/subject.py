"""A model on planted data: built, trained and scored as a run does it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.registry.models import get_model
from recbole_cdr_ext.runs.experiment import build, load_data
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.interaction_split import groups
from recbole_cdr_ext.tasks.next_item import NextItemExperiment
from recbole_cdr_ext.testing import planted
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

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
        self._kept: dict[str, Any] = {}

    # -- pieces of a run ---------------------------------------------------------------------------------------------

    def config(self, data: str = "topics", **settings: Any) -> CDRConfig:
        """The settings of a quick, quiet run on a planted data set, which is written if it is not there."""
        domains = self._written(data)
        common = {
            "data_path": str(self.folder), "checkpoint_dir": str(self.folder / "saved"),
            "cache_dir": str(self.folder / "cache"), "domains": domains, "task": self.task, "use_gpu": False,
            "show_progress": False, "tensorboard": False,
        }  # fmt: skip
        if self.task == "next_item":
            common |= {
                "order": "clock", "split": "user", "split_ratio": [0.6, 0.2, 0.2], "cold_start_ratio": 0.5,
                "eval_args": {"mode": "full"}, "train_batch_size": 256, "learning_rate": 0.005, "epochs": 40,
                "stopping_step": 8,
            }  # fmt: skip
        else:
            common |= {"order": "none", "beta": 0.3, "pretrain_epochs": 30, "epochs": 30}
        return CDRConfig(self.model, data, config_dict={**common, **self.settings, **settings})

    def _written(self, data: str) -> list[str]:
        if self.task == "rating":
            made, value = planted.ratings(), "rating"
        else:
            n_domains = {"one": 1, "three": 3}.get(data, 2)
            made, value = planted.topics(n_domains, overlap=data != "apart"), "timestamp"
        folder = self.folder / data
        if not folder.exists():
            planted.write(folder, made, value)
        return list(made)

    def build(self, data: str = "topics", **settings: Any):
        """Returns an untrained experiment."""
        return build(self.config(data, **settings))

    def fit(self, experiment) -> list[dict[str, Any]]:
        """Trains an experiment's model; returns an entry per epoch."""
        trainer = CrossDomainTrainer(experiment.config, experiment.model, self.folder)
        logging.getLogger().setLevel(logging.WARNING)
        trainer.fit(
            experiment.split, experiment.training_batches(), experiment.validate, verbose=False, saved=False
        )
        return trainer.history

    def fitted(self, data: str = "topics", **settings: Any):
        """Returns a new experiment, trained."""
        experiment = self.build(data, **settings)
        self.fit(experiment)
        return experiment

    @cached_property
    def trained(self):
        """The experiment on "topics", trained once for all checks that do not change it."""
        experiment = self.build()
        self.history = self.fit(experiment)
        return experiment

    @property
    def model_class(self) -> type[CrossDomainRecommender]:
        """The class as configured."""
        return self.config().model_class

    def loaded(self, data: str, **settings: Any) -> tuple[CrossDomainDataset, Any]:
        """Returns a data set and its split."""
        return load_data(self.config(data, **settings))


# -- what is read off an experiment ------------------------------------------------------------------------------


def test_batches(experiment: NextItemExperiment) -> Iterator[Batch]:
    """The test instances as batches of one domain each, on the model's device."""
    for batch in experiment.loader("test"):
        yield batch.to(experiment.config["device"])


test_batches.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest thinks of its name


@torch.no_grad()
def scores(model: CrossDomainRecommender, batch: Batch) -> torch.Tensor:
    """Returns the scores of all the domain's items in evaluation, (B, n_k); 0 for instances that it disowns."""
    was_training = model.training
    model.eval()
    try:
        able = model.can_score(batch)
        found = model.score(batch)
        return found if able is None else found * able.unsqueeze(1)
    finally:
        model.train(was_training)


def all_scores(experiment: NextItemExperiment) -> list[torch.Tensor]:
    """The scores of all test instances, batch by batch."""
    return [scores(experiment.model, batch) for batch in test_batches(experiment)]


def on_topic(experiment: NextItemExperiment, *, cold: bool) -> float:
    """The share of the own topic among the five best items, over the test instances that are cold, or are not.

    Instances that the model disowns count as chance.
    """
    dataset, instances = experiment.dataset, experiment.split.test
    is_cold = groups(experiment.split, instances)["cold"]
    found: list[float] = []
    for batch in test_batches(experiment):
        rows = batch["index"].cpu().numpy()
        able = experiment.model.can_score(batch)
        best = scores(experiment.model, batch).topk(TOP, dim=1).indices.cpu().numpy()
        first = experiment.model.item_offsets[batch.target_domain]
        for place, row in enumerate(rows):
            if is_cold[row] != cold:
                continue
            if able is not None and not able[place]:
                found.append(1 / planted.N_TOPICS)
                continue
            user = planted.topic_of(dataset.id2token(dataset.uid_field, int(instances.user[row])))
            items = dataset.item_token(best[place] + first)
            found.append(float(np.mean([planted.topic_of(token) == user for token in items])))
    return float(np.mean(found)) if found else float("nan")
