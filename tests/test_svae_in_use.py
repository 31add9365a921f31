"""SVAE: what its scores depend on, and its training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import svae_model
import torch
from support import random_domains
from svae_model import FORMS, NO_CLOCK, batches, build, sequence_batches

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.data.sequences import SequenceBatch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.svae import SVAE
from recbole_cdr_ext.splits.loader import CrossDomainLoader

ready = svae_model.ready


# -- scores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_padding_neighbours_targets_and_repetition_change_no_score(tmp_path, form):
    loaded, model = build(tmp_path, **form)
    fields = ["history_0", "history_1", *(["merged"] if model.needs_merged else [])]
    for batch in batches(loaded, model):
        whole = model.encode(batch)
        padded = {name: torch.nn.functional.pad(batch[name], (3, 0)) for name in fields}
        torch.testing.assert_close(model.encode(batch.with_fields(**padded)), whole)
        alone = torch.cat([model.encode(batch.rows(torch.tensor([i]))) for i in range(len(batch))])
        torch.testing.assert_close(alone, whole)
        assert torch.equal(model.encode(batch.with_fields(item_id=torch.ones_like(batch.targets))), whole)
        assert torch.equal(model.encode(batch), whole)


def test_the_last_item_matters_and_the_other_domain_does_not(ready):
    loaded, model = ready
    for batch in batches(loaded, model):
        x = batch.target_domain
        before = model.score(batch)
        changed = batch.own_history.clone()
        span = model.item_slice(x)
        changed[:, -1] = span.start + (changed[:, -1] - span.start + 1) % (span.stop - span.start)
        known = (batch.own_history != 0).any(1)
        after = model.score(batch.with_fields(**{f"history_{x}": changed}))
        assert (before[known] != after[known]).any(1).all()
        nothing = {f"history_{1 - x}": torch.zeros_like(batch.history(1 - x))}
        assert torch.equal(model.score(batch.with_fields(**nothing)), before)


@pytest.mark.parametrize("bos", [True, False])
def test_empty_histories(tmp_path, bos):
    loaded, model = build(tmp_path, bos=bos)
    for batch in batches(loaded, model):
        cold = batch.with_fields(**{f"history_{batch.target_domain}": torch.zeros_like(batch.own_history)})
        scores = model.score(cold)
        assert torch.isfinite(scores).all()
        torch.testing.assert_close(scores, scores[:1].expand_as(scores))
        assert model.can_score(cold) is None if bos else not model.can_score(cold).any()
        if not bos:
            assert torch.equal(model.can_score(batch), batch.own_history.any(1))
            with torch.no_grad():  # nothing to learn, and nothing that is not a number
                assert sum(model.calculate_loss(cold)) == 0


@pytest.mark.parametrize("settings", [{"input": "merged"}, NO_CLOCK])
def test_merged_input_reads_the_other_domain(tmp_path, settings):
    loaded, model = build(tmp_path, **settings)
    seen = 0
    for batch in batches(loaded, model):
        x, read = batch.target_domain, model.read(batch)
        span = model.item_slice(x)
        own = (read >= span.start) & (read < span.stop)
        known = (batch.own_history != 0).sum(1)
        assert torch.equal(own.sum(1), known)
        other = ((read != 0) & (read != model.n_items) & ~own).sum(1)
        assert torch.equal(other, (batch.history(1 - x) != 0).sum(1))
        assert ((read == model.n_items).sum(1) == 1).all()
        if settings is NO_CLOCK:  # own items behind all others
            assert all(bool(row[len(row) - n :].all()) for row, n in zip(own, known.tolist(), strict=True))
        seen += int(other.sum())
        assert model.score(batch).shape == (len(batch), span.stop - span.start)
    assert seen


def test_swapping_the_domains_swaps_the_scores(tmp_path):
    rows = random_domains()
    one, model = build(tmp_path / "a", rows)
    two, twin = build(tmp_path / "b", dict(reversed(rows.items())), seed=1)
    permutation = torch.zeros(model.n_items, dtype=torch.long)
    for k in range(2):
        ids = np.arange(*one.dataset.item_offset[k : k + 2])
        permutation[ids] = torch.from_numpy(two.dataset.item_ids(1 - k, list(one.dataset.item_token(ids))))
    state = {}
    for name, value in model.state_dict().items():
        _, net, rest = name.split(".", 2)
        span = model.item_slice(int(net))
        # Local places in the twin: items keep their order within a domain only if their tokens do.
        place = permutation[span] - twin.item_offsets[1 - int(net)]
        if rest == "embedding.weight":
            value = value.index_copy(0, 1 + place, value[1:-1])
        elif rest == "output":
            value = value.index_copy(0, place, value)
        state[f"nets.{1 - int(net)}.{rest}"] = value
    twin.load_state_dict(state)
    for batch in batches(one, model):
        x = batch.target_domain
        fields = dict(batch.interaction.items())
        fields |= {f"history_{1 - k}": permutation[batch.history(k)] for k in range(2)}
        swapped = twin.score(Batch(fields, 1 - x, 2))
        place = permutation[model.item_slice(x)] - twin.item_offsets[1 - x]
        torch.testing.assert_close(swapped[:, place], model.score(batch))


# -- training ------------------------------------------------------------------------------------------------


def train(loaded, model, epochs, lr=5e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    loader = CrossDomainLoader(loaded.config, loaded.split.train, model, training=True)
    phase, losses = model.phases()[0], []
    for epoch in range(epochs):
        model.train().start_epoch(phase, epoch)
        loader.set_epoch(0, epoch)
        every = phase.batches(np.random.default_rng(epoch)) if phase.batches else loader
        total = 0.0
        for batch in every:
            loss = sum((phase.loss or model.calculate_loss)(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    model.eval()
    return losses


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({}, 40),
        ({"input": "merged"}, 40),
        ({"train_targets": "last"}, 40),
        ({"one_pass": False, "next_k": 1}, 30),
    ],
)
def test_it_learns_its_training_targets_by_heart(tmp_path, settings, epochs):
    wide = {"embedding_size": 32, "rnn_size": 48, "hidden_size": 32, "latent_size": 16, "anneal_cap": 0.0}
    rows = random_domains(n_users=32, n_items=60)
    loaded, model = build(tmp_path, rows, **{**wide, **settings})
    losses = train(loaded, model, epochs, lr=1e-2)
    assert losses[-1] < 0.5 * losses[0]
    part = loaded.split.train
    # One start token stands before all users' first items: these cannot be told apart.
    part = part.take(part.own_length > 0)
    hits = total = 0
    for batch in CrossDomainLoader(loaded.config, part, model):
        local = batch.targets - model.item_offsets[batch.target_domain]
        hits += int((model.score(batch).topk(10).indices == local.unsqueeze(1)).any(1).sum())
        total += len(batch)
    assert total > 32 and hits / total > 0.95


def test_the_start_token_learns_popularity(tmp_path):
    rows = random_domains(n_users=40, n_items=20)
    popular = [("b3", 0.0), ("b7", 0.1)]
    rows["books"] = [(u, i, t + 10) for u, i, t in rows["books"] if i not in ("b3", "b7")]
    rows["books"] += [(u, i, t) for u in {u for u, _, _ in rows["books"]} for i, t in popular]
    loaded, model = build(tmp_path, rows, next_k=2)
    train(loaded, model, 20, lr=1e-2)
    batch = next(b for b in batches(loaded, model) if b.target_domain == 0)
    cold = batch.with_fields(history_0=torch.zeros_like(batch.own_history))
    best = set((model.score(cold)[0].topk(2).indices + 1).tolist())
    assert best == {loaded.id_of("books", "b3"), loaded.id_of("books", "b7")}


def test_domains_train_side_by_side_and_share_nothing(ready):
    _, model = ready
    for batch in sequence_batches(model):
        model.zero_grad()
        sum(model.sequence_loss(batch)).backward()
        assert all(p.grad is None for p in model.nets[1 - batch.tag].parameters())
        assert all(p.grad is not None and p.grad.any() for p in model.nets[batch.tag].parameters())
    model.zero_grad()


def test_same_seed_same_weights_and_a_round_trip_keeps_the_scores(tmp_path):
    loaded, model = build(tmp_path)
    twin, other = SVAE(loaded.config, loaded.data).eval(), build(tmp_path)[1]
    for each in (model, other):
        torch.manual_seed(3)
        train(loaded, each, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    twin.load_state_dict(model.state_dict())
    for batch in batches(loaded, model):
        assert torch.equal(twin.score(batch), model.score(batch))


def test_a_batch_without_targets_is_no_loss(tmp_path):
    _, model = build(tmp_path, **NO_CLOCK)
    batch = sequence_batches(model)[0]
    batch = SequenceBatch({**batch.interaction, "next_seq": torch.zeros_like(batch["next_seq"])}, batch.tag)
    loss = sum(model.train().sequence_loss(batch))
    loss.backward()
    assert loss == 0 and not any(p.grad is not None and p.grad.isnan().any() for p in model.parameters())


def test_three_domains_and_users_without_overlap(tmp_path):
    rows = {
        name: [(f"{name}{u}", i, t) for u, i, t in events]
        for name, events in random_domains(names=("books", "films", "games")).items()
    }
    loaded, model = build(tmp_path, rows, input="merged")
    losses = train(loaded, model, 3)
    assert losses[-1] < losses[0] and all(math.isfinite(loss) for loss in losses)
    assert {b.target_domain for b in batches(loaded, model)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"input": "both"}, "input"),
        ({"kl_reduction": "max"}, "kl_reduction"),
        ({"next_k": 0}, "next_k"),
        ({"latent_size": 0}, "latent_size"),
        ({"anneal_cap": -0.1}, "anneal_cap"),
        ({"total_anneal_steps": -1}, "total_anneal_steps"),
        ({"one_pass": False}, "next_k=4 needs whole sequences"),
        ({"targets_per_sequence": 2}, "next_k=4 needs whole sequences"),
    ],
)
def test_settings_that_cannot_be_are_one_clear_error(tmp_path, settings, key):
    with pytest.raises(CDRError, match=key):
        build(tmp_path, random_domains(n_users=10), **settings)
