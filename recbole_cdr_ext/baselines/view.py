"""What a RecBole model is built from: the training events of one item space as a RecBole data set, and its settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_cdr_ext.data.dataset import PAD, Events
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import Split, TrainingData

SCOPES = ("target", "all")


@dataclass(frozen=True)
class ItemSpace:
    """The items one RecBole model knows: the global ids ``first .. stop-1``, which it numbers 1, 2, ...

    Attributes:
        name: of the domain, or "all".
        domains: indices of the domains inside.
        first, stop: the range of global ids.
    """

    name: str
    domains: tuple[int, ...]
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    def local(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the model's ids of global ids; padding stays 0."""
        return (items - (self.first - 1)).clamp(min=0)

    def columns(self, items: slice) -> slice:
        """Returns where a range of global ids stands in a table indexed by the model's ids."""
        return slice(items.start - self.first + 1, items.stop - self.first + 1)


def item_spaces(data: TrainingData[Split], scope: str) -> list[ItemSpace]:
    """Returns one space per domain (``target``), or the one of all domains (``all``)."""
    if scope == "all":
        return [ItemSpace("all", tuple(range(data.n_domains)), 1, data.item_num)]
    offset = [int(x) for x in data.item_offset]
    return [ItemSpace(name, (k,), offset[k], offset[k + 1]) for k, name in enumerate(data.domains)]


class EventView(Dataset):
    """The training events of one item space as a RecBole ``Dataset``.

    Everything that RecBole's models ask a data set for works: ``num``, ``inter_feat``, ``inter_matrix``,
    ``history_item_matrix``, counters. Users keep their ids; held-out interactions are not in it. An id's token is its
    number, as no model learns from names.

    Args:
        data: the ids, and the events that a model may learn from; those of other spaces are left out.
        space: the items.
        settings: the configuration that RecBole's methods read.
    """

    def __init__(self, data: TrainingData[Split], space: ItemSpace, settings: BaselineSettings):
        # RecBole's own constructor reads files; everything is in memory here.
        torch.utils.data.Dataset.__init__(self)
        self.config = settings
        self.logger = logging.getLogger()
        self.dataset_name = f"{data.dataset_name}/{space.name}"
        self.dataset_path = settings["data_path"]
        self.uid_field, self.iid_field = settings["USER_ID_FIELD"], settings["ITEM_ID_FIELD"]
        self.time_field = settings["TIME_FIELD"] or "timestamp"
        self.label_field = settings["LABEL_FIELD"]
        self.user_feat = self.item_feat = None
        self.feat_name_list = ["inter_feat"]
        self.field2type: dict[str, FeatureType] = {}
        self.field2source: dict[str, FeatureSource] = {}
        self.field2seqlen: dict[str, int] = {}
        self.field2id_token: dict[str, np.ndarray] = {}
        self.field2token_id: dict[str, dict[str, int]] = {}
        self.field2bucketnum: dict[str, int] = {}
        self.alias: dict[str, np.ndarray] = {}
        self._preloaded_weight: dict[str, np.ndarray] = {}
        self.space = space
        every = data.split.train_events
        events = every.take((every.item >= space.first) & (every.item < space.stop))
        self.domain = events.domain
        self.inter_feat = self._interactions(events)
        self._declare({self.uid_field: data.user_num, self.iid_field: len(space) + 1})

    def _interactions(self, events: Events) -> Interaction:
        columns = {
            self.uid_field: torch.from_numpy(events.user.astype(np.int64)),
            self.iid_field: self.space.local(torch.from_numpy(events.item.astype(np.int64))),
            self.time_field: torch.from_numpy(events.time.astype(np.float64)),
        }
        if len(events) and not np.isnan(events.rating).any():
            columns[self.config["RATING_FIELD"] or "rating"] = torch.from_numpy(
                events.rating.astype(np.float32)
            )
        return Interaction(columns)

    def _declare(self, sizes: dict[str, int]) -> None:
        """Says of which type each field is, and how many ids those of users and items have, padding included."""
        for field, size in sizes.items():
            tokens = np.array([PAD, *map(str, range(1, size))], dtype=object)
            self.field2id_token[field] = tokens
            self.field2token_id[field] = {token: number for number, token in enumerate(tokens)}
        for field in self.inter_feat.columns:
            kind = FeatureType.TOKEN if field in self.field2id_token else FeatureType.FLOAT
            self.set_field_property(field, kind, FeatureSource.INTERACTION, 1)
        # Sequential models ask how long RecBole's list field is.
        sequence = self.iid_field + self.config["LIST_SUFFIX"]
        length = self.config["MAX_ITEM_LIST_LENGTH"]
        self.set_field_property(sequence, FeatureType.TOKEN_SEQ, FeatureSource.INTERACTION, length)
        self.field2id_token[sequence] = self.field2id_token[self.iid_field]
        self.field2token_id[sequence] = self.field2token_id[self.iid_field]

    def users(self) -> np.ndarray:
        """Returns the ids of the users with an event in the space, ascending."""
        return np.unique(self.inter_feat[self.uid_field].numpy())


# What RecBole calls its fields, where a configuration does not say it.
_FIELD_DEFAULTS = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "NEG_PREFIX": "neg_",
    "LABEL_FIELD": "label",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "TIME_FIELD": "timestamp",
    "RATING_FIELD": "rating",
    "numerical_features": [],
}


class BaselineSettings:
    """A configuration as RecBole's models read it: ``config`` with a few values put in place.

    RecBole's models and transforms also write to their configuration; what they write stays in here.
    """

    def __init__(self, config: CDRConfig, **values: Any):
        self._config = config
        missing = {key: value for key, value in _FIELD_DEFAULTS.items() if config[key] is None}
        self._values = {**missing, **values}

    def __getitem__(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._config[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self._values or key in self._config

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        value = self[key]
        if value is None:
            raise AttributeError(key)
        return value
