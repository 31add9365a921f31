"""SVAE on small data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import load, random_domains

from recbole_cdr_ext.model.next_item.svae import SVAE
from recbole_cdr_ext.splits.loader import CrossDomainLoader

SMALL = {
    "embedding_size": 12,
    "rnn_size": 10,
    "hidden_size": 8,
    "latent_size": 4,
    "split": "leave_one_out",
    "max_history_length": 60,
    "train_batch_size": 60,
}
# What is compared here position by position is one order; tests/test_reorder.py has those of the epochs.
NO_CLOCK = {"order": "none", "split": "user", "input": "merged", "reorder": False}
FORMS = [{}, {"bos": False}, {"input": "merged"}, NO_CLOCK, {"input": "merged", "bos": False}]


def build(tmp_path, domains=None, seed=0, **settings):
    loaded = load(tmp_path, domains or random_domains(), "SVAE", **{**SMALL, **settings})
    torch.manual_seed(seed)
    return loaded, SVAE(loaded.config, loaded.data).eval()


def batches(loaded, model, part="test"):
    return list(CrossDomainLoader(loaded.config, loaded.split.part(part), model))


def sequence_batches(model, seed=0):
    return list(model.training_sequences.batches(np.random.default_rng(seed)))


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return build(tmp_path_factory.mktemp("svae"))
