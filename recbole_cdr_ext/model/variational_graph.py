"""Variational bipartite graph encoders, shared by DisenCDR and CDRIB (Cao et al., SIGIR 2022 and ICDE 2022).

On one side of a domain's graph, here that of the users, with R the row-normalised user-item matrix and R' the
row-normalised item-user matrix, a layer is

    P(U) = LReLU(R · LReLU(R' · U · W₁ + b₁) · W₃ + b₃),        U' = ReLU(W [P(U); U] + b)

so users are smoothed over users who share items with them, and item vectors never enter user vectors. The last layer
has W₃, W and their biases twice, for a mean and for s, without the last ReLU: N(mean, deviation(s)²). Items are
treated likewise, with R and R' exchanged.

The graph of a domain holds the users who have training interactions in it, and no others: there is no vector of a
user in a domain that training did not see (``DomainGraph.place`` says who is where).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from torch import nn

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.data.sequences import EpochBatches
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import LOGVAR_RANGE, Dropout, Gaussian
from recbole_cdr_ext.model.parts.propagation import SparseRows, product
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.audit import audit_edges
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.splits.split import Split, TrainingData, UserItems

Tables = tuple[list[torch.Tensor], list[torch.Tensor]]


class NeighbourMean:
    """A row-normalised (n, m) matrix: row i of its product with x is the mean of x over the neighbours of i."""

    def __init__(self, edges: sp.csr_matrix, device: torch.device):
        degree = np.maximum(np.diff(edges.indptr), 1).astype(np.float32)
        mean = sp.csr_matrix(sp.diags(1 / degree) @ edges)
        self.rows, self.columns = mean.shape
        self.mean, self.transposed = SparseRows(mean, device), SparseRows(mean.T.tocsr(), device)

    def __call__(self, x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
        """x (m, d) → the means times W, plus b, (n, d'); the dense product is on the side with fewer rows."""
        if self.rows < self.columns:
            vectors: torch.Tensor = linear(product(self.mean, self.transposed, x))
            return vectors
        return product(self.mean, self.transposed, F.linear(x, linear.weight)) + linear.bias


class DomainGraph:
    """The training pairs of one domain as a graph.

    Args:
        user, item: (m,) distinct pairs, the items counted from the domain's first.
        n_users, n_items: how many users there are in all, and items in the domain.

    Attributes:
        members: (m_k,) the users who have an edge, ascending.
        place: (n_users,) each user's place among them, -1 without an edge.
        to_items, to_users: R' and R, the means over an item's users and over a user's items.
    """

    def __init__(self, user: np.ndarray, item: np.ndarray, n_users: int, n_items: int, device: torch.device):
        members, row = np.unique(user, return_inverse=True)
        place = np.full(n_users, -1)
        place[members] = np.arange(len(members))
        self.n_items, self.degree = n_items, np.bincount(row, minlength=len(members))
        self.members, self.place = (torch.from_numpy(array).to(device) for array in (members, place))
        edges = sp.csr_matrix((np.ones(len(row), np.float32), (row, item)), (len(members), n_items))
        self.to_users, self.to_items = (
            NeighbourMean(edges, device),
            NeighbourMean(edges.T.tocsr(), device),
        )

    def of_all(self, x: torch.Tensor) -> torch.Tensor:
        """Spreads the members' rows (m_k, d) over all users, (n_users, d); others get zeros."""
        return x.new_zeros(len(self.place), x.shape[1]).index_copy(0, self.members, x)


class GraphLayer(nn.Module):
    """One layer on one side of a graph: ``outputs`` times W [P(x); x] + b. Those share W₁ and b₁."""

    def __init__(self, d: int, outputs: int, slope: float):
        super().__init__()
        self.inner, self.outer = nn.Linear(d, d), nn.Linear(d, outputs * d)
        self.union = nn.ModuleList(nn.Linear(2 * d, d) for _ in range(outputs))
        self.slope = slope

    def forward(self, x: torch.Tensor, there: NeighbourMean, back: NeighbourMean) -> list[torch.Tensor]:
        """Maps x (n, d) to ``outputs`` tensors (n, d)."""
        d = x.shape[1]
        hidden = F.leaky_relu_(there(x, self.inner), self.slope)
        smoothed = F.leaky_relu_(back(hidden, self.outer), self.slope).split(d, 1)
        return [_joined(p, x, union) for p, union in zip(smoothed, self.union, strict=True)]


def _joined(p: torch.Tensor, x: torch.Tensor, linear: nn.Module) -> torch.Tensor:
    """W [p; x] + b without making [p; x]: p and x (n, d) → (n, d')."""
    assert isinstance(linear, nn.Linear)
    for_p, for_x = linear.weight.chunk(2, 1)
    return torch.addmm(F.linear(p, for_p, linear.bias), x, for_x.T)


class GaussianLayers(NamedTuple):
    """What the encoders need to know: widths, dropout on each layer's input, and what s means."""

    d: int
    n_layers: int
    dropout: float
    slope: float
    deviation: str
    cap: float | None = None

    def layers(self) -> nn.ModuleList:
        """Returns ``n_layers`` layers, the last with two outputs."""
        outputs = [1] * (self.n_layers - 1) + [2]
        return nn.ModuleList(GraphLayer(self.d, n, self.slope) for n in outputs)

    def gaussian(self, mean: torch.Tensor, s: torch.Tensor) -> Gaussian:
        """Returns N(mean, deviation²): exp(0.1 + 0.9 softplus(s)) as published, never below 1.1, or softplus(s)."""
        if self.cap is not None:
            s = s.clamp(max=self.cap)
        if self.deviation == "published":
            return Gaussian(mean, 0.2 + 1.8 * F.softplus(s))
        # Clamped before the logarithm: where softplus underflows its gradient would be 0 · ∞.
        smallest = float(np.exp(LOGVAR_RANGE[0] / 2))
        return Gaussian(mean, 2 * F.softplus(s).clamp(min=smallest).log())


class GraphEncoder(nn.Module):
    """Layers on one side of a graph, the last of them Gaussian."""

    def __init__(self, design: GaussianLayers):
        super().__init__()
        self.design, self.layers, self.dropout = design, design.layers(), Dropout(design.dropout)

    def forward(
        self, x: torch.Tensor, there: NeighbourMean, back: NeighbourMean
    ) -> tuple[list[torch.Tensor], Gaussian]:
        """Maps x (n, d) to the outputs of the layers before the last, each (n, d), and a Gaussian over (n, d)."""
        hidden: list[torch.Tensor] = []
        *first, last = self.layers
        for layer in first:
            (out,) = layer(self.dropout(x), there, back)
            x = F.relu_(out)
            hidden.append(x)
        return hidden, self.design.gaussian(*last(self.dropout(x), there, back))


class Nodes(NamedTuple):
    """The users, or the items, of one domain: the outputs of the layers before the last (n, d), and the last one."""

    hidden: list[torch.Tensor]
    last: Gaussian

    def at(self, rows: torch.Tensor, training: bool) -> torch.Tensor:
        """Returns the vectors at ``rows``, any shape: (..., L·d)."""
        flat = rows.reshape(-1)
        parts = [h.index_select(0, flat).view(*rows.shape, h.shape[1]) for h in self.hidden]
        return torch.cat([*parts, sampled(self.last, rows, training)], -1)

    def means(self) -> torch.Tensor:
        """Returns all vectors without noise, (n, L·d)."""
        return torch.cat([*self.hidden, self.last.mean], 1)


class DomainEncoder(nn.Module):
    """The tables of one domain, and an encoder for each side of its graph."""

    def __init__(self, graph: DomainGraph, design: GaussianLayers):
        super().__init__()
        self._graph = graph
        self.user_table = embedding(len(graph.members), design.d)
        self.item_table = embedding(graph.n_items, design.d)
        self.users, self.items = GraphEncoder(design), GraphEncoder(design)

    def forward(self) -> tuple[Nodes, Nodes]:
        """Returns Gaussians of the members, and of the items, of the graph."""
        graph = self._graph
        users = Nodes(*self.users(self.user_table, graph.to_items, graph.to_users))
        return users, Nodes(*self.items(self.item_table, graph.to_users, graph.to_items))


class EdgeRows(NamedTuple):
    """The rows of a batch that lie in one domain: users (B,), items (B,) and (B, n) counted from the domain's first."""

    domain: int
    user: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor


class PairwiseGraphModel(CrossDomainRecommender[Interaction, Split], ABC):
    """A model that learns from the (user, item) pairs of the training events, and ranks by propagated vectors.

    Of the settings it reads ``train_batch_size`` and ``train_neg_num``; ``train_targets`` has no meaning for it.
    """

    cold_start = True

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        split = data.split
        pairs = UserItems.of(split.train_events.user, split.train_events.item, self.n_users)
        self._user = np.repeat(np.arange(self.n_users), np.diff(pairs.indptr))
        self._item = pairs.items
        audited = audit_edges(split, self._user, self._item, "the graphs' edges", fail=not split.leaky)
        split.report.update(audited)
        self._domain = np.searchsorted(split.item_offset, self._item, side="right") - 1
        self._sampler = CrossDomainSampler(split)
        self.graphs = [self._graph(k) for k in range(self.n_domains)]
        self._cache: tuple[list[tuple[int, int]], Tables] | None = None

    def _graph(self, k: int) -> DomainGraph:
        of_domain, low = self._domain == k, self.item_offsets[k]
        size = self.item_offsets[k + 1] - low
        return DomainGraph(
            self._user[of_domain], self._item[of_domain] - low, self.n_users, size, self.device
        )

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """Requires that every evaluated user is a training user."""
        if not config["train_on_histories"]:
            raise CDRError(
                f"train_on_histories=False leaves the held-out users out of training, and {cls.__name__} knows "
                "training users alone. Leave it True, or take a model of histories (I2VAE, SASRec)."
            )

    def encoder(self, cap: float | None = None) -> GaussianLayers:
        """Returns what the model's encoders are to be, by its settings."""
        c = self.config
        return GaussianLayers(
            d=int(c["embedding_size"]),
            n_layers=int(c["n_layers"]),
            dropout=float(c["dropout"]),
            slope=float(c["leaky_slope"]),
            deviation=c["deviation"],
            cap=cap,
        )

    # -- training ---------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Returns one phase over the pairs."""
        return [Phase(batches=self.edge_batches)]

    def edge_batches(self, rng: np.random.Generator) -> EpochBatches:
        """Returns all pairs, shuffled, in batches of about ``train_batch_size``; each has its share of every domain.

        Fields: ``user_id`` (B,), ``item_id`` (B,), ``neg_item_id`` (B, n) of the items' domains.
        """
        number = max(1, -(-len(self._user) // int(self.config["train_batch_size"])))
        width = int(self.config["train_neg_num"])
        negative = np.empty((len(self._user), width), np.int64)
        shares = []
        for k in range(self.n_domains):
            edges = np.flatnonzero(self._domain == k)
            negative[edges] = self._sampler.negatives(self._user[edges], k, width, rng)
            shares.append(np.array_split(rng.permutation(edges), number))
        columns = {"user_id": self._user, "item_id": self._item, "neg_item_id": negative}

        def batch(_: int, rows: np.ndarray) -> Interaction:
            return Interaction({name: torch.from_numpy(column[rows]) for name, column in columns.items()})

        return EpochBatches([(0, np.concatenate(parts)) for parts in zip(*shares, strict=True)], batch)

    def by_domain(self, batch: Interaction) -> Iterator[EdgeRows]:
        """Yields the rows of each domain that has some."""
        for k in range(self.n_domains):
            span = self.item_slice(k)
            in_span = (batch["item_id"] >= span.start) & (batch["item_id"] < span.stop)
            rows = in_span.nonzero().squeeze(1)
            if len(rows):
                positive, negative = (batch[f][rows] - span.start for f in ("item_id", "neg_item_id"))
                yield EdgeRows(k, batch["user_id"][rows], positive, negative)

    # -- inference --------------------------------------------------------------------------------------------------

    @abstractmethod
    def vectors(self) -> Tables:
        """Returns, by domain, the vectors of all users (n_users, d) and of its items (n_k, d), without noise."""

    def _tables(self) -> Tables:
        """The vectors; in evaluation mode they are kept until a weight changes."""
        state = [(p.data_ptr(), p._version) for p in self.parameters()]
        if self.training or self._cache is None or self._cache[0] != state:
            with torch.no_grad():
                self._cache = (state, self.vectors())
        return self._cache[1]

    def train(self, mode: bool = True) -> Self:
        """As torch does; in training the vectors of the former weights are forgotten."""
        self._cache = None
        return super().train(mode)

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Users with a training interaction in some domain."""
        return torch.stack([graph.place[batch.users] >= 0 for graph in self.graphs]).any(0)

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns the users' vectors for the target's domain, (B, d)."""
        return self._tables()[0][batch.target_domain][batch.users]

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns the vectors of a domain's items, (n_k, d)."""
        return self._tables()[1][domain]


def embedding(rows: int, d: int) -> nn.Parameter:
    """Returns a table of vectors to learn, N(0, 1) as published."""
    return nn.Parameter(torch.randn(rows, d))


def sampled(q: Gaussian, rows: torch.Tensor, training: bool) -> torch.Tensor:
    """Vectors at ``rows``, any shape, with noise of their own in training: (..., d)."""
    flat = rows.reshape(-1)
    mean = q.mean.index_select(0, flat)
    if training:
        mean = torch.addcmul(mean, (0.5 * q.logvar.index_select(0, flat)).exp(), torch.randn_like(mean))
    vectors: torch.Tensor = mean.view(*rows.shape, mean.shape[1])
    return vectors


def binary_loss(users: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy of users' products with positives (B, d) and negatives (B, n, d), both means added."""
    for_positive = (users * positive).sum(1)
    for_negative = torch.bmm(negative, users.unsqueeze(2)).squeeze(2)
    return F.softplus(-for_positive).mean() + F.softplus(for_negative).mean()


def mean_or_zero(x: torch.Tensor) -> torch.Tensor:
    """Returns the mean of (n,), zero if n is 0."""
    return x.sum() / max(1, x.numel())
