"""What a model of the zoo is: what it gives, its phases, and the models that run before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import InputType, ModelType

from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.losses import sampled_softmax_loss_of_several, softmax_loss_of_several
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import SettingsClass
from recbole_cdr_ext.splits.split import AnySplit, TrainingData

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


# What a model is trained and asked with: a Batch of instances, or a RatingBatch.
AnyBatch = TypeVar("AnyBatch")
# Wraps an iterable of blocks of work (a progress bar).
Progress = Callable[[Iterable[Any]], Iterable[Any]]


class CrossDomainRecommender(AbstractRecommender, Generic[AnyBatch, AnySplit]):
    """Base of all models: RecBole's recommender over a list of domains.

    A model gives :meth:`calculate_loss`, :meth:`encode` and :meth:`item_vectors`; scores of candidates, full ranking
    and top-k follow. A model that is no dot product overrides :meth:`score` instead of the last two.

    The constructor takes the configuration and a :class:`TrainingData`, which is where RecBole's models have a dataset.

    Class attributes say what a model can do, and are shown by ``recbole-cdr models`` and tested:
        task: "next_item" or "rating".
        cold_start: whether it serves users without a history in the target's domain by what they did in others, or
            treats all users alike.
        needs_overlap: whether training needs users with a history in several domains.
        domains: how many domains it takes, in words ("any number", "two", "one").
        paper: where it was published.
        settings_class: the class that declares its settings; None: it has none of its own.
        needs_negatives, needs_merged, needs_pseudo: what its batches hold (see :class:`Batch`).
    """

    type = ModelType.GENERAL
    input_type = InputType.POINTWISE

    task: ClassVar[str] = "next_item"
    cold_start: ClassVar[bool] = False
    needs_overlap: ClassVar[bool] = False
    domains: ClassVar[str] = "any number"
    paper: ClassVar[str] = ""
    settings_class: ClassVar[SettingsClass | None] = None

    needs_negatives: bool = False
    needs_merged: bool = False
    needs_pseudo: bool = False

    def __init__(self, config: CDRConfig, data: TrainingData[AnySplit]):
        super().__init__()
        self.config = config
        self.device = config["device"]
        self.domain_names = list(data.domains)
        self.n_domains = data.n_domains
        self.n_users = data.user_num
        self.n_items = data.item_num
        # Domain k owns the global item ids offsets[k] .. offsets[k+1]-1; id 0 is padding and belongs to none.
        self.item_offsets = [int(x) for x in data.item_offset]
        self.max_history_length = int(config["max_history_length"])

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """Raises a CDRError for settings that contradict each other or that the model does not know."""

    @classmethod
    def stages(cls, config: CDRConfig) -> list[Stage]:
        """Returns the models that must run first."""
        return []

    @classmethod
    def learns_from(cls, config: CDRConfig, split: AnySplit) -> str:
        """As a stage: a hash of the data that decide what it learns; all of the split's by default."""
        return split.fingerprint

    def augment(self, split: AnySplit, progress: Progress | None = None) -> AnySplit:
        """As a stage: returns the split with what the trained model adds to it."""
        raise NotImplementedError(f"{type(self).__name__} is no stage")

    @classmethod
    def prepare_data(cls, config: CDRConfig, dataset: CrossDomainDataset, split: AnySplit) -> AnySplit:
        """Returns the split with whatever the model needs added to its instances (pseudo-sequences, say)."""
        return split

    def phases(self) -> list[Phase]:
        """Returns the model's training, in order. No phase: the model is complete once built."""
        return [Phase()]

    def item_slice(self, domain: int) -> slice:
        """Returns the rows that belong to ``domain`` in a table indexed by global item id."""
        return slice(self.item_offsets[domain], self.item_offsets[domain + 1])

    def calculate_loss(self, interaction: AnyBatch) -> Loss:
        """Returns the loss of a batch, a scalar, or a tuple of terms whose sum is minimised and each logged."""
        raise NotImplementedError(f"{type(self).__name__}.calculate_loss")

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns one vector per instance, (B, d); targets and negatives of the batch must not be looked at."""
        raise NotImplementedError(f"{type(self).__name__}.encode (or override score)")

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns the vectors of a domain's items, (n_k, d), in the order of their ids."""
        raise NotImplementedError(f"{type(self).__name__}.item_vectors (or override score)")

    def softmax_loss_in(self, domain: int, vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the mean of −log softmax at the targets, a scalar, by ``item_vectors``.

        The softmax is over the domain's items, or, with ``softmax_negatives`` above 0, over the target and that many
        items that all rows of the batch share, drawn uniformly: with tens of thousands of items, that is most of a
        training step on a processor.

        Args:
            vectors: (N, d), N ≥ 1.
            targets: (N,) or (N, k) global ids of the domain, 0 where a row has fewer, but never in the first column;
                a row's loss is the mean over its targets.
        """
        items = self.item_vectors(domain)
        local = (targets - self.item_offsets[domain]).clamp_(min=-1).view(len(targets), -1)
        drawn = int(self.config["softmax_negatives"] or 0)
        if drawn:
            return sampled_softmax_loss_of_several(vectors, items, local, drawn)
        return softmax_loss_of_several(vectors, items, local)

    def score(self, batch: Batch, candidates: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the scores of candidates.

        Args:
            batch: B instances.
            candidates: (B, C) global ids of the target's domain, 0 where a row has fewer (its score is ignored);
                None: all items of the domain, in the order of their ids.

        Returns:
            (B, C) scores; only their order within a row matters.
        """
        vectors, items = self.encode(batch), self.item_vectors(batch.target_domain)
        if candidates is None:
            return vectors @ items.T
        local = (candidates - self.item_offsets[batch.target_domain]).clamp_(min=0)
        return gathered_product(vectors, items, local)

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Returns which of the instances the model can score, (B,) bool, or None for all of them.

        The others are ranked by popularity in training, and the results say so.
        """
        return None

    def predict(self, interaction: AnyBatch) -> torch.Tensor:
        """RecBole's interface: the scores of the batch's own items, (B,)."""
        batch = cast(Batch, interaction)  # models of ratings have a method of their own
        return self.score(batch, batch.targets.unsqueeze(1)).squeeze(1)

    def full_sort_predict(self, interaction: Batch) -> torch.Tensor:
        """RecBole's interface: the scores of all items of the target's domain, (B, n_k)."""
        return self.score(interaction)

    def fit_closed_form(self, split: AnySplit) -> None:
        """Is called once before the first phase with the training data; models without gradients learn here."""

    def facts(self, batch: AnyBatch) -> dict[str, str]:
        """Returns what a report on a loss that is not finite should say of the model."""
        return {}

    def start_epoch(self, phase: Phase, epoch: int) -> None:
        """Is called before each epoch; nothing by default."""

    def epoch_facts(self) -> dict[str, float]:
        """Returns what the model measured in an epoch of training: for the log, TensorBoard, and the result."""
        return {}

    def parameters_of(self, phase: Phase) -> Iterable[tuple[str, torch.nn.Parameter]]:
        """Returns the named parameters that learn in ``phase``."""
        for name, parameter in self.named_parameters():
            if not phase.parameters or name.startswith(phase.parameters):
                yield name, parameter


def gathered_product(vectors: torch.Tensor, items: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Returns ⟨vectors_b, items[candidates_bc]⟩, (B, C).

    Below some tens of thousands of items one dense product and a gather is faster than gathering (B, C, d) vectors;
    above, the dense product's work on items that nobody asked for costs more than the gather's memory traffic.
    """
    n_items, (batch, width) = len(items), candidates.shape
    if n_items <= 64 * width:
        return (vectors @ items.T).gather(1, candidates)
    out = vectors.new_empty(batch, width)
    for row in range(0, batch, 32):
        part = candidates[row : row + 32]
        out[row : row + 32] = torch.bmm(items[part], vectors[row : row + 32].unsqueeze(2)).squeeze(2)
    return out
