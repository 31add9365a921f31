"""What a model of the zoo is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Phase:
    """One stretch of training: what is trained, on what, and when it ends. A model's phases run in order, and each
    starts from the *best* weights of the one before, with a fresh optimiser.

    Attributes:
        name: shown in the log, in TensorBoard and in checkpoints.
        loss: name of the model's method that turns a batch into a loss.
        batches: None for the split's training instances, else the name of a model method
            ``(rng: numpy.random.Generator) -> iterable of batches`` that is called once an epoch.
        parameters: prefixes of the names of the parameters that learn; empty: all.
        validate: None for ``valid_metric`` on the split's validation part (its mean over the domains), the name of
            a model method ``() -> float`` (better in the direction of ``valid_metric``), or "" for no validation: the
            last epoch is kept.
        rows: name of the method that gives the (B, d) rows of a batch that ``sharpness: pgd`` moves; ``loss`` then
            takes moved rows as its second argument. Empty: there are none.
        row_gradient: name of a method ``(batch, rows) -> (B, d)`` that gives the gradient of ``loss`` with respect to
            moved rows, up to a positive factor per row, faster than autograd does. Empty: autograd.
        settings: overrides of ``epochs``, ``learning_rate``, ``weight_decay``, ``learner``, ``stopping_step``,
            ``eval_step``, ``weight_averaging`` and the settings of sharpness for this phase; what is not named comes
            from the configuration.
    """

    name: str = "train"
    loss: str = "calculate_loss"
    batches: str | None = None
    parameters: tuple[str, ...] = ()
    validate: str | None = None
    rows: str = ""
    row_gradient: str = ""
    settings: tuple[tuple[str, Any], ...] = ()


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
