"""LightGCN's propagation against torch's own sparse products with autograd, in one run.

    python benchmarks/propagation_speed.py [--dataset=food_kitchen] [--layers=3] [--size=64] [--seconds=10]

A step is the mean of the layers and its gradient. The stock way is that of RecBole's LightGCN: a sparse matrix over
users and items together, a product per layer, the layers stacked. The data must be prepared.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import scipy.sparse as sp
import torch
from training_speed import in_turns, print_speeds

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from recbole_cdr_ext.model.next_item.lightgcn_psg import graph_edges
from recbole_cdr_ext.model.parts.propagation import BipartiteGraph
from recbole_cdr_ext.runs.experiment import load_data
from recbole_cdr_ext.settings.config import CDRConfig


class Stock:
    """A product per layer with the whole adjacency matrix, differentiated by torch."""

    name = "torch.sparse"

    def __init__(self, graph: BipartiteGraph, n_layers: int):
        n_users = graph.edges.shape[0]
        block = sp.csr_matrix(
            (graph.users_to_items.weight, graph.users_to_items.index, graph.users_to_items.offset),
            shape=graph.edges.shape,
        )
        whole = sp.coo_matrix(sp.bmat([[None, block], [block.T, None]]))
        index = torch.stack([torch.from_numpy(whole.row).long(), torch.from_numpy(whole.col).long()])
        self.matrix = torch.sparse_coo_tensor(index, torch.from_numpy(whole.data), whole.shape).coalesce()
        self.n_layers, self.n_users = n_layers, n_users

    def __call__(self, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the means of the layers."""
        layers = [torch.cat([users, items])]
        for _ in range(self.n_layers):
            layers.append(torch.sparse.mm(self.matrix, layers[-1]))
        mean = torch.stack(layers, dim=1).mean(dim=1)
        return mean[: self.n_users], mean[self.n_users :]


class Bags:
    """What the models use."""

    name = "BipartiteGraph"

    def __init__(self, graph: BipartiteGraph, n_layers: int):
        self.graph, self.n_layers = graph, n_layers

    def __call__(self, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the means of the layers."""
        return self.graph.mean_of_layers(users, items, self.n_layers)


class Contender:
    """One way, its steps so far, and the time that they took."""

    def __init__(self, way, users: torch.Tensor, items: torch.Tensor):
        self.name, self.way, self.rows, self.seconds = way.name, way, 0, 0.0
        self.x = [t.clone().requires_grad_() for t in (users, items)]

    def step(self) -> None:
        """The means and the gradient of their squares."""
        started = time.perf_counter()
        for t in self.x:
            t.grad = None
        users, items = self.way(*self.x)
        (users.square().sum() + items.square().sum()).backward()
        self.seconds += time.perf_counter() - started
        self.rows += 1


def main() -> None:
    """Prints the steps per second of both, and that they agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="food_kitchen")
    parser.add_argument("--data_path", default="dataset_atomic/")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="width of the vectors (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="for each way (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _, split = load_data(
        CDRConfig("LightGCNPSG", options.dataset, config_dict={"data_path": options.data_path})
    )
    graph = BipartiteGraph(*graph_edges(split), split.n_users, int(split.item_offset[-1]))
    users, items = (torch.randn(n, options.size) for n in graph.edges.shape)
    ways = [Contender(kind(graph, options.layers), users, items) for kind in (Stock, Bags)]
    for way in ways:
        way.step()
    for one, other in zip(*(way.x for way in ways), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    in_turns(ways, options.seconds)
    print(f"{graph.edges.nnz:,} edges, {options.layers} layers, width {options.size}; the gradients agree")
    print_speeds(ways, "steps")


if __name__ == "__main__":
    main()
