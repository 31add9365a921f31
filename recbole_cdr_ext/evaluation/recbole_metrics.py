"""RecBole's metrics as metrics of this library: RecBole's classes compute, and are handed what they read.

The order of the classes is that in which ``recbole-cdr metrics`` lists them.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metrics_dict

from recbole_cdr_ext import compat
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric import RankMetric, SetMetric, Settings, ValueMetric, listed
from recbole_cdr_ext.evaluation.ranking import Ranks

compat.apply()


def _recbole_metric(name: str, config: Settings) -> Any:
    """Returns the object of RecBole's metric of a name."""
    settings = {
        "topk": [int(k) for k in listed(config["topk"])] if "topk" in config else [],
        "metric_decimal_place": int(config["metric_decimal_place"]),
        "tail_ratio": _tail_ratio(config),
    }
    return metrics_dict[name.lower()](settings)


def _tail_ratio(config: Settings) -> Any:
    return config["tail_ratio"] if "tail_ratio" in config else None  # noqa: SIM401


# -- of ranks -------------------------------------------------------------------------------------------------------


def topk_struct(rank: np.ndarray, width: int) -> DataStruct:
    """Returns what RecBole's metrics of ranks read: the top ``width`` of each list as hit or miss, from (n,) ranks.

    There is one relevant item, the target, per list.
    """
    hits = rank[:, None] == np.arange(1, width + 1)
    struct = DataStruct()
    struct.set("rec.topk", torch.from_numpy(np.column_stack([hits, np.ones(len(rank))]).astype(np.int32)))
    return struct


class _OfRanks(RankMetric):
    """A metric of RecBole's that one relevant item per list makes a function of its rank.

    All ranks behind the longest cut-off are one; so RecBole's class computes the metric once per rank and cut-off, and
    instances look theirs up.
    """

    def __init__(self, config: Settings):
        super().__init__(config)
        metric = _recbole_metric(type(self).__name__, config)
        width = max(metric.topk)
        arguments = metric.used_info(topk_struct(np.arange(1, width + 2), width))
        count = len(inspect.signature(metric.metric_info).parameters)
        self._figures = np.asarray(metric.metric_info(*arguments[:count]), float)  # (width + 1, width)

    def per_instance(self, rank: np.ndarray, k: int) -> np.ndarray:
        """Returns RecBole's figures of (n,) ranks."""
        figures = self._figures[:, k - 1]
        return np.asarray(figures[np.minimum(rank, len(figures)) - 1])


class NDCG(_OfRanks):
    """Gain of the target among the best k, discounted by the logarithm of its rank."""


class Hit(_OfRanks):
    """Whether the target is among the best k."""


class MRR(_OfRanks):
    """Reciprocal of the target's rank, 0 behind the best k."""


class MAP(_OfRanks):
    """Average precision of the best k; with one target, the reciprocal of its rank."""


class Recall(_OfRanks):
    """Share of the targets that is among the best k; with one target, whether it is."""


class Precision(_OfRanks):
    """Share of the best k that is the target."""


class GAUC(SetMetric):
    """Share of the other candidates that the target is above, ties counting half, over instances with another."""

    needs: ClassVar[str] = "mean rank"
    cutoffs: ClassVar[bool] = False
    percent: ClassVar[bool] = True

    def __init__(self, config: Settings):
        super().__init__(config)
        self._metric = _recbole_metric("GAUC", config)

    def value(self, ranks: Ranks, popularity: np.ndarray, k: int) -> float | None:
        """Returns RecBole's area under the curve, a mean over instances for each has one target."""
        rows = ranks.candidates > 1
        if not rows.any():
            return None
        length = ranks.candidates[rows].astype(float)
        figure = self._metric.metric_info(ranks.mean_rank[rows, None], length, np.ones(len(length)))
        return float(figure)


# -- of lists -------------------------------------------------------------------------------------------------------


class _OfShown(SetMetric):
    """A metric of how often each item stands on a list."""

    def __init__(self, config: Settings):
        super().__init__(config)
        self._metric = _recbole_metric(type(self).__name__, config)

    def value(self, ranks: Ranks, popularity: np.ndarray, k: int) -> float:
        """Returns RecBole's figure of all lists as one: where one is short, its padding is no item."""
        items = ranks.items[:, :k]
        return float(self._figure(items[items > 0][None], len(popularity) - 1))

    @abstractmethod
    def _figure(self, shown: np.ndarray, n_items: int) -> float:
        """Returns the figure of (1, m) items on lists in a domain of ``n_items``."""


class _OfItems(SetMetric):
    """A mean over lists of the mean of what their items are."""

    def __init__(self, config: Settings):
        super().__init__(config)
        self._metric = _recbole_metric(type(self).__name__, config)

    def value(self, ranks: Ranks, popularity: np.ndarray, k: int) -> float:
        """Returns RecBole's mean; where a list is short, over the items that it has."""
        items = ranks.items[:, :k]
        # RecBole finds an item's figure by a search per place of a list: minutes for a large domain.
        means = self._metric.metric_info(self._of_item(popularity)[items])
        last = (items > 0).sum(1) - 1
        return float(means[np.arange(len(items)), last].mean())

    @abstractmethod
    def _of_item(self, popularity: np.ndarray) -> np.ndarray:
        """Returns (n_items + 1,) figures of items, 0 of the padding, from their training interactions."""


class ItemCoverage(_OfShown):
    """Share of the domain's items that stand on a list."""

    percent: ClassVar[bool] = True

    def _figure(self, shown: np.ndarray, n_items: int) -> float:
        return float(self._metric.get_coverage(shown, n_items))


class AveragePopularity(_OfItems):
    """Training interactions of the items on the lists."""

    larger_is_better: ClassVar[bool] = False

    def _of_item(self, popularity: np.ndarray) -> np.ndarray:
        return popularity


class ShannonEntropy(_OfShown):
    """Entropy of the items on the lists, in nats, over the number of different items, as RecBole divides it.

    So it falls as more items are recommended (of m items that stand there equally often it is ln m / m), and its
    direction, which is RecBole's, is none of better lists: nothing to choose a model by.
    """

    def _figure(self, shown: np.ndarray, n_items: int) -> float:
        return float(self._metric.get_entropy(shown))


class GiniIndex(_OfShown):
    """How unequally often the domain's items stand on lists, from 0 to 1."""

    larger_is_better: ClassVar[bool] = False

    def _figure(self, shown: np.ndarray, n_items: int) -> float:
        return float(self._metric.get_gini(shown, n_items))


class TailPercentage(_OfItems):
    """Share of the lists that is of the tail: the ``tail_ratio`` of items with the fewest interactions, 0.1 if unset.

    A ``tail_ratio`` above 1 is the most interactions that an item of the tail has. As in RecBole, items without a
    training interaction are not of the tail, and of equal ones the first are.
    """

    percent: ClassVar[bool] = True

    def __init__(self, config: Settings):
        tail_ratio = _tail_ratio(config)
        if isinstance(tail_ratio, bool) or not isinstance(tail_ratio, int | float | None):
            raise CDRError(
                f"tail_ratio={tail_ratio!r} should be a number: a share of the items, or above 1 how many training "
                "interactions an item of the tail has at most."
            )
        super().__init__(config)

    def _of_item(self, popularity: np.ndarray) -> np.ndarray:
        sold, share = np.flatnonzero(popularity), self._metric.tail
        if share > 1:
            tail = sold[popularity[sold] <= share]
        else:
            order = sold[np.argsort(popularity[sold], kind="stable")]
            tail = order[: max(int(len(order) * share), 1)]
        return np.bincount(tail, minlength=len(popularity))


# -- of values ------------------------------------------------------------------------------------------------------


class _OfValues(ValueMetric):
    """A metric of RecBole's of predicted values."""

    def __init__(self, config: Settings):
        super().__init__(config)
        self._metric = _recbole_metric(type(self).__name__, config)

    def value(self, predicted: np.ndarray, rating: np.ndarray) -> float:
        """Returns RecBole's figure, in double precision."""
        figure: float = self._metric.metric_info(np.asarray(predicted, float), np.asarray(rating, float))
        return figure


class MAE(_OfValues):
    """Mean absolute error of predicted ratings."""


class RMSE(_OfValues):
    """Root of the mean squared error of predicted ratings."""
