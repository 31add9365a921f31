"""RecBole's models that are no function of a user's id: they score histories that they are lent, or all alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender.itemknn import ComputeSimilarity, ItemKNN
from recbole.model.general_recommender.pop import Pop
from torch import nn

from recbole_cdr_ext.baselines.baseline import RecBoleBaseline
from recbole_cdr_ext.baselines.general import UserBaseline
from recbole_cdr_ext.baselines.view import BaselineSettings, EventView
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import Split, TrainingData


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
        vars(model)["get_rating_matrix"] = lambda user: bag
        try:
            yield self.add_users(batch, {})
        finally:
            del vars(model)["get_rating_matrix"]

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Instances with a history in the scope."""
        return self.histories(batch, self.space_index(batch.target_domain)).any(1)


class _TraditionalBaseline(RecBoleBaseline):
    """Models without gradients, complete once built."""

    def phases(self) -> list[Phase]:
        """Returns none."""
        return []


class PopularityBaseline(_TraditionalBaseline):
    """Pop and Random, which score every instance alike."""

    cold_start = True


class ItemItemBaseline(_TraditionalBaseline):
    """ItemKNN, EASE, SLIM and their like: history times an item-item matrix.

    Most items are no neighbour of a short history and would tie at zero, behind which a tie puts the target.
    Popularity in training, far below any similarity, decides between them.
    """

    tie_break: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        counts = np.bincount(data.split.train_events.item, minlength=self.n_items)
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
        attributes = vars(model)
        trained, attributes["interaction_matrix"] = attributes["interaction_matrix"], bag
        try:
            yield Interaction({self.user_field: torch.arange(len(batch))})
        finally:
            attributes["interaction_matrix"] = trained

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Instances with a history in the scope."""
        return self.histories(batch, self.space_index(batch.target_domain)).any(1)


# -- RecBole models that are built in another way ---------------------------------------------------------------------


class CountedPop(Pop):
    """RecBole's Pop with its counts in place; its own loss counts an item once per batch however often it occurs."""

    def __init__(self, config: BaselineSettings, dataset: EventView):
        super().__init__(config, dataset)
        counts = torch.bincount(dataset.inter_feat[self.ITEM_ID], minlength=self.n_items)
        self.item_cnt = counts.unsqueeze(1).to(self.device)
        self.max_cnt = self.item_cnt.max(0)[0]


class LeanItemKNN(ItemKNN):
    """RecBole's ItemKNN without its matrix of predictions of all users for all items, which takes gigabytes."""

    def __init__(self, config: BaselineSettings, dataset: EventView):
        GeneralRecommender.__init__(self, config, dataset)
        self.k, self.shrink = config["k"], config["shrink"] or 0.0
        self.interaction_matrix = dataset.inter_matrix(form="csr").astype(np.float32)
        similarity = ComputeSimilarity(self.interaction_matrix, topk=self.k, shrink=self.shrink)
        _, self.w = similarity.compute_similarity("item")
        self.fake_loss = nn.Parameter(torch.zeros(1))

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Returns the scores of all items, (B, n_items)."""
        users = interaction[self.USER_ID].cpu().numpy()
        return torch.from_numpy((self.interaction_matrix[users] @ self.w).toarray())
