"""What an instance sees of its histories: each encoded by itself, or all positions of a sequence in one pass.

:class:`HistoryEncoder` is the first form, the paper's (I2VAE, section 3.2). :class:`PositionEncoder` reads a user's
events of all domains as one sequence (B, L), oldest first: the instance at a position has the event behind it as its
target, in domain X, and its history is everything up to the position. Nothing there looks further: a state at a
position, and so a score, is the same whatever is appended. Both give :class:`Views`.

Differences of one pass from the paper's form are those that it needs: positions count from the first event that was
kept; the attention from S^X' to S^Y' has the state at the position as its one query, instead of a mean over all
positions as queries; recalled items are read by attention from the position's own state, instead of as a sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.parts.layers import (
    Dropout,
    SequenceEncoder,
    attend,
    left_aligned,
    masked_mean,
    mlp,
    stream,
)
from recbole_cdr_ext.settings.config import CDRConfig


@dataclass
class Views:
    """What N instances of target domain X give to the posteriors.

    Attributes:
        own_state, other_state: S^X, S^Y, (N, d), zero where there is no such history.
        augmented: S_a^X (N, d), or None without pseudo-sequences.
        mixed: what z_t^y is made from, the rows in ``both``.
        has_own, has_other, both: (N,) masks.
        length: (N,) history lengths in X.
    """

    own_state: torch.Tensor
    other_state: torch.Tensor
    augmented: torch.Tensor | None
    mixed: torch.Tensor
    has_own: torch.Tensor
    has_other: torch.Tensor
    both: torch.Tensor
    length: torch.Tensor

    def with_hidden(self, share: float) -> Views:
        """Returns the views with a random share of those who have both histories treated as cold-start users."""
        if share == 0:
            return self
        hidden = self.both & (torch.rand(len(self.both), device=self.both.device) < share)
        return replace(
            self,
            has_own=self.has_own & ~hidden,
            both=self.both & ~hidden,
            mixed=self.mixed[~hidden[self.both]],
        )


class HistoryEncoder:
    """S^X, S^Y, S_a^X, and the attention from S^X' to S^Y', of each instance of a batch.

    The modules are the model's, which names them in its checkpoints.

    Args:
        embedding: the table of items.
        encoder: by domain, the self-attention over its items.
        cross: by domain, what mixes both histories: attention, or an MLP of the concatenated means.
        by_attention: which of the two.
        adds_last: whether S^X is the mean of the states (the paper) or has the most recent one added.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        encoder: nn.ModuleList,
        cross: nn.ModuleList,
        *,
        by_attention: bool,
        adds_last: bool,
    ):
        self._embedding, self._encoder, self._cross = embedding, encoder, cross
        self._by_attention, self._adds_last = by_attention, adds_last

    def of_batch(self, batch: Batch, hidden_share: float) -> Views:
        """Returns what the instances see.

        Args:
            hidden_share: of those with a history in Y, drawn at random, who are treated as cold-start users.
        """
        x = batch.target_domain
        others = [k for k in range(len(self._encoder)) if k != x]
        hidden = self._hidden(batch, others, hidden_share)
        history = batch.own_history
        if hidden is not None:
            history = history.masked_fill(hidden.unsqueeze(1), 0)
        mask = history != 0
        states = self._encoder[x](history, self._embedding)
        pooled = self._pooled(states, mask)
        memory = torch.cat([self._encoder[k](batch.history(k), self._embedding) for k in others], 1)
        memory_mask = torch.cat([batch.history(k) != 0 for k in others], 1)
        pooled_memory = masked_mean(memory, memory_mask)
        has_own, has_other = mask.any(1), memory_mask.any(1)
        both = has_own & has_other
        if not bool(both.any()):
            mixed = pooled[both]
        elif self._by_attention:
            mixed = self._cross[x](states[both], mask[both], memory[both], memory_mask[both])
        else:
            mixed = self._cross[x](torch.cat([pooled[both], pooled_memory[both]], 1))
        return Views(
            own_state=pooled,
            other_state=pooled_memory,
            augmented=self._pooled_pseudo(batch, hidden),
            mixed=mixed,
            has_own=has_own,
            has_other=has_other,
            both=both,
            length=mask.sum(1),
        )

    def _hidden(self, batch: Batch, others: list[int], share: float) -> torch.Tensor | None:
        """(B,) a random share of those with a history in another domain; None if the share is 0."""
        if share == 0:
            return None
        drawn = torch.rand(len(batch), device=batch.users.device) < share
        return drawn & torch.stack([(batch.history(k) != 0).any(1) for k in others]).any(0)

    def _pooled_pseudo(self, batch: Batch, hidden: torch.Tensor | None) -> torch.Tensor:
        """S_a^X, (B, d); z_a^x of cold-start users is masked, so their pseudo-sequences need not be encoded."""
        cold = (batch.own_history != 0).sum(1) == 0
        cold = cold if hidden is None else cold | hidden
        pseudo = batch.pseudo.masked_fill(cold.unsqueeze(1), 0)
        return self._pooled(self._encoder[batch.target_domain](pseudo, self._embedding), pseudo != 0)

    def _pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """S^X, (B, d), of (B, L, d) states."""
        mean = masked_mean(states, mask)
        # Sequences are right-aligned, and states are zero at padding: an empty row stays zero.
        return mean + states[:, -1] if self._adds_last else mean


@dataclass
class States:
    """Encoded sequences.

    Attributes:
        count: per domain, (B, L) how many of its events stand up to each position.
        states: per domain, (B, L_k, d) the states of its events alone.
        total: per domain, (B, L_k, d) their cumulative sums.
        merged: (B, L, d) states over all events, or None if nothing reads them.
    """

    count: list[torch.Tensor]
    states: list[torch.Tensor]
    total: list[torch.Tensor]
    merged: torch.Tensor | None


class PositionEncoder(nn.Module):
    """Encoders of each domain's events and of the merged timeline, and what stands at a position.

    Args:
        config: I2VAE's settings.
        offsets: domain k owns the global item ids offsets[k] .. offsets[k+1]-1.
        embedding: the table of items.
        pseudo: whether recalled items are read.
    """

    def __init__(self, config: CDRConfig, offsets: list[int], embedding: nn.Embedding, pseudo: bool):
        super().__init__()
        d, dropout = int(config["embedding_size"]), float(config["dropout"])
        self.n_domains = len(offsets) - 1
        self.pooling, self.how = config["pooling"], config["cross_encoder"]
        self.n_heads = int(config["n_cross_heads"])
        self.bounds: torch.Tensor
        self.register_buffer("bounds", torch.tensor(offsets[1:-1], dtype=torch.long), persistent=False)
        self._embedding = (embedding,)  # in a tuple: the table is the model's, not a part of this module

        def encoder() -> SequenceEncoder:
            return SequenceEncoder(
                d=d,
                n_layers=int(config["n_layers"]),
                n_heads=int(config["n_heads"]),
                max_length=int(config["max_history_length"]),
                inner=int(config["inner_size"]),
                dropout=dropout,
                count_back=False,
            )

        one = encoder() if config["shared_encoder"] else None
        self.encoder = nn.ModuleList(one or encoder() for _ in range(self.n_domains))
        if self.how == "merged":
            self.merged = one or encoder()
        elif self.how == "attention":
            self.query, self.key_value, self.out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        else:
            self.mix = mlp(2 * d, d, d, dropout=dropout)
        self.pseudo = pseudo
        if pseudo:
            self.recall_query, self.recall_out = nn.Linear(d, d), nn.Linear(d, d)
            self.dropout = Dropout(dropout)

    def forward(self, items: torch.Tensor) -> States:
        """Encodes sequences of global ids (B, L), oldest first, padded with 0 on the right."""
        (embedding,) = self._embedding
        real = items != 0
        domain = torch.bucketize(items, self.bounds, right=True)
        counts, states, totals = [], [], []
        for k in range(self.n_domains):
            alone, count = stream(items, real & (domain == k))
            encoded = self.encoder[k](alone, embedding)
            counts.append(count)
            states.append(encoded)
            totals.append(encoded.cumsum(1) if self.pooling != "last" else encoded)
        return States(counts, states, totals, self.merged(items, embedding) if self.how == "merged" else None)

    def of_batch(self, batch: Batch, hidden_share: float) -> Views:
        """Returns what the instances see at the last position of their merged timelines.

        Args:
            hidden_share: of those with both histories, drawn at random, who are treated as cold-start users.
        """
        items, length = left_aligned(batch["merged"])
        row = torch.arange(len(batch), device=items.device)
        recalled = batch.recalled if self.pseudo else None
        place = (length - 1).clamp(min=0)
        views = self.views(self(items), batch.target_domain, row, place, recalled)
        return views.with_hidden(hidden_share)

    def views(
        self,
        encoded: States,
        x: int,
        row: torch.Tensor,
        place: torch.Tensor,
        recalled: torch.Tensor | None,
    ) -> Views:
        """Returns what instances with a target in ``x`` read at positions (row, place), each (N,).

        Args:
            recalled: (N, r) items that PSG recalled in ``x``, 0 where there are fewer; None without PSG.
        """
        others = [k for k in range(self.n_domains) if k != x]
        own_state, length = self._pooled(encoded, [x], row, place)
        other_state, other_length = self._pooled(encoded, others, row, place)
        has_own, has_other = length > 0, other_length > 0
        both = has_own & has_other
        if self.how == "merged":
            assert encoded.merged is not None
            mixed = encoded.merged[row[both], place[both]]
        elif self.how == "attention":
            mixed = self._attended(encoded, others, x, row[both], place[both])
        else:
            mixed = self.mix(torch.cat([own_state[both], other_state[both]], 1))
        augmented = None
        if self.pseudo:
            assert recalled is not None
            augmented = own_state + self._read(own_state, recalled)
        return Views(own_state, other_state, augmented, mixed, has_own, has_other, both, length)

    def _pooled(
        self, encoded: States, domains: list[int], row: torch.Tensor, place: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """S at positions over some domains' events, (N, d), zero without any, and their number (N,)."""
        last = total = encoded.states[0].new_zeros(len(row), encoded.states[0].shape[2])
        length = torch.zeros_like(row)
        for k in domains:
            count = encoded.count[k][row, place]
            seen, at = (count > 0).unsqueeze(1), (row, (count - 1).clamp(min=0))
            length = length + count
            last = last + encoded.states[k][at] * seen
            total = total + encoded.total[k][at] * seen
        if self.pooling == "last":
            return last, length
        mean = total / length.clamp(min=1).unsqueeze(1)
        return (mean + last if self.pooling == "mean_last" else mean), length

    def _attended(
        self, encoded: States, others: list[int], x: int, row: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        """Attention from the own state at a position to the other domains' events up to it, (N, d)."""
        memory = torch.cat([encoded.states[k] for k in others], 1)
        width = encoded.count[x].shape[1]
        at = (encoded.count[x] - 1).clamp(min=0).unsqueeze(2).expand(-1, -1, memory.shape[2])
        query = encoded.states[x].gather(1, at)
        seen = torch.cat(
            [
                torch.arange(encoded.states[k].shape[1], device=row.device) < encoded.count[k].unsqueeze(2)
                for k in others
            ],
            2,
        )
        nothing = ~seen.any(
            2, keepdim=True
        )  # such positions are not asked for; their softmax must not be 0/0
        heads = (len(memory), -1, self.n_heads, memory.shape[2] // self.n_heads)
        q = self.query(query).view(heads).transpose(1, 2)
        k, v = (t.reshape(heads).transpose(1, 2) for t in self.key_value(memory).chunk(2, -1))
        attended = attend(q, k, v, (seen | nothing).unsqueeze(1))
        attended = attended.transpose(1, 2).reshape(len(memory), width, -1)
        states: torch.Tensor = self.out(attended[row, place])
        return states

    def _read(self, state: torch.Tensor, recalled: torch.Tensor) -> torch.Tensor:
        """Attention from the own state to the recalled items, (N, d); zero where nothing was recalled."""
        (embedding,) = self._embedding
        known = recalled != 0
        vectors = embedding(recalled)
        scores = torch.bmm(vectors, self.recall_query(state).unsqueeze(2)).squeeze(2) / math.sqrt(
            state.shape[1]
        )
        weight = scores.masked_fill(~known, -1e9).softmax(1) * known
        read = torch.bmm(weight.unsqueeze(1), vectors * math.sqrt(state.shape[1])).squeeze(1)
        states: torch.Tensor = self.dropout(self.recall_out(read)) * known.any(1, keepdim=True)
        return states
