"""SVAE: Sachdeva, Manco, Ritacco and Pudi, "Sequential Variational Autoencoders for Collaborative Filtering", WSDM
2019; code noveens/svae_cf.

A variational auto-encoder at every step of one domain's sequence x_1 .. x_n, its input the state of a recurrent net:

    h_t = GRU(E[x_1] .. E[x_t]),  a_t = tanh(W_a h_t + b_a),  [μ_t; s_t] = W_z a_t + b_z
    z_t = μ_t + exp(s_t) ⊙ ε,  ε ~ N(0, I)
    o_t = W_o tanh(W_d z_t + b_d) + b_o                        the scores of all items; z_t = μ_t at inference

and what is minimised, per user and averaged over users, with k_t = min(k, n − t) items left to predict:

    Σ_t 1/k_t Σ_{j ≤ k_t} −log softmax(o_t)[x_{t+j}]  +  β · mean_t KL(N(μ_t, exp(s_t)²) ‖ N(0, I))

β = min(cap, users seen / ``total_anneal_steps``). One such net per domain, trained side by side; nothing is
transferred.

Decided here:
- A learned start token stands before each sequence (``bos``), so the first item is a target too, and a user without a
  history is ranked by what the start token alone predicts. Of token and history, the last ``max_history_length`` are
  read, in training as at inference.
- A sequence longer than that is trained in windows. A window cuts what is read, not what is predicted: the k next items
  behind a window's end are targets of its last positions. Each window starts from a state of its own, and the mean over
  t is over its positions.
- A batch holds windows of similar length. Divided by its own number of users, it would make a target of a batch of long
  ones count more than that of a batch of short ones; so its mean over targets is multiplied by the targets that a user
  has on average. In expectation that is the mean over users.
- ``input: merged`` is one net over all domains' items on one timeline. A position's targets are the next item and those
  behind it in the same domain, and the softmax is over that domain. Without a clock every other domain's events
  stand before those of the target's domain.
- With ``softmax_negatives``, the softmax of a target is over it and so many drawn items, not the k − 1 others.
- ``train_targets: last`` trains on the split's instances: one target, at the last step.

Differs from the code in: s is the log-deviation everywhere (there the KL takes it for a log-variance); the divisor is
k_t (there the number of targets at the first step, for all steps); no noise at inference; the most recent item is read
(there the reader of held-out users drops it); batches of many users.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.data.sequences import (
    SequenceBatch,
    TrainingSequences,
    first_of_token,
    next_items,
    with_start,
)
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import Gaussian, LatentMeter, Modules, kl, left_aligned
from recbole_cdr_ext.model.parts.whole_sequences import (
    WholeSequences,
    events_by_target_domain,
    trains_whole_sequences,
)
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import Count, NonNegative, Positive, Settings, Size
from recbole_cdr_ext.splits.split import Split, TrainingData


class Terms(NamedTuple):
    """The terms of the objective; their sum is minimised."""

    recon: torch.Tensor
    kl: torch.Tensor


class SVAESettings(Settings):
    """SVAE (Sachdeva et al., WSDM 2019), with the values of the authors' code, whose batches are one user each."""

    embedding_size: Size = Field(256, description="Width of the item vectors that are read.")
    rnn_size: Size = Field(200, description="Width of the GRU's states.")
    hidden_size: Size = Field(150, description="Width of the hidden layers of encoder and decoder.")
    latent_size: Size = Field(64, description="Width of the latent.")
    next_k: Size = Field(
        4, description="Items behind a position that it is to predict; 1 where instances are trained on."
    )
    bos: bool = Field(
        True,
        description=(
            "Whether a learned start token stands before each sequence: the first item is a target too, "
            "and a user without a history gets what the token predicts."
        ),
    )
    input: Literal["own", "merged"] = Field(
        "own", description="own (one net per domain) or merged (one net over all domains' items)."
    )
    kl_reduction: Literal["mean", "sum"] = Field(
        "mean", description="KL of a user's steps: their mean, or their sum, which is the proper bound."
    )
    anneal_cap: NonNegative = Field(0.2, description="Largest weight of the KL divergence.")
    total_anneal_steps: Count = Field(
        200000,
        description="Weight of the KL divergence: users seen / this, up to the cap; 0: the cap at once.",
    )
    softmax_negatives: Count = Field(
        0,
        description=(
            "0: a softmax over all of the domain's items; else over the target and this many items that "
            "the batch shares, which is faster."
        ),
    )
    max_history_length: Size = Field(
        1000, description="The most recent items that are read, the start token among them."
    )
    train_batch_size: Size = Field(
        512, description="Targets in a batch of sequences; instances where these are trained on."
    )
    learning_rate: Positive = Field(0.001, description="Step size.")
    weight_decay: NonNegative = Field(0.005, description="L2 penalty.")


class SVAE(CrossDomainRecommender[Batch, Split]):
    """A variational auto-encoder per step; settings and their defaults are in ``properties/model/SVAE.yaml``."""

    settings_class = SVAESettings
    paper = "SVAE (Sachdeva et al., WSDM 2019)"

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        self.merged, self.clock = config["input"] == "merged", config["order"] != "none"
        self.needs_merged = self.merged and self.clock
        self.bos, self.next_k = bool(config["bos"]), int(config["next_k"])
        self.kl_mean = config["kl_reduction"] == "mean"
        self.anneal_cap, self.anneal_users = float(config["anneal_cap"]), float(config["total_anneal_steps"])
        bounds = [1, self.n_items] if self.merged else self.item_offsets
        self.nets = Modules(
            _StepwiseVAE(config, first, stop, start_token=self.n_items)
            for first, stop in itertools.pairwise(bounds)
        )
        train = data.split.train
        self._token_key = data.token_key
        self.training_sequences: WholeSequences[_Source] | None = None
        # The sequence of each target: of a source, or where instances are trained on of a domain.
        owners = [train.sequence[train.domain == k] for k in range(self.n_domains)]
        if trains_whole_sequences(config):
            self.training_sequences = WholeSequences(config, data.split.train_events, self._sources)
            owners = [source.owner for source in self.training_sequences.kinds]
        most = int(config["targets_per_sequence"] or 0) or np.inf
        counts = [np.minimum(np.unique(owner, return_counts=True)[1], most) for owner in owners]
        self.users = [len(count) for count in counts]
        self.targets_per_user = [float(count.mean()) if len(count) else 1.0 for count in counts]
        self._users_seen = [0.0] * len(self.nets)
        self._meter = LatentMeter()

    def _sources(self, events: Events) -> list[_Source]:
        start = self.n_items if self.bos else 0
        return [
            _Source(read, self.max_history_length, self.next_k, start, domain)
            for read, domain in self._own_or_merged(events)
        ]

    def _own_or_merged(self, events: Events) -> list[tuple[Events, int | None]]:
        """What the sources read, and the one domain of their targets, None for all."""
        if not self.merged:
            return [(events.take(events.domain == k), k) for k in range(self.n_domains)]
        if self.clock:
            return [(events.take(first_of_token(events, self._token_key)), None)]
        by_domain = events_by_target_domain(events, self._token_key, self.n_domains, self.max_history_length)
        return [(each, k) for k, each in enumerate(by_domain)]

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """Instances hold one next item."""
        if config["next_k"] > 1 and config["train_targets"] == "all" and not trains_whole_sequences(config):
            raise CDRError(
                f"next_k={config['next_k']} needs whole sequences (one_pass=True and targets_per_sequence=0): "
                "an instance holds no item but the next one. Set next_k=1."
            )

    def phases(self) -> list[Phase]:
        """Returns one phase, over sequences or over instances."""
        if self.training_sequences is None:
            return [Phase()]
        return [Phase(batches=self.training_sequences.batches, loss=self.sequence_loss)]

    def start_epoch(self, phase: Phase, epoch: int) -> None:
        """Says how many users each net has seen, so that the weight of the KL goes on where it was."""
        self._users_seen = [0.0] * len(self.nets)
        for tag, users in enumerate(self.users):
            self._users_seen[self._net_of(tag)] += epoch * users
        self._meter.reset()

    def epoch_facts(self) -> dict[str, float]:
        """Returns KL (nats) and active dimensions of the latents, and the weight of the KL, mean over the nets."""
        weights = [self.kl_weight(net) for net in range(len(self.nets))]
        return {**self._meter.facts(), "kl weight": sum(weights) / len(weights)}

    def kl_weight(self, net: int) -> float:
        """Returns β, by the users that a net has seen."""
        if not self.anneal_users:
            return self.anneal_cap
        return min(self.anneal_cap, self._users_seen[net] / self.anneal_users)

    def _net_of(self, tag: int) -> int:
        """The net of a source, or of a domain."""
        return 0 if self.merged else tag

    # -- inference ----------------------------------------------------------------------------------------------

    def read(self, batch: Batch) -> torch.Tensor:
        """Returns what is read of the histories, (B, L), right-aligned: the last of start token and items."""
        x = batch.target_domain
        if not self.merged:
            items = batch.own_history
        elif self.clock:
            items = batch["merged"]
        else:
            others = [batch.history(k) for k in range(self.n_domains) if k != x]
            items = torch.cat([*others, batch.own_history], 1)
            items = items.gather(1, (items != 0).long().argsort(dim=1, stable=True))
        if self.bos:
            items = F.pad(items, (1, 0))
            place = (items == 0).sum(1, keepdim=True) - 1
            items = items.scatter(1, place, self.n_items)
        return items[:, -self.max_history_length :]

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Returns all instances, or without a start token those with something to read."""
        return None if self.bos else (self.read(batch) != 0).any(1)

    def posterior(self, batch: Batch) -> Gaussian:
        """Returns q(z_t) at the last step of each history, over (B, latent)."""
        net = self.nets[self._net_of(batch.target_domain)]
        items, length = left_aligned(self.read(batch))
        row = torch.arange(len(items), device=items.device)
        return net.posterior(net.states(items)[row, (length - 1).clamp(min=0)])

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns the decoder's hidden layer at the posterior's mean, and a 1 for the biases, (B, hidden + 1)."""
        return self.nets[self._net_of(batch.target_domain)].decode(self.posterior(batch).mean)

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns [W_o; b_o] of the domain's items, (n_k, hidden + 1)."""
        return self.nets[self._net_of(domain)].output_of(self.item_slice(domain))

    # -- training -----------------------------------------------------------------------------------------------

    def sequence_loss(self, batch: SequenceBatch) -> Terms:
        """Returns the objective over all positions of a batch of sequences."""
        net = self.nets[self._net_of(batch.tag)]
        targets = batch["next_seq"]
        predicts = targets[:, :, 0] != 0
        weight = (1 / predicts.sum(1, keepdim=True).clamp(min=1)).expand(predicts.shape)[predicts]
        posterior = net.posterior(net.states(batch.items)[predicts])
        return self.objective(batch.tag, posterior, targets[predicts], weight)

    def calculate_loss(self, interaction: Batch) -> Terms:
        """Returns the objective over instances, each a step of a user of its own."""
        readable = self.can_score(interaction)
        interaction = interaction if readable is None else interaction.rows(readable)
        tag, target = interaction.target_domain, interaction.targets.unsqueeze(1)
        weight = torch.full((len(target),), 1 / self.targets_per_user[tag], device=target.device)
        return self.objective(tag, self.posterior(interaction), target, weight)

    def objective(self, tag: int, posterior: Gaussian, targets: torch.Tensor, weight: torch.Tensor) -> Terms:
        """Returns reconstruction and KL per user.

        Args:
            tag: of the source.
            posterior: of N steps.
            targets: (N, k) global ids of the next items of one domain, 0 where there are fewer, but not first.
            weight: (N,) one over the number of steps of the step's user.
        """
        index, per_user = self._net_of(tag), self.targets_per_user[tag]
        net, divergence = self.nets[index], kl(posterior)
        decoded = net.decode(posterior.sample(self.training))
        recon = divergence.sum() * 0  # all that is left of a batch without targets
        for k in range(self.n_domains):
            span = self.item_slice(k)
            in_span = (targets[:, 0] >= span.start) & (targets[:, 0] < span.stop)
            if in_span.any():
                share = in_span.sum() / len(in_span)
                recon = recon + share * self.softmax_loss_in(k, decoded[in_span], targets[in_span])
        if self.training:
            self._users_seen[index] += len(targets) / per_user
            self._meter.add("z", index, posterior.mean, divergence)
        penalty = (divergence * weight if self.kl_mean else divergence).sum() / max(len(targets), 1)
        return Terms(recon=per_user * recon, kl=per_user * self.kl_weight(index) * penalty)


class _Source(TrainingSequences):
    """Training sequences that one net reads, and what it predicts at their positions.

    Args:
        events: what is read.
        max_length, next_k: as configured.
        start_token: that stands before each sequence; 0 for none.
        domain: of the targets; None for all.

    Attributes:
        events: what is read, start tokens included.
        owner: (n,) the sequence of each target.
    """

    def __init__(self, events: Events, max_length: int, next_k: int, start_token: int, domain: int | None):
        self.events = events = with_start(events, start_token) if start_token else events
        super().__init__(events, max_length)
        targets = next_items(events, next_k)
        if domain is not None:
            targets[events.domain != domain] = 0
        self._targets = torch.from_numpy(targets)
        targeted = (targets[:, 0] != 0) & (np.diff(events.sequence, prepend=-1) == 0)
        self.owner = events.sequence[targeted]

    def batch(self, windows: np.ndarray, tag: int = 0) -> SequenceBatch:
        """Returns the batch of some windows, with each position's next items as ``next_seq``, (B, L, k), 0 for none."""
        batch = super().batch(windows, tag)
        real = (batch["event"] >= 0).unsqueeze(2)
        return SequenceBatch({**batch.interaction, "next_seq": self._targets[batch["event"]] * real}, tag)


class _StepwiseVAE(nn.Module):
    """The net over the items ``first`` .. ``stop`` - 1.

    Args:
        start_token: global id of the start token.
    """

    def __init__(self, config: CDRConfig, first: int, stop: int, start_token: int):
        super().__init__()
        self.first, self.n, self.start_token = first, stop - first, start_token
        rnn, hidden, latent = (int(config[f"{name}_size"]) for name in ("rnn", "hidden", "latent"))
        # Row 0 is padding, the last one the start token.
        self.embedding = nn.Embedding(self.n + 2, int(config["embedding_size"]), padding_idx=0)
        self.gru = nn.GRU(self.embedding.embedding_dim, rnn, batch_first=True)
        self.encoder, self.latent = nn.Linear(rnn, hidden), nn.Linear(hidden, 2 * latent)
        self.decoder = nn.Linear(latent, hidden)
        self.output = nn.Parameter(torch.zeros(self.n, hidden + 1))  # the last column is the bias
        for weight in (self.encoder.weight, self.latent.weight, self.decoder.weight):
            nn.init.xavier_normal_(weight)
        nn.init.xavier_normal_(self.output.data[:, :-1])

    def states(self, items: torch.Tensor) -> torch.Tensor:
        """Returns h of left-aligned sequences of global ids (B, L): (B, L, rnn)."""
        local = torch.where(items == self.start_token, self.n + 1, items - self.first + 1)
        states: torch.Tensor = self.gru(self.embedding(local.masked_fill(items == 0, 0)))[0]
        return states

    def posterior(self, states: torch.Tensor) -> Gaussian:
        """Returns q(z) of states (N, rnn), over (N, latent)."""
        mean, log_deviation = self.latent(torch.tanh(self.encoder(states))).chunk(2, 1)
        return Gaussian(mean, 2 * log_deviation)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Returns [tanh(W_d z + b_d); 1], (N, hidden + 1)."""
        return F.pad(torch.tanh(self.decoder(z)), (0, 1), value=1.0)

    def output_of(self, span: slice) -> torch.Tensor:
        """Returns the rows of the output layer that belong to global ids."""
        return self.output[span.start - self.first : span.stop - self.first]
