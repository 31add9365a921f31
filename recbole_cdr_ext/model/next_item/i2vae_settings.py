"""The settings of I2VAE."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from recbole_cdr_ext.settings.declaration import (
    BelowOne,
    Count,
    Learner,
    NonNegative,
    Positive,
    Settings,
    Size,
)


class I2VAESettings(Settings):
    """I2VAE (Ning et al., UAI 2025), as validation on food_kitchen chose it (results/trials.md). The paper's
    text is I2VAE_paper.yaml; I2VAE_plain.yaml is the same network without latents, pseudo-sequences and
    regularisers.
    """

    embedding_size: Size = Field(128, description="Width d of items, states and latents.")
    n_layers: Size = Field(1, description="Self-attention layers of each encoder.")
    n_heads: Size = Field(2, description="Heads of the self-attention.")
    inner_size: Size = Field(256, description="Width of the encoders' feed-forward layers.")
    dropout: BelowOne = Field(0.5, description="Dropout in encoders, posteriors and decoders.")
    pooling: Literal["mean", "mean_last", "last"] = Field(
        "last",
        description="S of a sequence: mean (the paper), mean_last (the most recent state added) or last.",
    )
    cross_encoder: Literal["attention", "mlp", "merged"] = Field(
        "merged",
        description="How z_t sees both histories: attention, mlp, or merged (their common timeline).",
    )
    shared_encoder: bool = Field(
        True, description="In one pass, whether all domains and the merged timeline share one encoder."
    )
    n_cross_heads: int = Field(4, description="Heads of the cross-domain attention.")
    max_history_length: Size = Field(
        50, description="T: the most recent events that are read; with one_pass False, of each domain."
    )
    pseudo_length: int = Field(
        40, description="T', the length of a pseudo-sequence: recent items, then recalled ones."
    )
    psg: Literal["lightgcn", "random", "none"] = Field(
        "none",
        description="Where pseudo-sequences come from: lightgcn (the stage LightGCNPSG), random or none.",
    )
    psg_settings: dict[str, Any] = Field(
        {}, description="Overrides of LightGCNPSG's property file for the stage."
    )
    random_recall_size: Size = Field(20, description="Items in a random pseudo-sequence.")
    residual_posteriors: bool = Field(
        True,
        description="Whether posteriors' means are what they are made from plus an MLP of it, or the MLP.",
    )
    decoder: Literal["mlp", "sum"] = Field(
        "sum", description="X̂ from the latents: mlp (the paper) or sum (of normalised MLPs, one per latent)."
    )
    loss_type: Literal["BCE", "CE", "sampled"] = Field(
        "sampled",
        description=(
            "Reconstruction: CE (softmax over the domain), sampled (softmax over train_neg_num negatives "
            "that a batch shares) or BCE (train_neg_num negatives per target)."
        ),
    )
    train_neg_num: Size = Field(
        2048, description="Negatives, with BCE per target, with sampled per batch and domain."
    )
    temperature: Positive = Field(1.0, description="Scores are divided by it in CE and sampled.")
    log_q_correction: bool = Field(
        False, description="With sampled, whether negatives stand for all items of the domain."
    )
    variational: bool = Field(
        True, description="False: no noise, no KL and no regularisers; latents are their means."
    )
    kl_weight: NonNegative = Field(
        0.00001, description="Weight of the KL terms to the priors; 1 is the evidence lower bound."
    )
    kl_warmup_epochs: Count = Field(0, description="Epochs in which the weight of the KL terms rises.")
    free_bits: NonNegative = Field(
        0.0, description="Nats of a latent, mean over a batch, that the KL to its prior leaves alone."
    )
    item_init: Literal["random", "psg"] = Field(
        "random",
        description="Item vectors start random, or as those that the stage LightGCNPSG learned: psg.",
    )
    initial_logvar: float = Field(
        -4.0, description="Log-variance that posteriors start from; at 0 noise drowns the first epochs."
    )
    lambda_a: NonNegative = Field(0.00001, description="Weight of the denoising regulariser (DN-R).")
    lambda_c: NonNegative = Field(
        0.00001, description="Weight of the cross-domain and disentangling regularisers (CD-R & DS-R)."
    )
    cross_regularizer: bool = Field(True, description="False: the ablation without CD-R & DS-R.")
    denoise_regularizer: bool = Field(True, description="False: the ablation without DN-R.")
    adaptive_denoise: bool = Field(True, description="Whether DN-R grows with the history's length (λ_d).")
    adaptive_a: float = Field(0.8, description="a of λ_d = exp(a·L/T) − b.")
    adaptive_b: float = Field(0.8, description="b of λ_d.")
    cold_start_mask_prob: BelowOne = Field(
        0.1, description="Share of training instances whose own history is hidden, to train the cold path."
    )
    train_batch_size: Size = Field(
        1024, description="Targets in a batch of sequences; instances where train_targets is last."
    )
    learner: Learner = Field(
        "adamw", description="The learner; with adamw the weights decay, not their gradients."
    )
    learning_rate: Positive = Field(0.002, description="Step size.")
    weight_decay: NonNegative = Field(1.0, description="Decay per unit of step size.")
    weight_averaging: BelowOne = Field(
        0.998, description="Decay per step of the average of the weights that is validated and kept."
    )
