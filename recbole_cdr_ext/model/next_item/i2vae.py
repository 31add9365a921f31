"""I2VAE: Ning et al., "i²VAE: Interest Information Augmentation with Variational Regularizers for Cross-Domain
Sequential Recommendation", UAI 2025.

For an instance whose target lies in domain X, with Y standing for all other domains:

    S^X, S^Y, S_a^X   means over the real positions of self-attention over the history in X, in Y, and over the
                      pseudo-sequence of X (section 3.2)
    z^x ~ q(·|S^X),  z_a^x ~ q(·|S_a^X),  z_t^y ~ q(·|attention from S^X' to S^Y')   (3.3.1, D.2)
    X̂ = MLP([z^x; z_t^y; z_a^x]),  r̂_ui = X̂ · E_i                                   (3.3.3)

and what is minimised (3.5.2) is

    recon + w·[KL(z^x‖p) + KL(z_t^y‖N(0,I)) + KL(z_a^x‖p_a)] + λ_a·λ_d·KL(z^x‖z_a^x)
          + λ_c·[recon + KL(z^x‖p) + KL(z_t^y‖r^y)],        λ_d = exp(a·L/T) − b

summed over d, averaged over the batch. Without a history in Y, z_t^y is its prior mean and its terms are dropped.
Without one in X (cold start), z^x and z_a^x are their prior means and z_t^y ~ r^y(·|S^Y), held to N(0, I) by the same
weight w as any posterior of z_t.

What an instance sees, S^X, S^Y, S_a^X and the attention, has two forms. With ``one_pass: False``, the paper's text,
each instance's histories are encoded by themselves (``HistoryEncoder``); else one pass over the merged timeline
encodes all of its positions (``PositionEncoder``). What is made of it is the same, and stands here. Decisions where
the paper is silent are those of the documentation page; with more than two domains the other domains' sequences are
one memory, each encoded by its own domain's encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Batch, random_recall
from recbole_cdr_ext.data.sequences import SequenceBatch, TrainingSequences
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.i2vae_settings import I2VAESettings
from recbole_cdr_ext.model.parts.layers import (
    AnyModule,
    CrossAttention,
    Gaussian,
    GaussianHead,
    ItemTable,
    LatentMeter,
    Modules,
    Prior,
    SequenceEncoder,
    SumDecoder,
    initialised_as_sasrec,
    kl,
    mlp,
)
from recbole_cdr_ext.model.parts.losses import sampled_softmax_loss, softmax_loss
from recbole_cdr_ext.model.parts.views import HistoryEncoder, PositionEncoder, Views
from recbole_cdr_ext.model.parts.whole_sequences import (
    WholeSequences,
    merged_timelines,
    trains_whole_sequences,
)
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase, Stage
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import properties_dir, read_mapping
from recbole_cdr_ext.splits.split import PARTS, Split, TrainingData, recalled_by_event

# What the paper's form, an encoding per instance, does not have.
ONE_PASS_ONLY = {"cross_encoder": "merged", "pooling": "last", "psg": "none"}


def on_sequences(config: CDRConfig) -> bool:
    """Returns whether training batches are whole sequences; the binary loss has negatives of each instance's own."""
    return trains_whole_sequences(config) and config["loss_type"] != "BCE"


def recalled_width(config: CDRConfig) -> int:
    """Returns how many items a pseudo-sequence generator recalls for an instance at most."""
    if config["psg"] == "none":
        return 0
    if config["psg"] == "random":
        return int(config["random_recall_size"])
    defaults = read_mapping(properties_dir() / "model" / "LightGCNPSG.yaml")
    settings = {**defaults, **(config["psg_settings"] or {})}
    return int(settings["recall_rounds"]) * int(settings["recall_size"])


@dataclass
class Latents:
    """The posteriors of a batch. Those of z_t hold only the rows of their mask.

    Attributes:
        interest, augmented: q(z^x), q(z_a^x), (B, d); no q(z_a^x) without pseudo-sequences.
        transfer: q(z_t^y), the rows in ``both``.
        auxiliary: r^y(z_t^y|y), the rows in ``other``; None if the regulariser that trains it is off.
        has_own, other, both: (B,) masks: a history in X, one in Y, one in each.
        length: (B,) the history length in X, at most T.
    """

    interest: Gaussian
    augmented: Gaussian | None
    transfer: Gaussian | None
    auxiliary: Gaussian | None
    has_own: torch.Tensor
    other: torch.Tensor
    both: torch.Tensor
    length: torch.Tensor


class Terms(NamedTuple):
    """The terms of the objective, each a batch mean with its weight; their sum is minimised."""

    recon: torch.Tensor
    kl: torch.Tensor
    denoise: torch.Tensor
    cross: torch.Tensor


class I2VAE(CrossDomainRecommender[Batch, Split]):
    """Variational augmentation of interests; settings and their defaults are in ``properties/model/I2VAE.yaml``."""

    settings_class = I2VAESettings
    cold_start = True
    domains = "two or more"
    paper = "i²VAE (Ning et al., UAI 2025)"
    needs_pseudo = True

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        self._read_weights(config)
        self.loss_type = config["loss_type"]
        self.temperature, self.n_shared = float(config["temperature"]), int(config["train_neg_num"])
        self.log_q = bool(config["log_q_correction"])
        self.needs_negatives = self.loss_type == "BCE"
        self.needs_pseudo = config["psg"] != "none"
        self.one_pass = self.needs_merged = bool(config["one_pass"])
        self._meter = LatentMeter()
        self.training_sequences: WholeSequences[TrainingSequences] | None = None
        if on_sequences(config):
            arrange = partial(merged_timelines, token_key=data.token_key, max_length=self.max_history_length)
            self.training_sequences = WholeSequences(
                config, data.split.train_events, arrange, recalled_by_event(data.split)
            )
        self._make_modules(config)
        self.apply(initialised_as_sasrec)
        for head in (*self.own_head, *self.augmented_head, *self.transfer_head, *self.auxiliary_head):
            nn.init.constant_(head.logvar.bias, float(config["initial_logvar"]))
        if config["item_init"] == "psg":
            assert data.split.item_vectors is not None, "no generator has run"
            self._start_from(data.split.item_vectors)

    def _read_weights(self, config: CDRConfig) -> None:
        """The weights of the objective's terms; without latents that are drawn there is nothing to regularise."""
        self.variational = bool(config["variational"])
        self.kl_weight = float(config["kl_weight"]) if self.variational else 0.0
        self.kl_warmup_epochs = int(config["kl_warmup_epochs"])
        self.free_bits = float(config["free_bits"])
        self.kl_share = 1.0
        denoises = config["denoise_regularizer"] and self.variational
        self.lambda_a = float(config["lambda_a"]) if denoises else 0.0
        self.lambda_c = float(config["lambda_c"]) if config["cross_regularizer"] and self.variational else 0.0
        self.use_auxiliary = bool(config["cross_regularizer"])
        self.adaptive = bool(config["adaptive_denoise"])
        self.adaptive_a, self.adaptive_b = float(config["adaptive_a"]), float(config["adaptive_b"])
        self.cold_start_mask_prob = float(config["cold_start_mask_prob"])

    def _make_modules(self, config: CDRConfig) -> None:
        """The table of items, what encodes the histories, heads, priors and decoders, in the order of their draws."""
        d, dropout = int(config["embedding_size"]), float(config["dropout"])
        by_attention = config["cross_encoder"] == "attention"

        def per_domain(make: Callable[[], AnyModule]) -> Modules[AnyModule]:
            return Modules(make() for _ in range(self.n_domains))

        def encoder() -> SequenceEncoder:
            return SequenceEncoder(
                d=d,
                n_layers=int(config["n_layers"]),
                n_heads=int(config["n_heads"]),
                max_length=max(self.max_history_length, int(config["pseudo_length"])),
                inner=int(config["inner_size"]),
                dropout=dropout,
            )

        def head() -> GaussianHead:
            return GaussianHead(d, d, dropout, bool(config["residual_posteriors"]))

        def decoder() -> nn.Module:
            return SumDecoder(d, dropout) if config["decoder"] == "sum" else mlp(3 * d, d, d, dropout=dropout)

        table = self.item_embedding = ItemTable(self.n_items, d, padding_idx=0)
        if self.one_pass:
            self.positions = PositionEncoder(config, self.item_offsets, table, self.needs_pseudo)
        else:
            self.encoder = per_domain(encoder)
        self.own_head, self.augmented_head = per_domain(head), per_domain(head)
        self.transfer_head, self.auxiliary_head = per_domain(head), per_domain(head)
        if not self.one_pass:
            cross: nn.ModuleList
            if by_attention:
                cross = self.cross_attention = per_domain(
                    lambda: CrossAttention(d, int(config["n_cross_heads"]))
                )
            else:
                cross = self.cross_mlp = per_domain(lambda: mlp(2 * d, d, d, dropout=dropout))
            adds_last = config["pooling"] == "mean_last"
            self.histories = HistoryEncoder(
                table, self.encoder, cross, by_attention=by_attention, adds_last=adds_last
            )
        self.own_prior, self.augmented_prior = per_domain(lambda: Prior(d)), per_domain(lambda: Prior(d))
        self.decoder = per_domain(decoder)

    @torch.no_grad()
    def _start_from(self, vectors: np.ndarray) -> None:
        """Starts the items' first coordinates as given vectors (item_num, d'), scaled as random ones are."""
        table = self.item_embedding.weight
        width = min(table.shape[1], vectors.shape[1])
        learned = torch.from_numpy(vectors[:, :width]).to(table)
        learned = learned - learned[1:].mean(0)
        table[1:, :width] = learned[1:] * (table.shape[1] ** -0.5 / learned[1:].std().clamp(min=1e-12))

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """Refuses settings that do not fit each other.

        Raises:
            CDRError: a choice needs one pass, heads do not divide the width, or no real item fits beside recalled ones.
        """
        for key, absent in ({} if config["one_pass"] else ONE_PASS_ONLY).items():
            if config[key] == absent:
                choices = get_args(I2VAESettings.model_fields[key].annotation)
                others = ", ".join(sorted(set(choices) - {absent}))
                raise CDRError(
                    f"{key}={config[key]} needs one_pass=True; without it, {key} is one of {others}."
                )
        heads = config["n_cross_heads"]
        if config["cross_encoder"] == "attention" and (heads < 1 or config["embedding_size"] % heads):
            raise CDRError(
                f"embedding_size={config['embedding_size']} is no multiple of n_cross_heads={heads}."
            )
        # One pass reads what was recalled beside the history, and not in one sequence with it.
        recalled = 0 if config["one_pass"] else recalled_width(config)
        if recalled >= config["pseudo_length"]:
            raise CDRError(
                f"pseudo_length={config['pseudo_length']} leaves no room for real items beside {recalled} recalled "
                "ones (random_recall_size, or recall_rounds times recall_size of psg_settings)."
            )

    @classmethod
    def stages(cls, config: CDRConfig) -> list[Stage]:
        """Returns LightGCN-PSG, which runs first, unless nothing of it is used."""
        reads_lightgcn = config["psg"] == "lightgcn" or config["item_init"] == "psg"
        return [Stage("LightGCNPSG", config["psg_settings"] or {})] if reads_lightgcn else []

    @classmethod
    def prepare_data(cls, config: CDRConfig, dataset: CrossDomainDataset, split: Split) -> Split:
        """Draws random pseudo-sequences if these are asked for."""
        if config["psg"] == "random":
            rng = np.random.default_rng(int(config["psg_seed"]))
            width = int(config["random_recall_size"])
            split = split.with_recalled(
                {p: random_recall(split.part(p), split.item_offset, width, rng) for p in PARTS}
            )
        return split

    def phases(self) -> list[Phase]:
        """Returns one phase, over sequences or over instances."""
        if self.training_sequences is None:
            return [Phase()]
        return [Phase(batches=self.training_sequences.batches, loss=self.sequence_loss)]

    def start_epoch(self, phase: Phase, epoch: int) -> None:
        """Raises the weight of the KL terms to ``kl_weight`` over ``kl_warmup_epochs``."""
        self.kl_share = min(1.0, (epoch + 1) / (self.kl_warmup_epochs + 1))
        self._meter.reset()

    def epoch_facts(self) -> dict[str, float]:
        """Returns KL (nats) and active dimensions of each latent, over the training instances of the epoch."""
        return self._meter.facts()

    # -- latents (3.3.1) ----------------------------------------------------------------------------------------

    def posteriors(self, batch: Batch, hide: bool = False) -> Latents:
        """Returns the posteriors of a batch; ``hide`` treats a random share as cold-start users, as in training."""
        sees = self.positions if self.one_pass else self.histories
        views = sees.of_batch(batch, self.cold_start_mask_prob if hide else 0.0)
        return self._posteriors(batch.target_domain, views)

    def _posteriors(self, x: int, views: Views) -> Latents:
        augmented = views.augmented
        return Latents(
            interest=self.own_head[x](views.own_state),
            augmented=None if augmented is None else self.augmented_head[x](augmented),
            transfer=self.transfer_head[x](views.mixed) if bool(views.both.any()) else None,
            auxiliary=self.auxiliary_head[x](views.other_state[views.has_other])
            if self.use_auxiliary
            else None,
            has_own=views.has_own,
            other=views.has_other,
            both=views.both,
            length=views.length,
        )

    # -- decoder (3.3.3) ----------------------------------------------------------------------------------------

    def decode(self, x: int, latents: Latents) -> torch.Tensor:
        """Returns X̂ from [z^x; z_t^y; z_a^x], (B, d); what a user has no history for is at its prior mean."""
        has_own = latents.has_own.unsqueeze(1)
        noise = self.training and self.variational
        interest = torch.where(has_own, latents.interest.sample(noise), self.own_prior[x].mean)
        augmented = self.augmented_prior[x].mean.expand_as(interest)
        if latents.augmented is not None:
            augmented = torch.where(has_own, latents.augmented.sample(noise), augmented)
        transfer = torch.zeros_like(interest)
        if latents.transfer is not None:
            transfer = transfer.index_put((latents.both,), latents.transfer.sample(noise))
        if latents.auxiliary is not None:
            cold = latents.other & ~latents.has_own
            drawn = latents.auxiliary[cold[latents.other]].sample(noise)
            transfer = transfer.index_put((cold,), drawn)
        vectors: torch.Tensor = self.decoder[x](torch.cat([interest, transfer, augmented], 1))
        return vectors

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns the decoded interest X̂ at the posteriors' means, (B, d)."""
        return self.decode(batch.target_domain, self.posteriors(batch))

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns E^X, (n_x, d)."""
        return self.item_embedding.weight[self.item_slice(domain)]

    # -- training -----------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Batch) -> Terms:
        """Returns reconstruction, KL to the priors, denoising, and cross-domain and disentangling regularisers."""
        batch, x = interaction, interaction.target_domain
        latents = self.posteriors(batch, hide=True)
        return self.objective(x, latents, self._reconstruction(batch, self.decode(x, latents)))

    def sequence_loss(self, batch: SequenceBatch) -> Terms:
        """Returns the terms over all positions of a batch of sequences, each domain's by its share of the positions."""
        assert self.training_sequences is not None, "batches of sequences come from training_sequences"
        states = self.positions(batch.items)
        row, place = (batch.targets != 0).nonzero(as_tuple=True)
        target = batch.targets[row, place]
        total: list[torch.Tensor] | None = None
        for x in range(self.n_domains):
            span = self.item_slice(x)
            in_span = ((target >= span.start) & (target < span.stop)).nonzero().squeeze(1)
            if not len(in_span):
                continue
            recalled = self.training_sequences.recalled_at(batch, row[in_span], place[in_span])
            views = self.positions.views(states, x, row[in_span], place[in_span], recalled)
            views = views.with_hidden(self.cold_start_mask_prob)
            latents = self._posteriors(x, views)
            recon = self._softmax(x, self.decode(x, latents), target[in_span])
            share = len(in_span) / len(row)
            terms = [term * share for term in self.objective(x, latents, recon)]
            total = terms if total is None else [a + b for a, b in zip(total, terms, strict=True)]
        assert total is not None, "a batch without targets"
        return Terms(*total)

    def objective(self, x: int, latents: Latents, recon: torch.Tensor) -> Terms:
        """Returns the objective from posteriors and reconstruction losses ``recon``, (B,) or their mean."""
        count, recon = len(latents.length), recon.mean()
        has_own = latents.has_own.to(recon.dtype)
        kl_own = kl(latents.interest, self.own_prior[x]()) * has_own
        kl_augmented = denoise = kl_transfer = cross = recon.new_zeros(())
        if latents.augmented is not None:
            kl_augmented = kl(latents.augmented, self.augmented_prior[x]()) * has_own
            denoise = kl(latents.interest, latents.augmented) * has_own * self.denoise_weight(latents.length)
        if latents.transfer is not None:
            kl_transfer = kl(latents.transfer).sum()
        if latents.auxiliary is not None:
            cold = latents.other & ~latents.has_own
            kl_transfer = kl_transfer + kl(latents.auxiliary[cold[latents.other]]).sum()
            if latents.transfer is not None:
                cross = kl(latents.transfer, latents.auxiliary[latents.both[latents.other]]).sum()
        if self.training and self.variational:
            self._measure(x, latents, kl_own, kl_augmented)
        to_priors = recon.new_zeros(())
        for term in (kl_own, kl_transfer, kl_augmented):
            to_priors = to_priors + (term.sum() / count).clamp(min=self.free_bits)
        return Terms(
            recon=recon,
            kl=self.kl_weight * self.kl_share * to_priors,
            denoise=self.lambda_a * denoise.mean(),
            cross=self.lambda_c * (recon + (kl_own.sum() + cross) / count),
        )

    def _measure(self, x: int, latents: Latents, kl_own: torch.Tensor, kl_augmented: torch.Tensor) -> None:
        self._meter.add("z", x, latents.interest.mean[latents.has_own], kl_own)
        if latents.augmented is not None:
            self._meter.add("z_a", x, latents.augmented.mean[latents.has_own], kl_augmented)
        if latents.transfer is not None:
            self._meter.add("z_t", x, latents.transfer.mean, kl(latents.transfer))

    def denoise_weight(self, length: torch.Tensor) -> torch.Tensor:
        """Returns λ_d = exp(a·L/T) − b for history lengths L (B,), or 1 without the adaptive weight."""
        if not self.adaptive:
            return torch.ones_like(length, dtype=torch.float32)
        return torch.exp(self.adaptive_a * length / self.max_history_length) - self.adaptive_b

    def _reconstruction(self, batch: Batch, interest: torch.Tensor) -> torch.Tensor:
        """−log p(target | X̂), (B,) or its mean: binary over the target and its negatives, or a softmax."""
        if self.loss_type != "BCE":
            return self._softmax(batch.target_domain, interest, batch.targets)
        candidates = torch.cat([batch.targets.unsqueeze(1), batch.negatives], 1)
        scores = torch.bmm(self.item_embedding(candidates), interest.unsqueeze(2)).squeeze(2)
        return F.softplus(-scores[:, 0]) + F.softplus(scores[:, 1:]).sum(1)

    def _softmax(self, x: int, interest: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean softmax loss over the domain's items, or over the target and negatives that the batch shares."""
        vectors, local = interest / self.temperature, target - self.item_offsets[x]
        if self.loss_type == "CE":
            return softmax_loss(vectors, self.item_vectors(x), local)
        span = self.item_slice(x)

        def items(ids: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = self.item_embedding(ids + span.start)
            return vectors

        return sampled_softmax_loss(vectors, items, span.stop - span.start, local, self.n_shared, self.log_q)
