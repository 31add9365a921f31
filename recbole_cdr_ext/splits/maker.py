"""What makes a split: the contract that this package's splits and other packages' keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset, Events
from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.rating_split import Ratings


class SplitMaker(ABC):
    """Says who is trained on, who is asked about, and what each may know.

    A split is a class derived from :class:`InteractionSplitMaker` or :class:`RatingSplitMaker`, by the task that it
    serves; it is called by its name in the registry (:mod:`recbole_cdr_ext.registry.splits`). It gives ``draw``, which
    gets the settings and a dataset, leaves both as they are, and returns the parts. What follows is the same for
    all: the parts are put together, and the result goes through the leak audit, whatever made it. A held-out
    (user, item token) that can be reached from what trains is an error before any training.

    Rules:
        Ids are the dataset's. One token in two domains is one thing (``dataset.token_key``): an interaction with
        another item of a held-out target's token is held out as well, or taken out.
        Where time means something, a target's history in its own domain ends before it.
        All randomness comes from ``config["split_seed"]``: the same settings and data give the same split.

    Class attributes:
        task: the task that it serves.
        leaky: True for splits that are known to leak: the audit counts, and the counts stand in log and result.
        needs_order: whether data that say ``order: none`` are refused.
        layout: the layout of prepared data that it reads: "users", or "rows" for published instances.
        averages_repeats: whether a user's several interactions with an item become one with their mean rating; else
            the first one stands.
        without_effect: settings that it doesn't read, which a user therefore can't set.
    """

    task: ClassVar[str]
    leaky: ClassVar[bool] = False
    needs_order: ClassVar[bool] = False
    layout: ClassVar[str] = "users"
    averages_repeats: ClassVar[bool] = False
    without_effect: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class InteractionParts:
    """What an :class:`InteractionSplitMaker` draws.

    Attributes:
        train, valid, test: instances, as :meth:`Timeline.instances` makes them. Items with the target's token in a
            history are taken out afterwards, and instances without any history dropped.
        train_events: every interaction that a model may learn from.
        thresholds: per domain, the longest history that counts as long-tailed.
        time_respecting: whether the histories in other domains, too, end at the target's time; then that is audited.
        test_items: (item_num,) mask of a second, smaller pool of candidates for the test part; None: there is none.
    """

    train: Instances
    valid: Instances
    test: Instances
    train_events: Events
    thresholds: list[int]
    time_respecting: bool = True
    test_items: np.ndarray | None = None


class InteractionSplitMaker(SplitMaker):
    """Draws the instances of the next-item task."""

    task = "next_item"

    @abstractmethod
    def draw(
        self, config: CDRConfig, dataset: CrossDomainDataset, report: dict[str, object]
    ) -> InteractionParts:
        """Returns the parts.

        Args:
            report: gets what was drawn, hidden and removed, counted; it stands in the log and in the result.

        Raises:
            CDRError: the settings do not fit the data.
        """


@dataclass(frozen=True)
class RatingParts:
    """What a :class:`RatingSplitMaker` draws.

    Attributes:
        source, target: indices of the two domains.
        source_ratings, target_ratings: what trains.
        valid, test: the target ratings that are asked for.
        overlapping: (o,) training users with ratings in both domains, ascending.
    """

    source: int
    target: int
    source_ratings: Ratings
    target_ratings: Ratings
    valid: Ratings
    test: Ratings
    overlapping: np.ndarray


class RatingSplitMaker(SplitMaker):
    """Draws the ratings of the rating task."""

    task = "rating"
    averages_repeats = True

    @abstractmethod
    def draw(self, config: CDRConfig, dataset: CrossDomainDataset, report: dict[str, object]) -> RatingParts:
        """Returns the parts; as :meth:`InteractionSplitMaker.draw`."""
