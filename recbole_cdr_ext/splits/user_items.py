"""Sets of items by user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recbole_cdr_ext.data.instances import Instances, Pool


@dataclass(frozen=True)
class UserItems:
    """Sets of items by user: user u owns ``items[indptr[u]:indptr[u+1]]``, ascending global ids."""

    indptr: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, user: np.ndarray, item: np.ndarray, n_users: int) -> UserItems:
        """Collects pairs, which may repeat."""
        span = int(item.max(initial=0)) + 1
        pairs = np.unique(user.astype(np.int64) * span + item)
        counts = np.bincount(pairs // span, minlength=n_users)
        return cls(np.append(0, np.cumsum(counts)), pairs % span)

    def rows(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns all items of the given users as (index into ``users``, item) pairs."""
        counts = self.indptr[users + 1] - self.indptr[users]
        row = np.repeat(np.arange(len(users)), counts)
        offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return row, self.items[self.indptr[users][row] + offset]


def users_as_instances(
    user: np.ndarray, item: np.ndarray, n_users: int, item_offset: np.ndarray
) -> Instances:
    """Returns what users hold, without order: an instance without a target per user of some pairs and domain.

    The histories are the user's items, each once, ascending; the instances are ordered by (domain, user).
    """
    held, k, span = UserItems.of(user, item, n_users), len(item_offset) - 1, np.int64(item_offset[-1])
    owners = np.flatnonzero(np.diff(held.indptr))
    # A user's items are ascending ids, and domains own ranges of ids: a domain's part is a range too.
    owner = np.repeat(np.arange(n_users), np.diff(held.indptr))
    key = owner * span + held.items
    bounds = np.stack([np.searchsorted(key, owners * span + offset) for offset in item_offset], 1)
    repeat, domain = np.tile(np.arange(len(owners)), k), np.repeat(np.arange(k), len(owners))
    nothing = np.zeros(len(repeat), np.int64)
    return Instances(
        user=owners[repeat],
        domain=domain,
        target=nothing,
        time=nothing.astype(float),
        sequence=owners[repeat] * k + domain,
        start=bounds[repeat, :-1],
        stop=bounds[repeat, 1:],
        pool=Pool(held.items, owner, owner, owner.astype(float)),
    )
