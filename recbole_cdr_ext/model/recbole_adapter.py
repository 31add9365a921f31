"""RecBole's own general, traditional and sequential models as baselines on our instances.

:func:`adapt` turns any of them into a :class:`CrossDomainRecommender`: same command, split, candidates and table.
``baseline_scope: target`` builds one RecBole model per domain, which sees that domain's items and events alone;
``baseline_scope: all`` builds one on the union of the domains. Candidates are the target domain's either way.

How a model is served follows from what it scores with:

======================  ==================================  =======================================================
RecBole model           learns from                         scores with
======================  ==================================  =======================================================
general (BPR, ...)      training events and negatives       the user's id: users with events in the scope
auto-encoder            users                               the instance's own history: unseen users as well
item-item (ItemKNN)     all events, at construction         the instance's own history
Pop, Random             all events, at construction         nothing: every instance
sequential (SASRec)     training instances                  the instance's own history (``all``: merged)
======================  ==================================  =======================================================
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from recbole.data.dataloader import UserDataLoader
from recbole.data.interaction import Interaction
from recbole.data.transform import construct_transform
from recbole.data.utils import get_dataloader
from recbole.model.abstract_recommender import AbstractRecommender, AutoEncoderMixin, GeneralRecommender
from recbole.model.general_recommender.itemknn import ComputeSimilarity, ItemKNN
from recbole.model.general_recommender.pop import Pop
from recbole.utils import InputType, ModelType
from torch import nn

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.data.sampler import CrossDomainSampler
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.abstract import CrossDomainRecommender, Phase
from recbole_cdr_ext.model.recbole_view import SCOPES, BaselineSettings, EventView, item_spaces

# Models of a kind that is served which need what our instances do not hold, or a trainer of their own.
_UNSERVED = {
    "DIEN": "it reads item features",
    "DIN": "it reads item features",
    "FDSA": "it reads item features",
    "FEARec": "it looks up sequences with the same target in RecBole's augmented data set",
    "GRU4RecF": "it reads item features",
    "GRU4RecKG": "it reads pretrained knowledge-graph embeddings",
    "KSR": "it reads pretrained knowledge-graph embeddings",
    "LDiffRec": "it reads pretrained item embeddings",
    "NCL": "it clusters users and items in a trainer of its own",
    "RaCT": "it is pretrained in a trainer of its own",
    "RecVAE": "it alternates between encoder and decoder in a trainer of its own",
    "S3Rec": "it reads item features and is pretrained in a trainer of its own",
    "SASRecF": "it reads item features",
}
_KINDS = {
    ModelType.CONTEXT: "context-aware models read features",
    ModelType.KNOWLEDGE: "knowledge-aware models read a knowledge graph",
    ModelType.DECISIONTREE: "decision trees read features",
}
# Sequential models whose scores do not depend on how far a sequence is padded: batches stay as short as they can.
_ANY_WIDTH = frozenset({"GRU4Rec", "NARM", "SASRec", "STAMP"})


@functools.cache
def adapt(recbole_class: type[AbstractRecommender]) -> type[CrossDomainRecommender]:
    """Returns the baseline that runs a RecBole model on our instances, under the same name.

    Raises:
        CDRError: the model is of a kind that needs more than interactions, or a trainer of its own.
    """
    name, kind = recbole_class.__name__, recbole_class.type
    if kind in _KINDS or name in _UNSERVED:
        why = _UNSERVED.get(name) or _KINDS[kind]
        raise CDRError(f"RecBole's {name} cannot serve as a baseline here: {why}. See 'recbole-cdr models'.")
    # RecBole's SINE switches anomaly detection on for the whole process when its module is imported, which every
    # other sequential model's import does; it doubles the time of all training.
    torch.autograd.set_detect_anomaly(False)
    if kind == ModelType.SEQUENTIAL:
        base: type[RecBoleBaseline] = SequentialBaseline
    elif issubclass(recbole_class, AutoEncoderMixin):
        base = AutoEncoderBaseline
    elif kind == ModelType.TRADITIONAL:
        base = PopularityBaseline if name in ("Pop", "Random") else ItemItemBaseline
    else:
        base = UserBaseline
    attributes = {
        "__doc__": f"RecBole's {name} as a baseline: {inspect.getdoc(recbole_class) or name}",
        "__module__": __name__,
        "recbole_class": _VARIANTS.get(name, recbole_class),
        "paper": _reference(recbole_class),
    }
    return type(name, (_DOT_PRODUCTS.get(name, base),), attributes)


def _reference(recbole_class: type) -> str:
    """Returns the paper that the head of RecBole's module names, else "RecBole"."""
    text = inspect.cleandoc(sys.modules[recbole_class.__module__].__doc__ or "")
    found = re.search(r"Reference:\s*\n(.+?)(?:\n\s*\n|\Z)", text, re.DOTALL)
    return " ".join(found.group(1).split()) if found else "RecBole"


class RecBoleBaseline(CrossDomainRecommender):
    """A RecBole model per item space; what the kinds of models have in common.

    Training data comes from :meth:`prepare_data`, which must have run before a model is built: RecBole's models take
    their graphs, similarities and counts from it in their constructor, and so does a model that a checkpoint is then
    loaded into. ``state_dict`` therefore holds what is learnt, and nothing that follows from the data.
    """

    recbole_class: ClassVar[type[AbstractRecommender]]

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        events = getattr(dataset, "train_events", None)
        if events is None:
            raise CDRError(
                f"{type(self).__name__} is built from training data: call {type(self).__name__}.prepare_data(config, "
                "dataset, split) before the constructor."
            )
        self.scope: str = config["baseline_scope"] or "target"
        if self.scope not in SCOPES:
            raise CDRError(f"baseline_scope '{self.scope}' is not known: use 'target' or 'all'.")
        self.sampler: CrossDomainSampler = dataset.train_sampler
        self.spaces = item_spaces(dataset, self.scope)
        self.settings = BaselineSettings(
            config, model=type(self).__name__, MAX_ITEM_LIST_LENGTH=self.max_history_length
        )
        self.user_field, self.item_field = self.settings["USER_ID_FIELD"], self.settings["ITEM_ID_FIELD"]
        self.neg_field = self.settings["NEG_PREFIX"] + self.item_field
        # Before the models: RecBole's transforms name the fields that they add in the settings.
        self.transform = construct_transform(self.settings)
        self.views = [EventView(dataset, events, space, self.settings) for space in self.spaces]
        self.wrapped = nn.ModuleList(self._build(view) for view in self.views)
        # Representations of all users and items, which RecBole's models keep between evaluations (None at first).
        self._caches = [
            [name for name, value in model.other_parameter().items() if value is None]
            for model in self.wrapped
        ]
        # RecBole counts updates (to anneal a loss) in plain attributes; here they survive a checkpoint.
        self.register_buffer("updates", torch.zeros(len(self.wrapped), dtype=torch.long))

    @classmethod
    def prepare_data(cls, config, dataset, split):
        """Keeps the training events and their sampler for the constructor; the split stays as it is."""
        dataset.train_events = split.train_events
        dataset.train_sampler = CrossDomainSampler(split)
        return split

    def _build(self, view: EventView) -> AbstractRecommender:
        if not len(view):
            raise CDRError(
                f"{type(self).__name__} finds no training interaction in '{view.space.name}': loosen the split's or "
                "the filters' settings."
            )
        return self.recbole_class(self.settings, view).to(self.device)

    def space_index(self, domain: int) -> int:
        """Which of the RecBole models serves a domain."""
        return 0 if self.scope == "all" else domain

    # -- training -----------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Batch):
        """Returns RecBole's loss of a batch, a scalar or a tuple of terms."""
        index = self.space_index(interaction.target_domain)
        model = self.wrapped[index]
        fields = self.training_fields(interaction, index)
        if fields is None:
            # A term without effect, so that the trainer's backward pass still has something to follow.
            return sum(p.sum() for p in model.parameters()) * 0.0
        loss = model.calculate_loss(fields)
        if hasattr(model, "update"):
            self.updates[index] = model.update
        return loss

    def training_fields(self, batch: Batch, index: int) -> Interaction | None:
        """Returns a training batch as RecBole model ``index`` reads it, None if nothing of it is for that model."""
        raise NotImplementedError(f"{type(self).__name__}.training_fields")

    def train(self, mode: bool = True):
        """Sets the mode; representations kept from an earlier evaluation are forgotten."""
        self._forget()
        return super().train(mode)

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Loads weights and update counts; representations kept from others are forgotten."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self._forget()
        for model, count in zip(self.wrapped, self.updates.tolist(), strict=True):
            if hasattr(model, "update"):
                model.update = count
        return result

    def _forget(self) -> None:
        for model, names in zip(self.wrapped, self._caches, strict=True):
            for name in names:
                setattr(model, name, None)

    # -- scores -------------------------------------------------------------------------------------------------

    def score(self, batch: Batch, candidates: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the scores of candidates, (B, C), or of the whole domain, (B, n_k): one encoding per instance.

        Models without RecBole's ``full_sort_predict`` are asked pair by pair, which is slow.
        """
        index = self.space_index(batch.target_domain)
        items = self.item_slice(batch.target_domain)
        with self.scoring_fields(batch, index) as fields:
            try:
                scores = self.wrapped[index].full_sort_predict(fields)
            except NotImplementedError:
                return self._predict_pairs(fields, index, items, candidates)
        columns = self.spaces[index].columns(items)
        domain_scores = scores.to(self.device).view(len(batch), -1)[:, columns]
        if candidates is None:
            return domain_scores
        return domain_scores.gather(1, (candidates - items.start).clamp(min=0))

    @contextmanager
    def scoring_fields(self, batch: Batch, index: int) -> Iterator[Interaction]:
        """Gives instances as RecBole model ``index`` reads them, never their targets."""
        yield self.add_users(batch, {})

    def add_users(self, batch: Batch, fields: dict[str, torch.Tensor]) -> Interaction:
        """Returns RecBole's fields with the users'."""
        return Interaction({self.user_field: batch.users, **fields})

    def _predict_pairs(
        self, fields: Interaction, index: int, items: slice, candidates: torch.Tensor | None
    ) -> torch.Tensor:
        """The scores from ``predict``, which wants one row per (instance, candidate), in chunks of rows."""
        n_rows = len(fields)
        if candidates is None:
            candidates = torch.arange(items.start, items.stop, device=self.device).expand(n_rows, -1)
        local = self.spaces[index].local(candidates)
        step = max(1, int(self.settings["eval_batch_size"] or 4096) // candidates.shape[1])
        parts = []
        for first in range(0, n_rows, step):
            part = fields[slice(first, min(first + step, n_rows))].repeat_interleave(candidates.shape[1])
            part.update(Interaction({self.item_field: local[first : first + step].reshape(-1)}))
            parts.append(self.wrapped[index].predict(part).view(-1, candidates.shape[1]))
        return torch.cat(parts)

    def histories(self, batch: Batch, index: int) -> torch.Tensor:
        """Returns the ids, in model ``index``, of all items in the histories of its domains, (B, L), with 0s."""
        space = self.spaces[index]
        return torch.cat([space.local(batch.history(k)) for k in space.domains], dim=1)


class UserBaseline(RecBoleBaseline):
    """General models, which know users by their id: BPR, LightGCN, NeuMF, ..."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        known = torch.zeros(len(self.views), self.n_users, dtype=torch.bool)
        for index, view in enumerate(self.views):
            known[index, view.users()] = True
        self.register_buffer("known_users", known, persistent=False)
        self.on_users = _loads_users(self.recbole_class)
        self.n_negatives = 0 if self.on_users else _uniform_negatives(self.settings, self.recbole_class)

    def phases(self) -> list[Phase]:
        """One phase over training events, or over users for the models that RecBole feeds with users."""
        if not any(p.numel() > 1 for p in self.wrapped.parameters()):
            return []  # A single number is what RecBole gives models without any, for the optimiser's sake.
        return [Phase(batches="user_batches" if self.on_users else "event_batches")]

    def event_batches(self, rng: np.random.Generator) -> EpochBatches:
        """Returns the training events in batches of one space each, in random order, with exact negatives.

        As in RecBole, ``train_batch_size`` counts rows after each positive was repeated for its negatives. A
        negative comes from the domain of its positive, whatever the scope.
        """
        rows = self.n_negatives + (0 if self.recbole_class.input_type == InputType.PAIRWISE else 1)
        size = max(1, int(self.config["train_batch_size"]) // rows)
        parts = _shuffled_parts([len(view) for view in self.views], size, rng)
        return EpochBatches(parts, lambda index, rows: self._event_batch(index, rows, rng))

    def user_batches(self, rng: np.random.Generator) -> EpochBatches:
        """Returns the users with events in a space, in random order; ``train_batch_size`` counts users."""
        users = [view.users() for view in self.views]
        parts = _shuffled_parts([len(u) for u in users], int(self.config["train_batch_size"]), rng)
        return EpochBatches(parts, lambda index, rows: self._batch(index, {"user_id": users[index][rows]}))

    def _event_batch(self, index: int, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        view, space = self.views[index], self.spaces[index]
        user = view.inter_feat[self.user_field].numpy()[rows]
        fields = {
            "user_id": user,
            "item_id": view.inter_feat[self.item_field].numpy()[rows] + space.first - 1,
        }
        if self.n_negatives:
            negatives = np.empty((len(rows), self.n_negatives), np.int64)
            for k in space.domains:
                own = view.domain[rows] == k
                if own.any():
                    negatives[own] = self.sampler.negatives(user[own], k, self.n_negatives, rng)
            fields["neg_item_id"] = negatives
        return self._batch(index, fields)

    def _batch(self, index: int, fields: dict[str, np.ndarray]) -> Batch:
        tensors = {name: torch.from_numpy(array) for name, array in fields.items()}
        return Batch(tensors, self.spaces[index].domains[0], self.n_domains)

    def training_fields(self, batch: Batch, index: int) -> Interaction:
        """Returns users, positives and negatives, pair by pair or with labels, as the model's input type asks."""
        space, users = self.spaces[index], batch.users
        if self.on_users:
            return Interaction({self.user_field: users})
        positives = space.local(batch.targets)
        if not self.n_negatives:
            label = torch.ones(len(users), device=users.device)
            return self.add_users(batch, {self.item_field: positives, self.settings["LABEL_FIELD"]: label})
        negatives = space.local(batch.negatives)  # (B, n)
        if self.recbole_class.input_type == InputType.PAIRWISE:
            return _pairs({self.user_field: users, self.item_field: positives}, self.neg_field, negatives)
        n = self.n_negatives
        label = torch.zeros(len(users) * (n + 1), device=users.device)
        label[: len(users)] = 1.0
        return Interaction(
            {
                self.user_field: users.repeat(n + 1),
                self.item_field: torch.cat([positives, negatives.T.reshape(-1)]),
                self.settings["LABEL_FIELD"]: label,
            }
        )

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Users with training events in the scope."""
        return self.known_users[self.space_index(batch.target_domain), batch.users]


class AutoEncoderBaseline(UserBaseline):
    """MultiVAE and its like: they learn from users, and score whatever bag of items they are given."""

    @contextmanager
    def scoring_fields(self, batch: Batch, index: int) -> Iterator[Interaction]:
        """Lends the model the instances' own histories in place of the users' training items."""
        model = self.wrapped[index]
        history = self.histories(batch, index)
        bag = torch.zeros(len(batch), len(self.spaces[index]) + 1, device=history.device).scatter_(
            1, history, 1.0
        )
        bag[:, 0] = 0.0
        model.get_rating_matrix = lambda user: bag
        try:
            yield self.add_users(batch, {})
        finally:
            del model.get_rating_matrix

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Instances with a history in the scope."""
        return self.histories(batch, self.space_index(batch.target_domain)).any(1)


class _TraditionalBaseline(RecBoleBaseline):
    """Models without gradients, complete once built."""

    def phases(self) -> list[Phase]:
        """None."""
        return []


class PopularityBaseline(_TraditionalBaseline):
    """Pop and Random, which score every instance alike."""

    cold_start = True


class ItemItemBaseline(_TraditionalBaseline):
    """ItemKNN, EASE, SLIM and their like: history times an item-item matrix.

    Most items are no neighbour of a short history and would tie at zero, behind which a tie puts the target.
    Popularity in training, far below any similarity, decides between them.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        counts = np.bincount(dataset.train_events.item, minlength=self.n_items)
        self.register_buffer(
            "tie_break", torch.from_numpy(1e-6 * counts / max(counts.max(), 1)).float(), persistent=False
        )

    def score(self, batch: Batch, candidates: torch.Tensor | None = None) -> torch.Tensor:
        """As the base class; ties are broken by popularity."""
        scores = super().score(batch, candidates)
        if candidates is None:
            return scores + self.tie_break[self.item_slice(batch.target_domain)]
        return scores + self.tie_break[candidates]

    @contextmanager
    def scoring_fields(self, batch: Batch, index: int) -> Iterator[Interaction]:
        """Lends the model the instances' own histories as its matrix of interactions, row by row."""
        model, history = self.wrapped[index], self.histories(batch, index).cpu().numpy()
        row, column = history.nonzero()
        shape = (len(batch), len(self.spaces[index]) + 1)
        bag = sp.csr_matrix((np.ones(len(row), np.float32), (row, history[row, column])), shape=shape)
        bag.data[:] = 1.0  # An item that stands twice in a history counts once, as in training.
        trained, model.interaction_matrix = model.interaction_matrix, bag
        try:
            yield Interaction({self.user_field: torch.arange(len(batch))})
        finally:
            model.interaction_matrix = trained

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Instances with a history in the scope."""
        return self.histories(batch, self.space_index(batch.target_domain)).any(1)


class SequentialBaseline(RecBoleBaseline):
    """SASRec, GRU4Rec and their like, trained on the split's instances."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
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
        width = items.shape[1]
        length = (items != 0).sum(1)
        column = torch.arange(width, device=items.device)
        source = (column + (width - length).unsqueeze(1)).clamp(max=width - 1)
        items = items.gather(1, source) * (column < length.unsqueeze(1))
        if type(self).__name__ not in _ANY_WIDTH:
            items = nn.functional.pad(items, (0, self.max_history_length - width))
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
            fields = _pairs(fields.interaction, self.neg_field, space.local(batch.negatives))
        fields = self.transform(self.views[index], fields)
        if self.settings["transform"] == "mask_itemseq" and not fields[self.settings["MASK_INDEX"]].any():
            return (
                None  # RecBole's loss divides by the masked places but the first, which short sequences lack.
            )
        return fields

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
            return batch["merged"].any(1)
        return batch.own_history.any(1)


# -- models whose scores are a plain dot product: only the candidates are scored -------------------------------------


class FactorBaseline(UserBaseline):
    """BPR: a user's vector times an item's."""

    score = CrossDomainRecommender.score

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns the users' vectors, (B, d)."""
        return self.tables(self.space_index(batch.target_domain))[0][batch.users]

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns the domain's item vectors, (n_k, d)."""
        index = self.space_index(domain)
        return self.tables(index)[1][self.spaces[index].columns(self.item_slice(domain))]

    def tables(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the vectors of all users and of all items of RecBole model ``index``."""
        model = self.wrapped[index]
        return model.user_embedding.weight, model.item_embedding.weight


class GraphBaseline(FactorBaseline):
    """LightGCN: the same with vectors that are convolved over the whole graph, once per evaluation."""

    def tables(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the convolved vectors, kept until the mode is set again unless a gradient is to flow through them."""
        model = self.wrapped[index]
        if torch.is_grad_enabled():
            return model.forward()
        if model.restore_user_e is None:
            model.restore_user_e, model.restore_item_e = model.forward()
        return model.restore_user_e, model.restore_item_e


class SequenceDotBaseline(SequentialBaseline):
    """SASRec, GRU4Rec: the sequence's vector times the item's."""

    score = CrossDomainRecommender.score

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns the sequences' vectors, (B, d)."""
        index = self.space_index(batch.target_domain)
        fields = self._sequence_fields(batch, index)
        return self.wrapped[index].forward(fields[self.sequence_field], fields[self.length_field])

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns the domain's item vectors, (n_k, d)."""
        index = self.space_index(domain)
        return self.wrapped[index].item_embedding.weight[self.spaces[index].columns(self.item_slice(domain))]


_DOT_PRODUCTS: dict[str, type[RecBoleBaseline]] = {
    "BPR": FactorBaseline,
    "LightGCN": GraphBaseline,
    "GRU4Rec": SequenceDotBaseline,
    "SASRec": SequenceDotBaseline,
}


# -- RecBole models that are built in another way --------------------------------------------------------------------


class CountedPop(Pop):
    """RecBole's Pop with its counts in place; its own loss counts an item once per batch however often it occurs."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        counts = torch.bincount(dataset.inter_feat[self.ITEM_ID], minlength=self.n_items)
        self.item_cnt = counts.unsqueeze(1).to(self.device)
        self.max_cnt = self.item_cnt.max(0)[0]


class LeanItemKNN(ItemKNN):
    """RecBole's ItemKNN without its matrix of predictions of all users for all items, which takes gigabytes."""

    def __init__(self, config, dataset):
        GeneralRecommender.__init__(self, config, dataset)
        self.k, self.shrink = config["k"], config["shrink"] or 0.0
        self.interaction_matrix = dataset.inter_matrix(form="csr").astype(np.float32)
        similarity = ComputeSimilarity(self.interaction_matrix, topk=self.k, shrink=self.shrink)
        _, self.w = similarity.compute_similarity("item")
        self.fake_loss = nn.Parameter(torch.zeros(1))

    def full_sort_predict(self, interaction):
        """Returns the scores of all items, (B, n_items)."""
        users = interaction[self.USER_ID].cpu().numpy()
        return torch.from_numpy((self.interaction_matrix[users] @ self.w).toarray())


_VARIANTS: dict[str, type[AbstractRecommender]] = {"Pop": CountedPop, "ItemKNN": LeanItemKNN}


# -- helpers ---------------------------------------------------------------------------------------------------------


class EpochBatches:
    """The batches of one epoch, each made when its turn comes; ``parts`` are the arguments that ``make`` takes."""

    def __init__(self, parts: list[tuple[int, np.ndarray]], make: Callable[[int, np.ndarray], Batch]):
        self._parts, self._make = parts, make

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self._parts:
            yield self._make(*part)


def _shuffled_parts(sizes: list[int], size: int, rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    """Returns (space, rows) of all spaces' rows, shuffled and cut to ``size``, the parts in random order."""
    parts = []
    for index, n_rows in enumerate(sizes):
        order = rng.permutation(n_rows)
        parts += [(index, order[first : first + size]) for first in range(0, n_rows, size)]
    return [parts[place] for place in rng.permutation(len(parts))]


def _pairs(fields: dict[str, torch.Tensor], name: str, negatives: torch.Tensor) -> Interaction:
    """Returns the rows repeated once per negative, (B · n) rows, as RecBole orders them: by negative, then row."""
    n = negatives.shape[1]
    repeated = {k: v.repeat(n, *([1] * (v.dim() - 1))) for k, v in fields.items()}
    return Interaction({**repeated, name: negatives.T.reshape(-1)})


def _loads_users(recbole_class: type[AbstractRecommender]) -> bool:
    """Whether RecBole trains the model on users rather than on interactions."""
    if issubclass(recbole_class, AutoEncoderMixin):
        return True
    loader = get_dataloader({"model": recbole_class.__name__, "MODEL_TYPE": recbole_class.type}, "train")
    return loader is UserDataLoader


def _uniform_negatives(settings: BaselineSettings, recbole_class: type[AbstractRecommender]) -> int:
    """Returns the number of negatives per positive that ``train_neg_sample_args`` asks for.

    Raises:
        CDRError: it asks for what is not served, or for none where the model compares pairs.
    """
    asked: dict[str, Any] = settings["train_neg_sample_args"] or {"distribution": "none"}
    distribution, name = asked.get("distribution", "uniform"), recbole_class.__name__
    if distribution in ("none", None):
        if recbole_class.input_type == InputType.PAIRWISE:
            raise CDRError(
                f"{name} compares each item with a negative one: train_neg_sample_args must not be empty."
            )
        return 0
    if distribution != "uniform" or asked.get("dynamic"):
        raise CDRError(
            f"train_neg_sample_args {asked}: only uniform negatives (distribution: uniform, dynamic: False) are drawn."
        )
    return int(asked.get("sample_num", 1))
