"""RecBole's metrics of predicted values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metrics_dict

from recbole_cdr_ext import compat
from recbole_cdr_ext.errors import CDRError, did_you_mean

compat.apply()

# RecBole's other metrics of values (AUC, LogLoss) are for clicks.
VALUE_METRICS = ("mae", "rmse")


class ValueMetrics:
    """The metrics that a configuration asks for.

    Args:
        config: read for ``metrics``, ``valid_metric`` and ``metric_decimal_place``.

    Attributes:
        names: lower case as in RecBole, in the configuration's order.

    Raises:
        CDRError: a metric is none of ratings, or ``valid_metric`` is not among them.
    """

    def __init__(self, config):
        asked = config["metrics"]
        self.names = [name.lower() for name in (asked if isinstance(asked, list | tuple) else [asked])]
        unknown = next((name for name in self.names if name not in VALUE_METRICS), None)
        if unknown:
            raise CDRError(
                f"metric '{unknown}' is none of ratings.{did_you_mean(unknown, VALUE_METRICS)} "
                f"Known: {', '.join(VALUE_METRICS)}."
            )
        self.valid_metric = config["valid_metric"].lower()
        if self.valid_metric not in self.names:
            raise CDRError(
                f"valid_metric '{config['valid_metric']}' is not among the metrics ({', '.join(self.names)})."
            )
        settings = {"metric_decimal_place": int(config["metric_decimal_place"])}
        self._metrics = [metrics_dict[name](settings) for name in self.names]

    def mean(self, predicted: np.ndarray, rating: np.ndarray) -> dict[str, Any]:
        """Returns ``{"n": …, "mae": …, "rmse": …}`` of (n,) predictions; None where there is none."""
        if not len(rating):
            return {"n": 0, **dict.fromkeys(self.names)}
        struct = DataStruct()
        struct.set("rec.score", torch.from_numpy(np.asarray(predicted, np.float64)))
        struct.set("data.label", torch.from_numpy(np.asarray(rating, np.float64)))
        values = [metric.calculate_metric(struct) for metric in self._metrics]
        return {"n": len(rating), **{k: float(v) for value in values for k, v in value.items()}}
