"""What a phase is optimised with: its settings, the weights that learn, the optimiser, clipping, averaging."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.clip_grad import clip_grad_norm_

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.registry.metrics import get_metric
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


def check_direction(phases: Iterable[Phase], config: CDRConfig) -> None:
    """Refuses a ``valid_metric`` that would choose the worst epoch of a phase with a score of its own.

    Models that rank give scores of which larger is better, models of ratings errors; early stopping goes by the
    direction of ``valid_metric``, which a metric of lists or of another package may have the other way round.

    Raises:
        CDRError: it does.
    """
    scored_phase = next((phase.name for phase in phases if phase.validate), None)
    if scored_phase is None:
        return
    larger = get_metric(config["valid_metric"].partition("@")[0]).needs != "value"
    if bool(config["valid_metric_bigger"]) != larger:
        raise CDRError(
            f"{config['model']} chooses the epoch of its phase '{scored_phase}' by a score of its own, of which "
            f"{'larger' if larger else 'smaller'} is better, and of valid_metric={config['valid_metric']} it is the "
            f"other way round. Choose another valid_metric, such as {'NDCG@k' if larger else 'MAE'}."
        )


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0) -> None:
    """Scales all gradients so that their common norm is at most ``max_norm``, as torch's ``clip_grad_norm_``.

    torch refuses sparse gradients; the norm of one is that of its rows, each counted once.
    """
    learned = list(parameters)
    values, some_sparse = [], False
    for parameter in learned:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            parameter.grad, some_sparse = gradient, True
            gradient = gradient._values()
        values.append(gradient)
    if not some_sparse:
        clip_grad_norm_(learned, max_norm, norm_type)
        return
    norms = torch.stack([torch.linalg.vector_norm(value, norm_type) for value in values])
    scale = (max_norm / (torch.linalg.vector_norm(norms, norm_type) + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale)


class WeightAverage:
    """Exponential moving average of parameters (Polyak and Juditsky, 1992): a ← decay · a + (1 - decay) · w, per step.

    The first steps count more, as they would in a plain mean: step t has the decay (1 + t) / (10 + t) until that
    exceeds ``decay``.

    Args:
        parameters: those that learn.
        decay: in (0, 1); the average is over about 1 / (1 - decay) steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self.decay, self.steps = decay, 0
        self._parameters = list(parameters)
        self._average = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights in as they are after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(parameter, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average in the weights' place for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for i, parameter in enumerate(self._parameters):
            parameter.data, self._average[i] = self._average[i], parameter.data

    def state(self) -> dict[str, torch.Tensor]:
        """Returns what a checkpoint keeps."""
        return {"steps": torch.tensor(self.steps), **{str(i): a for i, a in enumerate(self._average)}}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what :meth:`state` gave.

        Raises:
            KeyError: it is of fewer parameters.
        """
        self.steps = int(state["steps"])
        self._average = [state[str(i)].clone() for i in range(len(self._parameters))]


def check_weights(model: torch.nn.Module, where: str, last: str) -> None:
    """Raises a CDRError if a parameter that learns is not finite.

    Args:
        where: the epoch that ended, in words.
        last: what is left to go on from, in words.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise CDRError(f"Parameter '{name}' is not finite at the end of training {where}. {last}")
