"""What a model's training consists of: its phases, and the models that run before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from recbole_cdr_ext.errors import CDRError

# A scalar, or several whose sum is minimised; the fields of a named tuple are logged under their names.
Loss = torch.Tensor | tuple[torch.Tensor, ...]
PhaseBatch = TypeVar("PhaseBatch")

FUNCTIONS = ("loss", "batches", "validate", "rows", "row_gradient")


@dataclass(frozen=True)
class Phase(Generic[PhaseBatch]):
    """One stretch of training: what is trained, on what, and when it ends.

    A model's phases run in order, and each starts from the *best* weights of the one before, with a fresh optimiser.
    Functions are usually methods of the model: ``Phase(batches=self.pairs, loss=self.pair_loss)``.

    Attributes:
        name: shown in the log, in TensorBoard and in checkpoints.
        loss: turns a batch into a loss; None: the model's ``calculate_loss``.
        batches: gives an epoch's batches from a generator of random numbers; called once an epoch. None: the split's
            training instances.
        parameters: prefixes of the names of the parameters that learn; empty: all.
        validate: gives a score of the model's own, better in the direction of ``valid_metric``; None: ``valid_metric``
            on the split's validation part (its mean over the domains).
        validated: whether the epoch is chosen by a score at all; False: the last epoch is kept.
        rows: gives the (B, d) rows of a batch that ``sharpness: pgd`` moves; ``loss`` then takes moved rows as its
            second argument. None: there are none.
        row_gradient: gives, for a batch and moved rows, the gradient of ``loss`` with respect to the rows, (B, d), up
            to a positive factor per row, faster than autograd does. None: autograd.
        settings: overrides of ``epochs``, ``learning_rate``, ``weight_decay``, ``learner``, ``stopping_step``,
            ``eval_step``, ``weight_averaging`` and the settings of sharpness for this phase; what is not named comes
            from the configuration.

    Raises:
        CDRError: the name of a function stands where the function itself is wanted.
    """

    name: str = "train"
    loss: Callable[[PhaseBatch], Loss] | None = None
    batches: Callable[[np.random.Generator], Iterable[PhaseBatch]] | None = None
    parameters: tuple[str, ...] = ()
    validate: Callable[[], float] | None = None
    validated: bool = True
    rows: Callable[[PhaseBatch], torch.Tensor] | None = None
    row_gradient: Callable[[PhaseBatch, torch.Tensor], torch.Tensor] | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for field in FUNCTIONS:
            value = getattr(self, field)
            if value is not None and not callable(value):
                advice = (
                    f"write {field}=self.{value}"
                    if isinstance(value, str) and value
                    else f"leave {field} out"
                )
                if field == "validate" and value in ("", False):
                    advice = "write validated=False"
                raise CDRError(
                    f"phase '{self.name}' has {field}={value!r}, and should have a function: {advice}."
                )

    @property
    def ranks_to_validate(self) -> bool:
        """Whether the epoch is chosen by ``valid_metric`` on the split's validation part."""
        return self.validated and self.validate is None


@dataclass(frozen=True)
class Stage:
    """Another model that runs before this one and enriches its data (see ``CrossDomainRecommender.augment``).

    What a stage makes depends on the data it learns from, its settings and one seed alone, so it is made once and
    cached.

    Attributes:
        model: its name in the registry.
        settings: overrides of that model's property file.
        seed_key: the setting that is its seed: ``psg_seed``, which runs with different seeds share, or ``seed``.
    """

    model: str
    settings: dict[str, Any]
    seed_key: str = "psg_seed"
