"""Propagation over graphs of users and items, and of items alone, shared by every graph model."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import nn

Pair = tuple[torch.Tensor, torch.Tensor]


class SparseRows(nn.Module):
    """A constant sparse matrix, (n, m), to be multiplied with dense ones.

    A product is a weighted sum of rows, which is what an embedding bag is; torch's kernel for bags takes a quarter of
    the time of its sparse products on a CPU (``benchmarks/propagation_speed.py``), and no MKL.

    Args:
        matrix: the matrix; of its size, 2^31 is the limit of rows, columns, and entries.
    """

    index: torch.Tensor
    offset: torch.Tensor
    weight: torch.Tensor

    def __init__(self, matrix: sp.csr_matrix, device: str | torch.device = "cpu"):
        super().__init__()
        matrix = matrix.tocsr()
        matrix.sort_indices()
        parts = (matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32), matrix.data)
        for name, part in zip(("index", "offset", "weight"), parts, strict=True):
            self.register_buffer(name, torch.from_numpy(part).to(device), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the product with x, (m, d), without a gradient: (n, d)."""
        weight = self.weight.to(x.dtype)
        return F.embedding_bag(
            self.index, x, self.offset, mode="sum", per_sample_weights=weight, include_last_offset=True
        )


class _Product(torch.autograd.Function):
    """``A @ x``; its gradient is a product with the transposed matrix, which is at hand."""

    @staticmethod
    def forward(ctx: Any, matrix: SparseRows, transposed: SparseRows, x: torch.Tensor) -> torch.Tensor:
        ctx.transposed = transposed
        product: torch.Tensor = matrix(x)
        return product

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, ctx.transposed(grad.contiguous())


def product(matrix: SparseRows, transposed: SparseRows, x: torch.Tensor) -> torch.Tensor:
    """Returns ``matrix`` (n, m) times x (m, d), with a gradient in x; the transposed matrix is what that needs."""
    vectors: torch.Tensor = _Product.apply(matrix, transposed, x)
    return vectors


class _MeanOfLayers(torch.autograd.Function):
    """(I + Â + … + Â^L) x / (L + 1), by Horner's scheme. Â is symmetric, so the gradient is the same function."""

    @staticmethod
    def forward(
        ctx: Any, graph: BipartiteGraph, n_layers: int, users: torch.Tensor, items: torch.Tensor
    ) -> Pair:
        ctx.graph, ctx.n_layers = graph, n_layers
        return _horner(graph, n_layers, users, items)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *_horner(ctx.graph, ctx.n_layers, *(g.contiguous() for g in grads))


def _horner(graph: BipartiteGraph, n_layers: int, users: torch.Tensor, items: torch.Tensor) -> Pair:
    u, i = users, items
    for _ in range(n_layers):
        u, i = graph.users_to_items(i).add_(users), graph.items_to_users(u).add_(items)
    return u / (n_layers + 1), i / (n_layers + 1)


class BipartiteGraph:
    """Â = D^{-1/2} A D^{-1/2} of a user-item graph without self-loops, as its two off-diagonal blocks.

    Args:
        user, item: (m,) the edges; repeated pairs count once.
        n_users, n_items: sizes of the id spaces (ids without an edge stay isolated: their rows are zero).

    Attributes:
        edges: (n_users, n_items) A.
        users_to_items, items_to_users: the blocks of Â, (n_users, n_items) and its transpose.
    """

    def __init__(self, user: np.ndarray, item: np.ndarray, n_users: int, n_items: int, device: str = "cpu"):
        edges = sp.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=(n_users, n_items))
        edges.data[:] = 1.0
        self.user_degree = np.diff(edges.indptr)
        self.item_degree = np.bincount(edges.indices, minlength=n_items)
        scale_user = 1 / np.sqrt(np.maximum(self.user_degree, 1)).astype(np.float32)
        scale_item = 1 / np.sqrt(np.maximum(self.item_degree, 1)).astype(np.float32)
        self.edges = edges
        self._weigh((sp.diags(scale_user) @ edges @ sp.diags(scale_item)).tocsr(), device)

    def _weigh(self, normalised: sp.csr_matrix, device: str) -> None:
        self.users_to_items = SparseRows(normalised, device)
        self.items_to_users = SparseRows(normalised.T.tocsr(), device)

    def step(self, users: torch.Tensor, items: torch.Tensor) -> Pair:
        """Applies one layer: users (n_users, d) and items (n_items, d) each become the sum of their neighbours."""
        down, up = self.users_to_items, self.items_to_users
        return product(down, up, items), product(up, down, users)

    def propagate(self, users: torch.Tensor, items: torch.Tensor, n_layers: int) -> list[Pair]:
        """Returns the (users, items) of layers 0 .. ``n_layers``."""
        layers = [(users, items)]
        for _ in range(n_layers):
            layers.append(self.step(*layers[-1]))
        return layers

    def mean_of_layers(self, users: torch.Tensor, items: torch.Tensor, n_layers: int) -> Pair:
        """LightGCN's read-out: the mean over the layers 0 .. ``n_layers``, for users and for items."""
        vectors: Pair = _MeanOfLayers.apply(self, n_layers, users, items)
        return vectors


class DirectedGraph:
    """D^{-1} A of a directed graph: a node becomes the mean of the nodes that its edges lead to, zero without any.

    Args:
        source, target: (m,) the edges; a pair counts as often as it comes.
        n: nodes.

    Attributes:
        edges: (n, n) A; the row is the source.
        along, against: D^{-1} A and its transpose.
    """

    def __init__(self, source: np.ndarray, target: np.ndarray, n: int, device: str | torch.device = "cpu"):
        self.edges = sp.csr_matrix((np.ones(len(source), np.float32), (source, target)), shape=(n, n))
        mean = sp.diags(1 / np.maximum(np.asarray(self.edges.sum(1)).ravel(), 1)) @ self.edges
        self.along = SparseRows(mean.tocsr(), device)
        self.against = SparseRows(mean.T.tocsr(), device)

    def step(self, nodes: torch.Tensor) -> torch.Tensor:
        """Applies one layer to (n, d) vectors."""
        vectors: torch.Tensor = _Product.apply(self.along, self.against, nodes)
        return vectors
