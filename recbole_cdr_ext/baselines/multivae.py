"""RecBole's MultiVAE, fed with the bags that the instances hold: Liang et al., WWW 2018.

x = the L2-normalised, dropped-out multi-hot bag; (μ, log σ²) = MLP(x); z = μ + noise_std·σ ⊙ ε; and minimised is

    −Σ_{i in the bag} log softmax(MLP(z))_i + β·KL(N(μ, σ²) ‖ N(0, I)),
    β = min(anneal_cap, updates/total_anneal_steps).

Layers, their start, their settings and the annealing are RecBole's. Differs from RecBole's in: neither the multi-hot
input nor the multi-hot target is laid out as a (B, n_items) matrix; ε has deviation ``noise_std`` (RecBole: 0.01); the
items that are read (``input``) need not be those that are predicted; a score is h · W_i + b_i for the candidates alone.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.general_recommender.multivae import MultiVAE
from torch import nn

from recbole_cdr_ext.baselines.general import UserBaseline, shuffled_parts
from recbole_cdr_ext.baselines.view import BaselineSettings, EventView
from recbole_cdr_ext.data.instances import Batch, make_batch
from recbole_cdr_ext.data.sequences import EpochBatches
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.bags import BagLinear, Bags, multinomial_loss
from recbole_cdr_ext.model.parts.layers import Gaussian, kl
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import Split, TrainingData, users_as_instances


class BagMultiVAE(MultiVAE):
    """RecBole's MultiVAE over bags.

    Args:
        n_inputs: rows of the table of what is read; what is predicted are the items of ``dataset``.
    """

    def __init__(self, config: BaselineSettings, dataset: EventView, n_inputs: int):
        super().__init__(config, dataset)
        self.noise_std = float(config["noise_std"])
        self.encoder[0] = BagLinear(n_inputs, self.encode_layer_dims[1], self.drop_out)

    def build_histroy_items(self, dataset: EventView) -> None:
        """Bags come with the batch, not from a table of all users."""

    def posterior(self, read: Bags) -> Gaussian:
        """Returns q(z | what is read), (B, d)."""
        return Gaussian(*self.encoder(read).chunk(2, 1))

    def reparameterize(self, mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        """RecBole's, with noise of deviation ``noise_std``."""
        if not self.training:
            return mu
        return mu + self.noise_std * torch.randn_like(mu) * (0.5 * logvar).exp()

    def hidden(self, z: torch.Tensor) -> torch.Tensor:
        """Returns what the last layer, :attr:`items`, reads, (B, h)."""
        vectors: torch.Tensor = self.decoder[:-1](z)
        return vectors

    @property
    def items(self) -> nn.Linear:
        """The last layer: a vector and a bias per item."""
        return cast(nn.Linear, self.decoder[-1])

    def calculate_loss(self, read: Bags, predicted: Bags) -> torch.Tensor:
        """Returns the mean over B users of the multinomial loss of what is predicted and the weighted KL."""
        self.update += 1
        steps = self.total_anneal_steps
        anneal = min(self.anneal_cap, self.update / steps) if steps > 0 else self.anneal_cap
        q = self.posterior(read)
        hidden = self.hidden(self.reparameterize(q.mean, q.logvar))
        loss: torch.Tensor = (
            multinomial_loss(hidden, self.items.weight, self.items.bias, predicted) + anneal * kl(q).mean()
        )
        return loss


class MultiVAEBaseline(UserBaseline):
    """A MultiVAE per item space. It learns from the users' training items and reads each instance's own history.

    ``input: own`` reads the items of the space, ``both`` those of all domains; predicted are those of the space.
    A history that is empty in what is read is the zero vector, whose scores are like popularity.
    """

    score = CrossDomainRecommender.score

    def __init__(self, config: CDRConfig, data: TrainingData[Split]):
        super().__init__(config, data)
        events = data.split.train_events
        self.bags = users_as_instances(events.user, events.item, self.n_users, data.item_offset)
        self.longest = int(self.bags.lengths.max(initial=1))

    @classmethod
    def check_settings(cls, config: CDRConfig) -> None:
        """Refuses a latent that does not hold mean and deviation."""
        if config["latent_dimension"] < 2 or config["latent_dimension"] % 2:
            raise CDRError(
                f"latent_dimension={config['latent_dimension']} holds mean and deviation together: an even number."
            )

    @property
    def reads_all(self) -> bool:
        """Whether the items of all domains are read."""
        return bool(self.config["input"] == "both")

    def make_model(self, view: EventView) -> BagMultiVAE:
        """RecBole's model over bags of what is read."""
        return BagMultiVAE(self.settings, view, self.n_items if self.reads_all else view.item_num)

    def _model(self, index: int) -> BagMultiVAE:
        return cast(BagMultiVAE, self.wrapped[index])

    def _read(self, batch: Batch, index: int) -> Bags:
        if self.reads_all:
            return Bags.of(torch.cat([batch.history(k) for k in range(self.n_domains)], 1))
        return Bags.of(self.histories(batch, index))

    def user_batches(self, rng: np.random.Generator) -> EpochBatches:
        """Returns the users with events in a space and all that they hold; ``train_batch_size`` counts users."""
        rows = [
            np.flatnonzero(
                (self.bags.domain == space.domains[0]) & self.bags.lengths[:, list(space.domains)].any(1)
            )
            for space in self.spaces
        ]
        parts = shuffled_parts([len(r) for r in rows], int(self.config["train_batch_size"]), rng)
        return EpochBatches(
            parts, lambda index, chosen: make_batch(self.bags, rows[index][chosen], max_length=self.longest)
        )

    def calculate_loss(self, interaction: Batch) -> torch.Tensor:
        """Returns the loss of some users' training items."""
        index = self.space_index(interaction.target_domain)
        model = self._model(index)
        loss = model.calculate_loss(
            self._read(interaction, index), Bags.of(self.histories(interaction, index))
        )
        self.updates[index] = model.update
        return loss

    def encode(self, batch: Batch) -> torch.Tensor:
        """Returns what the decoder's last layer reads at the posterior's mean, and a 1 for the bias, (B, h + 1)."""
        index = self.space_index(batch.target_domain)
        model = self._model(index)
        return F.pad(model.hidden(model.posterior(self._read(batch, index)).mean), (0, 1), value=1.0)

    def item_vectors(self, domain: int) -> torch.Tensor:
        """Returns the last layer's rows and biases of the domain's items, (n_k, h + 1)."""
        index = self.space_index(domain)
        items, columns = self._model(index).items, self.spaces[index].columns(self.item_slice(domain))
        return torch.cat([items.weight[columns], items.bias[columns].unsqueeze(1)], 1)

    def can_score(self, batch: Batch) -> torch.Tensor | None:
        """Returns all: a zero vector has scores, and input dropout, which empties short histories, trains them."""
        return None
