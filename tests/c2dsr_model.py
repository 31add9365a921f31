"""C2DSR on small data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import load, random_domains

from recbole_cdr_ext.model.next_item.c2dsr import C2DSR
from recbole_cdr_ext.splits.loader import CrossDomainLoader

SMALL = {
    "embedding_size": 16,
    "inner_size": 16,
    "n_layers": 2,
    "n_graph_layers": 2,
    "dropout": 0.0,
    "max_history_length": 60,
    "train_batch_size": 100,
    "split": "leave_one_out",
}
# What is compared here position by position is one order; tests/test_reorder.py has those of the epochs.
NO_CLOCK = {"order": "none", "split": "user", "reorder": False}


def build(tmp_path, domains=None, **settings):
    loaded = load(tmp_path, domains or random_domains(), model="C2DSR", **{**SMALL, **settings})
    torch.manual_seed(0)
    model = C2DSR(loaded.config, loaded.data).eval()
    with torch.no_grad():  # what starts at zero could hide that it is left out
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return loaded, loaded.split, model


def train(model, epochs, lr=5e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    losses = []
    for epoch in range(epochs):
        losses.append(0.0)
        for batch in model.training_sequences.batches(np.random.default_rng(epoch)):
            loss = sum(model.sequence_loss(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item()
    model.eval()
    return losses


def batches(loaded, part, model):
    return list(CrossDomainLoader(loaded.config, part, model))


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return build(tmp_path_factory.mktemp("c2dsr"))
