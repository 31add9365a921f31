"""C2DSR: Cao et al., "Contrastive Cross-Domain Sequential Recommendation", CIKM 2022; code cjx96/C2DSR.

A user's events of all domains are one merged sequence; X is a domain, Y stands for all others. With A the
row-normalised counts of "item, then the item that follows it" in the training sequences (of the merged ones for E_M,
a table of all items; within X for E_X, a table of X's items):

    G = (E + g¹ + … + g^L) / (L + 1),   g⁰ = E,   g^l = A · dropout(g^(l-1)) + b^l
    h^M_t, h^X_t   causal self-attention over the merged sequence, and over its X items alone, up to position t;
                   both read (G[item] + E[item])·√d + position
    L_X  = CE(W_X (h^M_t + h^X_t) + b_X)   at X's positions; the target is the next item of X in the sequence
    L_MX = CE(W_X h^M_t + b_X)             at the positions whose next item is one of X
    I_X  = BCE(D_X(r_X, r_MY), 1) + BCE(D_X(r_X, r̃_MY), 0),   D_X(r, s) = rᵀ B_X s + c_X
    loss = λ Σ_X (L_X + L_MX) + (1 - λ) Σ_X I_X

with r_X the mean of h^X over the positions that have a target in L_X, r_MY the mean of h^M over those that have one
in L_Y, and r̃_MY the same on a merged sequence whose X items are replaced by random ones of X. Scores in X are
W_X (h^M + h^X) + b_X, with h^M of the last event and h^X of the last one in X, 0 without one (cold start).

Decided here: users of a single domain train too, and I_X is a mean over the sequences that have both r_X and r_MY (0
without any); all means are over valid positions; items are replaced anew in each step. Without a clock (``order:
none``), what is asked of X reads a sequence with the other domains' events in front and X's behind them, in training
and in use. I_X is then taken where X's items stand in front: h^M does not look ahead.
``softmax_negatives`` takes each CE over the target and so many drawn items.

Differs from the paper's code in: attention is SASRec's in the pre-norm form of ``layers.py``, and padding is never
attended to; all positions of a sequence are trained, not the last ten, and a sequence longer than T is cut into
windows; no padding class in the softmax; tables start at N(0, 1/d), not N(0, 1); E_X has no rows for Y's items, which
nothing would read; any number of domains; one epoch is kept for all domains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import getLogger
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.data.sequences import SequenceBatch, TrainingSequences, first_of_token
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import (
    Dropout,
    Modules,
    SequenceEncoder,
    initialised_as_sasrec,
    left_aligned,
    masked_mean,
    stream,
)
from recbole_cdr_ext.model.parts.propagation import DirectedGraph
from recbole_cdr_ext.model.parts.whole_sequences import (
    WholeSequences,
    events_by_target_domain,
    merged_timelines,
)
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import BelowOne, Count, Positive, Settings, Size
from recbole_cdr_ext.splits.audit import audit_edges
from recbole_cdr_ext.splits.split import Split, TrainingData


class Terms(NamedTuple):
    """The weighted terms of the loss, each summed over the domains: λ·L_X, λ·L_MX, (1 - λ)·I_X."""

    single: torch.Tensor
    merged: torch.Tensor
    infomax: torch.Tensor


class Stream(NamedTuple):
    """What a batch of merged sequences (B, L) holds of one domain X: the items that another one of X follows.

    Attributes:
        items: (B, L_X) these, on the left, 0 behind them.
        target: (B, L_X) the next one of each.
        places: (B, L) mask of where they stand in the merged sequences.
    """

    items: torch.Tensor
    target: torch.Tensor
    places: torch.Tensor


class C2DSRSettings(Settings):
    """C2DSR (Cao et al., CIKM 2022), with the values of its published code."""

    embedding_size: Size = Field(256, description="Width d of items and states.")
    n_layers: Size = Field(2, description="Self-attention layers of each encoder.")
    n_heads: Size = Field(1, description="Heads of the self-attention.")
    inner_size: Size = Field(256, description="Width of the encoders' feed-forward layers.")
    n_graph_layers: Count = Field(
        1, description="Layers of propagation over the graphs of successive items; 0: none."
    )
    dropout: BelowOne = Field(0.2, description="Dropout in the propagation and in the encoders.")
    softmax_negatives: Count = Field(
        0,
        description=(
            "0: a softmax over all of the domain's items; else over the target and this many items that "
            "the batch shares, which is faster."
        ),
    )
    max_history_length: Size = Field(
        15, description="T: the most recent events of the merged sequence that are read."
    )
    next_item_weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.7, description="Weight λ of the next-item losses, in (0, 1]; the infomax losses have 1 - λ."
    )
    train_batch_size: Size = Field(
        2560, description="Targets in a batch of sequences: the code's 256 sequences of ten positions."
    )
    learning_rate: Positive = Field(0.001, description="Step size.")


class C2DSR(CrossDomainRecommender[Batch, Split]):
    """Single-domain and merged views of a sequence; settings and defaults in ``properties/model/C2DSR.yaml``."""

    settings_class = C2DSRSettings
    cold_start = True
    paper = "C2DSR (Cao et al., CIKM 2022)"

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        split = data.split
        d, dropout = int(config["embedding_size"]), float(config["dropout"])
        self.weight = float(config["next_item_weight"])
        self.clock = config["order"] != "none"
        self.needs_merged = self.clock
        if not self.clock:
            getLogger().info(
                "C2DSR: without a clock, the other domains' events stand before those of the target's domain"
            )

        self._token_key = data.token_key
        self.training_sequences = WholeSequences(config, split.train_events, self._sequences)
        events = split.train_events.take(first_of_token(split.train_events, self._token_key))
        domains = range(self.n_domains)
        audited = audit_edges(split, events.user, events.item, "the item graphs", fail=not split.leaky)
        split.report.update(audited)
        # Graphs are of whole sequences: in those for training, some successions are cut and others come several times.
        whole = [events] if self.clock else [_last(events, k) for k in domains]
        follows = [_successions(e.item, e.sequence) for e in whole]
        first, then = np.concatenate(follows, 1)
        graphs = [DirectedGraph(first, then, self.n_items, self.device)]
        for k in domains:
            domain_events, span = events.take(events.domain == k), self.item_slice(k)
            pairs = _successions(domain_events.item - span.start, domain_events.sequence)
            graphs.append(DirectedGraph(*pairs, span.stop - span.start, self.device))

        def encoder() -> SequenceEncoder:
            return SequenceEncoder(
                d=d,
                n_layers=int(config["n_layers"]),
                n_heads=int(config["n_heads"]),
                max_length=self.max_history_length,
                inner=int(config["inner_size"]),
                dropout=dropout,
                count_back=False,
            )

        def table(graph: DirectedGraph) -> GraphEmbedding:
            return GraphEmbedding(graph, d, int(config["n_graph_layers"]), dropout)

        sizes = np.diff(self.item_offsets).tolist()
        self.merged_table, self.merged_encoder = table(graphs[0]), encoder()
        self.table = Modules(table(graph) for graph in graphs[1:])
        self.encoder = Modules(encoder() for _ in sizes)
        self.predictor = Modules(nn.Linear(d, n) for n in sizes)
        self.discriminator = Modules(Bilinear(d) for _ in sizes)
        self.apply(initialised_as_sasrec)
        bounds = torch.tensor(self.item_offsets[1:-1], dtype=torch.long)
        self.bounds: torch.Tensor
        self.register_buffer("bounds", bounds, persistent=False)
        self._final: list[torch.Tensor] | None = None

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """Requires that every position is a target and one pass trains them."""
        if config["train_targets"] != "all" or config["targets_per_sequence"] or not config["one_pass"]:
            raise CDRError(
                "C2DSR trains all positions of a sequence in one pass: it takes train_targets=all, "
                "targets_per_sequence=0 and one_pass=True."
            )

    def phases(self) -> list[Phase]:
        """Returns one phase, over whole sequences."""
        return [Phase(batches=self.training_sequences.batches, loss=self.sequence_loss)]

    # -- tables of items ----------------------------------------------------------------------------------------

    def _propagated(self) -> list[torch.Tensor]:
        """E + G of the merged sequence (n_items, d), then of each domain (n_k, d)."""
        return [self.merged_table(), *(table() for table in self.table)]

    def _tables(self) -> list[torch.Tensor]:
        """The same for use: made once, and again when training has moved on."""
        if self.training:
            return self._propagated()
        if self._final is None:
            with torch.no_grad():
                self._final = self._propagated()
        return self._final

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """As torch does; tables made from the former weights are forgotten."""
        self._final = None
        states: _IncompatibleKeys = super().load_state_dict(state_dict, strict=strict, assign=assign)
        return states

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns W_X and, as its last column, b_X: (n_k, d + 1)."""
        predictor = self.predictor[domain]
        return torch.cat([predictor.weight, predictor.bias.unsqueeze(1)], 1)

    # -- states -------------------------------------------------------------------------------------------------

    def _merged_states(self, items: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
        """h^M of left-aligned ids (B, L): (B, L, d), zero at padding."""
        states: torch.Tensor = self.merged_encoder(items, _look_up(tables[0]))
        return states

    def _single_states(self, x: int, items: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
        """h^X of left-aligned ids of X alone (B, L): (B, L, d), zero at padding."""
        states: torch.Tensor = self.encoder[x](items, _look_up(tables[1 + x], self.item_offsets[x]))
        return states

    def _domain_of(self, items: torch.Tensor) -> torch.Tensor:
        """The items' domains, -1 at padding."""
        return torch.bucketize(items, self.bounds, right=True).masked_fill(items == 0, -1)

    def _timeline(self, batch: Batch) -> torch.Tensor:
        """The most recent T events of all domains, (B, L), right-aligned."""
        if self.clock:
            vectors: torch.Tensor = batch["merged"]
            return vectors
        x = batch.target_domain
        order = [*(k for k in range(self.n_domains) if k != x), x]
        items = torch.cat([batch.history(k) for k in order], 1)
        to_the_right = (items != 0).long().argsort(dim=1, stable=True)
        return items.gather(1, to_the_right)[:, -self.max_history_length :]

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns h^M + h^X and a constant 1 for the bias, (B, d + 1)."""
        x, tables = batch.target_domain, self._tables()
        items, length = left_aligned(self._timeline(batch))
        alone, count = stream(items, self._domain_of(items) == x)
        row = torch.arange(len(items), device=items.device)
        # States are zero at padding, and so where there is no history.
        merged = self._merged_states(items, tables)[row, (length - 1).clamp(min=0)]
        single = self._single_states(x, alone, tables)[row, (count[:, -1] - 1).clamp(min=0)]
        return _with_one(merged + single)

    # -- training -----------------------------------------------------------------------------------------------

    def _sequences(self, events: Events) -> list[TrainingSequences]:
        """The merged timelines, or each domain's events behind those of all others."""
        longest = self.max_history_length
        if self.clock:
            return merged_timelines(events, self._token_key, longest)
        by_domain = events_by_target_domain(events, self._token_key, self.n_domains, longest)
        return [
            TrainingSequences(each, longest, target_mask=each.domain == k) for k, each in enumerate(by_domain)
        ]

    def sequence_loss(self, batch: SequenceBatch) -> Terms:
        """Returns the objective over a batch of sequences; a domain's terms are means over its positions.

        Without a clock the batch's tag is the domain that stands last, and the only one whose items are asked for.
        """
        self._final = None
        tables, streams = self._propagated(), self._streams(batch)
        contrasted = self._contrasted(batch.tag, streams)
        # One call for all that the merged encoder reads.
        read = [batch.items, *(self._corrupted(batch.items[rows], x) for x, rows, _ in contrasted)]
        merged, *corrupted = self._merged_states(torch.cat(read), tables).split([len(r) for r in read])
        domain = self._domain_of(batch.targets)
        real = [domain_stream.target != 0 for domain_stream in streams]
        states = [
            self._single_states(x, domain_stream.items, tables) for x, domain_stream in enumerate(streams)
        ]
        single = shared = infomax = merged.new_zeros(())
        for x in range(self.n_domains) if self.clock else [batch.tag]:
            # Row by row, the nth item of a stream is the nth of its places.
            both_views = states[x][real[x]] + merged[streams[x].places]
            single = single + self._next_item(x, both_views, streams[x].target[real[x]])
            shared = shared + self._next_item(x, merged[domain == x], batch.targets[domain == x])
        for (x, rows, others), false in zip(contrasted, corrupted, strict=True):
            r_single = masked_mean(states[x][rows], real[x][rows])
            r_merged, r_false = masked_mean(merged[rows], others), masked_mean(false, others)
            infomax = infomax + self._infomax(x, r_single, r_merged, r_false)
        return Terms(self.weight * single, self.weight * shared, (1 - self.weight) * infomax)

    def _streams(self, batch: SequenceBatch) -> list[Stream]:
        """What is read of each domain. An item's next one may be any behind it, the last target included."""
        whole = torch.cat([batch.items[:, :1], batch.targets], 1)
        domain, streams = self._domain_of(whole), []
        for x in range(self.n_domains):
            of_domain = domain == x
            alone, count = stream(whole, of_domain)
            target = F.pad(alone[:, 1:], (0, 1))
            followed = of_domain & (count < count[:, -1:])
            streams.append(Stream(alone * (target != 0), target, followed[:, :-1]))
        return streams

    def _contrasted(self, tag: int, streams: list[Stream]) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        """Each domain X with an infomax term, the sequences (n,) that have both sides of it, and where their r_MY is
        taken (n, L)."""
        contrasts = []
        every = torch.stack([domain_stream.places for domain_stream in streams]).any(0)
        for x, domain_stream in enumerate(streams):
            others = every & ~domain_stream.places
            rows = (domain_stream.places.any(1) & others.any(1)).nonzero().squeeze(1)
            if self.weight < 1 and len(rows) and (self.clock or x != tag):
                contrasts.append((x, rows, others[rows]))
        return contrasts

    def _next_item(self, x: int, states: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of targets (N,) in X from states (N, d); 0 without any."""
        if not len(target):
            return states.new_zeros(())
        return self.softmax_loss_in(x, _with_one(states), target)

    def _infomax(
        self, x: int, r_single: torch.Tensor, r_merged: torch.Tensor, r_false: torch.Tensor
    ) -> torch.Tensor:
        """I_X from r_X, r_MY and r̃_MY, (n, d) each."""
        real, false = (self.discriminator[x](r_single, r) for r in (r_merged, r_false))
        return F.softplus(-real).mean() + F.softplus(false).mean()

    def _corrupted(self, items: torch.Tensor, x: int) -> torch.Tensor:
        """Ids (B, L) with each item of X replaced by a uniform one of X."""
        span = self.item_slice(x)
        random = torch.randint(span.start, span.stop, items.shape, device=items.device)
        return torch.where(self._domain_of(items) == x, random, items)


class GraphEmbedding(nn.Module):
    """A table of items, and what the graph of their successions makes of it."""

    def __init__(self, graph: DirectedGraph, d: int, n_layers: int, dropout: float):
        super().__init__()
        self.graph = graph
        self.embedding = nn.Embedding(graph.edges.shape[0], d)
        self.bias = nn.ParameterList(torch.zeros(d) for _ in range(n_layers))
        self.dropout = Dropout(dropout)

    def forward(self) -> torch.Tensor:
        """Returns E + G, (n, d)."""
        total = layer = self.embedding.weight
        for bias in self.bias:
            layer = self.graph.step(self.dropout(layer)) + bias
            total = total + layer
        return torch.add(self.embedding.weight, total, alpha=1 / (len(self.bias) + 1))


class Bilinear(nn.Module):
    """rᵀ B s + c, row by row."""

    def __init__(self, d: int):
        super().__init__()
        self.weight = nn.Linear(d, d, bias=False)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, r: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Maps two (B, d) to (B,)."""
        scores: torch.Tensor = (self.weight(s) * r).sum(1) + self.bias
        return scores


def _last(events: Events, domain: int) -> Events:
    """The events with those of ``domain`` at the end of each sequence, behind the other domains' one by one."""
    return events.take(np.lexsort((events.domain, events.domain == domain, events.sequence)))


def _successions(item: np.ndarray, sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each item that another follows in its sequence, and that one."""
    same = sequence[1:] == sequence[:-1]
    return item[:-1][same], item[1:][same]


def _look_up(table: torch.Tensor, offset: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda ids: F.embedding(ids - offset, table)


def _with_one(vectors: torch.Tensor) -> torch.Tensor:
    """(N, d) → (N, d + 1), a 1 behind each vector: the factor of the bias."""
    return F.pad(vectors, (0, 1), value=1.0)
