"""A model of two layers, its batches and validations, and its trainer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.phase import Phase
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

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
