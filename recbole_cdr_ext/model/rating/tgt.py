"""Factorisation of one domain's ratings: the non-transfer baseline, and what bridges are built between."""

from __future__ import annotations

from collections.abc import Iterable
from logging import getLogger
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import nn

from recbole_cdr_ext.data.dataset import hash_arrays
from recbole_cdr_ext.model import backbones
from recbole_cdr_ext.model.rating_recommender import (
    SPARSE_LEARNERS,
    RatingBatch,
    RatingRecommender,
    Shuffled,
    Tables,
    whole_batch,
)
from recbole_cdr_ext.model.recommender import Phase, Progress
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import Settings
from recbole_cdr_ext.splits.split import RatingSplit, TrainingData

# What other models call the settings of their training: TGT's are those of all models' pre-training.
PRETRAINED = {
    "epochs": "pretrain_epochs",
    "stopping_step": "pretrain_stopping_step",
    "learning_rate": "pretrain_learning_rate",
    "learner": "pretrain_learner",
    "reduction": "pretrain_reduction",
    "train_batch_size": "pretrain_batch_size",
    "sharpness": "pretrain_sharpness",
    "rho": "rho_pretrain",
    "pgd_steps": "pretrain_pgd_steps",
    "weight_decay": "pretrain_reg_weight",
}


class FactorizationLoss(NamedTuple):
    """Squared error and L2 penalty of a batch."""

    error: torch.Tensor
    penalty: torch.Tensor


class _Parts(NamedTuple):
    """What a batch's loss is made of, whatever point the users' vectors are moved to.

    Attributes:
        batch: whose parts they are.
        state: what they were computed from (see ``TGT._state``).
        users, items: (B, D) vectors.
        base: μ + b_u + b_i, (B,).
        penalty: the L2 penalty, a scalar.
    """

    batch: RatingBatch
    state: tuple
    users: torch.Tensor
    items: torch.Tensor
    base: torch.Tensor
    penalty: torch.Tensor


class TGTSettings(Settings):
    """Matrix factorisation of one domain. Its training is what the settings pretrain_* and rho_pretrain say."""

    factorized: Literal["source", "target"] = Field(
        "target", description="target; source when it runs before a bridge."
    )
    cold_user: Literal["untrained", "mean"] = Field(
        "untrained", description="Without biases, the vector of a user without ratings: untrained, or mean."
    )


class TGT(RatingRecommender):
    """Probabilistic matrix factorisation (Salakhutdinov & Mnih, NeurIPS 2007), on the target domain alone.

    r̂ = ⟨u, v⟩, with biases μ + b_u + b_i + ⟨u, v⟩; the loss is (r - r̂)² + λ(‖u‖² + ‖v‖² + b_u² + b_i²) per rating,
    the priors of PMF. With ``sharpness: pgd`` it is SCDR's SMF: u is moved to the worst point of a ball (Eq. 10).

    With the backbones LightGCN and NGCF, u and v are what propagation over the graph of the training ratings makes of
    the learned vectors (see :mod:`recbole_cdr_ext.model.backbones`); λ stays on the learned ones.

    What a user without ratings gets: the untrained vector without biases, as in the SCDR paper (``cold_user: mean``:
    the mean of the trained users' vectors); with biases no vector and no bias, so that TGT is the item mean there.

    Every gradient is sparse with the backbone MF and a learner of ``SPARSE_LEARNERS``, so a step costs the same for any
    number of users and items. With the others a step propagates once, forward and backward, whatever its sharpness.
    """

    settings_class = TGTSettings
    cold_start = False
    paper = "Probabilistic Matrix Factorization, NeurIPS 2007"

    mean: torch.Tensor
    trained_users: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        super().__init__(config, data)
        split = data.split
        self.domain = split.source if config["factorized"] == "source" else split.target
        self.rates_target = self.domain == split.target
        ratings = split.train[self.domain]
        self.size = int(config["embedding_size"])
        span = data.item_range(self.domain)
        self.n_own_items = span.stop - span.start
        self._batch_size = int(config["pretrain_batch_size"])
        self._split_off(whole_batch(ratings, span.start, self.domain), config)
        std, width = float(config["init_std"]), int(self.has_biases)
        sparse = not backbones.propagates(config) and config["pretrain_learner"].lower() in SPARSE_LEARNERS
        self.user_vectors = _table(self.n_users, self.size, std, sparse)
        self.item_table = _table(self.n_own_items, self.size, std, sparse)
        self.user_bias = _table(self.n_users, width, 0.0, sparse)
        self.item_bias = _table(self.n_own_items, width, 0.0, sparse)
        # Of the training part alone: an edge that is to be predicted would be half the answer.
        self.backbone = backbones.make_backbone(config, self._train, self.n_users, self.n_own_items)
        weight = config["pretrain_reg_weight"]
        # The mean over a graph's layers needs longer vectors to begin with, and 0.1 keeps them from growing.
        light = self.has_biases or self.backbone is not None
        self.reg_weight = (0.02 if light else 0.1) if weight is None else float(weight)
        self.mean_reduction = config["pretrain_reduction"] == "mean"
        self.cold_user = config["cold_user"]
        mean = float(ratings.rating.mean(dtype=np.float64)) if self.has_biases else 0.0
        self.register_buffer("mean", torch.tensor(mean))
        trained = torch.zeros(self.n_users, dtype=torch.bool)
        trained[torch.from_numpy(np.unique(ratings.user))] = True
        self.register_buffer("trained_users", trained, persistent=False)
        self._parts: _Parts | None = None
        self._finished: tuple[tuple, tuple[torch.Tensor, torch.Tensor]] | None = None

    def _split_off(self, ratings: RatingBatch, config: CDRConfig) -> None:
        """Keeps a share of the domain's own ratings to choose the epoch by; cold-start users cannot."""
        order = torch.from_numpy(np.random.default_rng(int(config["seed"])).permutation(len(ratings)))
        n_valid = round(float(config["pretrain_valid_ratio"]) * len(ratings))
        self._valid, self._train = ratings.take(order[:n_valid]), ratings.take(order[n_valid:].sort().values)

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """As in the base class; checks what the backbone can be trained with, and warns of settings without effect."""
        super().check_settings(config)
        for key, replacement in PRETRAINED.items():
            if config[key] != config.internal_config_dict[key]:
                getLogger().warning(
                    f"{key}={config[key]} has no effect on TGT, which is pre-training alone: set {replacement}."
                )
        backbones.check_settings(config)

    @classmethod
    def learns_from(cls, config: CDRConfig, split: RatingSplit) -> str:
        """Returns the fingerprint of one domain's training ratings: they alone decide the vectors."""
        domain = split.source if config["factorized"] == "source" else split.target
        ratings = split.train[domain]
        return hash_arrays(ratings.user, ratings.item, ratings.rating, np.array([split.n_users, domain]))

    def phases(self) -> list[Phase]:
        """Returns one phase; the epoch is chosen on held-out ratings of the domain itself."""
        config = self.config
        names = ("epochs", "learner", "learning_rate", "stopping_step", "sharpness", "pgd_steps")
        settings = {name: config[f"pretrain_{name}"] for name in names}
        settings |= {"rho": config["rho_pretrain"], "weight_decay": 0.0}
        if not self.size:  # biases alone have no rows to move
            settings["sharpness"] = "none"
        return [
            Phase(
                "pretrain",
                loss=self.factorization_loss,
                batches=self.batches,
                validate=self.validation_error,
                validated=len(self._valid) > 0,
                rows=self.user_rows if self.size else None,
                settings=tuple(settings.items()),
            )
        ]

    def batches(self, rng: np.random.Generator) -> Iterable[RatingBatch]:
        """Returns all training ratings of the domain, shuffled."""
        return Shuffled(self._train, self._batch_size, rng)

    # -- vectors -------------------------------------------------------------------------------------------------

    def _state(self) -> tuple:
        """Changes with whatever vectors are computed from; torch counts the changes to each parameter."""
        changes = (parameter._version for parameter in self.parameters())
        return (self.training, torch.is_grad_enabled(), *changes)

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the vectors of all users, (n_users, D), and of the domain's items, (n_k, D)."""
        learned = self.user_vectors.weight, self.item_table.weight
        if self.backbone is None:
            return learned
        if self.training or torch.is_grad_enabled():
            tables: tuple[torch.Tensor, torch.Tensor] = self.backbone(*learned)
            return tables
        # Predictions come in many batches: they share one propagation.
        state = self._state()
        if self._finished is None or self._finished[0] != state:
            self._finished = (state, self.backbone(*learned))
        return self._finished[1]

    def _of(self, batch: RatingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of a batch's users and items, (B, D) each."""
        if self.backbone is None:
            return self.user_vectors(batch.user), self.item_table(batch.item)
        users, items = self.vectors()
        return users[batch.user], items[batch.item]

    # -- training ------------------------------------------------------------------------------------------------

    def user_rows(self, batch: RatingBatch) -> torch.Tensor:
        """Returns the vectors of a batch's users, (B, D): what SMF moves."""
        self._parts = self._parts_of(batch)
        return self._parts.users

    def _parts_of(self, batch: RatingBatch) -> _Parts:
        users, items = self._of(batch)
        # (B, 1), or (B, 0) without biases
        bias_u, bias_i = self.user_bias(batch.user), self.item_bias(batch.item)
        learned = (users, items)
        if self.backbone is not None:
            learned = self.user_vectors(batch.user), self.item_table(batch.item)
        squares = torch.stack([part.square().sum(1) for part in (*learned, bias_u, bias_i)]).sum(0)
        base = self.mean + bias_u.sum(1) + bias_i.sum(1)
        return _Parts(batch, self._state(), users, items, base, self.reg_weight * self.reduced(squares))

    def factorization_loss(self, batch: RatingBatch, rows: torch.Tensor | None = None) -> FactorizationLoss:
        """Returns the loss of a batch, at moved user vectors if they are given; the penalty is on the unmoved ones.

        After :meth:`user_rows` of the same batch, losses at moved vectors are had without a propagation.
        """
        parts, self._parts = self._parts, None
        if rows is None or parts is None or parts.batch is not batch or parts.state != self._state():
            parts = self._parts_of(batch)
        if rows is not None and rows.grad_fn is None:
            # Rows that hang on no parameter are looked at only, and more may come. Others are the last ones: the
            # gradient goes through the parts, and cannot do so twice.
            self._parts = parts
        product = ((parts.users if rows is None else rows) * parts.items).sum(1)
        error = self.reduced((batch.rating - (parts.base + product)).square())
        return FactorizationLoss(error, parts.penalty)

    @torch.no_grad()
    def validation_error(self) -> float:
        """Returns the held-out ratings' mean absolute error, or the root mean squared one, as ``valid_metric`` says."""
        error = self.fitted(self._valid.to(self.target_mean.device)) - self._valid.rating.to(
            self.target_mean.device
        )
        if self.config["valid_metric"].lower() == "rmse":
            return float(error.square().mean().sqrt())
        return float(error.abs().mean())

    def fitted(self, batch: RatingBatch) -> torch.Tensor:
        """Returns the model's ratings of its own domain's pairs, (B,)."""
        users, items = self._of(batch)
        biases = self.user_bias(batch.user).sum(1) + self.item_bias(batch.item).sum(1)
        rating: torch.Tensor = self.mean + biases + (users * items).sum(1)
        return rating

    def rate(self, batch: RatingBatch) -> torch.Tensor:
        """As in the base class; what cold-start users get is said at the class."""
        if self.has_biases:
            rating: torch.Tensor = self.mean + self.item_bias(batch.item).sum(1)
            return rating
        users, items = self._of(batch)
        if self.cold_user == "mean":
            return items @ self.vectors()[0][self.trained_users].mean(0)
        return (users * items).sum(1)

    @torch.no_grad()
    def augment(self, split: RatingSplit, progress: Progress | None = None) -> RatingSplit:
        """As a stage: returns the split with this domain's vectors, propagated if there is a graph, and biases."""
        training = self.training
        users, items = self.eval().vectors()
        self.train(training)
        tables = Tables(
            user=users.detach().cpu().clone(),
            item=items.detach().cpu().clone(),
            user_bias=self.user_bias.weight.detach().sum(1).cpu(),
            item_bias=self.item_bias.weight.detach().sum(1).cpu(),
            mean=float(self.mean),
        )
        return split.with_tables(self.domain, tables)


def _table(n_rows: int, size: int, std: float, sparse: bool) -> nn.Embedding:
    # No columns, no gradient: torch's sparse one of such a table could not be applied.
    table = nn.Embedding(n_rows, size, sparse=sparse and size > 0)
    if size:
        nn.init.normal_(table.weight, std=std) if std else nn.init.zeros_(table.weight)
    else:
        table.weight.requires_grad_(False)
    return table
