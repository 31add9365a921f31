"""PTUPCDR: a bridge of one's own for every user, made from what the user liked in the source."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import nn

from recbole_cdr_ext.model.bridge import Bridge
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import Count, Learner, Positive, Reduction, Settings, Size
from recbole_cdr_ext.splits.split import Ratings, RatingSplit, TrainingData

# Stands where a history has no more items; it is no item's place.
NO_ITEM = -1


class MetaNetwork(nn.Module):
    """What learns in PTUPCDR: h scores the items of a history, g turns a profile into a bridge.

    h: d → d, ReLU, → 1 without bias; g: d → ``hidden``, ReLU, → d · d'. Xavier-uniform weights, zero biases; the
    weights of g's last layer are multiplied by ``last_scale``.
    """

    def __init__(self, size: int, target_size: int, hidden: int, last_scale: float):
        super().__init__()
        self.target_size = target_size
        last = nn.Linear(hidden, size * target_size)
        self.scorer = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1, bias=False))
        self.generator = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), last)
        for layer in (*self.scorer, *self.generator):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            last.weight.mul_(last_scale)

    def attention(self, items: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Returns the softmax of h over each history's items.

        Args:
            items: (B, L, d) vectors.
            real: (B, L) bool, False for padding.

        Returns:
            (B, L) weights, exactly 0 for padding; their sum is 1, or 0 for an empty history.
        """
        score = self.scorer(items).squeeze(2)
        # The lowest number and not -inf: a row of padding alone would be NaN.
        weights: torch.Tensor = score.masked_fill(~real, torch.finfo(score.dtype).min).softmax(1) * real
        return weights

    def forward(self, profile: torch.Tensor) -> torch.Tensor:
        """Returns the bridges (B, d, d') of the profiles (B, d)."""
        bridges: torch.Tensor = self.generator(profile).view(len(profile), -1, self.target_size)
        return bridges


class PTUPCDRSettings(Settings):
    """PTUPCDR: a meta network makes a bridge for each user. The paper's form is PTUPCDR_paper.yaml."""

    history_length: Size = Field(
        20, description="The most liked source items that a bridge is made from, the last ones."
    )
    positive_rating: float = Field(3.0, description="Items rated above this are liked.")
    meta_init_scale: float = Field(0.01, description="Factor on the weights that g's last layer starts with.")
    reduction: Reduction = Field("mean", description="sum or mean of a batch's losses.")
    learner: Learner = Field("adam", description="adam, adamw, sgd, adagrad, rmsprop or sparse_adam.")
    learning_rate: Positive = Field(0.001, description="Step size of the learner.")
    epochs: Count = Field(50, description="The most epochs of the meta network.")
    stopping_step: Count = Field(
        2,
        description=(
            "Training stops after more than so many validations without improvement; it over-fits early."
        ),
    )


class PTUPCDR(Bridge):
    """Personalized Transfer of User Preferences for Cross-domain Recommendation (Zhu et al., WSDM 2022).

    A user's bridge is made by a meta network from the source items S_u that the user rated above
    ``positive_rating``, at most ``history_length`` of them:

        a_j = softmax over S_u of h(v_j^s),   p_u = Σ_j a_j v_j^s,   M_u = reshape(g(p_u)) (d × d),
        û^t = u^s M_u (a row vector times a matrix),   r̂ = ⟨û^t, v^t⟩, with biases μ + b_i + b̂_u + ⟨û^t, v^t⟩.

    h and g are learned with the squared error on D^o; the four tables are fixed. Of a longer S_u the last items in
    the dataset's order count: the newest where time is real, and a sample drawn with ``split_seed`` where
    ``order: none`` shuffles it. For a user without S_u, p_u is the mean of all the user's source items, and zero if
    there is none, which leaves g's constant. PGD, attacks and landscapes move u^s and leave M_u as it is.

    Differs from the paper and its public code: padding is no item (there it is also item 0), users without S_u (an
    extra untrained row there), ratings stay fractions, the epoch is the best one for the validation users (the best
    on test there), vectors start at N(0, ``init_std``²), g's last layer starts small so that with biases the model
    starts from the biases alone, and base models other than matrix factorisation come from ``backbone``.
    """

    settings_class = PTUPCDRSettings
    paper = "Personalized Transfer of User Preferences for Cross-domain Recommendation, WSDM 2022"

    history: torch.Tensor
    stand_in: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[RatingSplit]):
        super().__init__(config, data)
        if not self.size:
            return
        split = data.split
        ratings, offset = split.train[self.source], int(split.item_offset[self.source])
        liked = ratings.take(ratings.rating > config["positive_rating"])
        history = last_items(liked, self.n_users, offset, int(config["history_length"]))
        has_none = (history == NO_ITEM).all(1)
        # Both follow from split and tables; checkpoints need not repeat them.
        self.register_buffer("history", torch.from_numpy(history), persistent=False)
        self.register_buffer(
            "stand_in",
            mean_vectors(ratings.take(has_none[ratings.user]), self.n_users, offset, self.source_items),
            persistent=False,
        )

    def make_mapping(self) -> nn.Module:
        """Returns the meta network."""
        if not self.size:
            return nn.Identity()
        hidden, scale = int(self.config["mapping_hidden_size"]), float(self.config["meta_init_scale"])
        return MetaNetwork(self.size, self.target_items.shape[1], hidden, scale)

    def phases(self) -> list[Phase]:
        """Returns one phase: the meta network on the rating loss."""
        return (
            [self.mapping_phase(self.calculate_loss, self.shared_batches, name="meta")] if self.size else []
        )

    def profile(self, user: torch.Tensor) -> torch.Tensor:
        """Returns p_u, (B, d)."""
        history = self.history[user]  # (B, L)
        real = history != NO_ITEM
        items = self.source_items[history.clamp(min=0)]  # (B, L, d)
        assert isinstance(self.mapping, MetaNetwork)
        weights = self.mapping.attention(items, real)
        # Users have a history or a stand-in; the other one is zero.
        return (weights.unsqueeze(2) * items).sum(1) + self.stand_in[user]

    def bridges(self, user: torch.Tensor) -> torch.Tensor:
        """Returns M_u, (B, d, d)."""
        # Users have many rows in a batch, and a bridge is much dearer than its use.
        users, place = user.unique(return_inverse=True)
        bridges: torch.Tensor = self.mapping(self.profile(users))[place]
        return bridges

    def bridged(self, rows: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        """Returns rows M_u, (B, d): the users' own bridges at any source vectors ``rows`` (B, d)."""
        return (rows.unsqueeze(1) @ self.bridges(user)).squeeze(1)


def last_items(ratings: Ratings, n_users: int, item_offset: int, length: int) -> np.ndarray:
    """Returns each user's last items, the very last first.

    Args:
        ratings: in time's order per user.
        n_users: number of users.
        item_offset: the global id of the domain's first item.
        length: how many to keep at most.

    Returns:
        (n_users, L) places of items in their domain, :data:`NO_ITEM` where a user has fewer; 1 ≤ L ≤ length.
    """
    order = np.argsort(ratings.user, kind="stable")
    user, place = ratings.user[order], ratings.item[order] - item_offset
    count = np.bincount(user, minlength=n_users)
    from_end = count.cumsum()[user] - 1 - np.arange(len(user))
    recent = from_end < length
    table = np.full((n_users, max(1, min(length, int(count.max(initial=0))))), NO_ITEM, np.int64)
    table[user[recent], from_end[recent]] = place[recent]
    return table


def mean_vectors(ratings: Ratings, n_users: int, item_offset: int, items: torch.Tensor) -> torch.Tensor:
    """Returns the mean vector (n_users, d) of the items that each user rated, zero for users without ratings.

    Args:
        ratings: of one domain.
        n_users: number of users.
        item_offset: the global id of the domain's first item.
        items: (n_k, d) vectors of the domain's items.
    """
    user = torch.from_numpy(ratings.user.astype(np.int64))
    place = torch.from_numpy(ratings.item.astype(np.int64) - item_offset)
    total = items.new_zeros(n_users, items.shape[1]).index_add_(0, user, items[place])
    return total / torch.bincount(user, minlength=n_users).clamp(min=1).unsqueeze(1)
