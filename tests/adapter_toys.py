"""RecBole's own models on simulated data of two and three domains, small enough for tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from toy_models import ToyMLP, write_toy_domains

from recbole_cdr_ext import compat
from recbole_cdr_ext.splits.split import TrainingData

compat.apply()

from recbole_cdr_ext.baselines.adapter import adapt
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.maker import make_split
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.splits.split import Split

# The smallest models that learn the toy's three topics in two epochs.
SMALL = {
    "BPR": {"embedding_size": 16, "learning_rate": 0.02},
    "LightGCN": {"embedding_size": 16, "learning_rate": 0.02},
    "SASRec": {"hidden_size": 16, "inner_size": 32, "hidden_dropout_prob": 0.1, "learning_rate": 0.01},
    "GRU4Rec": {"embedding_size": 16, "hidden_size": 16, "dropout_prob": 0.1, "learning_rate": 0.01},
    "MultiDAE": {"mlp_hidden_size": [32], "latent_dimension": 16, "learning_rate": 0.01},
    "MultiVAE": {"mlp_hidden_size": [32], "latent_dimension": 16, "learning_rate": 0.02},
    "ToyMLP": {"learning_rate": 0.02},
    "BERT4Rec": {"hidden_size": 16, "inner_size": 32, "learning_rate": 0.01},
}


@dataclass
class Setup:
    """A model with what it was built from."""

    config: CDRConfig
    dataset: CrossDomainDataset
    split: Split
    model: torch.nn.Module

    def rebuilt(self) -> torch.nn.Module:
        """The model as a later process builds it, before its checkpoint is loaded."""
        torch.manual_seed(99)
        return type(self.model)(self.config, TrainingData.of(self.dataset, self.split))

    def batches(self, part: str = "test") -> list[Batch]:
        """The batches of a part, as evaluation makes them."""
        self.model.eval()
        return list(CrossDomainLoader(self.config, self.split.part(part), self.model))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    """A folder with the simulated data sets toy2 and toy3, of two and three domains."""
    root = tmp_path_factory.mktemp("dataset_atomic")
    for n_domains in (2, 3):
        write_toy_domains(root / f"toy{n_domains}", n_domains)
    return root


@pytest.fixture
def build(toys):
    """Returns a function (model class, n_domains, **settings) -> Setup."""

    def function(model_class, n_domains: int = 2, **settings) -> Setup:
        config = CDRConfig(
            model_class,
            f"toy{n_domains}",
            config_dict={
                "data_path": str(toys),
                "train_batch_size": 64,
                "eval_batch_size": 16,
                "use_gpu": False,
                "show_progress": False,
                **SMALL.get(model_class.__name__, {}),
                **settings,
            },
        )
        cls = model_class if issubclass(model_class, ToyMLP) else adapt(model_class)
        dataset = CrossDomainDataset(config)
        split = cls.prepare_data(config, dataset, make_split(config, dataset))
        torch.manual_seed(0)
        return Setup(config, dataset, split, cls(config, TrainingData.of(dataset, split)).eval())

    return function


def train(setup: Setup, epochs: int) -> list[float]:
    """Trains with Adam as the trainer does, and returns each epoch's mean loss."""
    model, losses = setup.model, []
    phases = model.phases()
    if not phases:
        return losses
    optimiser = torch.optim.Adam(model.parameters(), lr=setup.config["learning_rate"])
    loader = CrossDomainLoader(
        setup.config, setup.split.train, model, sampler=CrossDomainSampler(setup.split), training=True
    )
    for epoch in range(epochs):
        model.train()
        loader.set_epoch(0, epoch)
        batches = phases[0].batches(np.random.default_rng(epoch)) if phases[0].batches else loader
        assert len(batches) > 0
        terms = []
        for batch in batches:
            loss = (phases[0].loss or model.calculate_loss)(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            terms.append(loss.item())
        assert len(terms) == len(batches)
        losses.append(float(np.mean(terms)))
    model.eval()
    return losses
