"""Models, data, batches and trainers of tests: a model that is no dot product, RecBole's own, a slope of two layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.splits.split import TrainingData
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

compat.apply()

from recbole_cdr_ext.baselines.adapter import adapt
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.maker import make_split
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.splits.split import Split

DOMAINS = ("books", "films", "songs")


class ToyMLP(CrossDomainRecommender):
    """Scores σ(MLP([mean of all histories; item])): it overrides ``score``, and has neither user nor item vectors."""

    cold_start = True
    needs_negatives = True
    paper = "none"

    def __init__(self, config, dataset, size: int = 16):
        super().__init__(config, dataset)
        self.items = nn.Embedding(self.n_items, size, padding_idx=0)
        self.mlp = nn.Sequential(nn.Linear(2 * size, 32), nn.ReLU(), nn.Linear(32, 1))

    def calculate_loss(self, interaction):
        """Returns the binary cross-entropy of targets and negatives."""
        candidates = torch.cat([interaction.targets.unsqueeze(1), interaction.negatives], 1)
        label = torch.zeros(candidates.shape, device=candidates.device)
        label[:, 0] = 1.0
        return nn.functional.binary_cross_entropy_with_logits(self.score(interaction, candidates), label)

    def score(self, batch, candidates=None):
        """Returns (B, C) scores; the history is read once per instance."""
        history = torch.cat([batch.history(k) for k in range(self.n_domains)], 1)  # (B, L)
        total = self.items(history).sum(1)
        user = total / (history != 0).sum(1, keepdim=True).clamp(min=1)  # (B, d)
        if candidates is None:
            items = self.item_slice(batch.target_domain)
            candidates = torch.arange(items.start, items.stop, device=user.device).expand(len(user), -1)
        pair = torch.cat([user.unsqueeze(1).expand(-1, candidates.shape[1], -1), self.items(candidates)], 2)
        return self.mlp(pair).squeeze(2)


def write_toy_domains(folder: Path, n_domains: int, n_users: int = 90, seed: int = 0) -> None:
    """Writes ``DOMAIN.inter`` files in which a user keeps to one of three topics, the same in every domain.

    Domain k has 30 + 6k items of three topics (the item's number modulo 3); one user in five misses a domain.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows: dict[str, list[str]] = {name: [] for name in DOMAINS[:n_domains]}
    for user in range(n_users):
        missing = int(rng.integers(n_domains)) if rng.random() < 0.2 else -1
        for k in range(n_domains):
            if k == missing:
                continue
            topical = np.arange(user % 3, 30 + 6 * k, 3)
            chosen = rng.choice(topical, size=int(rng.integers(4, 9)), replace=False)
            times = np.sort(rng.integers(0, 10_000, len(chosen)))
            rows[DOMAINS[k]] += [
                f"u{user}\t{DOMAINS[k]}-{item}\t{time}" for item, time in zip(chosen, times, strict=True)
            ]
    for name, lines in rows.items():
        text = "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines])
        (folder / f"{name}.inter").write_text(text + "\n", encoding="utf-8")


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


DATASET = SimpleNamespace(
    domains=["cloth", "sport"], n_domains=2, user_num=9, item_num=9, item_offset=np.array([1, 5, 9])
)


class Settings(dict):
    """A configuration: unknown keys are None, as in ``CDRConfig``."""

    def __missing__(self, key):
        return None

    def to_dict(self):
        """All settings."""
        return dict(self)


def settings(**more) -> Settings:
    return Settings(
        {
            "model": "Slope",
            "seed": 7,
            "device": "cpu",
            "epochs": 6,
            "learning_rate": 0.05,
            "weight_decay": 0.01,
            "learner": "adam",
            "eval_step": 1,
            "stopping_step": 10,
            "valid_metric": "NDCG@10",
            "valid_metric_bigger": True,
            "max_history_length": 5,
            **more,
        }
    )


class Slope(CrossDomainRecommender):
    """Fits y = 3x with dropout: every epoch draws from torch's generator."""

    def __init__(self, config=None):
        super().__init__(config or settings(), DATASET)
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(1, 8), nn.Linear(8, 1)
        self.drop = nn.Dropout(0.3)
        self.closed_form_calls = 0

    def calculate_loss(self, interaction):
        """Returns the squared error."""
        x = interaction["x"].unsqueeze(1)
        return (self.second(self.drop(torch.tanh(self.first(x)))) - 3 * x).pow(2).mean()

    def fit_closed_form(self, split):
        """Counts its calls."""
        self.closed_form_calls += 1


class Batches:
    """Draws four batches an epoch; ``interrupt`` raises Ctrl-C at the given (phase, epoch, batch)."""

    def __init__(self, interrupt=None):
        self.interrupt, self.epoch, self.seen = interrupt, (0, 0), []

    def set_epoch(self, phase, epoch):
        self.epoch = (phase, epoch)
        self.seen.append(self.epoch)

    def __len__(self):
        return 4

    def __iter__(self):
        rng = np.random.default_rng((7, *self.epoch))
        for number in range(4):
            if self.interrupt == (*self.epoch, number):
                raise KeyboardInterrupt
            x = torch.from_numpy(rng.standard_normal(16).astype(np.float32))
            yield Batch({"x": x, "index": torch.arange(16)}, number % 2, 2)


def scripted(*scores):
    """A validation that returns the given scores one after the other, the same for both domains."""
    left = list(scores)

    def validate():
        score = left.pop(0)
        return {name: {"all": {"n": 3, "ndcg@10": score}} for name in DATASET.domains}

    return validate


def by_loss(model):
    """A validation that follows from the weights alone."""

    def validate():
        x = torch.linspace(-1, 1, 32).unsqueeze(1)
        model.eval()
        with torch.no_grad():
            error = (model.second(torch.tanh(model.first(x))) - 3 * x).pow(2).mean().item()
        return {name: {"all": {"n": 3, "ndcg@10": -error}} for name in DATASET.domains}

    return validate


def trainer_of(model, folder, **more) -> CrossDomainTrainer:
    folder.mkdir(exist_ok=True)
    return CrossDomainTrainer(settings(**more), model, folder, data="d1")


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


class TwoPhases(Slope):
    """Trains one layer, then the other, on batches of its own in the second phase."""

    def phases(self):
        return [
            Phase("lower", parameters=("first",), settings=(("epochs", 3),)),
            Phase(
                "upper",
                parameters=("second",),
                batches=self.own_batches,
                validate=self.own_score,
                settings=(("epochs", 2), ("learner", "sgd"), ("learning_rate", 0.5)),
            ),
        ]

    def own_batches(self, rng):
        """Yields batches without a domain's instances behind them."""
        for _ in range(3):
            yield Batch({"x": torch.from_numpy(rng.standard_normal(4).astype(np.float32))}, 0, 2)

    def own_score(self):
        """Larger is better."""
        return -self.second.weight.abs().sum().item()
