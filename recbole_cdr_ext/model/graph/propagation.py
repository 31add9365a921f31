"""Propagation over a bipartite user-item graph, shared by every graph model."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
import torch


class _SparseProduct(torch.autograd.Function):
    """``A @ x`` for a constant sparse A whose transpose is at hand: autograd's own would build it in every step."""

    @staticmethod
    def forward(ctx, matrix, transposed, x):
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx, grad):
        return None, None, ctx.transposed @ grad.contiguous()


class BipartiteGraph:
    """D^{-1/2} A D^{-1/2} of a user-item graph without self-loops, as its two off-diagonal blocks.

    Args:
        user, item: (m,) the edges; repeated pairs count once.
        n_users, n_items: sizes of the id spaces (ids without an edge stay isolated: their rows are zero).
    """

    def __init__(self, user: np.ndarray, item: np.ndarray, n_users: int, n_items: int, device: str = "cpu"):
        edges = sp.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=(n_users, n_items))
        edges.data[:] = 1.0
        self.user_degree = np.diff(edges.indptr)
        self.item_degree = np.bincount(edges.indices, minlength=n_items)
        scale_user = 1 / np.sqrt(np.maximum(self.user_degree, 1)).astype(np.float32)
        scale_item = 1 / np.sqrt(np.maximum(self.item_degree, 1)).astype(np.float32)
        normalised = (sp.diags(scale_user) @ edges @ sp.diags(scale_item)).tocsr()
        self.edges = edges
        self._users_to_items = sparse_tensor(normalised, device)
        self._items_to_users = sparse_tensor(normalised.T.tocsr(), device)

    def step(self, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer: users (n_users, d) and items (n_items, d) each become the sum of their neighbours."""
        to_users, to_items = self._users_to_items, self._items_to_users
        return _SparseProduct.apply(to_users, to_items, items), _SparseProduct.apply(
            to_items, to_users, users
        )

    def propagate(
        self, users: torch.Tensor, items: torch.Tensor, n_layers: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns the (users, items) of layers 0 .. ``n_layers``."""
        layers = [(users, items)]
        for _ in range(n_layers):
            layers.append(self.step(*layers[-1]))
        return layers


def mean_layers(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """LightGCN's read-out: the mean over the layers, for users and for items."""
    return torch.stack([u for u, _ in layers]).mean(0), torch.stack([i for _, i in layers]).mean(0)


def sparse_tensor(matrix: sp.csr_matrix, device: str) -> torch.Tensor:
    matrix.sort_indices()
    with warnings.catch_warnings():
        # Torch announces that its CSR support is in beta; products with dense matrices are what is used of it.
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
        ).to(device)
