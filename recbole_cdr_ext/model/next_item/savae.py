"""SA-VAE: Salah, Tran and Lauw, "Towards Source-Aligned Variational Models for Cross-Domain Recommendation",
RecSys 2021.

X is the target domain, Y the other one. Per domain a MultVAE of the bag x of a user's items:

    h = tanh(W x̃ + b), x̃ the L2-normalised, dropped-out multi-hot bag;  q(z|x) = N(μ, σ²), (μ, log σ²) linear in h;
    log p(x|z) = Σ_{i in the bag} log softmax(U tanh(V z + c) + e)_i.

Phase 1 trains one per domain (source), phase 2 another per domain (target) against the *other* domain's, now frozen:

    source:       −log p_Y(x^Y|z) + β·KL(q_Y(z|x^Y) ‖ N(0, I)),                  z ~ q_Y(·|x^Y)
    target soft:  −log p_X(x^X|z) + β·align_weight·KL(q_X(z|x^X) ‖ q_Y(z|x^Y)),  z ~ q_X(·|x^X)    (SA-VAE)
    target rigid: −log p_X(x^X|z),                                                z ~ q_Y(·|x^Y)    (RA-VAE)

with β = min(anneal_cap, updates/total_anneal_steps), means over users. The reference of a user without a history in Y
is N(0, I), whose KL has the weight β. Scores: U tanh(V z + c) + e at the mean of q_X(·|x^X), for a user cold in X at
that of q_Y(·|x^Y), without any history at 0.

No code was published, and the equations of phase 2 rest on a reader's note; differs from the paper in: both directions
are trained in one run; users of one domain alone train too. Decisions are on the documentation page.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from recbole.model.init import xavier_normal_initialization
from torch import nn

from recbole_cdr_ext.data.instances import Batch, make_batch
from recbole_cdr_ext.data.sequences import EpochBatches
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.bags import BagLinear, Bags, multinomial_loss
from recbole_cdr_ext.model.parts.layers import Gaussian, kl
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import BelowOne, Count, NonNegative, Positive, Settings, Share, Size
from recbole_cdr_ext.splits.split import Split, TrainingData, users_as_instances


class Terms(NamedTuple):
    """The terms of a phase's objective, batch means with their weights."""

    recon: torch.Tensor
    kl: torch.Tensor


class Encoder(nn.Module):
    """q(z|x): a bag to a Gaussian over (B, d)."""

    def __init__(self, n_items: int, hidden: int, d: int, dropout: float):
        super().__init__()
        self.read, self.posterior = BagLinear(n_items, hidden, dropout), nn.Linear(hidden, 2 * d)

    def forward(self, bags: Bags) -> Gaussian:
        return Gaussian(*self.posterior(self.read(bags).tanh()).chunk(2, 1))


class Decoder(nn.Module):
    """p(x|z): the last layer's rows and biases are the items'."""

    def __init__(self, n_items: int, hidden: int, d: int):
        super().__init__()
        self.hidden, self.items = nn.Linear(d, hidden), nn.Linear(hidden, n_items)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Returns what the items' rows are multiplied with, (B, hidden)."""
        vectors: torch.Tensor = self.hidden(z).tanh()
        return vectors

    def loss(self, z: torch.Tensor, bags: Bags) -> torch.Tensor:
        """Returns the mean of −log p(x|z), a scalar."""
        return multinomial_loss(self(z), self.items.weight, self.items.bias, bags)


class SAVAESettings(Settings):
    """SA-VAE (Salah, Tran & Lauw, RecSys 2021), whose sizes and settings are not known: MultVAE's (Liang et al.,
    WWW 2018).
    """

    alignment: Literal["soft", "rigid"] = Field(
        "soft",
        description=(
            "soft (SA-VAE): the target's own posterior is held to the source's; rigid (RA-VAE): the "
            "source's posterior is the target's."
        ),
    )
    align_weight: NonNegative = Field(
        1.0, description="Weight of that KL, on top of the annealed one (search 0.1, 0.3, 1, 3)."
    )
    decode_source_prob: Share = Field(
        0.0, description="Share of users with both domains whose target is decoded from the source's latent."
    )
    warm_start: bool = Field(
        False, description="Whether a target starts from its domain's own VAE of the first phase, or afresh."
    )
    embedding_size: Size = Field(128, description="Size d of the latent.")
    hidden_size: Size = Field(600, description="Size of the hidden layer in encoder and decoder.")
    dropout: BelowOne = Field(0.5, description="Dropout of the input.")
    anneal_cap: NonNegative = Field(0.2, description="Largest weight β of the KL divergence.")
    total_anneal_steps: Count = Field(
        2000,
        description=(
            "β is updates/total_anneal_steps until the cap is reached, in each phase anew; 0: the cap "
            "from the start."
        ),
    )
    learning_rate: Positive = Field(0.001, description="Step size.")
    train_batch_size: Size = Field(512, description="Users in a batch.")
    max_history_length: Size = Field(
        200,
        description=(
            "A bag that is scored holds at most the latest of these; with train_targets all, training "
            "bags are whole."
        ),
    )


class SAVAE(CrossDomainRecommender[Batch, Split]):
    """Source-aligned variational autoencoders; settings are in ``properties/model/SAVAE.yaml``."""

    settings_class = SAVAESettings
    cold_start = True
    domains = "two"
    paper = "SA-VAE (Salah, Tran & Lauw, RecSys 2021)"

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        self.rigid = config["alignment"] == "rigid"
        self.align_weight = float(config["align_weight"])
        self.decode_source_prob = float(config["decode_source_prob"])
        self.warm_start = bool(config["warm_start"])
        self.anneal_cap, self.anneal_steps = float(config["anneal_cap"]), int(config["total_anneal_steps"])
        self.batch_size = int(config["train_batch_size"])
        split = data.split
        self.whole = split.train_targets == "all"
        events = split.train_events
        users = users_as_instances(events.user, events.item, self.n_users, split.item_offset)
        if self.rigid and not (users.lengths > 0).all(1).any():
            raise CDRError("alignment=rigid learns from users with both domains, and none trains: use soft.")
        self.instances = users if self.whole else split.train
        self.longest = int(users.lengths.max(initial=1)) if self.whole else self.max_history_length

        d, hidden = int(config["embedding_size"]), int(config["hidden_size"])
        sizes = np.diff(self.item_offsets).tolist()

        def encoders() -> nn.ModuleList:
            return nn.ModuleList(Encoder(n, hidden, d, float(config["dropout"])) for n in sizes)

        def decoders() -> nn.ModuleList:
            return nn.ModuleList(Decoder(n, hidden, d) for n in sizes)

        self.source_encoder, self.source_decoder = encoders(), decoders()
        self.encoder, self.decoder = nn.ModuleList() if self.rigid else encoders(), decoders()
        self.apply(xavier_normal_initialization)
        # (phase, domain): updates so far. A domain whose second phase has not begun is scored by its first.
        self.updates: torch.Tensor
        self.register_buffer("updates", torch.zeros(2, self.n_domains, dtype=torch.long))

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """Refuses a share that rigid alignment would not look at."""
        if config["alignment"] == "rigid" and config["decode_source_prob"]:
            raise CDRError(
                "decode_source_prob is for alignment=soft; rigid always decodes the source's latents."
            )

    # -- phases -------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Returns two: a VAE per domain, then one per domain against the other's encoder."""
        return [
            Phase(
                f"{part} {name}",
                loss=loss,
                batches=partial(self.user_batches, k),
                parameters=tuple(f"{prefix}{half}.{k}." for half in ("encoder", "decoder")),
            )
            for part, prefix, loss in (
                ("source", "source_", self.source_loss),
                ("target", "", self.target_loss),
            )
            for k, name in enumerate(self.domain_names)
        ]

    def start_epoch(self, phase: Phase, epoch: int) -> None:
        """Copies the first phase's weights where the second starts from them."""
        if not self.warm_start or epoch or phase.loss != self.target_loss:
            return
        k = [each.name for each in self.phases()].index(phase.name) - self.n_domains
        self.decoder[k].load_state_dict(self.source_decoder[k].state_dict())
        if not self.rigid:
            self.encoder[k].load_state_dict(self.source_encoder[k].state_dict())

    def user_batches(self, k: int, rng: np.random.Generator) -> EpochBatches:
        """Returns the users of domain ``k`` in batches, shuffled."""
        chosen_rows = self.instances.domain == k
        if self.whole:
            chosen_rows &= self.instances.lengths[:, k] > 0
        rows = rng.permutation(np.flatnonzero(chosen_rows))
        parts = [(k, rows[first : first + self.batch_size]) for first in range(0, len(rows), self.batch_size)]
        return EpochBatches(
            parts, lambda _, chosen: make_batch(self.instances, chosen, max_length=self.longest)
        )

    def source_loss(self, batch: Batch) -> Terms:
        """Returns phase 1's loss: the evidence lower bound of the target domain's bags, β weighing the KL."""
        k, has_own = batch.target_domain, _any(batch, batch.target_domain)
        q = self.source_encoder[k](self._bags(batch, k))
        loss = self._decoder(k, False).loss(self._drawn(q, has_own), self._predicted(batch))
        return Terms(loss, self._beta(0, k) * (kl(q) * has_own).mean())

    def target_loss(self, batch: Batch) -> Terms:
        """Returns phase 2's loss, with the other domain's posterior as reference (soft) or as posterior (rigid)."""
        k = batch.target_domain
        has_own, other = _any(batch, k), _any(batch, 1 - k)
        beta, predicted, reference = self._beta(1, k), self._predicted(batch), self._reference(batch)
        if self.rigid:
            loss = self._decoder(k, True).loss(self._drawn(reference, other), predicted)
            return Terms(loss, torch.zeros_like(loss))
        q = self.encoder[k](self._bags(batch, k))
        z = self._drawn(q, has_own)
        from_source = ~has_own
        if self.decode_source_prob:
            from_source |= other & (torch.rand(len(has_own), device=has_own.device) < self.decode_source_prob)
        if from_source.any():
            z = torch.where(from_source.unsqueeze(1), self._drawn(reference, other), z)
        weight = torch.where(other, self.align_weight, 1.0) * has_own
        return Terms(self._decoder(k, True).loss(z, predicted), beta * (weight * kl(q, reference)).mean())

    # -- latents and scores -------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns what the decoder's last layer reads at the latent's mean, and a 1 for the bias, (B, hidden + 1)."""
        decoder = self._decoder(batch.target_domain, self._aligned(batch.target_domain))
        return F.pad(decoder(self.latent(batch)), (0, 1), value=1.0)

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns the last layer's rows and biases, (n_k, hidden + 1)."""
        items = self._decoder(domain, self._aligned(domain)).items
        return torch.cat([items.weight, items.bias.unsqueeze(1)], 1)

    def latent(self, batch: Batch) -> torch.Tensor:
        """Returns the mean of the target's posterior, of the source's where no history is read, else 0: (B, d)."""
        k = batch.target_domain
        has_own = _any(batch, k).unsqueeze(1)
        if not self._aligned(k):
            vectors: torch.Tensor = self.source_encoder[k](self._bags(batch, k)).mean * has_own
            return vectors
        from_source: torch.Tensor = self._reference(batch).mean
        if self.rigid:
            return from_source
        return torch.where(has_own, self.encoder[k](self._bags(batch, k)).mean, from_source)

    def _aligned(self, k: int) -> bool:
        return bool(self.updates[1, k])

    def _decoder(self, k: int, aligned: bool) -> Decoder:
        return cast(Decoder, (self.decoder if aligned else self.source_decoder)[k])

    @torch.no_grad()
    def _reference(self, batch: Batch) -> Gaussian:
        """The other domain's posterior, frozen and without dropout; N(0, I) without a history there."""
        other = 1 - batch.target_domain
        encoder, known = self.source_encoder[other].eval(), _any(batch, other).unsqueeze(1)
        q = encoder(self._bags(batch, other))
        return Gaussian(q.mean * known, q.logvar * known)

    def _drawn(self, q: Gaussian, known: torch.Tensor) -> torch.Tensor:
        """A sample in training; 0 for those whose prior is all that is known, whose noise would say nothing."""
        return q.sample(self.training) * known.unsqueeze(1)

    def _bags(self, batch: Batch, k: int) -> Bags:
        return Bags.of(batch.history(k), self.item_offsets[k])

    def _predicted(self, batch: Batch) -> Bags:
        """The whole bag, or the target alone (``train_targets: last``)."""
        k = batch.target_domain
        return (
            self._bags(batch, k) if self.whole else Bags.of(batch.targets.unsqueeze(1), self.item_offsets[k])
        )

    def _beta(self, part: int, k: int) -> float:
        """The weight of the KL in an update, which is counted in training."""
        if self.training:
            self.updates[part, k] += 1
        if not self.anneal_steps:
            return self.anneal_cap
        return min(self.anneal_cap, int(self.updates[part, k]) / self.anneal_steps)


def _any(batch: Batch, k: int) -> torch.Tensor:
    """(B,) whether there is a history in domain k."""
    return batch.history(k).any(1)
