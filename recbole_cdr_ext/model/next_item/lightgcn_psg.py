"""LightGCN-PSG: the pseudo-sequence generator of I2VAE (Ning et al., UAI 2025, section 3.1 and appendix D.1).

LightGCN (He et al., SIGIR 2020) over one graph of all domains, then iterative recall: score the items of a domain,
take the best n that were neither seen nor recalled, add them as pseudo-edges, propagate again with the trained
embeddings, R times over. The recalled items lengthen short histories.

Decisions where the paper is silent:
- A user's vector is what LightGCN's layers give a node that has the instance's history as its edges and no embedding
  of its own: the mean of the items' messages. So training and held-out instances are treated by one function, from
  what stands before their targets alone, and users unknown to the graph are served too.
- Targets of training instances are no edges (``train_targets: last``); were they, the recall would have seen the
  answers of the training instances only. With ``all`` every interaction is a target, so only those that were held out
  of the training graph have a pseudo-sequence, made from that graph, and so has every held-out instance. (On
  food_kitchen, leave_one_out, 17 % of the training targets were recalled when all were edges, and 2 % of the held-out
  ones. Of those out of the graph it is 6 %, and 3 % of each user's last ones, which stand where held-out ones do.)
- A fifth of the edges is held out of the training graph to choose the epoch (Recall@20); with ``last`` the recall uses
  them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from recbole.data.interaction import Interaction
from recbole.model.init import xavier_uniform_initialization
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from recbole_cdr_ext.data.instances import Batch, Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.propagation import BipartiteGraph
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase, Progress
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import Condition, Count, Positive, Settings, Size
from recbole_cdr_ext.splits.audit import audit_edges
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.splits.split import PARTS, Split, TrainingData, UserItems, users_as_instances


class Terms(NamedTuple):
    """The loss of a batch of edges."""

    bpr: torch.Tensor
    l2: torch.Tensor


ValidationEdges = Annotated[
    float,
    AfterValidator(Condition(lambda share: 0 < share < 1, "between 0 and 1: the epoch is chosen on them")),
]


class LightGCNPSGSettings(Settings):
    """LightGCN-PSG: LightGCN's published defaults over the graph of all domains, then iterative recall."""

    embedding_size: Size = Field(64, description="Width of the embeddings.")
    n_layers: Count = Field(3, description="Propagation layers.")
    reg_weight: float = Field(0.0001, description="L2 weight on the embeddings of a batch.")
    learning_rate: Positive = Field(0.001, description="Learning rate.")
    train_batch_size: Size = Field(2048, description="Edges in a batch.")
    epochs: Count = Field(100, description="At most so many epochs; the best on the held-out edges is kept.")
    stopping_step: Count = Field(
        100, description="No early stopping: on sparse data the first epochs fall before they rise."
    )
    validation_edges: ValidationEdges = Field(
        0.2, description="Share of the edges held out to choose the epoch."
    )
    recall_rounds: Size = Field(4, description="R: rounds of recalling and propagating again.")
    recall_size: Size = Field(5, description="n: items recalled in a round, per user and domain.")
    max_history_length: Size = Field(
        200, description="The most recent items of each domain that make a user's vector."
    )


class LightGCNPSG(CrossDomainRecommender[Interaction, Split]):
    """LightGCN over the union of the domains; also recalls pseudo-sequences (:meth:`augment`).

    Settings: ``embedding_size``, ``n_layers``, ``reg_weight``, ``recall_rounds`` R, ``recall_size`` n,
    ``validation_edges`` (the held-out share of the edges).
    """

    settings_class = LightGCNPSGSettings
    cold_start = True
    paper = "LightGCN-PSG of I2VAE (Ning et al., UAI 2025); LightGCN (He et al., SIGIR 2020)"

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        self.split = data.split
        self.n_layers = int(config["n_layers"])
        self.reg_weight = float(config["reg_weight"])
        self.rounds, self.per_round = int(config["recall_rounds"]), int(config["recall_size"])
        self.batch_size = int(config["train_batch_size"])
        size = int(config["embedding_size"])
        self.user_embedding = nn.Embedding(self.n_users, size)
        self.item_embedding = nn.Embedding(self.n_items, size)
        self.apply(xavier_uniform_initialization)

        self.edge_user, self.edge_item = graph_edges(self.split)
        audited = audit_edges(
            self.split,
            self.edge_user,
            self.edge_item,
            "the graph's edges",
            fail=not self.split.leaky,
        )
        self.split.report.update(audited)
        rng = np.random.default_rng(int(config["seed"]))
        held_out = rng.random(len(self.edge_user)) < float(config["validation_edges"])
        self._train_edges = (self.edge_user[~held_out], self.edge_item[~held_out])
        self._valid_edges = UserItems.of(self.edge_user[held_out], self.edge_item[held_out], self.n_users)
        self._trained = UserItems.of(*self._train_edges, self.n_users)
        checked = np.flatnonzero(np.diff(self._valid_edges.indptr))
        # Two thousand users tell epochs apart; ranking all of them would cost more than the training.
        self._checked_users = np.sort(rng.permutation(checked)[:2000])
        self._train_graph = self._graph(*self._train_edges)
        self._full_graph = self._graph(self.edge_user, self.edge_item)
        every = self.split.train_targets == "all"
        self._recall_edges = self._train_edges if every else (self.edge_user, self.edge_item)
        self._recall_graph = self._train_graph if every else self._full_graph
        self._sampler = CrossDomainSampler(self.split)
        self._final: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """Checks what decides the graph and the recall."""
        super().check_settings(config)
        if config["train_neg_num"] != 1:
            raise CDRError(
                f"train_neg_num={config['train_neg_num']}: LightGCNPSG draws one negative per edge, as BPR does."
            )

    def _graph(self, user: np.ndarray, item: np.ndarray) -> BipartiteGraph:
        return BipartiteGraph(user, item, self.n_users, self.n_items, self.device)

    # -- training: BPR over the edges --------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Returns one phase over the graph's edges, whose epoch is chosen on the held-out ones."""
        return [Phase("lightgcn", batches=self.edge_batches, validate=self.recall_of_held_out_edges)]

    def edge_batches(self, rng: np.random.Generator) -> Iterator[Interaction]:
        """Yields shuffled (user, item, negative of the item's domain), each (B,)."""
        user, item = self._train_edges
        negative = np.empty_like(item)
        domain = np.searchsorted(self.split.item_offset, item, side="right") - 1
        for k in range(self.n_domains):
            of_domain = domain == k
            negative[of_domain] = self._sampler.negatives(user[of_domain], k, 1, rng)[:, 0]
        order = rng.permutation(len(user))
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            columns = {"user_id": user[rows], "item_id": item[rows], "neg_item_id": negative[rows]}
            yield Interaction({name: torch.from_numpy(column) for name, column in columns.items()})

    def calculate_loss(self, interaction: Interaction) -> Terms:
        """Returns BPR on the propagated vectors, and L2 on the embeddings of the batch (LightGCN, eq. 15)."""
        self._final = None
        users, items = self._train_graph.mean_of_layers(
            self.user_embedding.weight, self.item_embedding.weight, self.n_layers
        )
        user, positive, negative = (interaction[f] for f in ("user_id", "item_id", "neg_item_id"))
        margin = (users[user] * (items[positive] - items[negative])).sum(1)
        ego = (self.user_embedding(user), self.item_embedding(positive), self.item_embedding(negative))
        penalty = sum(e.square().sum() for e in ego) / (2 * len(user))
        return Terms(bpr=F.softplus(-margin).mean(), l2=self.reg_weight * penalty)

    @torch.no_grad()
    def recall_of_held_out_edges(self) -> float:
        """Returns Recall@20 of the held-out edges, by history vectors as in use, over up to 2,000 users."""
        messages, vectors = self._read_out(self._train_graph)
        hits = total = 0
        for first in range(0, len(self._checked_users), 256):
            users = self._checked_users[first : first + 256]
            row, item = self._trained.rows(users)
            scores = _sum_rows(messages, row, item, len(users)) @ vectors.T
            scores[:, 0] = -torch.inf
            scores[torch.from_numpy(row), torch.from_numpy(item)] = -torch.inf
            best = scores.topk(min(20, self.n_items - 1), dim=1).indices.cpu().numpy()
            row, item = self._valid_edges.rows(users)
            hits += int((best[row] == item[:, None]).any(1).sum())
            total += len(item)
        return hits / max(total, 1)

    # -- vectors ------------------------------------------------------------------------------------------------

    def _read_out(self, graph: BipartiteGraph) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what each item sends to a user that has it as an edge, and each item's own vector, (n_items, d).

        A user without an embedding of its own gets, from layer l, Σ_i e_i^(l-1) / √(d_u d_i); its own degree scales
        all its scores alike and is left out.
        """
        layers = graph.propagate(self.user_embedding.weight, self.item_embedding.weight, self.n_layers)
        degree = torch.from_numpy(np.maximum(graph.item_degree, 1)).to(self.device).rsqrt().unsqueeze(1)
        sent = torch.stack([items for _, items in layers[:-1]]).mean(0) if self.n_layers else layers[0][1]
        return sent * degree, torch.stack([items for _, items in layers]).mean(0)

    def _vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training or self._final is None:
            with torch.no_grad():
                final = self._read_out(self._full_graph)
            if self.training:
                return final
            self._final = final
        return self._final

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """As torch does; vectors made from the former weights are forgotten."""
        self._final = None
        states: _IncompatibleKeys = super().load_state_dict(state_dict, strict=strict, assign=assign)
        return states

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns the sum of the messages of everything in the histories, (B, d)."""
        messages, _ = self._vectors()
        out = messages.new_zeros(len(batch), messages.shape[1])
        for k in range(self.n_domains):
            history = batch.history(k)
            # Row 0 belongs to padding and has no edges, but it does have an embedding.
            out += (messages[history] * (history != 0).unsqueeze(2)).sum(1)
        return out

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns the propagated vectors of a domain's items, (n_k, d)."""
        return self._vectors()[1][self.item_slice(domain)]

    # -- recall -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def augment(self, split: Split, progress: Progress | None = None) -> Split:
        """Returns the split with ``recalled`` items, (n, R·n) best first, in all its instances, and the item vectors.

        Args:
            split: the split whose training events the graph was built from.
            progress: wraps the iterables of blocks (a progress bar).
        """
        self.eval()
        width, edges, graph = self.rounds * self.per_round, self._recall_edges, self._recall_graph
        recalled = {part: _Recall(split.part(part), width) for part in PARTS}
        recalled["train"].rows = self._without_edge(split.train)
        users = _Recall(users_as_instances(*edges, split.n_users, split.item_offset), width)
        for number in range(self.rounds):
            messages, vectors = self._read_out(graph)
            jobs: list[_Recall] = [*recalled.values(), users]
            blocks = [(job, rows) for job in jobs for rows in job.blocks(self.n_domains)]
            for job, rows in progress(blocks) if progress else blocks:
                self._recall_block(job, rows, number, messages, vectors)
            if number + 1 < self.rounds:
                pseudo_user, pseudo_item = users.pairs()
                graph = self._graph(np.append(edges[0], pseudo_user), np.append(edges[1], pseudo_item))
        split = split.with_recalled({part: recall.items for part, recall in recalled.items()})
        return replace(split, item_vectors=self._read_out(self._full_graph)[1].cpu().numpy())

    def _without_edge(self, instances: Instances) -> np.ndarray:
        """Rows whose targets are no edges of the graph that the recall is made from."""
        span = np.int64(self.n_items)
        edges = self._recall_edges[0] * span + self._recall_edges[1]
        return np.flatnonzero(~np.isin(instances.user * span + instances.target, edges))

    def _recall_block(
        self, job: _Recall, rows: np.ndarray, number: int, messages: torch.Tensor, vectors: torch.Tensor
    ) -> None:
        domain = int(job.instances.domain[rows[0]])
        span = self.item_slice(domain)
        row, item, in_domain = job.known(rows, domain)
        scores = _sum_rows(messages, row, item, len(rows)) @ vectors[span].T
        seen_row, seen_item = torch.from_numpy(row[in_domain]), torch.from_numpy(item[in_domain] - span.start)
        scores[seen_row, seen_item] = -torch.inf
        best = scores.topk(min(self.per_round, scores.shape[1]), dim=1)
        recalled = torch.where(best.values > -torch.inf, best.indices + span.start, 0).cpu().numpy()
        first = number * self.per_round
        job.items[rows, first : first + recalled.shape[1]] = recalled


class _Recall:
    """The recall of some instances while it grows."""

    def __init__(self, instances: Instances, width: int):
        self.instances = instances
        self.items = np.zeros((len(instances), width), np.int32)
        self.rows = np.arange(len(instances))  # for which items are recalled

    def blocks(self, n_domains: int) -> Iterable[np.ndarray]:
        """Rows in blocks of one domain; a block's score table is all the memory that the recall takes."""
        for k in range(n_domains):
            rows = self.rows[self.instances.domain[self.rows] == k]
            yield from (rows[i : i + 512] for i in range(0, len(rows), 512))

    def known(self, rows: np.ndarray, domain: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Histories and what was recalled so far: (row, item) pairs, and which of them lie in ``domain``."""
        instances, row, item, in_domain = self.instances, [], [], []
        for k in range(instances.start.shape[1]):
            length = instances.lengths[rows, k]
            r = np.repeat(np.arange(len(rows)), length)
            offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
            row.append(r)
            item.append(instances.pool.item[instances.start[rows, k][r] + offset])
            in_domain.append(np.full(len(r), k == domain))
        r, column = np.nonzero(self.items[rows])
        row.append(r)
        item.append(self.items[rows][r, column])
        in_domain.append(np.ones(len(r), bool))
        return np.concatenate(row), np.concatenate(item).astype(np.int64), np.concatenate(in_domain)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all (user, recalled item) pairs."""
        row, column = np.nonzero(self.items)
        return self.instances.user[row], self.items[row, column]


def graph_edges(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (user, item) pairs that a graph may hold, each once.

    Under ``train_targets: last`` these are the training interactions less the training instances' targets; under
    ``all`` every interaction is a target, and an edge.
    """
    span = np.int64(split.item_offset[-1])
    pairs = np.unique(split.train_events.user * span + split.train_events.item)
    if split.train_targets == "last":
        pairs = np.setdiff1d(pairs, split.train.user * span + split.train.target)
    return pairs // span, pairs % span


def _sum_rows(vectors: torch.Tensor, row: np.ndarray, item: np.ndarray, n: int) -> torch.Tensor:
    """Σ of ``vectors[item]`` by ``row``, (n, d)."""
    out = vectors.new_zeros(n, vectors.shape[1])
    if len(row):
        out.index_add_(
            0, torch.from_numpy(row).to(vectors.device), vectors[torch.from_numpy(item).to(vectors.device)]
        )
    return out
