"""What a phase is trained with: its settings, what learns in it, and the optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.model.phase import Phase
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.settings.config import CDRConfig

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
PHASE_SETTINGS = (
    "epochs", "learning_rate", "weight_decay", "learner", "stopping_step", "eval_step", "sharpness", "rho",
    "rho_scope", "rho_relative", "pgd_steps", "pgd_step_size", "weight_averaging",
)  # fmt: skip


def settings_of(phase: Phase, config: CDRConfig) -> dict[str, Any]:
    """Returns all settings of a phase: its own, else the configuration's.

    Raises:
        CDRError: it sets what no phase has.
    """
    overrides = dict(phase.settings)
    unknown = next((key for key in overrides if key not in PHASE_SETTINGS), None)
    if unknown:
        raise CDRError(
            f"phase '{phase.name}' sets '{unknown}', which no phase has.{did_you_mean(unknown, PHASE_SETTINGS)}"
        )
    return {key: overrides.get(key, config[key]) for key in PHASE_SETTINGS}


def learning_parameters(phase: Phase, model: CrossDomainRecommender) -> list[nn.Parameter]:
    """Returns the parameters that learn in a phase.

    Raises:
        CDRError: there are none.
    """
    # A parameter that the model keeps fixed (pre-trained vectors, say) stays so in every phase.
    learning = [p for _, p in model.parameters_of(phase) if p.requires_grad]
    if not learning:
        raise CDRError(
            f"phase '{phase.name}' of {type(model).__name__} has nothing that learns: no "
            f"parameter's name begins with one of {phase.parameters}."
        )
    return learning


@contextmanager
def frozen_but(model: nn.Module, learning: Sequence[nn.Parameter]) -> Iterator[None]:
    """Freezes every parameter but those in ``learning``, and thaws them afterwards."""
    learns = {id(p) for p in learning}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in learns]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def check_learner(learner: str) -> None:
    """Raises a CDRError for a learner that RecBole does not know."""
    if learner not in LEARNERS:
        raise CDRError(f"unknown learner '{learner}'.{did_you_mean(learner, LEARNERS)} Known: {LEARNERS}.")


def fused(
    learner: str, parameters: list[nn.Parameter], rate: float, decay: float
) -> torch.optim.Optimizer | None:
    """Returns Adam or AdamW in torch's fused form; None where there is none.

    The fused step is one pass over the parameters: six times as fast on embedding tables on a CPU, with and without
    weight decay.
    """
    if learner not in ("adam", "adamw") or not all(p.is_floating_point() for p in parameters):
        return None
    kind = torch.optim.Adam if learner == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, fused=True)
