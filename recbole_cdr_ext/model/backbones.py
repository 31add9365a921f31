"""Backbones: what makes a domain's vectors out of the learned ones, by propagation over its graph of ratings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.propagation import BipartiteGraph, Pair
from recbole_cdr_ext.settings.config import CDRConfig

if TYPE_CHECKING:
    from recbole_cdr_ext.model.rating_recommender import RatingBatch

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop")  # a graph's gradients are dense
MESSAGE_DROPOUT = 0.1
NEGATIVE_SLOPE = 0.2


class RatingGraph(BipartiteGraph):
    """Â = D^{-1/2} A D^{-1/2} of some ratings, one edge each, without self-loops.

    Args:
        ratings: the edges; no pair of user and item occurs twice.
        n_users, n_items: sizes of the id spaces. Who has no edge has a row of zeros.
        weighted: whether A holds the ratings, which must not be negative, instead of ones. D is the sums of its rows,
            so A may be multiplied by anything: r and r / 5 are the same graph.
    """

    def __init__(
        self, ratings: RatingBatch, n_users: int, n_items: int, *, weighted: bool = False, device: str = "cpu"
    ):
        user, item = ratings.user.cpu().numpy(), ratings.item.cpu().numpy()
        super().__init__(user, item, n_users, n_items, device)
        if weighted:
            weight = ratings.rating.cpu().numpy().astype(np.float64)
            of_user, of_item = np.bincount(user, weight, n_users), np.bincount(item, weight, n_items)
            scale = np.sqrt(of_user[user] * of_item[item])
            value = np.divide(weight, scale, out=np.zeros_like(weight), where=scale > 0)
            normalised = self.edges.copy()
            # The binary matrix has the same places, in the order of (user, item).
            normalised.data = value[np.lexsort((item, user))].astype(np.float32)
            self._weigh(normalised, device)


class _Scaled(torch.autograd.Function):
    """The tensor as it is, with its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.factor * grad, None


class Backbone(nn.Module):
    """Base of the backbones. A call turns the layer-0 vectors of all users, (n, d), and items, (m, d), into the
    vectors, (n, D) and (m, D), whose products are the ratings.

    Attributes:
        width: D.
    """

    width: int

    def __init__(self, graph: BipartiteGraph, size: int, n_layers: int):
        super().__init__()
        self.graph, self.n_layers, self.width = graph, n_layers, size

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> Pair:
        """Returns the vectors of all users and items."""
        # Sums over many neighbours are not for half precision.
        with torch.autocast(users.device.type, enabled=False):
            return self.propagated(users, items)

    def propagated(self, users: torch.Tensor, items: torch.Tensor) -> Pair:
        """Returns what a call returns."""
        raise NotImplementedError(f"{type(self).__name__}.propagated")


class LightGCNBackbone(Backbone):
    """LightGCN (He et al., SIGIR 2020): E^(l+1) = Â E^(l), and the mean of E^(0) … E^(L)."""

    def propagated(self, users: torch.Tensor, items: torch.Tensor) -> Pair:
        """As in the base class; D = d."""
        return self.graph.mean_of_layers(users, items, self.n_layers)


class NGCFBackbone(Backbone):
    """NGCF (Wang et al., SIGIR 2019): E^(l+1) = LeakyReLU((Â + I) E^(l) W₁ + (Â E^(l) ⊙ E^(l)) W₂ + b), with dropout,
    and the concatenation of E^(0) … E^(L).

    Differs from the paper: there is a bias b, as in its code; W begins at half of Xavier's range, because Â + I doubles
    what most rows have in common.

    Args:
        normalised: whether the rows of the propagated layers have length 1, in the concatenation alone, as in the
            paper's code. Each layer can then add at most 1 to a product, which is too little without biases.
        gradient_share: what the gradients of W and b are multiplied by.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        size: int,
        n_layers: int,
        *,
        normalised: bool,
        gradient_share: float = 1.0,
    ):
        super().__init__(graph, size, n_layers)
        self.width, self.normalised, self.gradient_share = size * (n_layers + 1), normalised, gradient_share
        # W₁ and W₂ of a layer, one above the other.
        maps = [nn.Linear(2 * size, size) for _ in range(n_layers)]
        for layer in maps:
            for part in layer.weight.split(size, 1):
                nn.init.xavier_uniform_(part, gain=0.5)
            nn.init.zeros_(layer.bias)
        self.maps = nn.ModuleList(maps)

    def propagated(self, users: torch.Tensor, items: torch.Tensor) -> Pair:
        """As in the base class; D = d (L + 1), and messages are dropped in training."""
        sizes = [len(users), len(items)]
        x = torch.cat([users, items])
        outputs = [x]
        for layer in self.maps:
            around = torch.cat(self.graph.step(*x.split(sizes)))
            weight, bias = (_Scaled.apply(p, self.gradient_share) for p in (layer.weight, layer.bias))
            raw = functional.linear(torch.cat([around + x, around * x], 1), weight, bias)
            active = functional.leaky_relu(raw, NEGATIVE_SLOPE)
            x = functional.dropout(active, MESSAGE_DROPOUT, training=self.training)
            outputs.append(functional.normalize(x, dim=1) if self.normalised else x)
        users, items = torch.cat(outputs, 1).split(sizes)
        return users, items


def propagates(config: CDRConfig) -> bool:
    """Returns whether more than learned vectors is asked for: not with MF, without layers or without vectors."""
    return bool(config["backbone"] != "MF" and config["embedding_size"] > 0 and config["n_layers"] > 0)


def check_settings(config: CDRConfig) -> None:
    """Raises a CDRError for settings that a backbone cannot be trained with."""
    if not propagates(config):
        return
    name, learner = config["backbone"], config["pretrain_learner"].lower()
    if learner not in LEARNERS:
        raise CDRError(
            f"pretrain_learner={learner} takes sparse gradients, and those of backbone={name} are dense. "
            f"Take one of {', '.join(LEARNERS)}."
        )
    if config["edge_weight"] == "rating" and config["rating_range"][0] < 0:
        raise CDRError(
            f"edge_weight=rating needs ratings of 0 or more, and rating_range is {config['rating_range']}: degrees "
            "could be negative. Take edge_weight=binary."
        )


def make_backbone(config: CDRConfig, ratings: RatingBatch, n_users: int, n_items: int) -> Backbone | None:
    """Returns the backbone over the graph of some ratings of one domain; None where nothing propagates."""
    if not propagates(config):
        return None
    size, n_layers, normalised = (
        int(config["embedding_size"]),
        int(config["n_layers"]),
        bool(config["biases"]),
    )
    weighted = config["edge_weight"] == "rating"
    graph = RatingGraph(ratings, n_users, n_items, weighted=weighted, device=config["device"])
    if config["backbone"] == "LightGCN":
        return LightGCNBackbone(graph, size, n_layers)
    # A vector learns from the few ratings of a batch that are near it, W and b from all. The sum of so many gradients
    # makes them diverge within a few batches, unless the layers' lengths do not follow theirs.
    averaged = config["pretrain_reduction"] == "sum" and not normalised
    share = 1 / int(config["pretrain_batch_size"]) if averaged else 1.0
    return NGCFBackbone(graph, size, n_layers, normalised=normalised, gradient_share=share)
