"""RecBole's sequential models as baselines: they learn from the split's instances, and score histories."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import nn

from recbole_cdr_ext.baselines.baseline import RecBoleBaseline, pairs
from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.data.sequences import SequenceBatch, TrainingSequences, first_of_token
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import ItemTable, left_aligned
from recbole_cdr_ext.model.parts.losses import sampled_softmax_loss, softmax_loss
from recbole_cdr_ext.model.parts.whole_sequences import WholeSequences, trains_whole_sequences
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import Split, TrainingData

# Sequential models whose scores do not depend on how far a sequence is padded: batches stay as short as they can.
_ANY_WIDTH = frozenset({"GRU4Rec", "NARM", "SASRec", "STAMP"})


class SequentialBaseline(RecBoleBaseline):
    """SASRec, GRU4Rec and their like, trained on the split's instances."""

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        self.needs_merged = self.scope == "all"
        input_type = getattr(self.recbole_class, "input_type", None)
        loss_type = config["loss_type"]
        self.needs_negatives = loss_type == "BPR" or (loss_type is None and input_type == InputType.PAIRWISE)
        self.sequence_field = self.item_field + self.settings["LIST_SUFFIX"]
        self.length_field = self.settings["ITEM_LIST_LENGTH_FIELD"]

    def sequences(self, batch: Batch, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns histories as RecBole holds them.

        Returns:
            items (B, L), oldest first and padded with 0 on the right, and their lengths (B,), which are 0 for
            instances without a history. L is ``max_history_length`` where the model's scores depend on it.
        """
        merged = self.scope == "all"
        items = self.spaces[index].local(batch["merged"] if merged else batch.own_history)
        items = items[:, -self.max_history_length :]
        items, length = left_aligned(items)
        if type(self).__name__ not in _ANY_WIDTH:
            items = nn.functional.pad(items, (0, self.max_history_length - items.shape[1]))
        return items, length

    def _sequence_fields(self, batch: Batch, index: int) -> Interaction:
        items, length = self.sequences(batch, index)
        # An empty history reads as one padding item: finite scores, which can_score() disowns.
        return self.add_users(batch, {self.sequence_field: items, self.length_field: length.clamp(min=1)})

    def training_fields(self, batch: Batch, index: int) -> Interaction | None:
        """Returns sequences, targets and negatives; instances without a history have nothing to learn from."""
        filled = self.sequences(batch, index)[1] > 0
        if not filled.all():
            batch = batch.rows(filled)
        if not len(batch):
            return None
        space = self.spaces[index]
        fields = self._sequence_fields(batch, index)
        fields.update(Interaction({self.item_field: space.local(batch.targets)}))
        if self.needs_negatives:
            fields = pairs(fields.interaction, self.neg_field, space.local(batch.negatives))
        transformed: Interaction = self.transform(self.views[index], fields)
        if (
            self.settings["transform"] == "mask_itemseq"
            and not transformed[self.settings["MASK_INDEX"]].any()
        ):
            # RecBole's loss divides by the masked places but the first, which short sequences lack.
            return None
        return transformed

    @contextmanager
    def scoring_fields(self, batch: Batch, index: int) -> Iterator[Interaction]:
        """Gives the sequences, transformed as in training unless items are masked there."""
        fields = self._sequence_fields(batch, index)
        yield (
            fields
            if self.settings["transform"] == "mask_itemseq"
            else self.transform(self.views[index], fields)
        )

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Instances with a history in the scope."""
        if self.scope == "all":
            readable: torch.Tensor | None = batch["merged"].any(1)
            return readable
        return batch.own_history.any(1)


class SequenceModel(Protocol):
    """What the models here have beside RecBole's interface."""

    item_embedding: nn.Embedding

    def forward(self, items: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Maps (B, L) ids and their number to the state behind the last, (B, d)."""


class SequenceDotBaseline(SequentialBaseline):
    """SASRec, GRU4Rec: the sequence's vector times the item's.

    Their states look at nothing behind them, so with ``one_pass`` one pass over a sequence trains all of its
    positions; RecBole's way, and ``one_pass: False``, is a pass per position.
    """

    score = CrossDomainRecommender.score

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        self.one_pass = trains_whole_sequences(config) and not self.needs_negatives
        if config["softmax_items"] not in (None, "scope", "domain"):
            raise CDRError(f"softmax_items={config['softmax_items']!r} should be scope or domain.")
        self.by_domain = config["softmax_items"] == "domain" and len(self.spaces) == 1
        if self.by_domain and not self.one_pass:
            raise CDRError(
                "softmax_items=domain goes with one_pass=True, train_targets=all and loss_type=CE."
            )
        self.n_shared = int(config["softmax_negatives"] or 0)
        if self.n_shared < 0 or (self.n_shared and not self.one_pass):
            raise CDRError(
                f"softmax_negatives={config['softmax_negatives']!r} should be 0, for all items, or a number of "
                "negatives, with one_pass=True, train_targets=all and loss_type=CE."
            )
        if self.n_shared:
            for index in range(len(self.wrapped)):
                model = self._model(index)
                weight = model.item_embedding.weight
                model.item_embedding = ItemTable.from_pretrained(weight, freeze=False, padding_idx=0)
        self._token_key = data.token_key
        self.training_sequences: WholeSequences[TrainingSequences] | None = None
        if self.one_pass:
            self.training_sequences = WholeSequences(config, data.split.train_events, self._sequences)

    def _model(self, index: int) -> SequenceModel:
        return cast(SequenceModel, self.wrapped[index])

    def phases(self) -> list[Phase]:
        """Returns one phase, over whole sequences with ``one_pass``."""
        if self.training_sequences is None:
            return [Phase()]
        return [Phase(batches=self.training_sequences.batches, loss=self.sequence_loss)]

    def _sequences(self, events: Events) -> list[TrainingSequences]:
        """The training sequences of each space."""
        masks = [(events.item >= space.first) & (events.item < space.stop) for space in self.spaces]
        if len(self.spaces) == 1:
            masks[0] &= first_of_token(events, self._token_key)
        return [TrainingSequences(events, self.max_history_length, mask) for mask in masks]

    def sequence_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """Returns the mean cross-entropy of all positions: over the items of the space, or of the target's domain."""
        model, space = self._model(batch.tag), self.spaces[batch.tag]
        items = space.local(batch.items)
        predicts = batch.targets != 0
        with _states_of_all_positions(self.wrapped[batch.tag]):
            states = model.forward(items, (items != 0).sum(1))[predicts]
        target = batch.targets[predicts]
        if not self.by_domain:
            # RecBole's softmax is over the padding row too; negatives are not drawn from it.
            rows = slice(1 if self.n_shared else 0, len(model.item_embedding.weight))
            return self._softmax(states, model, rows, space.local(target) - rows.start)
        loss: torch.Tensor = states.new_zeros(())
        for k in space.domains:
            span = self.item_slice(k)
            in_span = (target >= span.start) & (target < span.stop)
            if in_span.any():
                share = in_span.sum() / len(target)
                loss = loss + share * self._softmax(
                    states[in_span], model, space.columns(span), target[in_span] - span.start
                )
        return loss

    def _softmax(
        self, states: torch.Tensor, model: SequenceModel, rows: slice, target: torch.Tensor
    ) -> torch.Tensor:
        """Mean loss over all of the item table's ``rows``, or over the targets and negatives that the batch shares."""
        if not self.n_shared:
            return softmax_loss(states, model.item_embedding.weight[rows], target)

        def items(ids: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = model.item_embedding(ids + rows.start)
            return vectors

        return sampled_softmax_loss(states, items, rows.stop - rows.start, target, self.n_shared, False)

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns the sequences' vectors, (B, d)."""
        index = self.space_index(batch.target_domain)
        fields = self._sequence_fields(batch, index)
        return self._model(index).forward(fields[self.sequence_field], fields[self.length_field])

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns the domain's item vectors, (n_k, d)."""
        index = self.space_index(domain)
        return self._model(index).item_embedding.weight[self.spaces[index].columns(self.item_slice(domain))]


@contextmanager
def _states_of_all_positions(model: nn.Module) -> Iterator[None]:
    """Lets RecBole's ``forward`` return (B, L, d): it ends by gathering each sequence's last state."""
    attributes = vars(model)
    attributes["gather_indexes"] = lambda states, last: states
    try:
        yield
    finally:
        del attributes["gather_indexes"]
