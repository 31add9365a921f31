"""The metrics of predicted ratings that a configuration asks for."""

from __future__ import annotations

from typing import Any

import numpy as np

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.evaluation.metric import Settings, ValueMetric, listed
from recbole_cdr_ext.registry import metrics as metric_registry


class ValueMetrics:
    """The metrics that a configuration asks for.

    Args:
        config: read for ``metrics``, ``valid_metric`` and ``metric_decimal_place``, and by metrics.

    Attributes:
        names: lower case as in RecBole, in the configuration's order.

    Raises:
        CDRError: a metric is none of ratings, or ``valid_metric`` is not among them.
    """

    def __init__(self, config: Settings):
        self._decimals = int(config["metric_decimal_place"])
        self._metrics = {name.lower(): _metric(name, config) for name in listed(config["metrics"])}
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


def _metric(name: str, config: Settings) -> ValueMetric:
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
