"""Bridges: models that map a cold-start user's source vector into the target domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from logging import getLogger
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import mapping
from recbole_cdr_ext.model.rating_recommender import (
    SPARSE_LEARNERS,
    RatingBatch,
    RatingRecommender,
    Shuffled,
    Tables,
    whole_batch,
)
from recbole_cdr_ext.model.recommender import Loss, Phase, Stage
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import RatingSplit, TrainingData

MappedBatch = TypeVar("MappedBatch", bound=RatingBatch)

# Item vectors of a smaller median length (a healthy one is about 0.3) say nothing.
COLLAPSED = 0.1

# What the vectors of both domains are learned with; equal settings share one stage in the cache.
PRETRAIN_KEYS = (
    "biases", "backbone", "embedding_size", "n_layers", "edge_weight", "init_std", "pretrain_learning_rate",
    "pretrain_learner", "pretrain_reduction", "pretrain_reg_weight", "pretrain_batch_size", "pretrain_epochs",
    "pretrain_stopping_step", "pretrain_valid_ratio", "pretrain_sharpness", "rho_pretrain", "pretrain_pgd_steps",
    "rho_scope", "rho_relative", "pgd_step_size", "valid_metric",
)  # fmt: skip


def pretraining(config: CDRConfig, **changes: Any) -> list[Stage]:
    """Returns the two stages that learn the vectors and biases of source and target."""
    settings = {key: config[key] for key in PRETRAIN_KEYS} | changes
    if settings["valid_metric"].lower() not in ("mae", "rmse"):  # between which the stages' own error chooses
        settings["valid_metric"] = "MAE"
    # What decides nothing would only keep models from sharing their vectors.
    if settings["pretrain_sharpness"] == "none":
        for key in ("rho_pretrain", "pretrain_pgd_steps", "rho_scope", "rho_relative", "pgd_step_size"):
            del settings[key]
    if settings["backbone"] == "MF":
        del settings["n_layers"], settings["edge_weight"]
    return [
        Stage("TGT", {**settings, "factorized": which}, seed_key="seed") for which in ("source", "target")
    ]


class Bridge(RatingRecommender):
    """Base of the models that map source vectors: r̂ = μ + b_i + b̂_u + ⟨f(u^s), v^t⟩ (without biases the product).

    Vectors come from :func:`pretraining`. The mapping f is an MLP d → ``mapping_hidden_size`` → d with tanh on the
    hidden layer, trained on the rows of D^o with the squared error of the rating; the target's tables stay as they
    are. A model changes :meth:`bridged` or :meth:`phases`.

    The bias of a cold-start user is b̂_u = a b_u^s + c, fitted in closed form and then fixed (``bias_map``).
    """

    needs_overlap = True
    # Whether the overlapping users' source vectors learn with the mapping.
    learns_source_users = False

    source_items: torch.Tensor
    target_users: torch.Tensor
    target_items: torch.Tensor
    target_item_bias: torch.Tensor
    mapped_bias: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        super().__init__(config, data)
        split = data.split
        source, target = split.tables[self.source], split.tables[self.target]
        self.size = source.user.shape[1]
        sparse = config["learner"] in SPARSE_LEARNERS
        self.source_users = nn.Embedding.from_pretrained(source.user.clone(), freeze=True, sparse=sparse)
        if self.learns_source_users and self.size:
            self.source_users.weight.requires_grad_(True)
        self.register_buffer("source_items", source.item)
        self.register_buffer("target_users", target.user)
        self.register_buffer("target_items", target.item)
        self.register_buffer("target_item_bias", target.item_bias)
        self.register_buffer("mapped_bias", self._mapped_bias(split, source, target))
        self._warn_of_collapse(split, {self.source: source, self.target: target})
        self.mapping = self.make_mapping()
        self._parts: tuple[RatingBatch, tuple[int, ...], torch.Tensor, torch.Tensor] | None = None
        self._shared = whole_batch(split.shared_ratings(), int(data.item_offset[self.target]), self.target)
        self._overlapping = torch.from_numpy(split.overlapping)
        self._batch_size = int(config["train_batch_size"])

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """As in the base class; checks what a mapping can be trained with."""
        super().check_settings(config)
        if config["learner"] == "sparse_adam":
            raise CDRError(
                "learner=sparse_adam trains no mapping, whose weights are dense: use sgd, adagrad or adam."
            )
        if config["weight_decay"]:
            raise CDRError(
                f"weight_decay={config['weight_decay']} has no effect on {cls.__name__}: set pretrain_reg_weight, the "
                "L2 penalty of the vectors per rating."
            )

    @classmethod
    def stages(cls, config: CDRConfig) -> list[Stage]:
        """Returns the vectors and biases of both domains."""
        return pretraining(config)

    def make_mapping(self) -> nn.Module:
        """Returns f: (B, d) → (B, d), Xavier-uniform weights and zero biases."""
        if not self.size:
            return nn.Identity()
        return mapping(self.size, self.target_items.shape[1], int(self.config["mapping_hidden_size"]))

    def _warn_of_collapse(self, split: RatingSplit, tables: dict[int, Tables]) -> None:
        """Says so if pre-training shrank a domain's items to nothing, as too large a radius does."""
        for domain, table in tables.items():
            known = torch.from_numpy(split.known_items(domain)).to(table.item.device)
            length = float(table.item[known].norm(dim=1).median()) if self.size else COLLAPSED
            if length < COLLAPSED:
                getLogger().warning(
                    f"The item vectors of '{self.domain_names[domain]}' have collapsed (median length {length:.3g}): "
                    "what they predict is hardly more than the biases. Lower rho_pretrain or pretrain_reg_weight, or "
                    "raise init_std."
                )

    def _mapped_bias(self, split: RatingSplit, source: Tables, target: Tables) -> torch.Tensor:
        """Returns a b_u^s + c for every user, (n_users,)."""
        if not self.has_biases:
            return torch.zeros(self.n_users)
        kind, rows = self.config["bias_map"], split.shared_ratings()
        if kind == "identity":
            return source.user_bias.clone()
        if kind == "biases":
            users = torch.from_numpy(split.overlapping)
            x, y = source.user_bias[users], target.user_bias[users]
        else:
            item = torch.from_numpy(rows.item - split.item_offset[split.target])
            x = source.user_bias[torch.from_numpy(rows.user)]
            y = torch.from_numpy(rows.rating) - target.mean - target.item_bias[item]
        slope, offset = least_squares(x, y)
        return slope * source.user_bias + offset

    # -- training ------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Returns one phase: the mapping on the rating loss. Without vectors (d = 0) there is nothing to map."""
        return [self.mapping_phase(self.calculate_loss, self.shared_batches)] if self.size else []

    def mapping_phase(
        self,
        loss: Callable[[MappedBatch], Loss],
        batches: Callable[[np.random.Generator], Iterable[MappedBatch]],
        *,
        name: str = "map",
        row_gradient: Callable[[MappedBatch, torch.Tensor], torch.Tensor] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Phase[MappedBatch]:
        """Returns the phase of the mapping, on batches whose users' source vectors sharpness moves."""
        return Phase(
            name,
            loss=loss,
            batches=batches,
            parameters=("mapping", "source_users"),
            rows=self.source_rows,
            row_gradient=row_gradient,
            settings=tuple({"weight_decay": 0.0, **(settings or {})}.items()),
        )

    def shared_batches(self, rng: np.random.Generator) -> Iterable[RatingBatch]:
        """Returns the target ratings of the overlapping training users (D^o), shuffled."""
        return Shuffled(self._shared, self._batch_size, rng)

    def calculate_loss(self, interaction: RatingBatch, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the squared error of a batch of D^o, at moved source vectors if they are given."""
        rows = self.source_rows(interaction) if rows is None else rows
        error = interaction.rating - self.rate_from(rows, interaction)
        return self.reduced(error.square())

    # -- predictions -----------------------------------------------------------------------------------------------

    def source_rows(self, batch: RatingBatch) -> torch.Tensor:
        """Returns the source vectors of a batch's users, (B, d): what sharpness and attacks move."""
        vectors: torch.Tensor = self.source_users(batch.user)
        return vectors

    def bridged(self, rows: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        """Returns the target vectors, (B, d), of users with the source vectors ``rows``."""
        vectors: torch.Tensor = self.mapping(rows)
        return vectors

    def base_rating(self, batch: RatingBatch) -> torch.Tensor:
        """Returns what is predicted without any vector: μ + b_i + b̂_u, (B,); zero without biases."""
        if not self.has_biases:
            return torch.zeros(len(batch), device=batch.user.device)
        return self.target_mean + self.target_item_bias[batch.item] + self.mapped_bias[batch.user]

    def rate_from(self, rows: torch.Tensor, batch: RatingBatch) -> torch.Tensor:
        """Returns the ratings, (B,), that users with the source vectors ``rows`` (B, d) would give."""
        if not self.size:
            return self.base_rating(batch)
        base, items = self.fixed_parts(batch)
        return base + (self.bridged(rows, batch.user) * items).sum(1)

    def fixed_parts(self, batch: RatingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns base rating (B,) and target vectors (B, d') of a batch, which sharpness asks for k + 1 times."""
        fixed = (self.target_items, self.target_item_bias, self.mapped_bias, self.target_mean)
        # torch counts the changes to a tensor: parts of tables that were changed since are not used.
        state = tuple(tensor._version for tensor in fixed)
        if self._parts is None or self._parts[0] is not batch or self._parts[1] != state:
            self._parts = (batch, state, self.base_rating(batch), self.target_items[batch.item])
        return self._parts[2], self._parts[3]

    def rate(self, batch: RatingBatch) -> torch.Tensor:
        """As in the base class."""
        return self.rate_from(self.source_rows(batch), batch)

    def cold_bias(self, user: torch.Tensor) -> torch.Tensor:
        """Returns the mapped biases."""
        return self.mapped_bias[user]


def least_squares(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Returns (a, c) of the line a x + c through (n,) points; a is 0 where x does not vary."""
    x, y = x.double(), y.double()
    dx = x - x.mean()
    variance = float(dx.square().sum())
    slope = float((dx * (y - y.mean())).sum()) / variance if variance > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())
