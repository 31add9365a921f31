"""I2VAE's histories one by one, as in the paper (section 3.2): each sequence of an instance is encoded by itself.

``positions.py`` has the other form, one pass over the merged timeline. Both give :class:`Views`.
"""

from __future__ import annotations

import torch
from torch import nn

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.parts.layers import masked_mean
from recbole_cdr_ext.model.parts.views import Views


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
            own=pooled,
            other=pooled_memory,
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
