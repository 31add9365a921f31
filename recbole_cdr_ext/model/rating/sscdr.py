"""SSCDR: a mapping fitted to overlapping users, and to what their source items say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, Field
from scipy.sparse import csr_matrix

from recbole_cdr_ext.model.rating.emcdr import EMCDR
from recbole_cdr_ext.model.rating_recommender import RatingBatch, Shuffled, Tables
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import Condition, Count, NonNegative, Positive, Settings
from recbole_cdr_ext.splits.split import Ratings, RatingSplit, TrainingData

LIKED_SHARE = 0.75  # of the rating scale: 4 on a scale from 1 to 5


class SemiSupervisedLoss(NamedTuple):
    """L_S and λ L_U of a batch."""

    supervised: torch.Tensor
    unsupervised: torch.Tensor


@dataclass(frozen=True)
class PairedUsers(RatingBatch):
    """B users, with two source items each; items and ratings of the base class are zeros.

    Attributes:
        positive, negative: (B,) places in the source domain of an item that the user likes (v⁺) and of one
            that the user never rated (v⁻); 0 where there is no pair.
        paired: (B,) bool, False where the user likes nothing, or has rated everything.
    """

    positive: torch.Tensor
    negative: torch.Tensor
    paired: torch.Tensor


Hops = Annotated[int, AfterValidator(Condition(lambda value: value in (0, 1, 2), "0, 1 or 2"))]


class SSCDRSettings(Settings):
    """SSCDR on the vectors that all bridges share: EMCDR's loss, and what source items say of it. The paper's
    text: --config_files=properties/model/SSCDR_paper.yaml
    """

    mapping: Literal["mlp", "linear"] = Field("mlp", description="mlp, or linear: one matrix without bias.")
    unsupervised_weight: NonNegative = Field(
        0.25, description="Weight lambda of the unsupervised loss; 0: EMCDR."
    )
    margin: NonNegative = Field(
        1.0, description="Margin m of the unsupervised loss, between squared distances."
    )
    hops: Hops = Field(
        0,
        description=(
            "What is mapped: 0: the user's source vector; 1: its mean with those of the user's source "
            "items; 2: that of users who share them as well."
        ),
    )
    learning_rate: Positive = Field(
        0.1, description="Step size; the loss is a mean over users (and, supervised, dimensions)."
    )
    epochs: Count = Field(100, description="The most epochs.")
    stopping_step: Count = Field(
        10, description="Training stops after more than so many validations without improvement."
    )


class SSCDR(EMCDR):
    """Semi-Supervised Learning for Cross-Domain Recommendation to Cold-Start Users (Kang et al., CIKM 2019).

    min over θ of L_S + λ L_U over the overlapping users u, each once an epoch:
        L_S = mean of ‖f_θ(u^s) - u^t‖² over users and dimensions, which is EMCDR;
        L_U = mean over users of [m + ‖u^t - f_θ(v⁺)‖² - ‖u^t - f_θ(v⁻)‖²]₊,
    v⁺ a source item that u likes (see :func:`liked`) and v⁻ one that u never rated, both drawn anew each
    epoch from all there are. A user who has no such pair adds nothing to L_U. λ is ``unsupervised_weight``, m
    is ``margin``.

    ``hops`` is the paper's inference: f sees the mean over the user's source neighbourhood (see
    :func:`neighbourhood`) instead of u^s, in training and in prediction. Sharpness and attacks move u^s.

    Differs from the paper: vectors are those that all bridges share and a rating is their inner product; the
    paper learns a metric space within the unit ball, whose distances order items but give no rating. So
    averages of users' and items' vectors (``hops``) mean less here, and are off by default.
    """

    settings_class = SSCDRSettings
    paper = "Semi-Supervised Learning for Cross-Domain Recommendation to Cold-Start Users, CIKM 2019"

    own_share: torch.Tensor
    neighbours: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        super().__init__(config, data)
        self.unsupervised_weight, self.margin = float(config["unsupervised_weight"]), float(config["margin"])
        self.hops = int(config["hops"])
        if not self.size:
            return
        split = data.split
        ratings, tables = split.train[split.source], split.tables[split.source]
        item = ratings.item - int(split.item_offset[split.source])
        likes = liked(ratings, item, split, tables if self.has_biases else None)
        self.pairs = SourcePairs(split.overlapping, ratings.user, item, likes)
        if self.hops:
            share, others = neighbourhood(ratings.user, item, tables, self.hops)
            self.register_buffer("own_share", share)
            self.register_buffer("neighbours", others)

    def phases(self) -> list[Phase]:
        """Returns one phase, over users."""
        if not self.size:
            return []
        return [self.mapping_phase(self.semi_supervised_loss, self.user_batches)]

    def user_batches(self, rng: np.random.Generator) -> Iterable[RatingBatch]:
        """EMCDR's batches, with this epoch's pairs of items."""
        # A child draws the pairs, so that users come in EMCDR's order whatever is drawn.
        pairs = [torch.from_numpy(part) for part in self.pairs.draw(rng.spawn(1)[0])]
        users = self._overlapping
        nothing = torch.zeros(len(users))
        batch = PairedUsers(users, nothing.long(), nothing, self.target, *pairs)
        return Shuffled(batch, self._batch_size, rng)

    def bridged(self, rows: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        """As in the base class; f sees the neighbourhood's mean, the user's own part of it at ``rows``."""
        if self.hops:
            rows = self.own_share[user] * rows + self.neighbours[user]
        return super().bridged(rows, user)

    def semi_supervised_loss(
        self, batch: PairedUsers, rows: torch.Tensor | None = None
    ) -> SemiSupervisedLoss:
        """Returns L_S and λ L_U; moved source vectors, if they are given, move L_S alone."""
        supervised = self.embedding_loss(batch, rows)
        if not self.unsupervised_weight:
            return SemiSupervisedLoss(supervised, torch.zeros_like(supervised))
        return SemiSupervisedLoss(
            supervised, self.unsupervised_weight * self.reduced(self.distance_hinge(batch))
        )

    def distance_hinge(self, batch: PairedUsers) -> torch.Tensor:
        """Returns [m + ‖u^t - f(v⁺)‖² - ‖u^t - f(v⁻)‖²]₊, (B,); 0 for users without a pair."""
        users = self.target_users[batch.user]
        near, far = (
            (users - self.mapping(self.source_items[item])).square().sum(1)
            for item in (batch.positive, batch.negative)
        )
        return torch.where(batch.paired, (self.margin + near - far).relu(), 0.0)


class SourcePairs:
    """Draws for each of o users an item among those the user likes, and one among those the user never rated.

    Both are exactly uniform, and o users take one pass of numpy. Items that nobody rated are never drawn, as
    nothing was learned of them.

    Args:
        users: (o,) user ids, ascending.
        user, item: (m,) the source ratings of all users, items as places in their domain.
        likes: (m,) bool.
    """

    def __init__(self, users: np.ndarray, user: np.ndarray, item: np.ndarray, likes: np.ndarray):
        self.items, column = np.unique(item, return_inverse=True)
        n, self.n_users = len(self.items), len(users)
        rows = np.arange(len(users))
        mine = np.isin(user, users)
        row, column, likes = np.searchsorted(users, user[mine]), column[mine], likes[mine]
        order = np.argsort(row[likes], kind="stable")
        self.liked = column[likes][order]
        self.n_liked = np.bincount(row[likes], minlength=len(users))
        self.first_liked = np.cumsum(self.n_liked) - self.n_liked

        rated_row, rated = np.divmod(np.unique(row.astype(np.int64) * n + column), n)
        n_rated = np.bincount(rated_row, minlength=len(users))
        self.first_rated = np.cumsum(n_rated) - n_rated
        # A user's j-th rated item stands after (item - j) unrated ones; that number never falls with j.
        unrated_before = rated - (np.arange(len(rated)) - self.first_rated[rated_row])
        self.gaps, self.width = rated_row * n + unrated_before, n
        self.n_unrated = n - n_rated
        self.paired = rows[(self.n_liked > 0) & (self.n_unrated > 0)]

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (positive, negative, paired), (o,) each: places of items, 0 where ``paired`` is False."""
        rows = self.paired
        positive, negative = np.zeros((2, self.n_users), np.int64)
        paired = np.zeros(self.n_users, bool)
        paired[rows] = True
        likes = self.first_liked[rows] + rng.integers(self.n_liked[rows])
        positive[rows] = self.items[self.liked[likes]]
        # The k-th unrated item stands k places on, and one more for each rated item before it.
        k = rng.integers(self.n_unrated[rows])
        passed = np.searchsorted(self.gaps, rows * self.width + k, side="right") - self.first_rated[rows]
        negative[rows] = self.items[k + passed]
        return positive, negative, paired


def liked(ratings: Ratings, item: np.ndarray, split: RatingSplit, tables: Tables | None) -> np.ndarray:
    """Returns which of a domain's ratings say that the user likes the item, (m,) bool.

    Args:
        ratings: the domain's training ratings.
        item: (m,) places of their items in the domain.
        split: gives the rating range and the number of users.
        tables: the domain's biases: then a rating above μ + b_u + b_i says so; None: one that reaches
            :func:`liking_threshold`.
    """
    likes: np.ndarray
    if tables is None:
        likes = ratings.rating >= liking_threshold(ratings, split)[ratings.user]
    else:
        user_bias, item_bias = tables.user_bias.cpu().numpy(), tables.item_bias.cpu().numpy()
        likes = ratings.rating > tables.mean + user_bias[ratings.user] + item_bias[item]
    return likes


def liking_threshold(ratings: Ratings, split: RatingSplit) -> np.ndarray:
    """Returns max(4, the user's mean), (n_users,) float32; the 4 is that of a scale from 1 to 5."""
    low, high = split.rating_range
    count = np.bincount(ratings.user, minlength=split.n_users)
    mean = np.bincount(ratings.user, ratings.rating, split.n_users) / np.maximum(count, 1)
    return np.maximum(low + LIKED_SHARE * (high - low), mean).astype(np.float32)


def neighbourhood(
    user: np.ndarray, item: np.ndarray, tables: Tables, hops: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns users' share in the mean over their neighbourhood, (n_users, 1), and the rest, (n_users, d).

    x_u^h = (x_u^{h-1} + Σ x_i^{h-1} over u's items i) / (1 + number of items), items likewise over their
    users, and x^0 the vectors: one hop adds the items, two add the users who share them. x_u^h is
    share · u + rest.

    Args:
        user, item: (m,) the domain's ratings, items as places.
        tables: the domain's vectors.
        hops: 1 or 2.
    """
    x_user, x_item = (table.cpu().numpy() for table in (tables.user, tables.item))
    shape = (len(x_user), len(x_item))
    rated = csr_matrix((np.ones(len(user), np.float32), (user, item)), shape)
    raters = rated.T.tocsr()
    of_user, of_item = (1 / (1 + np.diff(matrix.indptr).astype(np.float32)) for matrix in (rated, raters))
    own_share = of_user if hops == 1 else of_user * (of_user + rated @ of_item)
    own_share = own_share.reshape(-1, 1)
    start = x_user
    for _ in range(hops):
        x_user, x_item = (
            of_user[:, None] * (x_user + rated @ x_item),
            of_item[:, None] * (x_item + raters @ x_user),
        )
    return torch.from_numpy(own_share), torch.from_numpy(x_user - own_share * start)
