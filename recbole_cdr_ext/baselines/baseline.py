"""What all of RecBole's models have in common as baselines on our instances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from recbole.data.interaction import Interaction
from recbole.data.transform import construct_transform
from recbole.model.abstract_recommender import AbstractRecommender
from torch.nn.modules.module import _IncompatibleKeys

from recbole_cdr_ext.baselines.view import SCOPES, BaselineSettings, EventView, item_spaces
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import Modules
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Loss
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.splits.split import Split, TrainingData


class RecBoleBaseline(CrossDomainRecommender[Batch, Split]):
    """A RecBole model per item space; what the kinds of models have in common.

    RecBole's models take their graphs, similarities and counts from the training events in their constructor, and so
    does a model that a checkpoint is then loaded into. ``state_dict`` therefore holds what is learnt, and nothing that
    follows from the data.
    """

    recbole_class: ClassVar[type[AbstractRecommender]]

    updates: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        self.scope: str = config["baseline_scope"] or "target"
        if self.scope not in SCOPES:
            raise CDRError(f"baseline_scope '{self.scope}' is not known: use 'target' or 'all'.")
        self.sampler = CrossDomainSampler(data.split)
        self.spaces = item_spaces(data, self.scope)
        self.settings = BaselineSettings(
            config, model=type(self).__name__, MAX_ITEM_LIST_LENGTH=self.max_history_length
        )
        self.user_field, self.item_field = self.settings["USER_ID_FIELD"], self.settings["ITEM_ID_FIELD"]
        self.neg_field = self.settings["NEG_PREFIX"] + self.item_field
        # Before the models: RecBole's transforms name the fields that they add in the settings.
        self.transform = construct_transform(self.settings)
        self.views = [EventView(data, space, self.settings) for space in self.spaces]
        self.wrapped = Modules(self._build(view) for view in self.views)
        # Representations of all users and items, which RecBole's models keep between evaluations (None at first).
        self._caches = [
            [name for name, value in model.other_parameter().items() if value is None]
            for model in self.wrapped
        ]
        # RecBole counts updates (to anneal a loss) in plain attributes; here they survive a checkpoint.
        self.register_buffer("updates", torch.zeros(len(self.wrapped), dtype=torch.long))

    def _build(self, view: EventView) -> AbstractRecommender:
        if not len(view):
            raise CDRError(
                f"{type(self).__name__} finds no training interaction in '{view.space.name}': loosen the split's or "
                "the filters' settings."
            )
        return self.make_model(view).to(self.device)

    def make_model(self, view: EventView) -> AbstractRecommender:
        """Returns a new RecBole model of the items and events in a view."""
        return self.recbole_class(self.settings, view)

    def space_index(self, domain: int) -> int:
        """Returns which of the RecBole models serves a domain."""
        return 0 if self.scope == "all" else domain

    # -- training -----------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Batch) -> Loss:
        """Returns RecBole's loss of a batch, a scalar or a tuple of terms."""
        index = self.space_index(interaction.target_domain)
        model = self.wrapped[index]
        fields = self.training_fields(interaction, index)
        if fields is None:
            # A term without effect, so that the trainer's backward pass still has something to follow.
            return torch.stack([p.sum() for p in model.parameters()]).sum() * 0.0
        loss = model.calculate_loss(fields)
        if hasattr(model, "update"):
            self.updates[index] = model.update
        vectors: Loss = loss
        return vectors

    def training_fields(self, batch: Batch, index: int) -> Interaction | None:
        """Returns a training batch as RecBole model ``index`` reads it, None if nothing of it is for that model."""
        raise NotImplementedError(f"{type(self).__name__}.training_fields")

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; representations kept from an earlier evaluation are forgotten."""
        self._forget()
        return super().train(mode)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Loads weights and update counts; representations kept from others are forgotten."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self._forget()
        for model, count in zip(self.wrapped, self.updates.tolist(), strict=True):
            if hasattr(model, "update"):
                model.update = count
        states: _IncompatibleKeys = result
        return states

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


def pairs(fields: dict[str, torch.Tensor], name: str, negatives: torch.Tensor) -> Interaction:
    """Returns the rows repeated once per negative, (B · n) rows, as RecBole orders them: by negative, then row."""
    n = negatives.shape[1]
    repeated = {k: v.repeat(n, *([1] * (v.dim() - 1))) for k, v in fields.items()}
    return Interaction({**repeated, name: negatives.T.reshape(-1)})
