"""What a model is built on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.splits.interaction_split import Split
from recbole_cdr_ext.splits.rating_split import RatingSplit

AnySplit = TypeVar("AnySplit", Split, RatingSplit)


@dataclass(frozen=True)
class TrainingData(Generic[AnySplit]):
    """The domains and ids of a dataset, and the split of it that a model learns from.

    A model's constructor takes it where RecBole's models take their dataset. It holds no interaction beside those of
    the split: what is held out can't be reached by accident.

    Attributes:
        domains: their names, in the order of their indices.
        item_offset: (K+1,) domain k owns the global item ids ``item_offset[k] .. item_offset[k+1] - 1``.
        token_key: (item_num,) equal for items whose external token is the same.
        user_num, item_num: numbers of ids, the padding's included.
        split: what trains, and what is asked about.
    """

    domains: tuple[str, ...]
    item_offset: np.ndarray
    token_key: np.ndarray
    user_num: int
    item_num: int
    dataset_name: str
    split: AnySplit

    @classmethod
    def of(cls, dataset: CrossDomainDataset, split: AnySplit) -> TrainingData[AnySplit]:
        """Puts a split beside the ids of its dataset."""
        return cls(
            domains=tuple(dataset.domains),
            item_offset=dataset.item_offset,
            token_key=dataset.token_key,
            user_num=dataset.user_num,
            item_num=dataset.item_num,
            dataset_name=dataset.dataset_name,
            split=split,
        )

    @property
    def n_domains(self) -> int:
        """The number of domains."""
        return len(self.domains)

    def item_range(self, domain: int) -> slice:
        """Returns the global item ids of a domain."""
        return slice(int(self.item_offset[domain]), int(self.item_offset[domain + 1]))

    def n_domain_items(self, domain: int) -> int:
        """Returns how many items a domain has."""
        return int(self.item_offset[domain + 1] - self.item_offset[domain])
