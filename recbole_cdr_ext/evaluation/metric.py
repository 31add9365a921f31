"""What a metric is: the contract that RecBole's metrics keep here, and those of other packages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import numpy as np

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.ranking import Ranks
from recbole_cdr_ext.registry import metrics as metric_registry


class Settings(Protocol):
    """Settings by name: a configuration, or a mapping of its values."""

    def __getitem__(self, key: str, /) -> Any: ...

    def __contains__(self, key: object, /) -> bool: ...


class Metric(ABC):
    """A figure of what a model predicts, per domain and user group.

    A metric derives from one of the three classes below, by what it is computed from: :class:`RankMetric`,
    :class:`SetMetric` (both of next items) or :class:`ValueMetric` (of ratings), and implements that class's one
    method. Its name is its class's, which settings may write in any case and results write in lower case. Another
    package brings it by an entry point of that name::

        [options.entry_points]
        recbole_cdr_ext.metrics =
            MyMetric = my_package.my_metric:MyMetric

    The first line of its docstring says in ``recbole-cdr metrics`` what it is. A metric returns unrounded figures,
    computes the same of the same arguments, and does not write into them.

    Args:
        config: the settings of the run, for a metric that reads some.

    Attributes:
        needs: what it is computed from: "rank", "mean rank", "lists" or "value".
        cutoffs: whether it is taken at each k of ``topk``, and called name@k in results.
        larger_is_better: its direction, for early stopping, searches and reports.
        percent: whether reports show it times 100.
    """

    needs: ClassVar[str]
    cutoffs: ClassVar[bool] = False
    larger_is_better: ClassVar[bool] = True
    percent: ClassVar[bool] = False

    def __init__(self, config: Settings):
        self.config = config


class RankMetric(Metric):
    """A mean over instances of a figure that follows from the target's rank, such as NDCG."""

    needs: ClassVar[str] = "rank"
    cutoffs: ClassVar[bool] = True
    percent: ClassVar[bool] = True

    @abstractmethod
    def per_instance(self, rank: np.ndarray, k: int) -> np.ndarray:
        """Returns the (n,) figures of n instances.

        Args:
            rank: (n,) the targets' ranks among their candidates, from 1.
            k: the cut-off, one of ``topk``; to be ignored by a metric without cut-offs.
        """


class SetMetric(Metric):
    """A figure of a set of instances that is no mean over them, such as the share of items that are recommended.

    ``needs`` is "lists" for one that reads ``ranks.items``, and "mean rank" for one that does not.
    """

    needs: ClassVar[str] = "lists"
    cutoffs: ClassVar[bool] = True

    @abstractmethod
    def value(self, ranks: Ranks, popularity: np.ndarray, k: int) -> float | None:
        """Returns the figure of at least one instance of one domain, None if it has no value for them.

        Args:
            ranks: of the instances; ``ranks.items`` has as many columns as the largest of ``topk``, and 0 behind the
                last item of a list of fewer candidates.
            popularity: (n_items + 1,) the training interactions of the domain's items, by the ids that
                ``ranks.items`` has; the first is the padding's, 0.
            k: the cut-off, one of ``topk``; to be ignored by a metric without cut-offs.
        """


class ValueMetric(Metric):
    """A figure of predicted ratings, such as the mean absolute error."""

    needs: ClassVar[str] = "value"
    larger_is_better: ClassVar[bool] = False

    @abstractmethod
    def value(self, predicted: np.ndarray, rating: np.ndarray) -> float:
        """Returns the figure of (n,) predicted and true ratings, n at least 1."""


def listed(value: Any) -> list[Any]:
    """Returns a setting that is a list or a single value as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


_SPELT = {
    "hit": "HR",
    "ndcg": "NDCG",
    "mrr": "MRR",
    "map": "MAP",
    "recall": "Recall",
    "precision": "Precision",
    "gauc": "GAUC",
    "itemcoverage": "ItemCoverage",
    "averagepopularity": "AveragePopularity",
    "shannonentropy": "ShannonEntropy",
    "giniindex": "GiniIndex",
    "tailpercentage": "TailPercentage",
}


def spelt(name: str) -> str:
    """Returns a metric's name as papers write it: NDCG@10, HR@10, MAE."""
    metric, at, k = name.partition("@")
    return f"{_SPELT.get(metric, metric)}@{k}" if at else metric.upper()


def in_percent(name: str) -> bool:
    """Returns whether reports show a metric of results times 100.

    Of a metric that is not installed, as a run of another machine may have, the name says it.
    """
    try:
        return metric_registry.get_metric(name.partition("@")[0]).percent
    except CDRError:
        return "@" in name


def larger_is_better(name: str) -> bool:
    """Returns the direction of a metric of results; of one that is not installed, the name says it."""
    try:
        return metric_registry.get_metric(name.partition("@")[0]).larger_is_better
    except CDRError:
        return "@" in name
