"""The settings of RecBole's own models, where they are others than RecBole's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from recbole_cdr_ext.settings.declaration import BelowOne, Count, NonNegative, Positive, Settings, Size, Sizes


class BPRSettings(Settings):
    """Matrix factorisation with the pairwise loss (RecBole's BPR); one model per domain (baseline_scope:
    target).
    """

    embedding_size: Size = Field(64, description="Size of user and item vectors.")
    learning_rate: Positive = Field(0.001, description="Step size.")
    train_batch_size: Size = Field(2048, description="Interactions in a batch, as in RecBole.")
    train_neg_sample_args: dict[str, Any] | None = Field(
        {"distribution": "uniform", "sample_num": 1},
        description="Negatives per interaction: uniform over its domain, exact, drawn each epoch.",
    )


class ItemKNNSettings(Settings):
    """Item-item cosine (RecBole's ItemKNN), scored from the history of each instance."""

    k: int = Field(
        1000,
        description="Neighbours kept per item; with shrink chosen on the validation part of food_kitchen.",
    )
    shrink: float = Field(20.0, description="Added to the denominator of the cosine: rare pairs count less.")
    max_history_length: Size = Field(
        200, description="A sum over the whole history costs next to nothing, so it is not cut at 20."
    )
    train_neg_sample_args: dict[str, Any] | None = Field(None, description="Similarities need no negatives.")


class LightGCNSettings(Settings):
    """LightGCN (RecBole's), on the graph of the training interactions; one model per domain (baseline_scope:
    target).
    """

    embedding_size: Size = Field(64, description="Size of user and item vectors.")
    n_layers: Count = Field(2, description="Convolutions.")
    reg_weight: float = Field(0.00001, description="L2 weight of the vectors before convolution.")
    learning_rate: Positive = Field(0.001, description="Step size.")
    train_batch_size: Size = Field(
        2048, description="Interactions in a batch, as in RecBole; each batch convolves the whole graph."
    )
    train_neg_sample_args: dict[str, Any] | None = Field(
        {"distribution": "uniform", "sample_num": 1},
        description="Negatives per interaction: uniform over its domain, exact, drawn each epoch.",
    )


class MultiVAESettings(Settings):
    """MultiVAE (RecBole's), which learns from the users' training items and is scored with each instance's own
    history.
    """

    mlp_hidden_size: Sizes = Field(
        [600], description="Sizes of the encoder's hidden layers, mirrored in the decoder."
    )
    latent_dimension: Size = Field(
        128, description="Mean and deviation together: the latent has half of it (256 for d = 128)."
    )
    dropout_prob: BelowOne = Field(0.5, description="Dropout of the input.")
    noise_std: NonNegative = Field(
        1.0, description="Deviation of the latent's noise; RecBole's own code has 0.01."
    )
    input: Literal["own", "both"] = Field(
        "own", description="The items that are read: own (those that are predicted) or both (all domains')."
    )
    anneal_cap: float = Field(0.2, description="Largest weight of the KL divergence.")
    total_anneal_steps: Count = Field(
        200000,
        description=(
            "Updates until the cap is reached. With batches of users there are few: 100 epochs of 10,000 "
            "users make 2,000, so that the weight stays near 0 unless this is lowered (search 2000, "
            "20000, 200000)."
        ),
    )
    learning_rate: Positive = Field(0.001, description="Step size.")
    train_batch_size: Size = Field(512, description="Users in a batch.")
    max_history_length: Size = Field(
        200, description="A bag that is scored holds at most the latest of these; training bags are whole."
    )
    train_neg_sample_args: dict[str, Any] | None = Field(
        None, description="A softmax over all items needs no negatives."
    )


class PopSettings(Settings):
    """Popularity in the training data, per domain (RecBole's Pop). Nothing to tune; every table has this row."""

    train_neg_sample_args: dict[str, Any] | None = Field(None, description="Its counts need no negatives.")


class SASRecSettings(Settings):
    """SASRec (RecBole's), on the target domain's histories, or on the merged ones (baseline_scope: all).
    RecBole's MAX_ITEM_LIST_LENGTH follows max_history_length.
    """

    n_layers: Size = Field(2, description="Attention layers.")
    n_heads: Size = Field(2, description="Attention heads.")
    hidden_size: Size = Field(64, description="Size of item vectors and hidden states.")
    inner_size: Size = Field(256, description="Hidden size of the feed-forward layers.")
    hidden_dropout_prob: BelowOne = Field(0.5, description="Dropout of states.")
    attn_dropout_prob: BelowOne = Field(0.5, description="Dropout of attention weights.")
    loss_type: Literal["CE", "BPR"] = Field(
        "CE", description="CE: softmax over all items of the scope; BPR: against train_neg_num negatives."
    )
    learning_rate: Positive = Field(0.001, description="Step size.")
    train_neg_sample_args: dict[str, Any] | None = Field(
        None, description="Must be empty with CE; BPR takes train_neg_num instead."
    )
    softmax_items: Literal["scope", "domain"] = Field(
        "scope",
        description=(
            "With CE and baseline_scope all, the softmax is over all items of the scope, or over those "
            "of each target's domain."
        ),
    )
    softmax_negatives: Count = Field(
        0,
        description=(
            "0: a softmax over all of these; else over the target and this many negatives that a batch "
            "shares."
        ),
    )


# By the name of RecBole's model.
SETTINGS: Mapping[str, type[Settings]] = {
    "BPR": BPRSettings,
    "ItemKNN": ItemKNNSettings,
    "LightGCN": LightGCNSettings,
    "MultiVAE": MultiVAESettings,
    "Pop": PopSettings,
    "SASRec": SASRecSettings,
}
