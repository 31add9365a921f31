"""OrderPop: popularity among the items that stand after the user's last one in a global order of items.

A yardstick for data whose sequences are not chronological: if one fixed order of the items explains every sequence
(as it does in the published rows of I2VAE), then the last item of a history says where the target may stand, and
nothing about taste. A model that is no better than this has learnt the order of the file.

The order is learnt from the training sequences: each item's longest path of successions from any first item, less
its longest path to any last one. It needs the successions to be free of cycles, which real sequences are not.
"""

from __future__ import annotations

import numpy as np
import torch

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import Split, TrainingData


class OrderPop(CrossDomainRecommender[Batch, Split]):
    """Ranks by training popularity, items that do not stand after the last of the history behind all others."""

    cold_start = False
    paper = "none: a yardstick for sequences without an order"

    place: torch.Tensor
    popularity: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        split = data.split
        events = split.train_events
        block = events.sequence * np.int64(self.n_domains) + events.domain
        by_block = np.argsort(block, kind="stable")
        item, block = split.token_key[events.item[by_block]], block[by_block]
        follows = block[1:] == block[:-1]
        place = _places(item[:-1][follows], item[1:][follows], int(split.token_key.max()) + 1)
        counts = np.bincount(events.item, minlength=self.n_items).astype(np.float32)
        self.register_buffer("place", torch.from_numpy(place[split.token_key]).float(), persistent=False)
        self.register_buffer("popularity", torch.from_numpy(counts), persistent=False)

    def phases(self) -> list[Phase]:
        """Returns none: everything is counted."""
        return []

    def score(self, batch: Batch, candidates: torch.Tensor | None = None) -> torch.Tensor:
        """Returns popularity, plus a bonus above any popularity for items after the last of the own history."""
        if candidates is None:
            candidates = torch.arange(*self.item_offsets[batch.target_domain : batch.target_domain + 2])
            candidates = candidates.to(batch.users.device).expand(len(batch), -1)
        last = batch.own_history[:, -1:]
        after = (self.place[candidates] > self.place[last]) & (last > 0)
        return self.popularity[candidates] + after * (self.popularity.max() + 1)


def _places(first: np.ndarray, then: np.ndarray, n: int) -> np.ndarray:
    """The longest path to each of n items minus the longest from it, over the successions ``first`` → ``then``.

    Raises:
        CDRError: the successions hold a cycle, so no order explains them.
    """
    pairs = np.unique(first.astype(np.int64) * n + then)
    first, then = pairs // n, pairs % n
    length: np.ndarray = _longest(first, then, n) - _longest(then, first, n)
    return length


def _longest(first: np.ndarray, then: np.ndarray, n: int) -> np.ndarray:
    """The longest path of arcs that ends at each node, layer by layer (Kahn's algorithm on whole layers)."""
    by_first = np.argsort(first, kind="stable")
    then = then[by_first]
    stop = np.cumsum(np.bincount(first, minlength=n))
    start = np.append(0, stop[:-1])
    waiting = np.bincount(then, minlength=n)
    depth = np.zeros(n, np.int64)
    layer, done = np.flatnonzero(waiting == 0), 0
    level = 0
    while len(layer):
        depth[layer] = level
        done += len(layer)
        reached = np.concatenate([then[start[i] : stop[i]] for i in layer])
        np.subtract.at(waiting, reached, 1)
        layer = np.unique(reached[waiting[reached] == 0])
        level += 1
    if done < n:
        raise CDRError(
            "No single order of the items explains the training sequences: they contradict each other, as real "
            "sequences do. OrderPop is for published rows that are not chronological (split=published)."
        )
    return depth
