"""RecBole's own metrics, from ranks, per domain and user group."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metric_information, metrics_dict

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.errors import CDRError, did_you_mean

compat.apply()

Table = dict[str, dict[str, dict[str, Any]]]

RANK_METRICS = sorted(name for name, needs in metric_information.items() if needs == ["rec.topk"])


def topk_struct(rank: np.ndarray, width: int) -> DataStruct:
    """What RecBole's ranking metrics read: the top ``width`` of each list as hit or miss, from (n,) ranks.

    There is one relevant item, the target, per list.
    """
    hits = rank[:, None] == np.arange(1, width + 1)
    struct = DataStruct()
    struct.set("rec.topk", torch.from_numpy(np.column_stack([hits, np.ones(len(rank))]).astype(np.int32)))
    return struct


class RankingMetrics:
    """The metrics that a configuration asks for.

    With one relevant item per list a metric is a function of its rank, and all ranks behind the longest
    cut-off are one; so RecBole's classes compute each metric once per rank, and instances look theirs up.

    Args:
        config: read for ``metrics``, ``topk``, ``valid_metric`` and ``metric_decimal_place``.

    Attributes:
        names: "ndcg@10" and the like, lower case as in RecBole, in the configuration's order.

    Raises:
        CDRError: a metric is unknown, needs more than the ranks, or ``valid_metric`` is not among them.
    """

    def __init__(self, config):
        metrics = _listed(config["metrics"])
        self.topk = [int(k) for k in _listed(config["topk"])]
        self._decimals = int(config["metric_decimal_place"])
        settings = {"topk": self.topk, "metric_decimal_place": self._decimals}
        width = max(self.topk)
        struct = topk_struct(np.arange(1, width + 2), width)
        self._value: dict[str, np.ndarray] = {}
        for metric in metrics:
            name = metric.lower()
            if name not in RANK_METRICS:
                known = f"Known: {', '.join(RANK_METRICS)}."
                reason = "needs more than the target's rank" if name in metrics_dict else "is unknown"
                raise CDRError(f"metric '{metric}' {reason}.{did_you_mean(name, RANK_METRICS)} {known}")
            recbole_metric = metrics_dict[name](settings)
            read = recbole_metric.used_info(struct)
            arguments = len(inspect.signature(recbole_metric.metric_info).parameters)
            values = recbole_metric.metric_info(*read[:arguments])
            for k in self.topk:
                self._value[f"{name}@{k}"] = np.asarray(values[:, k - 1], float)
        self.names = list(self._value)
        self.valid_metric = config["valid_metric"].lower()
        if self.valid_metric not in self.names:
            raise CDRError(
                f"valid_metric '{config['valid_metric']}' is not among the metrics "
                f"({', '.join(self.names)}): name it in metrics and topk."
            )

    def per_instance(self, rank: np.ndarray) -> dict[str, np.ndarray]:
        """Returns each metric's values for (n,) ranks, (n,) each."""
        return {name: value[np.minimum(rank, len(value)) - 1] for name, value in self._value.items()}

    def mean(self, rank: np.ndarray) -> dict[str, Any]:
        """Returns ``{"n": …, metric: mean}``; the means are None where there is no instance."""
        if not len(rank):
            return {"n": 0, **dict.fromkeys(self.names)}
        means = {name: round(float(x.mean()), self._decimals) for name, x in self.per_instance(rank).items()}
        return {"n": len(rank), **means}

    def table(
        self, instances: Instances, rank: np.ndarray, groups: Mapping[str, np.ndarray], domains: Sequence[str]
    ) -> Table:
        """Returns the metrics' means, ``{domain: {group: {"n": …, "ndcg@10": …, …}}}``.

        Args:
            rank: (n,) the targets' ranks.
            groups: (n,) masks by name.
            domains: the domains' names.
        """
        return {
            name: {group: self.mean(rank[mask & (instances.domain == k)]) for group, mask in groups.items()}
            for k, name in enumerate(domains)
        }


def mean_over_domains(table: Table, metric: str) -> float:
    """Returns the mean of a metric over the domains that have instances, NaN if none has.

    It is what models are chosen by: of the group "all", or of the only one there is.
    """
    widest = [next(iter(groups.values())) for groups in table.values()]
    cells = [cell[metric] for cell in widest if cell["n"]]
    return float(np.mean(cells)) if cells else float("nan")


def _listed(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]
