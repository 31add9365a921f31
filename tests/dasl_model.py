"""DASL on small data."""

from __future__ import annotations

import pytest
import torch
from support import load, random_domains

from recbole_cdr_ext.model.next_item.dasl import DASL
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.sampler import CrossDomainSampler

SMALL = {"embedding_size": 16, "mlp_hidden_size": [12, 6], "attention_size": 5}


def build(tmp_path, domains=None, seed=0, **settings):
    loaded = load(tmp_path, domains or random_domains(), model="DASL", **{**SMALL, **settings})
    torch.manual_seed(seed)
    model = DASL(loaded.config, loaded.data).eval()
    with torch.no_grad():  # what starts at 0 or 1 must count in the tests too
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for head in model.head:
            for norm in (head.norm_user, head.norm_item):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 2.0)
    return loaded, loaded.split, model


def batches(loaded, split, model, part="test"):
    return list(CrossDomainLoader(loaded.config, split.part(part), model))


def training_loader(loaded, split, model):
    return CrossDomainLoader(
        loaded.config, split.train, model, sampler=CrossDomainSampler(split), training=True
    )


def train(loaded, split, model, epochs, lr=5e-3):
    loader = training_loader(loaded, split, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    losses = []
    for epoch in range(epochs):
        loader.set_epoch(0, epoch)
        for batch in loader:
            optimizer.zero_grad()
            loss = sum(model.calculate_loss(batch))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    return losses


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dasl"))


def without_own(batch):
    return batch.with_fields(**{f"history_{batch.target_domain}": torch.zeros_like(batch.own_history)})


def without_other(batch):
    other = 1 - batch.target_domain
    return batch.with_fields(**{f"history_{other}": torch.zeros_like(batch.history(other))})
