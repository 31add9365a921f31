"""EMCDR for next items on small data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import load, random_domains

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.next_item.emcdr import EMCDR
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

SMALL = {
    "task": "next_item",
    "embedding_size": 8,
    "mapping_hidden_size": 16,
    "train_batch_size": 64,
    "map_batch_size": 8,
    "epochs": 2,
    "eval_args": {"mode": "uni20"},
}


def make(folder, domains=None, cls=EMCDR, **settings):
    """Returns (loaded, model) on data made in a test."""
    loaded = load(folder, domains or random_domains(), "EMCDR", **{**SMALL, **settings})
    torch.manual_seed(0)
    return loaded, cls(loaded.config, loaded.data).eval()


def fit(model, split) -> CrossDomainTrainer:
    """Trains all phases without writing a file."""
    trainer = CrossDomainTrainer(model.config, model, "nowhere")
    trainer.fit(split, verbose=False, saved=False)
    model.eval()
    return trainer


def asking(users, domain: int) -> Batch:
    """A batch without histories, which the model never reads."""
    user = torch.as_tensor(users)
    return Batch({"user_id": user, "item_id": torch.zeros_like(user)}, domain, 2)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A model after all of its phases. Do not change it."""
    loaded, model = make(tmp_path_factory.mktemp("emcdr"))
    fit(model, loaded.split)
    return loaded, model


def who(model) -> dict[str, np.ndarray]:
    """Users by where they have training items."""
    first, second = model.trained.numpy()
    found = {"both": first & second, "cold in 0": ~first & second, "cold in 1": first & ~second}
    return {name: np.flatnonzero(mask) for name, mask in found.items()}
