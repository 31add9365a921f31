"""CDRIB: Cao et al., "Cross-Domain Recommendation to Cold-Start Users via Variational Information Bottleneck", ICDE
2022.

Each domain has a variational graph encoder (``GraphEncoder``) for its users and one for its items. The outputs of
all L layers are concatenated, the last layer's being a sample, its mean at inference: vectors v of size L·d. What a
user did in one domain must explain the other, so to score the items of X an overlapping user is represented by the
encoder of *Y*, any other by X's own:

    score = v_u · v_i^X,        v_u = v_u^Y if u has edges in both domains, else v_u^X

and what is minimised, with BCE over a positive and its sampled negatives, is

    Σ_k [BCE_k + β KL(users of k) + KL(items of k)]
    + mean_u Σ over two kinds of negatives of max(0, γ − σ(c(v_u^X, v_u^Y)) + σ(c⁻)),
      c⁻ = c(v_u^X, v_w^Y) and c(v_w^X, v_u^Y), w another user of that domain, drawn at random

where a KL is of the last layer to N(0, I), summed over d and averaged over the nodes, c is an MLP 2Ld → d → 100 → 1,
and u in the contrastive term runs over some overlapping users, drawn in each step. In the published deviation s is
capped at 0.4.

A cold user of X is represented by Y's encoder. The original serves no others; here ``warm_score`` says what represents
a user with edges in both domains at inference: ``cross`` as in training, ``own``, or the ``mean`` of the two.

Differs from the authors' code in: the prior, N(0, I) and not that of s = 1, which is N(0, 2.5²) (``official_prior:
True``); who overlaps is said by masks, not by the order of ids, so the first cold user does not count as overlapping;
noise is drawn per row of a batch, not per node; w is never u; negatives are never training items; the
epoch is chosen on validation users, who are not the test users, for both domains together.
"""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from recbole.data.interaction import Interaction
from torch import nn

from recbole_cdr_ext.model.parts.layers import Gaussian, kl, mlp
from recbole_cdr_ext.model.variational_graph import (
    DomainEncoder,
    Nodes,
    PairwiseGraphModel,
    Tables,
    binary_loss,
    mean_or_zero,
)
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import BelowOne, Count, NonNegative, Positive, Settings, Size
from recbole_cdr_ext.splits.split import Split, TrainingData

S_CAP = 0.4


class Terms(NamedTuple):
    """The terms of the loss, with their weights."""

    bce: torch.Tensor
    kl: torch.Tensor
    contrastive: torch.Tensor


class CDRIBSettings(Settings):
    """CDRIB (Cao et al., ICDE 2022). The authors' values, but for the batch: theirs has 1,024 pairs; see
    docs/models/CDRIB.md.
    """

    embedding_size: Size = Field(
        128,
        description="Width d of embeddings and of each layer's output; vectors are n_layers times as wide.",
    )
    n_layers: Size = Field(3, description="Layers L of each encoder, the last one Gaussian.")
    dropout: BelowOne = Field(0.3, description="Dropout on the input of each layer.")
    leaky_slope: BelowOne = Field(0.1, description="Slope of the LeakyReLU below zero.")
    user_kl_weight: NonNegative = Field(
        1.5, description="β: weight of the users' KL terms; the items' have 1."
    )
    kl_weight: NonNegative = Field(1.0, description="Factor of all KL terms.")
    deviation: Literal["published", "softplus"] = Field(
        "published",
        description=(
            "Of a Gaussian: published, exp(0.1 + 0.9 softplus(min(s, 0.4))), or softplus(s), which may "
            "shrink."
        ),
    )
    official_prior: bool = Field(
        False, description="Whether the prior is that of the authors' code, the one of s = 1."
    )
    contrastive: Literal["hinge", "bce"] = Field(
        "hinge", description="Loss of the critic: hinge (with margin) or bce."
    )
    margin: NonNegative = Field(0.3, description="Margin of the hinge.")
    contrast_users: Size = Field(
        64, description="Overlapping users in the contrastive term, drawn in each step."
    )
    warm_score: Literal["cross", "own", "mean"] = Field(
        "cross",
        description=(
            "What represents a user with training interactions in both domains when items are ranked: "
            "the other domain's encoder (cross), the domain's own, or their mean."
        ),
    )
    train_neg_num: Size = Field(1, description="Negatives per positive.")
    train_batch_size: Size = Field(
        8192, description="Pairs in a batch; the graphs are propagated once per batch, whatever its size."
    )
    epochs: Count = Field(100, description="The most epochs.")
    learning_rate: Positive = Field(0.001, description="Step size.")
    weight_decay: NonNegative = Field(0.0005, description="L2 penalty.")


class CDRIB(PairwiseGraphModel):
    """Cross-domain information bottleneck; settings and their defaults are in ``properties/model/CDRIB.yaml``."""

    settings_class = CDRIBSettings
    domains = "two"
    paper = "CDRIB (Cao et al., ICDE 2022)"

    overlapping: torch.Tensor
    prior_logvar: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        self.beta, self.kl_weight = float(config["user_kl_weight"]), float(config["kl_weight"])
        self.margin, self.contrast_users = float(config["margin"]), int(config["contrast_users"])
        self.hinge, self.warm_score = config["contrastive"] == "hinge", config["warm_score"]
        self.official_prior = bool(config["official_prior"])
        design = self.encoder(S_CAP if config["deviation"] == "published" else None)
        self.encoders = nn.ModuleList(DomainEncoder(graph, design) for graph in self.graphs)
        self.critic = mlp(2 * design.n_layers * design.d, design.d, 100, 1)
        prior = design.gaussian(torch.zeros(design.d), torch.ones(design.d))
        self.register_buffer("prior_logvar", prior.logvar, persistent=False)
        both = torch.stack([graph.place >= 0 for graph in self.graphs]).all(0).nonzero().squeeze(1)
        self.register_buffer("overlapping", both, persistent=False)
        if not len(both):
            logging.getLogger().warning(
                "CDRIB: no user has training interactions in both domains, so nothing is transferred between them."
            )

    # -- loss -------------------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Interaction) -> Terms:
        """Returns the loss of a batch of pairs; everything is propagated once, and the KL are over all nodes."""
        encoded = [encoder() for encoder in self.encoders]
        users, items = [u for u, _ in encoded], [i for _, i in encoded]
        bce = users[0].last.mean.new_zeros(())
        for rows in self.by_domain(interaction):
            order, vectors = self.represented(rows.domain, rows.user, users)
            positive, negative = (
                items[rows.domain].at(i[order], self.training) for i in (rows.positive, rows.negative)
            )
            bce = bce + binary_loss(vectors, positive, negative)
        weight = self.kl_weight
        terms = [weight * self.beta * mean_or_zero(self._to_prior(z.last)) for z in users]
        terms += [weight * mean_or_zero(self._to_prior(z.last)) for z in items]
        return Terms(bce, torch.stack(terms).sum(), self._contrast(users))

    def represented(
        self, domain: int, user: torch.Tensor, users: list[Nodes]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns users (B,) as in training: overlapping ones by the other encoder, the others by their own.

        Returns:
            The order in which they come, (B,), and their vectors in it, (B, L·d).
        """
        place, other = self.graphs[domain].place[user], self.graphs[1 - domain].place[user]
        cross = other >= 0
        order = torch.cat([cross.nonzero().squeeze(1), (~cross).nonzero().squeeze(1)])
        parts = [
            users[1 - domain].at(other[cross], self.training),
            users[domain].at(place[~cross], self.training),
        ]
        return order, torch.cat(parts)

    def _to_prior(self, z: Gaussian) -> torch.Tensor:
        if not self.official_prior:
            return kl(z)
        return kl(z, Gaussian(torch.zeros_like(self.prior_logvar), self.prior_logvar))

    def _contrast(self, users: list[Nodes]) -> torch.Tensor:
        """The contrastive term over ``contrast_users`` overlapping users."""
        count = len(self.overlapping)
        if not count:
            return self.prior_logvar.new_zeros(())
        drawn = self.overlapping[torch.randperm(count, device=self.overlapping.device)[: self.contrast_users]]
        place = [graph.place[drawn] for graph in self.graphs]
        x, y = (z.at(rows, self.training) for z, rows in zip(users, place, strict=True))
        other_x, other_y = (
            z.at(another(rows, len(graph.members)), self.training)
            for z, rows, graph in zip(users, place, self.graphs, strict=True)
        )
        pairs = [torch.cat(pair, 1) for pair in ((x, y), (x, other_y), (other_x, y))]
        positive, *negatives = self.critic(torch.cat(pairs)).squeeze(1).chunk(3)
        return contrastive_loss(positive, negatives, self.margin if self.hinge else None)

    # -- inference --------------------------------------------------------------------------------------------------

    def vectors(self) -> Tables:
        """Returns the users as ``warm_score`` says, cold ones by the other encoder (zero without edges); the items."""
        encoded = [encoder() for encoder in self.encoders]
        spread = [graph.of_all(u.means()) for graph, (u, _) in zip(self.graphs, encoded, strict=True)]
        share = {"cross": 0.0, "own": 1.0, "mean": 0.5}[self.warm_score]
        users = []
        for k, graph in enumerate(self.graphs):
            has_own, has_other = graph.place >= 0, self.graphs[1 - k].place >= 0
            weight = torch.where(has_own & has_other, share, has_own.float()).unsqueeze(1)
            users.append(weight * spread[k] + (1 - weight) * spread[1 - k])
        return users, [i.means() for _, i in encoded]


def another(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Returns for each of ``rows`` (B,) another one of ``count``, uniformly; the same one if there is no other."""
    return (rows + torch.randint(1, max(2, count), rows.shape, device=rows.device)) % count


def contrastive_loss(
    positive: torch.Tensor, negatives: list[torch.Tensor], margin: float | None
) -> torch.Tensor:
    """Returns the loss of critics c⁺ and c⁻, each (B,): a hinge per kind of negatives; without a margin BCE."""
    if margin is None:
        return F.softplus(-positive).mean() + sum(F.softplus(c).mean() for c in negatives)
    return sum(
        (F.relu(margin - positive.sigmoid() + c.sigmoid()).mean() for c in negatives), positive.new_zeros(())
    )
