"""DASL as every model should be: symmetric, blind to padding, able to learn."""

from __future__ import annotations

import dasl_model
import numpy as np
import pytest
import torch
from dasl_model import SMALL, batches, build, train, training_loader, without_other, without_own
from support import load, random_domains

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.errors import CDRError

ready = dasl_model.ready


def test_swapping_the_domains_swaps_the_scores(tmp_path):
    rows = random_domains()
    (one, split, model), (two, _, twin) = (
        build(tmp_path / place, domains, split="leave_one_out")
        for place, domains in (("a", rows), ("b", dict(reversed(rows.items()))))
    )
    permutation = torch.zeros(model.n_items, dtype=torch.long)
    for k in (0, 1):
        ids = np.arange(*one.dataset.item_offset[k : k + 2])
        permutation[ids] = torch.from_numpy(two.dataset.item_ids(1 - k, list(one.dataset.item_token(ids))))
    names = one.dataset.id2token("user_id", range(model.n_users))
    users = torch.from_numpy(two.dataset.token2id("user_id", names))
    back = torch.argsort(users)
    state = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if name in ("item_embedding.weight", "item_bias"):
            value = value[torch.argsort(permutation)]
        elif name == "map":
            value = value.T
        elif name == "user_bias":
            value = value.flip(0)[:, back]
        else:
            parts[1] = str(1 - int(parts[1]))
            value = value[back] if parts[0] == "user_embedding" else value
        state[".".join(parts)] = value
    twin.load_state_dict(state)
    for batch in batches(one, split, model, "valid"):
        fields = {**batch.interaction, "user_id": users[batch.users]}
        for k in (0, 1):
            fields[f"history_{1 - k}"] = permutation[batch.history(k)]
        swapped = Batch(fields, 1 - batch.target_domain, 2)
        items = permutation[torch.arange(*model.item_offsets[batch.target_domain :][:2])]
        expected = twin.score(swapped)[:, items - twin.item_offsets[1 - batch.target_domain]]
        torch.testing.assert_close(model.score(batch), expected)


@torch.no_grad()
def test_padding_rows_and_repetition(ready):
    loaded, split, model = ready
    for batch in batches(loaded, split, model):
        whole = model.score(batch)
        assert torch.equal(model.score(batch), whole)
        padded = {f"history_{k}": torch.nn.functional.pad(batch.history(k), (3, 0)) for k in (0, 1)}
        torch.testing.assert_close(model.score(batch.with_fields(**padded)), whole)
        alone = torch.cat([model.score(batch.rows(torch.tensor([i]))) for i in range(len(batch))])
        torch.testing.assert_close(alone, whole)


def test_weights_alone_decide_the_scores(ready, tmp_path):
    loaded, split, model = ready
    _, _, twin = build(tmp_path, seed=1)
    twin.load_state_dict(model.state_dict())
    for batch in batches(loaded, split, model):
        assert torch.equal(model.score(batch), twin.score(batch))


def test_edges_of_the_data(ready):
    """A batch of one instance, none with both domains, none with any history."""
    loaded, split, model = ready
    model.train()
    for batch in list(training_loader(loaded, split, model))[:4]:
        single = ~model.trained[:, batch.users].all(0)
        for edge in (batch.rows(torch.tensor([0])), batch.rows(single), without_own(without_other(batch))):
            model.zero_grad()
            terms = model.calculate_loss(edge)
            sum(terms).backward()
            assert all(torch.isfinite(term) for term in terms)
            assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    model.eval()


def test_without_overlapping_users(tmp_path):
    rows = random_domains(n_users=80)
    alone = {name: [r for r in rows[name] if int(r[0][1:]) % 2 == k] for k, name in enumerate(rows)}
    loaded, split, model = build(tmp_path, alone)
    assert not model.trained.all(0).any()
    losses = train(loaded, split, model, 8)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize("settings", [{}, {"user_embedding": False}])
def test_it_learns_its_training_targets_by_heart(tmp_path, settings):
    loaded, split, model = build(
        tmp_path,
        random_domains(n_users=32, n_items=40),
        split="leave_one_out",
        train_targets="last",
        train_neg_num=4,
        **{"embedding_size": 32, **settings},
    )
    train(loaded, split, model, 100, lr=1e-2)  # a batch per domain: 200 steps
    hits = total = 0
    for batch in batches(loaded, split, model, "train"):
        local = batch.targets - model.item_offsets[batch.target_domain]
        hits += int((model.score(batch).topk(10).indices == local.unsqueeze(1)).any(1).sum())
        total += len(batch)
    assert hits / total > 0.95


def test_the_map_becomes_orthogonal(tmp_path):
    loaded, split, model = build(tmp_path, train_batch_size=16)
    before = model.orthogonality().item()
    steps = len(train(loaded, split, model, -(-200 // len(training_loader(loaded, split, model)))))
    assert steps >= 200
    assert model.orthogonality().item() < before / 10


def planted(n_users=120, seed=0):
    """Each user has one of two topics, which decides the half of the items that they touch in both domains."""
    rng = np.random.default_rng(seed)
    rows = {"books": [], "films": []}
    for u in range(n_users):
        for name, of in rows.items():
            for item in rng.choice(10, 5, replace=False) + 10 * (u % 2):
                of.append((f"u{u}", f"{name[0]}{item}", float(rng.integers(0, 10**6))))
    return rows


def test_cold_users_are_ranked_by_what_the_other_domain_shows(tmp_path):
    loaded, split, model = build(
        tmp_path, planted(), cold_start_ratio=1.0, time_respecting=False, train_batch_size=64
    )
    train(loaded, split, model, 12, lr=1e-2)
    shares = []
    for part in ("valid", "test"):
        for batch in batches(loaded, split, model, part):
            assert not batch.own_history.any() and batch.history(1 - batch.target_domain).any()
            topic = [int(t[1:]) % 2 for t in loaded.dataset.id2token("user_id", batch.users)]
            best = model.score(batch).topk(5).indices + model.item_offsets[batch.target_domain]
            for row, items in zip(topic, best, strict=True):
                tokens = loaded.dataset.item_token(items.numpy())
                shares += [int(token[1:]) // 10 == row for token in tokens]
    assert np.mean(shares) > 0.95


@pytest.mark.parametrize(
    "settings",
    [
        {"embedding_size": 15},
        {"dropout": 1.0},
        {"map_weight": -0.1},
        {"orthogonality_weight": -1.0},
        {"attention_size": 0},
        {"train_neg_num": 0},
        {"mlp_hidden_size": []},
        {"mlp_hidden_size": [8, 0]},
    ],
)
def test_settings_that_cannot_be_are_one_clear_error(tmp_path, settings):
    with pytest.raises(CDRError, match=next(iter(settings))):
        load(tmp_path, random_domains(n_users=10), model="DASL", **{**SMALL, **settings})
