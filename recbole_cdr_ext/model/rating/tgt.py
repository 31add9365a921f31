"""Matrix factorisation of one domain's ratings: the non-transfer baseline, and what bridges are built between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from recbole_cdr_ext.data.dataset import hash_arrays
from recbole_cdr_ext.data.ratings import RatingSplit
from recbole_cdr_ext.model.abstract import Phase
from recbole_cdr_ext.model.ratings import RatingBatch, RatingRecommender, Shuffled, Tables, whole_batch


class FactorizationLoss(NamedTuple):
    """Squared error and L2 penalty of a batch."""

    error: torch.Tensor
    penalty: torch.Tensor


class TGT(RatingRecommender):
    """Probabilistic matrix factorisation (Salakhutdinov & Mnih, NeurIPS 2007), on the target domain alone.

    r̂ = ⟨u, v⟩, with biases μ + b_u + b_i + ⟨u, v⟩; the loss is (r - r̂)² + λ(‖u‖² + ‖v‖² + b_u² + b_i²) per rating,
    the priors of PMF. With ``sharpness: pgd`` it is SCDR's SMF: u is moved to the worst point of a ball (Eq. 10).

    What a user without ratings gets: the untrained vector without biases, as in the SCDR paper (``cold_user: mean``:
    the mean of the trained users' vectors); with biases no vector and no bias, so that TGT is the item mean there.

    Every gradient is sparse with the backbone MF, so a step costs the same for any number of users and items.
    """

    paper = "Probabilistic Matrix Factorization, NeurIPS 2007"

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        split = dataset.split
        self.domain = split.source if config["factorized"] == "source" else split.target
        ratings = split.train[self.domain]
        self.size = int(config["embedding_size"])
        own = dataset.item_range(self.domain)
        self.n_own_items = own.stop - own.start
        self.user_vectors = _table(self.n_users, self.size, float(config["init_std"]))
        self.item_table = _table(self.n_own_items, self.size, float(config["init_std"]))
        self.user_bias = _table(self.n_users, int(self.has_biases), 0.0)
        self.item_bias = _table(self.n_own_items, int(self.has_biases), 0.0)
        weight = config["pretrain_reg_weight"]
        self.reg_weight = (0.02 if self.has_biases else 0.1) if weight is None else float(weight)
        self.mean_reduction = config["pretrain_reduction"] == "mean"
        self.cold_user = config["cold_user"]
        mean = float(ratings.rating.mean(dtype=np.float64)) if self.has_biases else 0.0
        self.register_buffer("mean", torch.tensor(mean))
        trained = torch.zeros(self.n_users, dtype=torch.bool)
        trained[torch.from_numpy(np.unique(ratings.user))] = True
        self.register_buffer("trained_users", trained, persistent=False)
        self._batch_size = int(config["pretrain_batch_size"])
        self._split_off(whole_batch(ratings, own.start, self.domain), config)

    def _split_off(self, ratings: RatingBatch, config) -> None:
        """Keeps a share of the domain's own ratings to choose the epoch by; cold-start users cannot."""
        order = torch.from_numpy(np.random.default_rng(int(config["seed"])).permutation(len(ratings)))
        n_valid = round(float(config["pretrain_valid_ratio"]) * len(ratings))
        self._valid, self._train = ratings.take(order[:n_valid]), ratings.take(order[n_valid:].sort().values)

    @classmethod
    def learns_from(cls, config, split: RatingSplit) -> str:
        """One domain's training ratings decide the vectors, whatever is asked of whom."""
        domain = split.source if config["factorized"] == "source" else split.target
        ratings = split.train[domain]
        return hash_arrays(ratings.user, ratings.item, ratings.rating, np.array([split.n_users, domain]))

    def phases(self) -> list[Phase]:
        """One phase; the epoch is chosen on held-out ratings of the domain itself."""
        config = self.config
        names = ("epochs", "learner", "learning_rate", "stopping_step", "sharpness", "pgd_steps")
        settings = {name: config[f"pretrain_{name}"] for name in names}
        settings |= {"rho": config["rho_pretrain"], "weight_decay": 0.0}
        return [
            Phase(
                "pretrain",
                loss="factorization_loss",
                batches="batches",
                validate="validation_error" if len(self._valid) else "",
                rows="user_rows" if self.size else "",
                settings=tuple(settings.items()),
            )
        ]

    def batches(self, rng: np.random.Generator) -> Iterable[RatingBatch]:
        """All training ratings of the domain, shuffled."""
        return Shuffled(self._train, self._batch_size, rng)

    def user_rows(self, batch: RatingBatch) -> torch.Tensor:
        """The vectors of a batch's users, (B, d): what SMF moves."""
        return self.user_vectors(batch.user)

    def factorization_loss(self, batch: RatingBatch, rows: torch.Tensor | None = None) -> FactorizationLoss:
        """Returns the loss of a batch, at moved user vectors if they are given; the penalty is on the unmoved ones."""
        users, items = self.user_rows(batch), self.item_table(batch.item)
        bias_u, bias_i = (
            self.user_bias(batch.user),
            self.item_bias(batch.item),
        )  # (B, 1), or (B, 0) without biases
        product = ((users if rows is None else rows) * items).sum(1)
        predicted = self.mean + bias_u.sum(1) + bias_i.sum(1) + product
        error = self.reduced((batch.rating - predicted).square())
        parts = (users, items, bias_u, bias_i)
        penalty = self.reg_weight * self.reduced(torch.stack([part.square().sum(1) for part in parts]).sum(0))
        return FactorizationLoss(error, penalty)

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
        users, items = self.user_rows(batch), self.item_table(batch.item)
        biases = self.user_bias(batch.user).sum(1) + self.item_bias(batch.item).sum(1)
        return self.mean + biases + (users * items).sum(1)

    def rate(self, batch: RatingBatch) -> torch.Tensor:
        """As in the base class; what cold-start users get is said at the class."""
        items = self.item_table(batch.item)
        if self.has_biases:
            return self.mean + self.item_bias(batch.item).sum(1)
        if self.cold_user == "mean":
            return items @ self.user_vectors.weight[self.trained_users].mean(0)
        return (self.user_vectors(batch.user) * items).sum(1)

    @torch.no_grad()
    def augment(self, split: RatingSplit, progress=None) -> RatingSplit:
        """As a stage: returns the split with this domain's vectors and biases."""
        tables = Tables(
            user=self.user_vectors.weight.detach().clone(),
            item=self.item_table.weight.detach().clone(),
            user_bias=self.user_bias.weight.detach().sum(1),
            item_bias=self.item_bias.weight.detach().sum(1),
            mean=float(self.mean),
        )
        return split.with_tables(self.domain, tables)


def _table(n_rows: int, size: int, std: float) -> nn.Embedding:
    # No columns, no gradient: torch's sparse one of such a table could not be applied.
    table = nn.Embedding(n_rows, size, sparse=size > 0)
    if size:
        nn.init.normal_(table.weight, std=std) if std else nn.init.zeros_(table.weight)
    else:
        table.weight.requires_grad_(False)
    return table
