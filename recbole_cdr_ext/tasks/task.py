"""What a task is: all that differs between ranking items and predicting ratings, in one object each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic

import pandas as pd

from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics, ValueMetrics
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.registry.splits import list_splits
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.split import AnySplit, RatingSplit, Split


class Experiment(ABC):
    """A model on a split of a dataset, ready to be trained and evaluated."""

    config: CDRConfig
    dataset: CrossDomainDataset
    split: Split | RatingSplit
    model: CrossDomainRecommender

    @abstractmethod
    def check(self) -> None:
        """Does what may fail before training, so that the error comes first.

        Raises:
            CDRError: the model or the settings can't be evaluated on the split.
        """

    @abstractmethod
    def training_batches(self) -> CrossDomainLoader | None:
        """Returns what phases without batches of their own train on; None if there are no such phases."""

    @abstractmethod
    def validate(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns the validation table of the model as it is now, ``{domain: {group: {"n": …, metric: …}}}``."""

    @abstractmethod
    def outcome(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """Returns what ``result.json`` says of the trained model, and its table of instances or ratings."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Returns what a reader of the result must know about its data."""


class Task(ABC, Generic[AnySplit]):
    """What a run's task decides. ``tasks.get_task`` gives the task of a name.

    Class attributes:
        name: as ``task=`` says it.
        groups: the user groups of its result tables.
        epoch_keys: the settings that bound how long it trains, its stages' included.
        shared_keys: the settings that runs have in common which can be compared.
        split_keys: the settings that decide its split.
    """

    name: ClassVar[str]
    groups: ClassVar[tuple[str, ...]]
    epoch_keys: ClassVar[tuple[str, ...]]
    shared_keys: ClassVar[tuple[str, ...]]
    split_keys: ClassVar[tuple[str, ...]]

    def splits(self) -> list[str]:
        """Returns the names of the splits that serve it."""
        return [info.name for info in list_splits() if info.task == self.name]

    def short(self, epochs: int) -> dict[str, int]:
        """Returns the settings of a training that ends after a few epochs."""
        return dict.fromkeys(self.epoch_keys, epochs)

    @abstractmethod
    def metrics(self, settings: CDRConfig | Mapping[str, Any]) -> RankingMetrics | ValueMetrics:
        """Returns the metrics that settings ask for.

        Raises:
            CDRError: one is none of this task.
        """

    @abstractmethod
    def make_split(self, config: CDRConfig, dataset: CrossDomainDataset) -> AnySplit:
        """Returns the split of a dataset that the settings ask for, audited.

        Raises:
            CDRError: the split does not fit the data, or leaks.
        """

    @abstractmethod
    def run_stages(
        self,
        config: CDRConfig,
        dataset: CrossDomainDataset,
        split: AnySplit,
        model_class: type[CrossDomainRecommender],
    ) -> AnySplit:
        """Returns the split with what the model's stages make of it, in their order.

        Raises:
            CDRError: a stage cannot be trained or written, or what it adds leaks held-out targets.
        """

    @abstractmethod
    def experiment(
        self, config: CDRConfig, dataset: CrossDomainDataset, split: AnySplit, model: CrossDomainRecommender
    ) -> Experiment:
        """Puts a model on the split that it was built on."""

    @abstractmethod
    def log_split(self, dataset: CrossDomainDataset, split: AnySplit) -> None:
        """Logs how much a split holds of what kind."""

    @abstractmethod
    def scene(self, config: CDRConfig) -> str:
        """Returns what tells the splits of one dataset apart, in a word for names of folders."""

    @abstractmethod
    def questions(self, setting: Callable[[str], Any], result: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what a finished run was asked, beside the settings in ``shared_keys``.

        Args:
            setting: gives the run's value of a setting.
            result: what its ``result.json`` holds.
        """
