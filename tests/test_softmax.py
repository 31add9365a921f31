"""The softmax that models of the zoo share: over a domain's items, or over negatives that a batch shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import load, random_domains

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.c2dsr import C2DSR
from recbole_cdr_ext.model.next_item.pinet import PiNet
from recbole_cdr_ext.model.next_item.svae import SVAE

MODELS = [C2DSR, PiNet, SVAE]
SETTINGS = {"split": "leave_one_out", "train_targets": "all"}


def build(tmp_path, cls, **settings):
    loaded = load(tmp_path, random_domains(), cls.__name__, **{**SETTINGS, **settings})
    torch.manual_seed(0)
    return cls(loaded.config, loaded.data).eval()


@pytest.mark.parametrize("cls", MODELS)
def test_with_so_many_negatives_that_each_item_is_drawn_alike_the_softmax_is_over_their_shares(tmp_path, cls):
    n = 200_000
    model = build(tmp_path, cls, softmax_negatives=n)
    for x in range(2):
        items = model.item_vectors(x).detach()
        vectors = torch.randn(4, items.shape[1])
        local = torch.tensor([[0, 1], [1, -1], [2, 3], [3, -1]])
        targets = torch.where(local >= 0, local + model.item_offsets[x], 0)
        expected = []
        for vector, row in zip(vectors, local.tolist(), strict=True):
            row = [i for i in row if i >= 0]
            weight = (items @ vector).exp()
            others = (weight.sum() - weight[row].sum()) * n / len(items)
            expected.append(torch.stack([-(weight[i] / (weight[i] + others)).log() for i in row]).mean())
        found = model.softmax_loss_in(x, vectors, targets)
        torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("cls", MODELS)
def test_training_draws_the_negatives_that_are_asked_for(tmp_path, cls, monkeypatch):
    asked = []

    def counted(vectors, items, targets, n):
        asked.append(n)
        return (vectors.sum() + items.sum()) * 0

    monkeypatch.setattr("recbole_cdr_ext.model.recommender.sampled_softmax_loss_of_several", counted)
    for n in (0, 7):
        model = build(tmp_path / str(n), cls, softmax_negatives=n)
        model.sequence_loss(next(iter(model.training_sequences.batches(np.random.default_rng(0)))))
    assert asked
    assert set(asked) == {7}


@pytest.mark.parametrize("cls", MODELS)
def test_a_negative_number_of_them_is_one_clear_error(tmp_path, cls):
    with pytest.raises(CDRError, match="softmax_negatives=-1 should be"):
        build(tmp_path, cls, softmax_negatives=-1)
