"""PiNet: Ma et al., "π-Net: A Parallel Information-sharing Network for Shared-account Cross-domain Sequential
Recommendations", SIGIR 2019.

An account is shared by K members whom nobody tells apart. For a target in domain X, with Y standing for all others,
x_1, x_2, ... and y_1, y_2, ... the account's events, and n(j) the number of X events before y_j:

    encoders        h^X_n = GRU_X(E[x_1], ..., E[x_n]),   h^Y_j likewise;   h_0 = 0
    filter unit     f_jk = σ(W_f [h^Y_j; h^X_n(j); s_{j−1}] + V_f m_k + b_f),   k = 1..K, m_k the members' vectors
                    c_jk = tanh(W_s [h^Y_j; s_{j−1}] + V_s m_k + b_s)
                    s_j  = mean_k(f_jk ⊙ s_{j−1} + (1 − f_jk) ⊙ c_jk),   s_0 = 0
    transfer unit   r_j  = GRU_{Y→X}(s_1, ..., s_j);   r_0 = 0
    score of i      w_i · [r_J; h^X_N] + b_i

The loss is the cross-entropy of the target among all items of its domain (``softmax_negatives``: among so many drawn
ones): the mean over each domain's targets, summed over the domains. Nothing here looks ahead, so one pass over an
account's merged timeline gives [r; h^X] at each of its positions, for every X, and trains them all. No Y history:
r = 0. No X history (cold start): h^X = 0, so that r and the bias rank. No history at all: the bias alone.

Where there is no order between domains, all Y events stand before the X events of each X target: n(j) = 0.

Differs from the paper's code in: V_s is used (the code adds V_f m_k to the candidate, too); an instance has one target
(records there have one in both domains); the state that dropout has thinned is also what the next unit reads (two masks
there); gradients are clipped by their norm, not one by one; the best validated epoch is kept. With more than two
domains, h^Y_j comes from the encoder of y_j's domain, and the filter unit reads all Y events on one timeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import nn

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.data.sequences import (
    SequenceBatch,
    TrainingSequences,
)
from recbole_cdr_ext.model.parts.layers import Dropout
from recbole_cdr_ext.model.parts.whole_sequences import (
    WholeSequences,
    events_by_target_domain,
    merged_timelines,
    trains_whole_sequences,
)
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import BelowOne, Count, Learner, Positive, Settings, Size
from recbole_cdr_ext.splits.split import Split, TrainingData


@dataclass
class Encoded:
    """Encoded sequences.

    Attributes:
        domain: (B, L) the domain of each event, -1 at padding.
        latest: per domain X, (B, L, d) h^X after the last X event up to each position, zero before the first.
    """

    domain: torch.Tensor
    latest: list[torch.Tensor]


class PiNetSettings(Settings):
    """PiNet (Ma et al., SIGIR 2019). Sizes, dropout and step size are those of the authors' code."""

    embedding_size: Size = Field(100, description="Width d of items, members and states.")
    n_members: Size = Field(4, description="K, the members that share an account.")
    dropout: BelowOne = Field(
        0.2, description="Dropout on inputs and states of every recurrent unit, and before the output layer."
    )
    cold_start_mask_prob: BelowOne = Field(
        0.0, description="Share of training sequences whose own history is hidden, to train the cold path."
    )
    softmax_negatives: Count = Field(
        0,
        description=(
            "0: a softmax over all of the domain's items; else over the target and this many items that "
            "the batch shares, which is faster."
        ),
    )
    max_history_length: Size = Field(
        50,
        description=(
            "T: the most recent events of the merged timeline that are read; with order none, of each domain."
        ),
    )
    train_batch_size: Size = Field(
        1024,
        description=(
            "Positions in a batch of sequences, about the 128 sequences of the code; instances where "
            "train_targets is last."
        ),
    )
    epochs: Count = Field(50, description="The most epochs.")
    learner: Learner = Field("adam", description="The learner.")
    learning_rate: Positive = Field(0.001, description="Step size.")
    clip_grad_norm: dict[str, Any] | None = Field(
        {"max_norm": 5.0}, description="Gradients are scaled down to this norm."
    )


class PiNet(CrossDomainRecommender[Batch, Split]):
    """Parallel recurrent recommenders that share filtered states; settings in ``properties/model/PiNet.yaml``."""

    settings_class = PiNetSettings
    cold_start = True
    domains = "two or more"
    paper = "π-Net (Ma et al., SIGIR 2019)"

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        d, dropout = int(config["embedding_size"]), float(config["dropout"])
        self.cold_start_mask_prob = float(config["cold_start_mask_prob"])
        self.ordered = self.needs_merged = config["order"] != "none"
        self.bounds: torch.Tensor
        inner = torch.tensor(self.item_offsets[1:-1], dtype=torch.long)
        self.register_buffer("bounds", inner, persistent=False)

        self.item_embedding = nn.Embedding(self.n_items, d, padding_idx=0)
        self.encoder = nn.ModuleList(Recurrence(d, dropout) for _ in range(self.n_domains))
        n_members = int(config["n_members"])
        self.filter = nn.ModuleList(FilterUnit(d, n_members, dropout) for _ in range(self.n_domains))
        self.transfer = nn.ModuleList(Recurrence(d, dropout) for _ in range(self.n_domains))
        self.dropout = Dropout(dropout)
        self.output = nn.Embedding(self.n_items, 2 * d + 1)  # w_i, then b_i
        nn.init.xavier_normal_(self.item_embedding.weight)
        nn.init.xavier_normal_(self.output.weight)
        with torch.no_grad():
            self.item_embedding.weight[0] = 0
            self.output.weight[:, -1] = 0

        self._token_key = data.token_key
        self.training_sequences: WholeSequences[TrainingSequences] | None = None
        if trains_whole_sequences(config):
            self.training_sequences = WholeSequences(config, data.split.train_events, self._sequences)

    def phases(self) -> list[Phase]:
        """Returns one phase, over whole sequences or over instances."""
        if self.training_sequences is None:
            return [Phase()]
        return [Phase(batches=self.training_sequences.batches, loss=self.sequence_loss)]

    # -- states -------------------------------------------------------------------------------------------------

    def read(self, items: torch.Tensor) -> Encoded:
        """Encodes sequences of global ids (B, L), oldest first, padded with 0 on the right."""
        domain = torch.bucketize(items, self.bounds, right=True).masked_fill(items == 0, -1)
        latest = []
        for k, encoder in enumerate(self.encoder):
            index, count = standing(domain == k)
            latest.append(carried(encoder(self.item_embedding(items.gather(1, index))), count))
        return Encoded(domain, latest)

    def vectors(self, encoded: Encoded, x: int, hide: bool = False) -> torch.Tensor:
        """Returns [r; h^X; 1] at each position, (B, L, 2d + 1); ``hide`` treats some accounts as cold in X."""
        domain, own_states = encoded.domain, encoded.latest[x]
        other = (domain >= 0) & (domain != x)
        index, count = standing(other)
        if hide and self.cold_start_mask_prob:
            hidden = torch.rand(len(own_states), 1, device=own_states.device) < self.cold_start_mask_prob
            # Before the first Y event there would be nothing left to learn from.
            own_states = own_states * ~(hidden & (count > 0)).unsqueeze(2)
        foreign = torch.zeros_like(own_states)
        for k, states in enumerate(encoded.latest):
            if k != x:
                foreign = foreign + states * (domain == k).unsqueeze(2)
        at = index.unsqueeze(2).expand(-1, -1, own_states.shape[2])
        filtered = self.filter[x](foreign.gather(1, at), own_states.gather(1, at))
        transferred = carried(self.transfer[x](filtered), count)
        both = self.dropout(torch.cat([transferred, own_states], 2))
        return torch.cat([both, both.new_ones(*both.shape[:2], 1)], 2)

    # -- inference ----------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns [r; h^X; 1] behind the last event, (B, 2d + 1)."""
        return self._at_end(batch)

    def _at_end(self, batch: Batch, hide: bool = False) -> torch.Tensor:
        if self.ordered:
            items = batch["merged"]
        else:
            others = [k for k in range(self.n_domains) if k != batch.target_domain]
            items = torch.cat([batch.history(k) for k in (*others, batch.target_domain)], 1)
        index, count = standing(items != 0)
        length = count[:, -1]
        real = torch.arange(index.shape[1], device=items.device) < length.unsqueeze(1)
        encoded = self.read(items.gather(1, index) * real)
        row = torch.arange(len(items), device=items.device)
        return self.vectors(encoded, batch.target_domain, hide)[row, (length - 1).clamp(min=0)]

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns [w_i; b_i] of a domain's items, (n_x, 2d + 1)."""
        return self.output.weight[self.item_slice(domain)]

    # -- training -----------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Batch) -> torch.Tensor:
        """Returns the mean cross-entropy of a batch of instances."""
        return self.softmax_loss_in(
            interaction.target_domain, self._at_end(interaction, hide=True), interaction.targets
        )

    def sequence_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """Returns the cross-entropy of all positions: each domain's mean, summed over the domains."""
        encoded = self.read(batch.items)
        loss = self.output.weight.new_zeros(())
        for x in range(self.n_domains) if self.ordered else [batch.tag]:
            span = self.item_slice(x)
            predicts = (batch.targets >= span.start) & (batch.targets < span.stop)
            if predicts.any():
                vectors = self.vectors(encoded, x, hide=True)[predicts]
                loss = loss + self.softmax_loss_in(x, vectors, batch.targets[predicts])
        return loss

    def _sequences(self, events: Events) -> list[TrainingSequences]:
        """What training reads: the merged timelines, or each domain's events behind those of all others."""
        longest = self.max_history_length
        if self.ordered:
            return merged_timelines(events, self._token_key, longest)
        by_domain = events_by_target_domain(events, self._token_key, self.n_domains, longest)
        return [TrainingSequences(each, self.n_domains * longest) for each in by_domain]


class Recurrence(nn.Module):
    """A GRU of one layer with dropout on its inputs and, unlike torch's, on the state between its steps."""

    def __init__(self, d: int, dropout: float):
        super().__init__()
        self.gru = nn.GRU(d, d, batch_first=True)
        self.dropout = Dropout(dropout)
        for name, parameter in self.gru.named_parameters():
            if name.startswith("weight"):
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.zeros_(parameter)
            if name.startswith("bias_ih"):
                nn.init.ones_(parameter[: 2 * d])  # the gates: a state is kept rather than replaced

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, M, d) to the states after each step, (B, M, d)."""
        x = self.dropout(x)
        if not self.training or self.dropout.p == 0:
            vectors: torch.Tensor = self.gru(x)[0]
            return vectors
        weights, masks = self.gru.all_weights[0], self.dropout(torch.ones_like(x))
        state, states = torch.zeros_like(x[:, 0]), []
        for step, mask in zip(x.unbind(1), masks.unbind(1), strict=True):
            state = torch.gru_cell(step, state, *weights) * mask
            states.append(state)
        return torch.stack(states, 1)


class FilterUnit(nn.Module):
    """The shared-account filter unit: what of the Y events concerns X, member by member, and their mean."""

    def __init__(self, d: int, n_members: int, dropout: float):
        super().__init__()
        self.members = nn.Parameter(torch.empty(n_members, d))
        self.w_f, self.w_s = nn.Linear(3 * d, d), nn.Linear(2 * d, d)
        self.v_f, self.v_s = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.dropout = Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.ones_(parameter)

    def forward(self, foreign: torch.Tensor, own_states: torch.Tensor) -> torch.Tensor:
        """Maps h^Y_j and h^X_n(j), each (B, M, d) to s_j, (B, M, d)."""
        d = foreign.shape[2]
        both = self.dropout(torch.cat([foreign, own_states], 2))
        for_gate, of_gate = self.w_f.weight.split((2 * d, d), 1)
        for_candidate, of_candidate = self.w_s.weight.split((d, d), 1)
        # All but the state's part, for all steps: (B, M, 1, 2d) and (K, 2d).
        gate = both @ for_gate.T + self.w_f.bias
        candidate = both[:, :, :d] @ for_candidate.T + self.w_s.bias
        inputs = torch.cat([gate, candidate], 2).unsqueeze(2)
        of_member = torch.cat([self.v_f(self.members), self.v_s(self.members)], 1)
        of_state = torch.cat([of_gate, of_candidate]).T
        masks = self.dropout(torch.ones_like(foreign))
        state, states = torch.zeros_like(foreign[:, 0]), []
        for step, mask in zip(inputs.unbind(1), masks.unbind(1), strict=True):
            gate, candidate = (step + (state @ of_state).unsqueeze(1) + of_member).chunk(2, 2)
            mixed = torch.lerp(candidate.tanh(), state.unsqueeze(1), gate.sigmoid())
            state = mixed.mean(1) * mask
            states.append(state)
        return torch.stack(states, 1)


def standing(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns where the events in ``mask`` (B, L) stand, and how many of them stand up to each position.

    Returns:
        index (B, M), M the most of any row, at least 1, what is behind a row's own being any other place; count (B, L).
    """
    count = mask.cumsum(1)
    width = max(1, int(count[:, -1].max()))
    return (~mask).byte().argsort(dim=1, stable=True)[:, :width], count


def carried(states: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Returns the last of the states (B, M, d) at each position, given how many came (B, L); zero before the first."""
    at = (count - 1).clamp(min=0).unsqueeze(2).expand(-1, -1, states.shape[2])
    return states.gather(1, at) * (count > 0).unsqueeze(2)
