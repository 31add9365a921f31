"""The metrics that a configuration asks for, of next items and of ratings, and the tables of their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.evaluation.metric import RankMetric, SetMetric, Settings, ValueMetric, listed, spelt
from recbole_cdr_ext.evaluation.ranking import Ranks
from recbole_cdr_ext.registry import metrics as metric_registry

# What both tasks give of a part: {domain: {group: {"n": instances, metric: figure or None}}}
Table = dict[str, dict[str, dict[str, Any]]]


def mean_over_domains(table: Table, metric: str) -> float:
    """Returns the mean of a metric over the domains that have a figure, NaN if none has.

    It is what models are chosen by: of the group "all", or of the only one there is.
    """
    widest = [next(iter(groups.values())) for groups in table.values()]
    figures = [cell[metric] for cell in widest if cell["n"] and cell[metric] is not None]
    return float(np.mean(figures)) if figures else float("nan")


class RankingMetrics:
    """The metrics of next items that a configuration asks for.

    Args:
        config: read for ``metrics``, ``topk``, ``valid_metric`` and ``metric_decimal_place``, and by metrics.

    Attributes:
        names: "ndcg@10" and the like, lower case as in RecBole, in the configuration's order.
        list_length: how many of the best candidates they read per instance; None: ranks are enough.

    Raises:
        CDRError: a metric is unknown or one of ratings, or ``valid_metric`` is not among them.
    """

    def __init__(self, config: Settings):
        self.topk = [int(k) for k in listed(config["topk"])]
        self._decimals = int(config["metric_decimal_place"])
        self._metrics: dict[str, tuple[RankMetric | SetMetric, int]] = {}
        for name in listed(config["metrics"]):
            metric = _ranking_metric(name, config)
            for k in self.topk if metric.cutoffs else [max(self.topk)]:
                self._metrics[f"{name.lower()}@{k}" if metric.cutoffs else name.lower()] = metric, k
        self.names = list(self._metrics)
        self.valid_metric = config["valid_metric"].lower()
        if self.valid_metric not in self.names:
            raise CDRError(
                f"valid_metric '{config['valid_metric']}' is not among the metrics "
                f"({', '.join(self.names)}): name it in metrics and topk."
            )
        needs = {metric.needs for metric, _ in self._metrics.values()}
        self.list_length = max(self.topk) if "lists" in needs else 0 if "mean rank" in needs else None

    def per_instance(self, rank: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the values for (n,) ranks, (n,) each, of the metrics that follow from an instance's rank."""
        return {
            name: metric.per_instance(rank, k)
            for name, (metric, k) in self._metrics.items()
            if isinstance(metric, RankMetric)
        }

    def mean(self, ranks: Ranks, popularity: np.ndarray | None = None) -> dict[str, Any]:
        """Returns ``{"n": …, metric: figure}`` of instances of one domain; None where a figure has no value.

        Args:
            popularity: (n_items + 1,) as :func:`~recbole_cdr_ext.evaluation.ranking.popularity_by_domain` gives it;
                needed if :attr:`list_length` is not None.
        """
        if not len(ranks):
            return {"n": 0, **dict.fromkeys(self.names)}
        figures: dict[str, float | None] = {}
        for name, (metric, k) in self._metrics.items():
            if isinstance(metric, RankMetric):
                figures[name] = round(float(metric.per_instance(ranks.rank, k).mean()), self._decimals)
            else:
                assert popularity is not None
                figure = metric.value(ranks, popularity, k)
                figures[name] = None if figure is None else round(float(figure), self._decimals)
        return {"n": len(ranks), **figures}

    def table(
        self,
        instances: Instances,
        ranks: Ranks,
        groups: Mapping[str, np.ndarray],
        domains: Sequence[str],
        popularity: Sequence[np.ndarray] | None = None,
    ) -> Table:
        """Returns the metrics' figures, ``{domain: {group: {"n": …, "ndcg@10": …, …}}}``.

        Args:
            groups: (n,) masks by name.
            domains: the domains' names.
            popularity: as in :meth:`mean`, of each domain.
        """
        return {
            name: {
                group: self.mean(
                    ranks.take(mask & (instances.domain == k)), None if popularity is None else popularity[k]
                )
                for group, mask in groups.items()
            }
            for k, name in enumerate(domains)
        }

    def notes(self, mode: str, candidates: int) -> list[str]:
        """Returns what a reader must know of the metrics that depend on which items are ranked.

        Args:
            mode: "full", "uniN" or "popN".
            candidates: the most that an instance has, the target included.
        """
        notes = []
        untouched = "all items of the domain that the user has not touched"
        if names := self._with("lists"):
            sample = f"the {candidates:,} candidates, target included, and not of the whole catalogue"
            few = " (fewer where there are fewer)" if candidates < max(self.topk) else ""
            among = untouched if mode == "full" else sample
            notes.append(f"{names}: of the best k{few} among {among}.")
        if names := self._with("mean rank"):
            among = untouched if mode == "full" else f"the {candidates - 1:,} other candidates"
            notes.append(f"{names}: of the target against {among}.")
        if self._metrics[self.valid_metric][0].needs == "lists":
            notes.append(
                f"valid_metric={spelt(self.valid_metric)} chose the model by what it recommends; whether the "
                "target is among it plays no part."
            )
        return notes

    def _with(self, needs: str) -> str:
        return ", ".join(spelt(name) for name, (metric, _) in self._metrics.items() if metric.needs == needs)


def _ranking_metric(name: str, config: Settings) -> RankMetric | SetMetric:
    """Returns a metric of next items.

    Raises:
        CDRError: there is none of that name, or it is one of ratings.
    """
    metric = metric_registry.get_metric(name)(config)
    if isinstance(metric, RankMetric | SetMetric):
        return metric
    ranking = [info.name for info in metric_registry.list_metrics() if info.task == "next_item"]
    raise CDRError(
        f"metric '{name}' is one of ratings, and items are ranked.{did_you_mean(name, ranking)} "
        f"Known: {', '.join(ranking)}."
    )


class ValueMetrics:
    """The metrics of predicted ratings that a configuration asks for.

    Args:
        config: read for ``metrics``, ``valid_metric`` and ``metric_decimal_place``, and by metrics.

    Attributes:
        names: lower case as in RecBole, in the configuration's order.

    Raises:
        CDRError: a metric is none of ratings, or ``valid_metric`` is not among them.
    """

    def __init__(self, config: Settings):
        self._decimals = int(config["metric_decimal_place"])
        self._metrics = {name.lower(): _rating_metric(name, config) for name in listed(config["metrics"])}
        self.names = list(self._metrics)
        self.valid_metric = config["valid_metric"].lower()
        if self.valid_metric not in self.names:
            raise CDRError(
                f"valid_metric '{config['valid_metric']}' is not among the metrics ({', '.join(self.names)})."
            )

    def mean(self, predicted: np.ndarray, rating: np.ndarray) -> dict[str, Any]:
        """Returns ``{"n": …, "mae": …, "rmse": …}`` of (n,) predictions; None where there is none."""
        if not len(rating):
            return {"n": 0, **dict.fromkeys(self.names)}
        figures = {name: metric.value(predicted, rating) for name, metric in self._metrics.items()}
        # Rounded as RecBole rounds it: numpy's numbers and Python's do it differently.
        return {
            "n": len(rating),
            **{name: float(round(figure, self._decimals)) for name, figure in figures.items()},
        }


def _rating_metric(name: str, config: Settings) -> ValueMetric:
    """Returns a metric of ratings.

    Raises:
        CDRError: there is none of that name, or it is of something else.
    """
    metric = metric_registry.get_metric(name)(config)
    if isinstance(metric, ValueMetric):
        return metric
    ratings = [info.name.lower() for info in metric_registry.list_metrics() if info.task == "rating"]
    raise CDRError(
        f"metric '{name.lower()}' is none of ratings.{did_you_mean(name.lower(), ratings)} "
        f"Known: {', '.join(ratings)}."
    )
