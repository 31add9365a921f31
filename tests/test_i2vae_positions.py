"""I2VAE in one pass over all positions: the same as asking at each position, and blind to what follows."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import load, random_domains

from recbole_cdr_ext.data.instances import make_batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.i2vae import I2VAE
from recbole_cdr_ext.model.parts.layers import ItemTable, SumDecoder
from recbole_cdr_ext.model.parts.losses import sampled_softmax_loss
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.splits.split import TrainingData, recalled_by_event

SMALL = {
    "embedding_size": 16,
    "inner_size": 16,
    "n_layers": 2,
    "n_cross_heads": 2,
    "shared_encoder": False,
    "psg": "random",
    "random_recall_size": 4,
    "dropout": 0.0,
    "split": "leave_one_out",
    "train_targets": "all",
    "loss_type": "CE",
    "max_history_length": 60,
    "cold_start_mask_prob": 0.0,
    "train_batch_size": 100,
}
FORMS = [
    {"cross_encoder": "merged", "pooling": "last", "decoder": "sum"},
    {"cross_encoder": "attention", "pooling": "mean"},
    {"cross_encoder": "mlp", "pooling": "mean_last", "psg": "none"},
]
SHARED = {"cross_encoder": "merged", "shared_encoder": True}


def build(tmp_path, domains=None, **settings):
    loaded = load(tmp_path, domains or random_domains(), **{**SMALL, **settings})
    split = I2VAE.prepare_data(loaded.config, loaded.dataset, loaded.split)
    torch.manual_seed(0)
    model = I2VAE(loaded.config, TrainingData.of(loaded.dataset, split)).eval()
    assert model.one_pass
    return loaded, split, model


def interests(model, batch):
    """X̂ at all positions of a batch of sequences: {event: vector}."""
    states, found = model.positions(batch.items), {}
    for x in range(model.n_domains):
        span = model.item_slice(x)
        row, place = ((batch.targets >= span.start) & (batch.targets < span.stop)).nonzero(as_tuple=True)
        if not len(row):
            continue
        event = batch["event"][row, place].numpy()
        recalled = model.training_sequences.recalled_at(batch, row, place)
        latents = model._posteriors(x, model.positions.views(states, x, row, place, recalled))
        found.update(zip(event.tolist(), model.decode(x, latents), strict=True))
    return found


def instances_of_events(split):
    """The row of the training instance whose target each training event is."""
    events, train = split.train_events, split.train
    keys = {
        (s // split.n_domains, i): row
        for row, (s, i) in enumerate(zip(train.sequence, train.target, strict=True))
    }
    return {e: keys.get((s, i)) for e, (s, i) in enumerate(zip(events.sequence, events.item, strict=True))}


@pytest.mark.parametrize("n_domains", [2, 3])
@pytest.mark.parametrize("form", [*FORMS, SHARED])
def test_one_pass_is_asking_at_each_position(tmp_path, form, n_domains):
    names = ("books", "films", "games")[:n_domains]
    _, split, model = build(tmp_path, random_domains(names=names), **form)
    found = {}
    with torch.no_grad():
        for batch in model.training_sequences.batches(np.random.default_rng(0)):
            found |= interests(model, batch)
        assert len(found) == len(model.training_sequences) == len(split.train)
        row_of = instances_of_events(split)
        events = np.array(sorted(found))
        rows = np.array([row_of[event] for event in events])
        for x in range(n_domains):
            own = split.train.domain[rows] == x
            pseudo = 5 if model.needs_pseudo else 0
            asked = make_batch(split.train, rows[own], max_length=60, merged=True, pseudo_length=pseudo)
            expected = torch.stack([found[event] for event in events[own]])
            torch.testing.assert_close(model.encode(asked), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_what_follows_changes_no_earlier_position(tmp_path, form):
    _, _, model = build(tmp_path, **form)
    batch = next(iter(model.training_sequences.batches(np.random.default_rng(0))))
    cut = int((batch.targets != 0).sum(1).min()) // 2
    assert cut >= 1
    changed = batch.items.clone()
    changed[:, cut:] = torch.where(changed[:, cut:] != 0, 1 + changed[:, cut:] % (model.n_items - 1), 0)
    assert not torch.equal(changed, batch.items)
    with torch.no_grad():
        before = interests(model, batch)
        after = interests(model, type(batch)({**batch.interaction, "item_seq": changed}))
    early = batch["event"][:, :cut].reshape(-1).tolist()
    assert all(torch.allclose(before[e], after[e], atol=1e-5) for e in early)
    assert any(not torch.allclose(before[e], after[e], atol=1e-5) for e in before if e not in early)


@pytest.mark.parametrize("form", FORMS)
def test_without_a_history_its_latents_do_not_matter(tmp_path, form):
    loaded, split, model = build(tmp_path, **form)
    for batch in CrossDomainLoader(loaded.config, split.test, model):
        x = batch.target_domain
        span = model.item_slice(x)
        merged = batch["merged"]
        own = (merged >= span.start) & (merged < span.stop)
        model.zero_grad()
        alone = batch.with_fields(merged=_pushed_right(merged.masked_fill(own, 0)))
        model.encode(alone).square().sum().backward()
        silent = [*model.own_head[x].parameters(), *model.augmented_head[x].parameters()]
        silent += [*model.positions.encoder[x].parameters(), *model.transfer_head[x].parameters()]
        assert all(p.grad is None or not p.grad.any() for p in silent)
        assert any(p.grad.any() for p in model.auxiliary_head[x].parameters())
        model.zero_grad()
        alone = batch.with_fields(merged=_pushed_right(merged.masked_fill(~own, 0)))
        model.encode(alone).square().sum().backward()
        silent = [*model.positions.encoder[1 - x].parameters(), *model.transfer_head[x].parameters()]
        silent += [*model.auxiliary_head[x].parameters()]
        assert all(p.grad is None or not p.grad.any() for p in silent)
        assert any(p.grad.any() for p in model.own_head[x].parameters())


def _pushed_right(items):
    order = (items != 0).long().argsort(dim=1, stable=True)
    return items.gather(1, order)


@pytest.mark.parametrize(
    "settings",
    [
        *FORMS,
        {"loss_type": "sampled", "train_neg_num": 30},
        {"cross_encoder": "merged", "variational": False},
    ],
)
def test_it_learns_its_training_targets_by_heart(tmp_path, settings):
    loaded, split, model = build(
        tmp_path,
        random_domains(n_users=32, n_items=40),
        kl_weight=0.0,
        **{"embedding_size": 32, "inner_size": 32, **settings},
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    for epoch in range(60):
        for batch in model.training_sequences.batches(np.random.default_rng(epoch)):
            optimizer.zero_grad()
            sum(model.sequence_loss(batch)).backward()
            optimizer.step()
    model.eval()
    hits = total = 0
    for batch in CrossDomainLoader(loaded.config, split.train, model):
        local = batch.targets - model.item_offsets[batch.target_domain]
        best = model.score(batch).topk(3).indices
        hits += int((best == local.unsqueeze(1)).any(1).sum())
        total += len(batch)
    assert hits / total > 0.95


@pytest.mark.parametrize(
    "settings",
    [{"train_targets": "last"}, {"targets_per_sequence": 2}, {"loss_type": "BCE", "train_neg_num": 2}],
)
def test_the_same_network_trains_on_instances(tmp_path, settings):
    loaded, split, model = build(tmp_path, cold_start_mask_prob=0.3, **settings)
    assert model.phases()[0].batches is None
    sampler = CrossDomainSampler(split)
    loader = CrossDomainLoader(loaded.config, split.train, model, sampler=sampler, training=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    losses = []
    for epoch in range(20):
        loader.set_epoch(0, epoch)
        total = 0.0
        for batch in loader:
            terms = model.calculate_loss(batch)
            optimizer.zero_grad()
            sum(terms).backward()
            optimizer.step()
            total += terms.recon.item()
        losses.append(total)
    assert losses[-1] < 0.9 * losses[0]


def test_recalled_items_stand_at_their_targets(tmp_path):
    _, split, _ = build(tmp_path)
    found, events = recalled_by_event(split), split.train_events
    assert found.shape == (len(events), 4)
    for event, row in instances_of_events(split).items():
        expected = np.zeros(4) if row is None else split.train.recalled[row]
        assert np.array_equal(found[event], expected)
    assert found.any()


def test_recalled_items_are_read_where_there_is_a_history(tmp_path):
    loaded, split, model = build(tmp_path, **FORMS[0])
    batch = next(iter(CrossDomainLoader(loaded.config, split.test, model)))
    nothing = batch.with_fields(recalled=torch.zeros_like(batch.recalled))
    assert not torch.allclose(model.encode(batch), model.encode(nothing))


def test_hidden_histories_train_the_cold_path(tmp_path):
    _, _, model = build(tmp_path, cold_start_mask_prob=0.5)
    torch.manual_seed(1)
    batch = next(iter(model.training_sequences.batches(np.random.default_rng(0))))
    row, place = (batch.targets != 0).nonzero(as_tuple=True)
    recalled = torch.zeros(len(row), 4, dtype=torch.long)
    views = model.positions.views(model.positions(batch.items), 0, row, place, recalled)
    hidden = views.with_hidden(model.cold_start_mask_prob)
    assert 0.3 < (views.both & ~hidden.has_own).sum() / views.both.sum() < 0.7
    assert torch.equal(hidden.both, hidden.has_own & views.has_other)
    assert len(hidden.mixed) == int(hidden.both.sum())
    assert torch.equal(hidden.has_own | views.both, views.has_own)


def test_without_latents_nothing_is_random_and_nothing_is_held_to_a_prior(tmp_path):
    _, _, model = build(tmp_path, variational=False, kl_weight=1.0, lambda_a=1.0, lambda_c=1.0)
    batch = next(iter(model.training_sequences.batches(np.random.default_rng(0))))
    model.train()
    one, two = model.sequence_loss(batch), model.sequence_loss(batch)
    assert torch.equal(one.recon, two.recon)
    assert one.kl == one.denoise == one.cross == 0
    _, _, noisy = build(tmp_path)
    noisy.train()
    assert not torch.equal(noisy.sequence_loss(batch).recon, noisy.sequence_loss(batch).recon)


def test_weight_of_the_kl_terms_rises_and_free_bits_are_left_alone(tmp_path):
    _, _, model = build(tmp_path, kl_weight=1.0, kl_warmup_epochs=3)
    batch = next(iter(model.training_sequences.batches(np.random.default_rng(0))))
    terms = []
    for epoch in (0, 1, 2, 3, 9):
        model.start_epoch(Phase(), epoch)
        terms.append(model.sequence_loss(batch).kl.item())
    np.testing.assert_allclose(np.array(terms) / terms[-1], [0.25, 0.5, 0.75, 1, 1], rtol=1e-5)
    model.free_bits = 1e6
    loss = model.sequence_loss(batch).kl
    assert loss.item() == pytest.approx(3e6)  # z^x, z_t, z_a^x; and nothing pulls at them
    loss.backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.own_head.parameters())


def test_items_start_as_the_generator_learned_them(tmp_path):
    loaded = load(tmp_path, random_domains(), **{**SMALL, "item_init": "psg"})
    learned = np.random.default_rng(0).normal(3, 5, (loaded.dataset.item_num, 6)).astype(np.float32)
    split = replace(I2VAE.prepare_data(loaded.config, loaded.dataset, loaded.split), item_vectors=learned)
    table = (
        I2VAE(loaded.config, TrainingData.of(loaded.dataset, split)).item_embedding.weight.detach().numpy()
    )
    assert not table[0].any()
    expected = learned[1:] - learned[1:].mean(0)
    np.testing.assert_allclose(table[1:, :6], 0.25 * expected / expected.std(ddof=1), rtol=1e-4, atol=1e-6)
    assert table[1:, 6:].std() == pytest.approx(0.25, rel=0.1)


def test_a_shared_encoder_is_one(tmp_path):
    _, _, model = build(tmp_path, **SHARED)
    encoders = {id(module) for module in (*model.positions.encoder, model.positions.merged)}
    assert len(encoders) == 1


def test_residual_posteriors_add_what_they_are_made_from(tmp_path):
    _, _, model = build(tmp_path, residual_posteriors=True)
    with torch.no_grad():
        for layer in (model.own_head[0].mean, model.auxiliary_head[1].mean):
            layer.weight.zero_()
            layer.bias.zero_()
    x = torch.randn(3, 16)
    assert torch.equal(model.own_head[0](x).mean, x) and torch.equal(model.auxiliary_head[1](x).mean, x)


def test_sum_decoder_ignores_latents_that_are_zero():
    decoder = SumDecoder(4, 0.0)
    z = torch.randn(3, 12)
    z[0, 4:8] = 0
    parts = [n(c + p(c)) for c, p, n in zip(z.chunk(3, 1), decoder.parts, decoder.norms, strict=True)]
    torch.testing.assert_close(decoder(z)[1:], sum(parts)[1:])
    torch.testing.assert_close(decoder(z)[0], (parts[0] + parts[2])[0])


def test_sampled_softmax_estimates_the_softmax():
    torch.manual_seed(0)
    vectors, items = torch.randn(40, 5), torch.randn(60, 5)
    target = torch.randint(0, 60, (40,))
    whole = torch.nn.functional.cross_entropy(vectors @ items.T, target)
    torch.testing.assert_close(
        sampled_softmax_loss(vectors, items.__getitem__, 60, target, 200_000, True), whole, rtol=1e-2, atol=0
    )
    torch.manual_seed(3)
    drawn = torch.randint(60, (7,))
    torch.manual_seed(3)
    found = sampled_softmax_loss(vectors, items.__getitem__, 60, target, 7, False)
    rows = []
    for v, t in zip(vectors, target, strict=True):
        scores = torch.stack([v @ items[t], *(v @ items[i] for i in drawn if i != t)])
        rows.append(-scores.log_softmax(0)[0])
    torch.testing.assert_close(found, torch.stack(rows).mean())


@pytest.mark.parametrize("log_q", [False, True])
def test_sampled_softmax_has_the_gradients_of_its_definition(log_q):
    torch.manual_seed(0)
    made = [torch.randn(40, 5), torch.randn(12, 5)]
    target = torch.randint(0, 12, (40,))
    vectors, items = (t.clone().requires_grad_() for t in made)
    torch.manual_seed(3)
    (3 * sampled_softmax_loss(vectors, items.__getitem__, 12, target, 7, log_q)).backward()
    plain, table = (t.clone().requires_grad_() for t in made)
    torch.manual_seed(3)
    drawn = torch.randint(12, (7,))
    scores = plain @ table[drawn].T + (math.log(12 / 7) if log_q else 0.0)
    scores = scores.masked_fill(drawn == target.unsqueeze(1), -torch.inf)
    scores = torch.cat([(plain * table[target]).sum(1, keepdim=True), scores], 1)
    (3 * torch.nn.functional.cross_entropy(scores, torch.zeros(40, dtype=torch.long))).backward()
    torch.testing.assert_close(vectors.grad, plain.grad)
    torch.testing.assert_close(items.grad, table.grad)


def test_item_table_has_the_gradients_of_an_embedding():
    torch.manual_seed(0)
    table = ItemTable(9, 4, padding_idx=0)
    plain = torch.nn.Embedding(9, 4, padding_idx=0)
    plain.load_state_dict(table.state_dict())
    again = copy.deepcopy(table)
    asked = [torch.tensor([[1, 3], [3, 0]]), torch.tensor([8, 1])]
    for one in (plain, table, again, copy.deepcopy(again)):
        for _ in range(2):  # gradients of a second step are not added to those of the first
            one.zero_grad()
            sum((one(a) ** 3).sum() for a in asked).backward()
        assert not one.weight.grad.is_sparse
        torch.testing.assert_close(one.weight.grad, plain.weight.grad)
    table.zero_grad()
    # Slices of the table beside lookups in it.
    ((table(asked[0]) ** 3).sum() + table.weight[2:5].sum()).backward()
    plain.zero_grad()
    ((plain(asked[0]) ** 3).sum() + plain.weight[2:5].sum()).backward()
    torch.testing.assert_close(table.weight.grad, plain.weight.grad)


def test_a_fixed_item_table_is_only_read():
    table = ItemTable.from_pretrained(torch.ones(4, 2), freeze=True, padding_idx=0)
    assert table.training and torch.equal(table(torch.tensor([1, 2])), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"cross_encoder": "merged", "one_pass": False}, "cross_encoder"),
        ({"cross_encoder": "mlp", "pooling": "last", "one_pass": False}, "pooling"),
        ({"cross_encoder": "mlp", "pooling": "mean", "psg": "none", "one_pass": False}, "psg"),
        ({"temperature": 0.0}, "temperature"),
        ({"free_bits": -1.0}, "free_bits"),
        ({"decoder": "none"}, "decoder"),
    ],
)
def test_settings_that_cannot_be_are_one_clear_error(tmp_path, settings, key):
    with pytest.raises(CDRError, match=key):
        load(tmp_path, random_domains(n_users=10), **{**SMALL, **settings})
