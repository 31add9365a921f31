"""EMCDR for next items (Man et al., IJCAI 2017): factors per domain, then a function from one domain's users to the
other's.

X is the target's domain, Y the other one; U_u^X, V_i^X are the vectors of users and items of X, σ the sigmoid.

Phases 1 and 2, one per domain, on all (user, item) pairs of its training data, j uniform over what u has not touched:

    BPR: min Σ_(u,i) −ln σ(U_u·V_i − U_u·V_j) + λ(‖U_u‖² + ‖V_i‖² + ‖V_j‖²)
    MF:  min Σ_(u,i) (1 − U_u·V_i)² + (U_u·V_j)² + the same penalty

Phases 3 and 4, one per target, on the users O with training items in both domains, the tables frozen:

    min_f Σ_(u∈O) ‖f(U_u^Y) − U_u^X‖², f an MLP d → h → d with tanh, or one matrix M with λ_M ‖M‖² added

Score: U_u^X·V_i^X for a user with training items in X, f(U_u^Y)·V_i^X for one with training items in Y alone.

Decided here. Both directions are fitted, and users of one domain train that domain's factors. Phases 1 and 2 keep the
epoch with the best NDCG@10 on the validation instances of users who have a vector there, whatever ``valid_metric`` is;
phases 3 and 4 that with the least error on ``map_validation`` of O. A user without training items anywhere gets the
mean user vector of X, and so does a user of Y alone where O is empty. Who is cold is decided by the training data that
made the vectors, not by the history of an instance.

Differs from the paper in: d, h, Adam and early stopping (the paper: d of 20 to 100, h = 2d, SGD on minibatches of 16,
settings by cross-validation); MF takes a sampled item as 0, for there are no ratings; losses are means over a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from logging import getLogger
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from recbole.data.interaction import Interaction
from recbole.model.init import xavier_normal_initialization
from torch import nn

from recbole_cdr_ext.data.instances import Batch, Instances
from recbole_cdr_ext.data.sequences import EpochBatches
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import mapping
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase, gathered_product
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import BelowOne, Count, NonNegative, Positive, Settings, Size
from recbole_cdr_ext.splits.sampler import Candidates, CrossDomainSampler
from recbole_cdr_ext.splits.split import Split, TrainingData


class FactorLoss(NamedTuple):
    """The loss of a batch of pairs."""

    error: torch.Tensor
    l2: torch.Tensor


class EMCDRSettings(Settings):
    """EMCDR for next items; EMCDR.yaml is the one for ratings. The paper searches step sizes and penalties, and
    gives none.
    """

    embedding_size: Size = Field(128, description="Size d of the vectors (paper: 20, 50, 100).")
    latent_factor_model: Literal["BPR", "MF"] = Field(
        "BPR",
        description="How the factors are learned: BPR, or MF (squared error, sampled items count as 0).",
    )
    reg_weight: NonNegative = Field(0.03, description="L2 weight on the vectors of a batch of pairs.")
    mapping: Literal["mlp", "linear"] = Field(
        "mlp", description="mlp (one hidden layer, tanh), or linear: one matrix without bias."
    )
    mapping_hidden_size: Size = Field(256, description="Hidden units of the mlp; 2 d in the paper.")
    map_reg_weight: NonNegative = Field(
        0.01, description="L2 weight on the linear mapping, against the error summed over all its users."
    )
    map_users: Literal["cold", "overlap"] = Field(
        "cold",
        description=(
            "Who gets the mapped vector: cold (users without an own one, the paper), or overlap: also "
            "users of both domains, as in RecBole-CDR."
        ),
    )
    map_min_items: Size = Field(
        1, description="Fewest training items in each domain of a user who fits the mapping."
    )
    map_validation: BelowOne = Field(
        0.1, description="Share of those users who choose the mapping's epoch instead; 0: the last epoch."
    )
    map_batch_size: Size = Field(100, description="Users in a batch of a mapping phase.")
    map_learning_rate: Positive = Field(0.001, description="Step size of the mapping phases.")
    train_batch_size: Size = Field(2048, description="Pairs in a batch of a factor phase.")
    learning_rate: Positive = Field(0.003, description="Step size of the factor phases.")
    epochs: Count = Field(300, description="The most epochs of each phase.")


class EMCDR(CrossDomainRecommender[Batch, Split]):
    """Factors of users and items per domain, and a mapping into each domain from the other one.

    Settings: ``embedding_size``, ``latent_factor_model``, ``reg_weight`` λ, ``mapping``, ``mapping_hidden_size``,
    ``map_reg_weight`` λ_M, ``map_users``, ``map_min_items``, ``map_validation``, ``map_batch_size``,
    ``map_learning_rate``.

    ``users``, ``items`` and ``maps`` are indexed by domain; ``maps[X]`` takes vectors of Y to vectors of X.
    """

    settings_class = EMCDRSettings
    cold_start = True
    domains = "two"
    paper = "Cross-Domain Recommendation: An Embedding and Mapping Approach, IJCAI 2017"

    trained: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        split = data.split
        size = int(config["embedding_size"])
        hidden = int(config["mapping_hidden_size"]) if config["mapping"] == "mlp" else None
        n_items = [span.stop - span.start for span in map(self.item_slice, range(self.n_domains))]
        self.users = nn.ModuleList(nn.Embedding(self.n_users, size) for _ in n_items)
        self.items = nn.ModuleList(nn.Embedding(n, size) for n in n_items)
        self.apply(xavier_normal_initialization)  # as RecBole's BPR
        self.maps = nn.ModuleList(mapping(size, size, hidden) for _ in n_items)

        self._pairs = _pairs(split)
        counts = np.stack([np.bincount(user, minlength=self.n_users) for user, _ in self._pairs])
        # Which users have a vector of a domain that training touched, (2, n_users).
        self.register_buffer("trained", torch.from_numpy(counts > 0), persistent=False)
        self._fit, self._held_out = self._overlapping(counts)
        self._valid = [_warm(split.valid, k, counts[k] > 0) for k in range(self.n_domains)]
        self._candidates: dict[int, Candidates] = {}
        self._sampler = CrossDomainSampler(split, int(config["candidate_seed"]))
        self._warn_of_strangers(split, counts)

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """Refuses a split whose users do not train."""
        if config["split"] == "user" and not config["train_on_histories"]:
            raise CDRError(
                "EMCDR knows users by a vector learned from what they did, and train_on_histories=False leaves "
                "held-out users without one: set it to True."
            )

    def _overlapping(self, counts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the users that the mappings are fitted to, and those that choose the epoch."""
        users = np.flatnonzero((counts >= int(self.config["map_min_items"])).all(0))
        users = np.random.default_rng(int(self.config["seed"])).permutation(users)
        n_held_out = round(float(self.config["map_validation"]) * len(users))
        return torch.from_numpy(users[n_held_out:]), torch.from_numpy(users[:n_held_out])

    def _warn_of_strangers(self, split: Split, counts: np.ndarray) -> None:
        """Says for how many held-out instances there is no vector, and whether there is a mapping."""
        if not len(self._fit):
            getLogger().warning(
                f"No training user has map_min_items={self.config['map_min_items']} items in both domains: there is "
                "no mapping, and cold users get the mean user vector."
            )
        evaluated = np.concatenate([split.valid.user, split.test.user])
        strangers = int((counts.sum(0)[evaluated] == 0).sum())
        if strangers:
            getLogger().warning(
                f"{strangers:,} of {len(evaluated):,} held-out instances are of users without training interactions, "
                "who get the mean user vector."
            )

    def phases(self) -> list[Phase]:
        """Factors of each domain, then the mapping into each; the latter only if there are users to fit it to."""
        factors = [
            Phase(
                f"factors_{name}",
                loss=self.factor_loss,
                batches=partial(self.pair_batches, k),
                parameters=(f"users.{k}.", f"items.{k}."),
                validate=partial(self.warm_ndcg, k),
                validated=len(self._valid[k]) > 0,
            )
            for k, name in enumerate(self.domain_names)
        ]
        maps = [
            Phase(
                f"map_to_{name}",
                loss=self.map_loss,
                batches=partial(self.overlap_batches, k),
                parameters=(f"maps.{k}.",),
                validate=partial(self.fit_of_held_out, k),
                validated=len(self._held_out) > 0,
                settings=(("learning_rate", float(self.config["map_learning_rate"])),),
            )
            for k, name in enumerate(self.domain_names)
        ]
        return factors + (maps if len(self._fit) else [])

    # -- factors ------------------------------------------------------------------------------------------------

    def pair_batches(self, domain: int, rng: np.random.Generator) -> EpochBatches:
        """Returns the (user, item) pairs of a domain, shuffled, with ``train_neg_num`` negatives each."""
        user, item = self._pairs[domain]
        number = int(self.config["train_neg_num"])

        def make(k: int, rows: np.ndarray) -> Batch:
            arrays = {
                "user_id": user[rows],
                "item_id": item[rows],
                "neg_item_id": self._sampler.negatives(user[rows], k, number, rng),
            }
            return Batch({name: torch.from_numpy(array) for name, array in arrays.items()}, k, self.n_domains)

        return _shuffled(domain, len(user), int(self.config["train_batch_size"]), rng, make)

    def factor_loss(self, batch: Batch) -> FactorLoss:
        """Returns the loss of a batch of one domain's pairs: BPR or squared error, and the penalty."""
        k = batch.target_domain
        first = self.item_offsets[k]
        user = self.users[k](batch.users)
        liked, other = self.items[k](batch.targets - first), self.items[k](batch.negatives - first)
        score = (user * liked).sum(1, keepdim=True)
        lower = torch.einsum("bd,bnd->bn", user, other)
        if self.config["latent_factor_model"] == "BPR":
            error = F.softplus(lower - score).mean()
        else:
            error = (1 - score).square().mean() + lower.square().mean()
        lengths = user.square().sum(1) + liked.square().sum(1) + other.square().sum(2).mean(1)
        return FactorLoss(error, float(self.config["reg_weight"]) * lengths.mean())

    @torch.no_grad()
    def warm_ndcg(self, domain: int) -> float:
        """Returns NDCG@10 of the validation instances of users with a vector of the domain, by that vector."""
        instances, first = self._valid[domain], self.item_offsets[domain]
        if domain not in self._candidates:
            mode = self.config["eval_args"]["mode"]["valid"]
            self._candidates[domain] = self._sampler.candidates(instances, mode)
        candidates, items, total = self._candidates[domain], self.item_vectors(domain), 0.0
        for start in range(0, len(instances), 512):
            rows = np.arange(start, min(start + 512, len(instances)))
            users = self.users[domain](torch.from_numpy(instances.user[rows]).to(items.device))
            block = candidates.block(rows)
            if block is None:
                scores = users @ items.T
                row, column = (torch.from_numpy(index).to(items.device) for index in candidates.touched(rows))
                target = torch.from_numpy(instances.target[rows] - first).to(items.device)
                target_score = scores.gather(1, target.unsqueeze(1))
                scores[row, column] = -torch.inf
                rank = (scores >= target_score).sum(1)
            else:
                ids = torch.from_numpy(block).to(items.device)
                scores = gathered_product(users, items, (ids - first).clamp(min=0))
                rank = 1 + ((scores[:, 1:] >= scores[:, :1]) & (ids[:, 1:] != 0)).sum(1)
            total += float(((rank + 1.0).log2().reciprocal() * (rank <= 10)).sum())
        return total / len(instances)

    # -- mappings -----------------------------------------------------------------------------------------------

    def overlap_batches(self, target: int, rng: np.random.Generator) -> EpochBatches:
        """Returns the overlapping users that fit the mapping into ``target``, each once, shuffled."""

        def make(k: int, rows: np.ndarray) -> Batch:
            return Batch({"user_id": self._fit[torch.from_numpy(rows)]}, k, self.n_domains)

        return _shuffled(target, len(self._fit), int(self.config["map_batch_size"]), rng, make)

    def map_loss(self, batch: Batch) -> torch.Tensor:
        """Returns the mean error of a batch of users, and the penalty on a linear mapping as one user's share."""
        target = batch.target_domain
        error = self.map_error(target, batch.users).mean()
        if self.config["mapping"] == "mlp":
            return error
        weight = float(self.config["map_reg_weight"]) / len(self._fit)
        return error + weight * self.maps[target].get_parameter("weight").square().sum()

    def map_error(self, target: int, users: torch.Tensor) -> torch.Tensor:
        """Returns ‖f(U_u^Y) − U_u^X‖² of users with vectors of both domains, (B,)."""
        with torch.no_grad():
            source, wanted = self.users[1 - target](users), self.users[target](users)
        error: torch.Tensor = (self.maps[target](source) - wanted).square().sum(1)
        return error

    @torch.no_grad()
    def fit_of_held_out(self, target: int) -> float:
        """Less the mean error on the overlapping users that fit nothing: larger is better, as in all that ranks."""
        return -float(self.map_error(target, self._held_out.to(self.device)).mean())

    # -- scores -------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns the user's own vector, else the mapped one, else the mean user's, (B, d)."""
        target, users = batch.target_domain, batch.users
        has_vector, other = self.trained[target][users], self.trained[1 - target][users]
        vectors = torch.where(has_vector.unsqueeze(1), self.users[target](users), self.mean_user(target))
        if not len(self._fit):
            return vectors
        mapped = other if self.config["map_users"] == "overlap" else other & ~has_vector
        return torch.where(mapped.unsqueeze(1), self.maps[target](self.users[1 - target](users)), vectors)

    def mean_user(self, domain: int) -> torch.Tensor:
        """Returns the mean vector of the users with training items in a domain, (d,)."""
        vectors = self.users[domain].get_parameter("weight")
        trained = self.trained[domain].to(vectors.dtype)
        return trained @ vectors / trained.sum().clamp(min=1)

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns the factors of a domain's items, (n_k, d)."""
        return self.items[domain].get_parameter("weight")


def _pairs(split: Split) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns each domain's training (user, item) pairs, each once."""
    span = np.int64(split.item_offset[-1])
    pairs = np.unique(split.train_events.user * span + split.train_events.item)
    user, item = pairs // span, pairs % span
    domain = np.searchsorted(split.item_offset, item, side="right") - 1
    return [(user[domain == k], item[domain == k]) for k in range(split.n_domains)]


def _warm(instances: Instances, domain: int, trained: np.ndarray) -> Instances:
    """The instances of a domain whose users have training items there."""
    return instances.take((instances.domain == domain) & trained[instances.user])


def _shuffled(
    domain: int, n: int, size: int, rng: np.random.Generator, make: Callable[[int, np.ndarray], Interaction]
) -> EpochBatches:
    """Batches of ``size`` out of n rows in random order."""
    order = rng.permutation(n)
    return EpochBatches([(domain, order[first : first + size]) for first in range(0, n, size)], make)
