"""DisenCDR: Cao et al., "DisenCDR: Learning Disentangled Representations for Cross-Domain Recommendation", SIGIR 2022.

A user is a Gaussian of each domain's own and one that the domains share, made by the encoders of ``DomainEncoder``:

    z_u^k, z_i^k   specific to domain k: encoders of their own over tables of their own
    z_u^S ~ q      shared: further user tables, a branch per domain; after each layer, and for the last one's mean and
                   s, the branches are mixed, Σ_k λ_u^k · (branch k)_u, λ_u^k the share of u's interactions in k
    q̃^k(z_u^S)     what domain k alone says of z_u^S: auxiliary encoders over the specific user tables

    score          (z_u^S + z_u^k) · z_i^k, with means at inference

and what is minimised, with BCE over a positive and its sampled negatives, is

    Σ_k [BCE_k + KL(z_u^k) + KL(z_i^k)] + (1 − β) KL(q ‖ N(0, I)) + β Σ_k KL(q ‖ q̃^k)

where a KL is summed over d and averaged over the graph's nodes. First come epochs in which the specific part is trained
alone, as a phase of its own.

With partial overlap the users are the union of the domains'; a user of one domain has λ = 1 there, and BCE, specific KL
and alignment of a domain are over the users who have edges in it. A cold user of a domain is ranked by z^S from
elsewhere, without a specific part.

Differs from the authors' code in: the prior, N(0, I) and not that of s = 1; noise times the deviation, not times its
exponential (``official_noise: True`` does both as the code does); λ per user, not one of all; a batch's row is one
pair of one domain, not a pair of each; noise is drawn per row of a batch, not per node; dropout stands before
the last layer of every encoder; negatives are never training items; the best epoch is chosen by validation.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import nn

from recbole_cdr_ext.model.parts.layers import Dropout, Gaussian, kl
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.model.variational_graph import (
    DomainEncoder,
    DomainGraph,
    GaussianLayers,
    GraphEncoder,
    PairwiseGraphModel,
    Tables,
    binary_loss,
    embedding,
    mean_or_zero,
    sampled,
)
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import BelowOne, Count, NonNegative, Positive, Settings, Share, Size
from recbole_cdr_ext.splits.split import Split, TrainingData


class Terms(NamedTuple):
    """The terms of the loss, with their weights: ``specific`` KL(z_u^k) + KL(z_i^k), ``shared`` KL(q ‖ prior)."""

    bce: torch.Tensor
    specific: torch.Tensor
    shared: torch.Tensor
    alignment: torch.Tensor


class DisenCDRSettings(Settings):
    """DisenCDR (Cao et al., SIGIR 2022). The authors' values, but for the deviation of the latents, the weight
    of the KL terms and the batch, which stand in DisenCDR_paper.yaml; see docs/models/DisenCDR.md.
    """

    embedding_size: Size = Field(128, description="Width d of embeddings and latents.")
    n_layers: Size = Field(2, description="Layers of each encoder, the last one Gaussian.")
    dropout: BelowOne = Field(0.3, description="Dropout on the input of each layer.")
    leaky_slope: BelowOne = Field(0.1, description="Slope of the LeakyReLU below zero.")
    alignment_weight: Share = Field(
        0.9,
        description=(
            "β: weight of the shared latent's alignment with what each domain alone says of it; 1 - β is "
            "that of its KL to the prior."
        ),
    )
    kl_weight: NonNegative = Field(0.01, description="Factor of all KL terms; 1 as published.")
    deviation: Literal["published", "softplus"] = Field(
        "softplus",
        description="Of a Gaussian: published, exp(0.1 + 0.9 softplus(s)), or softplus(s), which may shrink.",
    )
    official_noise: bool = Field(
        False,
        description=(
            "Whether prior and noise are those of the authors' code: the prior of s = 1, noise times "
            "exp(deviation)."
        ),
    )
    warmup_epochs: Count = Field(
        9, description="Epochs in which the specific part is trained alone, before `epochs` of everything."
    )
    train_neg_num: Size = Field(1, description="Negatives per positive.")
    train_batch_size: Size = Field(
        8192, description="Pairs in a batch; the graphs are propagated once per batch, whatever its size."
    )
    epochs: Count = Field(50, description="The most epochs after the warm-up.")
    learning_rate: Positive = Field(0.001, description="Step size.")


class DisenCDR(PairwiseGraphModel):
    """Disentangled graph encoders; settings and their defaults are in ``properties/model/DisenCDR.yaml``."""

    settings_class = DisenCDRSettings
    paper = "DisenCDR (Cao et al., SIGIR 2022)"

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        self.beta, self.kl_weight = float(config["alignment_weight"]), float(config["kl_weight"])
        self.warmup_epochs = int(config["warmup_epochs"])
        self.official_noise = bool(config["official_noise"])
        design = self.encoder()
        self.specific = nn.ModuleList(DomainEncoder(graph, design) for graph in self.graphs)
        self.auxiliary = nn.ModuleList(GraphEncoder(design) for _ in self.graphs)
        self.shared = _Shared(self.graphs, design)
        prior = design.gaussian(torch.zeros(design.d), torch.ones(design.d))
        self.register_buffer("prior_logvar", prior.logvar, persistent=False)

    prior_logvar: torch.Tensor

    def phases(self) -> list[Phase]:
        """Returns the specific part alone for ``warmup_epochs``, whose last is kept; then everything."""
        warmup = Phase(
            "warm-up",
            loss=self.warmup_loss,
            batches=self.edge_batches,
            parameters=("specific.",),
            validated=False,
            settings=(("epochs", self.warmup_epochs),),
        )
        return [*([warmup] if self.warmup_epochs else []), Phase(batches=self.edge_batches)]

    # -- loss -------------------------------------------------------------------------------------------------------

    def warmup_loss(self, batch: Interaction) -> Terms:
        """Returns BCE of the specific parts' own scores, and their KL."""
        specific = self.specific_parts()
        zero = specific[0][0].mean.new_zeros(())
        return Terms(self._bce(batch, specific, None), self._specific_kl(specific), zero, zero)

    def calculate_loss(self, interaction: Interaction) -> Terms:
        """Returns the loss of a batch of pairs; everything is propagated once, and the KL are over all nodes."""
        specific, q = self.specific_parts(), self.shared()
        alignment = q.mean.new_zeros(())
        for k, graph in enumerate(self.graphs):
            alignment = alignment + mean_or_zero(kl(q[graph.members], self.from_one_domain(k)))
        share = self.beta * self.kl_weight
        return Terms(
            bce=self._bce(interaction, specific, q),
            specific=self._specific_kl(specific),
            shared=(self.kl_weight - share) * mean_or_zero(self._to_prior(q[self.shared.known])),
            alignment=share * alignment,
        )

    def from_one_domain(self, k: int) -> Gaussian:
        """Returns q̃^k over the members of domain k, (m_k, d)."""
        graph = self.graphs[k]
        posterior: Gaussian = self.auxiliary[k](self.specific[k].user_table, graph.to_items, graph.to_users)[
            1
        ]
        return posterior

    def _bce(
        self, batch: Interaction, specific: list[tuple[Gaussian, Gaussian]], q: Gaussian | None
    ) -> torch.Tensor:
        loss: torch.Tensor = specific[0][0].mean.new_zeros(())
        for rows in self.by_domain(batch):
            users, items = (self._noisy(z) for z in specific[rows.domain])
            vectors = sampled(users, self.graphs[rows.domain].place[rows.user], self.training)
            if q is not None:
                vectors = vectors + sampled(self._noisy(q), rows.user, self.training)
            positive, negative = (sampled(items, i, self.training) for i in (rows.positive, rows.negative))
            loss = loss + binary_loss(vectors, positive, negative)
        return loss

    def _noisy(self, z: Gaussian) -> Gaussian:
        """What is drawn from: z, or with the code's noise N(mean, exp(deviation)²)."""
        return Gaussian(z.mean, 2 * (0.5 * z.logvar).exp()) if self.official_noise else z

    def _specific_kl(self, specific: list[tuple[Gaussian, Gaussian]]) -> torch.Tensor:
        terms = [mean_or_zero(self._to_prior(z)) for pair in specific for z in pair]
        return self.kl_weight * torch.stack(terms).sum()

    def _to_prior(self, z: Gaussian) -> torch.Tensor:
        if not self.official_noise:
            return kl(z)
        return kl(z, Gaussian(torch.zeros_like(self.prior_logvar), self.prior_logvar))

    def specific_parts(self) -> list[tuple[Gaussian, Gaussian]]:
        """Returns z_u^k over the members (m_k, d) and z_i^k over the items (n_k, d), by domain."""
        return [(users.last, items.last) for users, items in (part() for part in self.specific)]

    # -- inference --------------------------------------------------------------------------------------------------

    def vectors(self) -> Tables:
        """Returns z^S + z^k of users with edges in k, z^S of the others (zero without any edge), and z_i^k."""
        q = self.shared().mean
        specific = [(users.mean, items.mean) for users, items in self.specific_parts()]
        users = [
            q.index_add(0, graph.members, z) for graph, (z, _) in zip(self.graphs, specific, strict=True)
        ]
        return users, [items for _, items in specific]


class _Shared(nn.Module):
    """q(z_u^S): a branch per domain, mixed by λ after each layer.

    Attributes:
        known: the users who have an edge in some domain.
        weight_k: (m_k, 1) λ of domain k's members.
    """

    known: torch.Tensor

    def __init__(self, graphs: list[DomainGraph], design: GaussianLayers):
        super().__init__()
        self._graphs, self.design = graphs, design
        self.tables = nn.ParameterList(embedding(len(graph.members), design.d) for graph in graphs)
        self.branches = nn.ModuleList(design.layers() for _ in graphs)
        self.dropout = Dropout(design.dropout)
        total = np.zeros(len(graphs[0].place))
        for graph in graphs:
            total[graph.members.cpu().numpy()] += graph.degree
        device = graphs[0].place.device
        self.register_buffer("known", torch.from_numpy(np.flatnonzero(total)).to(device), persistent=False)
        for k, graph in enumerate(graphs):
            weight = (graph.degree / total[graph.members.cpu().numpy()]).astype(np.float32)
            self.register_buffer(
                f"weight_{k}", torch.from_numpy(weight[:, None]).to(device), persistent=False
            )

    def forward(self) -> Gaussian:
        """Returns a Gaussian over all users (n_users, d); those without edges have mean and s zero."""
        states = list(self.tables)
        mixed: list[torch.Tensor] = []
        for depth in range(self.design.n_layers):
            last = depth == self.design.n_layers - 1
            mixed = self._mixed(depth, states, rectified=not last)
            if not last:
                states = [mixed[0][graph.members] for graph in self._graphs]
        return self.design.gaussian(*mixed)

    def _mixed(self, depth: int, states: list[torch.Tensor], rectified: bool) -> list[torch.Tensor]:
        """Σ_k λ^k · (layer of branch k), each of its outputs (n_users, d)."""
        total: list[torch.Tensor] = []
        for k, (graph, layers) in enumerate(zip(self._graphs, self.branches, strict=True)):
            assert isinstance(layers, nn.ModuleList)
            outputs = layers[depth](self.dropout(states[k]), graph.to_items, graph.to_users)
            weight = getattr(self, f"weight_{k}")
            parts = [(F.relu_(out) if rectified else out) * weight for out in outputs]
            if not total:
                total = [graph.of_all(part) for part in parts]
            else:
                total = [t.index_add(0, graph.members, p) for t, p in zip(total, parts, strict=True)]
        return total
