"""RecBole's general models as baselines: they know users by their id, and learn from events or from users."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
import torch
from recbole.data.dataloader import UserDataLoader
from recbole.data.interaction import Interaction
from recbole.data.utils import get_dataloader
from recbole.model.abstract_recommender import AbstractRecommender, AutoEncoderMixin
from recbole.utils import InputType
from torch import nn

from recbole_cdr_ext.baselines.baseline import RecBoleBaseline, pairs
from recbole_cdr_ext.baselines.view import BaselineSettings
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.data.sequences import EpochBatches
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Loss, Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import Split, TrainingData


class UserBaseline(RecBoleBaseline):
    """General models, which know users by their id: BPR, LightGCN, NeuMF, ..."""

    known_users: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        known = torch.zeros(len(self.views), self.n_users, dtype=torch.bool)
        for index, view in enumerate(self.views):
            known[index, view.users()] = True
        self.register_buffer("known_users", known, persistent=False)
        self.on_users = _loads_users(self.recbole_class)
        self.n_negatives = 0 if self.on_users else _uniform_negatives(self.settings, self.recbole_class)

    def phases(self) -> list[Phase]:
        """Returns one phase over training events, or over users for the models that RecBole feeds with users."""
        if not any(p.numel() > 1 for p in self.wrapped.parameters()):
            return []  # A single number is what RecBole gives models without any, for the optimiser's sake.
        return [Phase(batches=self.user_batches if self.on_users else self.event_batches)]

    def calculate_loss(self, interaction: Batch) -> Loss:
        """As in the base class, always in single precision: sparse products know no other on a CPU."""
        with torch.autocast(interaction.users.device.type, enabled=False):
            return super().calculate_loss(interaction)

    def event_batches(self, rng: np.random.Generator) -> EpochBatches:
        """Returns the training events in batches of one space each, in random order, with exact negatives.

        As in RecBole, ``train_batch_size`` counts rows after each positive was repeated for its negatives. A
        negative comes from the domain of its positive, whatever the scope.
        """
        rows = self.n_negatives + (0 if self.recbole_class.input_type == InputType.PAIRWISE else 1)
        size = max(1, int(self.config["train_batch_size"]) // rows)
        parts = shuffled_parts([len(view) for view in self.views], size, rng)
        return EpochBatches(parts, lambda index, rows: self._event_batch(index, rows, rng))

    def user_batches(self, rng: np.random.Generator) -> EpochBatches:
        """Returns the users with events in a space, in random order; ``train_batch_size`` counts users."""
        users = [view.users() for view in self.views]
        parts = shuffled_parts([len(u) for u in users], int(self.config["train_batch_size"]), rng)
        return EpochBatches(parts, lambda index, rows: self._batch(index, {"user_id": users[index][rows]}))

    def _event_batch(self, index: int, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        view, space = self.views[index], self.spaces[index]
        user = view.inter_feat[self.user_field].numpy()[rows]
        fields = {
            "user_id": user,
            "item_id": view.inter_feat[self.item_field].numpy()[rows] + space.first - 1,
        }
        if self.n_negatives:
            negatives = np.empty((len(rows), self.n_negatives), np.int64)
            for k in space.domains:
                of_domain = view.domain[rows] == k
                if of_domain.any():
                    negatives[of_domain] = self.sampler.negatives(user[of_domain], k, self.n_negatives, rng)
            fields["neg_item_id"] = negatives
        return self._batch(index, fields)

    def _batch(self, index: int, fields: dict[str, np.ndarray]) -> Batch:
        tensors = {name: torch.from_numpy(array) for name, array in fields.items()}
        return Batch(tensors, self.spaces[index].domains[0], self.n_domains)

    def training_fields(self, batch: Batch, index: int) -> Interaction:
        """Returns users, positives and negatives, pair by pair or with labels, as the model's input type asks."""
        space, users = self.spaces[index], batch.users
        if self.on_users:
            return Interaction({self.user_field: users})
        positives = space.local(batch.targets)
        if not self.n_negatives:
            label = torch.ones(len(users), device=users.device)
            return self.add_users(batch, {self.item_field: positives, self.settings["LABEL_FIELD"]: label})
        negatives = space.local(batch.negatives)  # (B, n)
        if self.recbole_class.input_type == InputType.PAIRWISE:
            return pairs({self.user_field: users, self.item_field: positives}, self.neg_field, negatives)
        n = self.n_negatives
        label = torch.zeros(len(users) * (n + 1), device=users.device)
        label[: len(users)] = 1.0
        return Interaction(
            {
                self.user_field: users.repeat(n + 1),
                self.item_field: torch.cat([positives, negatives.T.reshape(-1)]),
                self.settings["LABEL_FIELD"]: label,
            }
        )

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Users with training events in the scope."""
        return self.known_users[self.space_index(batch.target_domain), batch.users]


def _loads_users(recbole_class: type[AbstractRecommender]) -> bool:
    """Whether RecBole trains the model on users rather than on interactions."""
    if issubclass(recbole_class, AutoEncoderMixin):
        return True
    loader = get_dataloader({"model": recbole_class.__name__, "MODEL_TYPE": recbole_class.type}, "train")
    return loader is UserDataLoader


def _uniform_negatives(settings: BaselineSettings, recbole_class: type[AbstractRecommender]) -> int:
    """Returns the number of negatives per positive that ``train_neg_sample_args`` asks for.

    Raises:
        CDRError: it asks for what is not served, or for none where the model compares pairs.
    """
    sampling: dict[str, Any] = settings["train_neg_sample_args"] or {"distribution": "none"}
    distribution, name = sampling.get("distribution", "uniform"), recbole_class.__name__
    if distribution in ("none", None):
        if recbole_class.input_type == InputType.PAIRWISE:
            raise CDRError(
                f"{name} compares each item with a negative one: train_neg_sample_args must not be empty."
            )
        return 0
    if distribution != "uniform" or sampling.get("dynamic"):
        raise CDRError(
            f"train_neg_sample_args {sampling}: only uniform negatives (distribution: uniform, dynamic: False) are "
            "drawn."
        )
    return int(sampling.get("sample_num", 1))


def shuffled_parts(sizes: list[int], size: int, rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    """Returns (space, rows) of all spaces' rows, shuffled and cut to ``size``, the parts in random order."""
    parts = []
    for index, n_rows in enumerate(sizes):
        order = rng.permutation(n_rows)
        parts += [(index, order[first : first + size]) for first in range(0, n_rows, size)]
    return [parts[place] for place in rng.permutation(len(parts))]


# -- models whose scores are a plain dot product: only the candidates are scored --------------------------------------


class FactorModel(Protocol):
    """What BPR and LightGCN have beside RecBole's interface."""

    user_embedding: nn.Embedding
    item_embedding: nn.Embedding


class GraphModel(Protocol):
    """What LightGCN has beside it: the convolved vectors, and where it keeps them."""

    restore_user_e: torch.Tensor | None
    restore_item_e: torch.Tensor | None

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the convolved vectors of all users and items."""


class FactorBaseline(UserBaseline):
    """BPR: a user's vector times an item's."""

    score = CrossDomainRecommender.score

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns the users' vectors, (B, d)."""
        return self.tables(self.space_index(batch.target_domain))[0][batch.users]

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns the domain's item vectors, (n_k, d)."""
        index = self.space_index(domain)
        return self.tables(index)[1][self.spaces[index].columns(self.item_slice(domain))]

    def tables(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the vectors of all users and of all items of RecBole model ``index``."""
        model = cast(FactorModel, self.wrapped[index])
        return model.user_embedding.weight, model.item_embedding.weight


class GraphBaseline(FactorBaseline):
    """LightGCN: the same with vectors that are convolved over the whole graph, once per evaluation."""

    def tables(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the convolved vectors, kept until the mode is set again unless a gradient is to flow through them."""
        model = cast(GraphModel, self.wrapped[index])
        if torch.is_grad_enabled():
            return model.forward()
        if model.restore_user_e is None or model.restore_item_e is None:
            model.restore_user_e, model.restore_item_e = model.forward()
        return model.restore_user_e, model.restore_item_e
