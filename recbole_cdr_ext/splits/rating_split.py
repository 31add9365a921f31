"""A split of the rating task: whose ratings train, and whose are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from recbole_cdr_ext.data.dataset import Events, hash_arrays


@dataclass(frozen=True)
class Ratings:
    """m ratings, each of one user and one item, in the order of the dataset's events.

    Attributes:
        user: (m,) user ids.
        item: (m,) global item ids.
        rating: (m,) float32, in the dataset's own units.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray

    @classmethod
    def of(cls, events: Events) -> Ratings:
        """Takes the ratings of events."""
        return cls(events.user, events.item, events.rating.astype(np.float32))

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Ratings:
        """Returns the ratings at ``rows`` (indices or a mask)."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def fingerprint(self) -> str:
        """Changes with any of the ratings."""
        return hash_arrays(*(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class RatingSplit:
    """What a run that predicts ratings works on.

    Attributes:
        source, target: indices of the two domains.
        train: by domain, the ratings that train: all of the source (D^s), and those of the target without the
            validation and test users' (D^t).
        valid, test: the target ratings of the validation and of the test users.
        overlapping: (o,) training users with ratings in both domains (O), ascending.
        n_users, item_offset, token_key: as in the dataset.
        rating_range: the lowest and the highest rating there is.
        fingerprint: changes with the data and with anything that decides the split.
        report: what was removed and found, counted.
        tables: vectors and biases that stages have learned, by domain.
        name, leaky, layout: as in :class:`Split`.
    """

    source: int
    target: int
    train: Mapping[int, Ratings]
    valid: Ratings
    test: Ratings
    overlapping: np.ndarray
    n_users: int
    item_offset: np.ndarray
    token_key: np.ndarray
    rating_range: tuple[float, float]
    fingerprint: str
    report: dict[str, object] = field(default_factory=dict)
    tables: Mapping[int, Any] = field(default_factory=dict)
    name: str = "cold_start"
    leaky: bool = False
    layout: str = "users"

    @property
    def n_domains(self) -> int:
        """The number of the dataset's domains; two of them are used."""
        return len(self.item_offset) - 1

    def part(self, name: str) -> Ratings:
        """The ratings that are asked for in "valid" or "test"."""
        ratings: Ratings = getattr(self, name)
        return ratings

    @property
    def n_overlapping(self) -> int:
        """How many users have training ratings in both domains."""
        return len(self.overlapping)

    def shared_ratings(self) -> Ratings:
        """The target ratings of the overlapping training users (D^o): what mappings are learned from."""
        rows = self.train[self.target]
        return rows.take(np.isin(rows.user, self.overlapping))

    def known_items(self, domain: int) -> np.ndarray:
        """Returns which of a domain's items have a training rating, (n_k,) bool."""
        low, high = self.item_offset[domain], self.item_offset[domain + 1]
        return np.bincount(self.train[domain].item - low, minlength=high - low) > 0

    def with_tables(self, domain: int, tables: Any) -> RatingSplit:
        """Returns the split with what a stage learned of a domain."""
        return replace(self, tables={**self.tables, domain: tables})
