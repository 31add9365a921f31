"""An average of the weights over training: what is validated and kept, while training goes on with the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn


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
        """What a checkpoint keeps."""
        return {"steps": torch.tensor(self.steps), **{str(i): a for i, a in enumerate(self._average)}}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what :meth:`state` gave.

        Raises:
            KeyError: it is of fewer parameters.
        """
        self.steps = int(state["steps"])
        self._average = [state[str(i)].clone() for i in range(len(self._parameters))]
