"""Which way a phase's own score is better, against the metric that the run is chosen by."""

from __future__ import annotations

from collections.abc import Iterable

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.phase import Phase
from recbole_cdr_ext.registry.metrics import get_metric
from recbole_cdr_ext.settings.config import CDRConfig


def check_direction(phases: Iterable[Phase], config: CDRConfig) -> None:
    """Refuses a ``valid_metric`` that would choose the worst epoch of a phase with a score of its own.

    Models that rank give scores of which larger is better, models of ratings errors; early stopping goes by the
    direction of ``valid_metric``, which a metric of lists or of another package may have the other way round.

    Raises:
        CDRError: it does.
    """
    own = next((phase.name for phase in phases if phase.validate), None)
    if own is None:
        return
    larger = get_metric(config["valid_metric"].partition("@")[0]).needs != "value"
    if bool(config["valid_metric_bigger"]) != larger:
        raise CDRError(
            f"{config['model']} chooses the epoch of its phase '{own}' by a score of its own, of which "
            f"{'larger' if larger else 'smaller'} is better, and of valid_metric={config['valid_metric']} it is the "
            f"other way round. Choose another valid_metric, such as {'NDCG@k' if larger else 'MAE'}."
        )
