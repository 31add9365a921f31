"""DASL: Li et al., "Dual Attentive Sequential Learning for Cross-Domain Click-Through Rate Prediction", KDD 2021.

For an instance whose target lies in domain X, with Y standing for the other domain, user u and candidate i (d is the
size of states; tables of items E and of users U_X, U_Y have d/2):

    H = GRU_X([E[x_t]; U_X[u]]),  C = GRU_Y([E[y_t]; U_X[u]])      own and cross states: the GRU of the items' domain
    α = softmax over all steps of v·tanh(W s + b),  g = Σ α s      dual attention, per target domain
    r̂_ui = MLP([g; E[i]; U_X[u]]) + b_i + b_u                      batch-norm at the input, sigmoid hidden units

and what is minimised, dual embedding being the orthogonal map M from Y's user vectors to X's, is

    BCE(r̂) + λ_m·[2 − cos(M U_Y[u], U_X[u]) − cos(Mᵀ U_X[u], U_Y[u])] + λ_o·‖MᵀM − I‖²_F,

the BCE a mean over targets and sampled negatives, the map's term a mean over the batch's users with training items in
both domains. The first of the two domains has M, the second its transpose.

Decisions: a user without training items in X has M U_Y[u] for U_X[u] (0 if there are none in Y either) and no b_u;
padding gets no attention; a user without any history has g = 0.

Differs from the paper's code (lpworld/DASL) in: the target is no part of its own history; cross states are summed, not
only normalised over (``attend_cross: False`` for the code's form); cosines of normalised vectors, both ways, by a map
without a bias, in every step; ‖MᵀM − I‖ is minimised; dropout drops a share of 0.1 (the code keeps 0.1), and only in
training; batch-norm learns its statistics; histories are as long as they are, each user trains, those of one domain
too; Adam.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from recbole.model.init import xavier_normal_initialization
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import Dropout, Modules, left_aligned
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import BelowOne, NonNegative, Positive, Settings, Size, Sizes
from recbole_cdr_ext.splits.split import Split, TrainingData

# (user, item) pairs whose hidden units exist at once in scoring: a few megabytes stay in the processor's cache.
_PAIRS = 1 << 14


class Terms(NamedTuple):
    """The terms of the objective with their weights; their sum is minimised."""

    bce: torch.Tensor
    map: torch.Tensor
    orthogonality: torch.Tensor


class DASLSettings(Settings):
    """DASL (Li et al., KDD 2021). Sizes, window, dropout and the clipping of gradients are those of the authors'
    code. The code trains with plain SGD, step 0.01, on batches of 32; learner, step size, batch and both
    weights are ours.
    """

    embedding_size: Size = Field(
        128, description="Width d of the states; item and user vectors have half of it."
    )
    attention_size: Size = Field(20, description="Inner size of the attention over steps.")
    mlp_hidden_size: Sizes = Field([80, 40], description="Sizes of the scoring MLP's hidden layers.")
    dropout: BelowOne = Field(
        0.1, description="Share of the attended preference that is dropped in training."
    )
    user_embedding: bool = Field(
        True, description="Whether users have vectors of their own; False serves users unknown to training."
    )
    attend_cross: bool = Field(
        True, description="Whether the other domain's states are summed, or weigh in the softmax alone."
    )
    map_weight: NonNegative = Field(
        0.1, description="Weight λ_m of the error of the map between the domains' user vectors."
    )
    orthogonality_weight: NonNegative = Field(
        0.001, description="Weight λ_o of the map's distance from an orthogonal one."
    )
    max_history_length: Size = Field(10, description="The most recent items of each domain that are read.")
    train_neg_num: Size = Field(1, description="Negatives drawn per training instance, anew each epoch.")
    train_batch_size: Size = Field(512, description="Instances in a training batch.")
    learning_rate: Positive = Field(0.001, description="Step size of Adam.")
    clip_grad_norm: dict[str, Any] | None = Field(
        {"max_norm": 1.0}, description="Bound on the gradient's norm."
    )


class DASL(CrossDomainRecommender[Batch, Split]):
    """Dual embedding and dual attention; settings and their defaults are in ``properties/model/DASL.yaml``."""

    settings_class = DASLSettings
    cold_start = True
    domains = "two"
    paper = "DASL (Li et al., KDD 2021)"
    needs_negatives = True

    trained: torch.Tensor

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        d = int(config["embedding_size"])
        half = d // 2
        self.user_size = half if config["user_embedding"] else 0
        self.attend_cross = bool(config["attend_cross"])
        self.map_weight = float(config["map_weight"])
        self.orthogonality_weight = float(config["orthogonality_weight"])
        hidden, dropout = [int(size) for size in config["mlp_hidden_size"]], float(config["dropout"])

        self.item_embedding = nn.Embedding(self.n_items, half)
        self.gru = nn.ModuleList(nn.GRU(half + self.user_size, d, batch_first=True) for _ in range(2))
        self.attention = nn.ModuleList(_Attention(d, int(config["attention_size"])) for _ in range(2))
        self.head = Modules(_Head(d, half, self.user_size, hidden, dropout) for _ in range(2))
        if self.user_size:
            self.user_embedding = nn.ModuleList(nn.Embedding(self.n_users, half) for _ in range(2))
        self.apply(xavier_normal_initialization)
        self.item_bias = nn.Parameter(torch.zeros(self.n_items))
        if self.user_size:
            self.user_bias = nn.Parameter(torch.zeros(2, self.n_users))
            self.map = nn.Parameter(nn.init.xavier_normal_(torch.empty(half, half)))
            self.register_buffer("trained", self._trained(data.split), persistent=False)

    def _trained(self, split: Split) -> torch.Tensor:
        """Returns which users have training items in which domain, (2, n_users) bool."""
        trained = torch.zeros(2, self.n_users, dtype=torch.bool)
        trained[torch.from_numpy(split.train_events.domain), torch.from_numpy(split.train_events.user)] = True
        evaluated = torch.cat([torch.from_numpy(split.part(part).user) for part in ("valid", "test")])
        if not trained.any(0)[evaluated].any():
            raise CDRError(
                "user_embedding=True needs evaluated users among the training users, and there are none. "
                "Set user_embedding=False, which serves users that training has not seen."
            )
        return trained

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """Requires even widths, a hidden layer, and that user vectors get trained."""
        if config["user_embedding"] and config["split"] == "user" and not config["train_on_histories"]:
            raise CDRError(
                "train_on_histories=False leaves the evaluated users without vectors. "
                "Set train_on_histories=True, or user_embedding=False."
            )
        if config["embedding_size"] % 2:
            raise CDRError(
                f"embedding_size={config['embedding_size']!r} should be even: tables get half of it."
            )
        if not config["mlp_hidden_size"]:
            raise CDRError("mlp_hidden_size=[] should be a list of sizes, such as [80, 40].")

    # -- users --------------------------------------------------------------------------------------------------

    def mapped(self, x: int, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors of users in the other domain → in domain ``x``, (B, d/2): each row times M, or its transpose."""
        return vectors @ (self.map.T if x == 0 else self.map)

    def user_vectors(self, x: int, users: torch.Tensor) -> torch.Tensor:
        """Returns U_X[u] of users with training items in X, else what the map makes of U_Y[u], else 0: (B, d/2)."""
        if not self.user_size:
            return self.item_embedding.weight.new_zeros(len(users), 0)
        here, there = (self.trained[k, users].unsqueeze(1) for k in (x, 1 - x))
        vectors: torch.Tensor = self.user_embedding[x](users)
        if here.all():  # as in training, where the other table's gradient would be a table of zeros
            return vectors
        return torch.where(here, vectors, self.mapped(x, self.user_embedding[1 - x](users)) * there)

    # -- preference ---------------------------------------------------------------------------------------------

    def states(
        self, domain: int, history: torch.Tensor, user: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads a history with its domain's GRU.

        Args:
            history: (B, L) right-aligned.
            user: (B, d/2) in the *target's* domain.

        Returns:
            states (B, L', d), left-aligned, and which of them are real (B, L').
        """
        items, length = left_aligned(history)
        x = self.item_embedding(items)
        x = torch.cat([x, user.unsqueeze(1).expand(-1, x.shape[1], -1)], 2)
        # An empty history reads one padding item, and its state is masked.
        packed = pack_padded_sequence(x, length.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru[domain](packed)[0], batch_first=True)
        return states, torch.arange(states.shape[1], device=length.device) < length.unsqueeze(1)

    def preference(self, batch: Batch, user: torch.Tensor) -> torch.Tensor:
        """Returns g, (B, d): the attended states of both histories; 0 for a user without any."""
        x = batch.target_domain
        own_states, own_real = self.states(x, batch.own_history, user)
        cross, cross_real = self.states(1 - x, batch.history(1 - x), user)
        states, real = torch.cat([own_states, cross], 1), torch.cat([own_real, cross_real], 1)
        weight = self.attention[x](states, real)
        if not self.attend_cross:
            states, weight = own_states, weight[:, : own_states.shape[1]]
        return torch.einsum("bl,bld->bd", weight, states)

    def _user_side(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """What the first layer gets from an instance, (B, h), and b_u, (B, 1)."""
        x = batch.target_domain
        user = self.user_vectors(x, batch.users)
        side = self.head[x].user_side(self.preference(batch, user), user)
        if not self.user_size:
            return side, side.new_zeros(len(side), 1)
        return side, (self.user_bias[x] * self.trained[x])[batch.users].unsqueeze(1)

    # -- scores and loss ----------------------------------------------------------------------------------------

    def score(self, batch: Batch, candidates: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of candidates (B, C), or of all items of the domain (B, n_k).

        g is made once per instance and the items' part of the first layer once per item, so a pair costs an addition
        and the layers behind; pairs go through them in blocks of columns.
        """
        x, span = batch.target_domain, self.item_slice(batch.target_domain)
        user, user_bias = self._user_side(batch)
        item, item_bias = self.head[x].item_side(self.item_embedding.weight[span]), self.item_bias[span]
        if candidates is None:
            local = torch.arange(len(item), device=item.device).unsqueeze(0)
        else:
            local = (candidates - span.start).clamp(min=0)
        parts = [
            self.head[x](user, item[columns]) + item_bias[columns]
            for columns in local.split(max(1, _PAIRS // max(1, len(batch))), 1)
        ]
        return torch.cat(parts, 1) + user_bias

    def calculate_loss(self, interaction: Batch) -> Terms:
        """Returns the cross-entropy of targets and negatives, the map's error, and its distance from orthogonality."""
        batch, head = interaction, self.head[interaction.target_domain]
        candidates = torch.cat([batch.targets.unsqueeze(1), batch.negatives], 1)
        user, user_bias = self._user_side(batch)
        # Batch-norm takes its statistics from the pairs of the batch, not from all items as in scoring.
        logits = head(user, head.item_side(self.item_embedding(candidates)))
        logits = logits + self.item_bias[candidates] + user_bias
        label = torch.zeros_like(logits)
        label[:, 0] = 1
        bce = F.binary_cross_entropy_with_logits(logits, label)
        if not self.user_size:
            return Terms(bce, bce.new_zeros(()), bce.new_zeros(()))
        return Terms(
            bce,
            self.map_weight * self.map_error(batch.users),
            self.orthogonality_weight * self.orthogonality(),
        )

    def map_error(self, users: torch.Tensor) -> torch.Tensor:
        """Returns Σ over both directions of 1 − cos(mapped, own), mean over users that train in both domains."""
        both = users[self.trained[:, users].all(0)].unique()
        if not len(both):
            return self.map.new_zeros(())
        vectors = [table(both) for table in self.user_embedding]
        cosines = [F.cosine_similarity(self.mapped(x, vectors[1 - x]), vectors[x]) for x in (0, 1)]
        return (2 - cosines[0] - cosines[1]).mean()

    def orthogonality(self) -> torch.Tensor:
        """Returns ‖MᵀM − I‖²_F."""
        return (self.map.T @ self.map - torch.eye(len(self.map), device=self.map.device)).square().sum()


class _Attention(nn.Module):
    """Additive attention (Yang et al., NAACL 2016) over steps."""

    def __init__(self, d: int, size: int):
        super().__init__()
        self.inner, self.weight = nn.Linear(d, size), nn.Linear(size, 1, bias=False)

    def forward(self, states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """States (B, L, d) → weights (B, L) that sum to 1 over the real steps; all 0 where there are none."""
        logits = self.weight(torch.tanh(self.inner(states))).squeeze(2)
        # Not minus infinity: the softmax of a row without steps would be 0/0.
        weights: torch.Tensor = logits.masked_fill(~real, torch.finfo(logits.dtype).min).softmax(1) * real
        return weights


class _Head(nn.Module):
    """MLP([g; E[i]; U[u]]) with batch-norm at its input and sigmoid hidden units.

    Batch-norm works on each feature by itself and the first layer is linear, so both split into a part of the
    instance and one of the item, whose sum is the first layer's output.
    """

    def __init__(self, d: int, item_size: int, user_size: int, hidden: list[int], dropout: float):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.norm_user, self.norm_item = _BatchNorm(d + user_size), _BatchNorm(item_size)
        self.of_user = nn.Linear(d + user_size, hidden[0])
        self.of_item = nn.Linear(item_size, hidden[0], bias=False)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise([*hidden, 1]))

    def user_side(self, preference: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        """Maps g (B, d) and user vectors (B, d/2) to (B, h)."""
        vectors: torch.Tensor = self.of_user(self.norm_user(torch.cat([self.dropout(preference), user], 1)))
        return vectors

    def item_side(self, items: torch.Tensor) -> torch.Tensor:
        """Maps item vectors (..., d/2) to (..., h)."""
        vectors: torch.Tensor = self.of_item(self.norm_item(items.flatten(0, -2)).view(items.shape))
        return vectors

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Maps the two sides, (B, h) and (B or 1, C, h) to (B, C)."""
        x = user.unsqueeze(1) + item
        for layer in self.layers:
            x = layer(x.sigmoid_())
        return x.squeeze(2)


class _BatchNorm(nn.BatchNorm1d):
    """Batch-norm that takes a single row, which has no variance, by its running statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises (N, features)."""
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
