"""Four floors: what can be said of a rating without a vector. A model that is not below the last learned none."""

from __future__ import annotations

import numpy as np
import torch

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.bridge import Bridge, pretraining
from recbole_cdr_ext.model.rating_recommender import RatingBatch, RatingRecommender
from recbole_cdr_ext.model.recommender import Phase, Stage
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import Ratings, RatingSplit, TrainingData

ITEM_SHRINKAGE, USER_SHRINKAGE = 5.0, 10.0


class GlobalMean(RatingRecommender):
    """The mean rating of the target domain's training data, for everybody and everything."""

    cold_start = False
    paper = "-"

    def phases(self) -> list[Phase]:
        """Returns none: there is nothing to train."""
        return []

    def rate(self, batch: RatingBatch) -> torch.Tensor:
        """As in the base class."""
        return self.target_mean.expand(len(batch))


class ItemMean(GlobalMean):
    """The mean plus the item's deviation from it, shrunk: Σ(r - μ) / (n + 5)."""

    item_deviation: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        super().__init__(config, data)
        split = data.split
        _, item_bias, _ = shrunk_biases(split, split.target)
        self.register_buffer("item_deviation", torch.from_numpy(item_bias))

    def rate(self, batch: RatingBatch) -> torch.Tensor:
        """As in the base class."""
        return self.target_mean + self.item_deviation[batch.item].float()


class ItemMeanUserBias(ItemMean):
    """The item mean plus k times the user's mean deviation in the source; k is fitted on the overlapping users.

    The deviation is Σ(r - μ - b_i) / (n + 10) over the user's ratings of a domain.
    """

    cold_start = True
    needs_overlap = True

    user_deviation: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        super().__init__(config, data)
        split = data.split
        source_bias, target_bias = (shrunk_biases(split, k)[2] for k in (split.source, split.target))
        x, y = source_bias[split.overlapping], target_bias[split.overlapping]
        scale = float(x @ y) / float(x @ x) if x.any() else 0.0
        self.register_buffer("user_deviation", torch.from_numpy(scale * source_bias))

    def rate(self, batch: RatingBatch) -> torch.Tensor:
        """As in the base class."""
        return super().rate(batch) + self.cold_bias(batch.user)

    def cold_bias(self, user: torch.Tensor) -> torch.Tensor:
        """Returns the user's deviation in the source, scaled."""
        return self.user_deviation[user].float()


class BiasOnly(Bridge):
    """Mean, item bias, and the user's bias mapped from the source: jointly learned, without any vector (d = 0)."""

    paper = "-"

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """As in the base class; without biases nothing is left of it."""
        super().check_settings(config)
        if not config["biases"]:
            raise CDRError("BiasOnly is biases and nothing else: leave biases=False out.")

    @classmethod
    def stages(cls, config: CDRConfig) -> list[Stage]:
        """Returns the biases of both domains."""
        return pretraining(config, biases=True, embedding_size=0, backbone="MF", pretrain_sharpness="none")


def shrunk_biases(split: RatingSplit, domain: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns (mean, item biases (n_k,), user biases (n_users,)) of a domain's training ratings."""
    rows: Ratings = split.train[domain]
    item, rating = rows.item - split.item_offset[domain], rows.rating.astype(np.float64)
    n_items = int(split.item_offset[domain + 1] - split.item_offset[domain])
    mean = rating.mean()
    of_item = _shrunk(item, rating - mean, n_items, ITEM_SHRINKAGE)
    of_user = _shrunk(rows.user, rating - mean - of_item[item], split.n_users, USER_SHRINKAGE)
    return float(mean), of_item, of_user


def _shrunk(group: np.ndarray, value: np.ndarray, n: int, shrinkage: float) -> np.ndarray:
    return np.bincount(group, value, n) / (np.bincount(group, minlength=n) + shrinkage)
