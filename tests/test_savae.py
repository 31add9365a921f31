"""SA-VAE: its phases, what is aligned with what, and who is served by which encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import load, random_domains
from torch.distributions import Independent, Normal, kl_divergence

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.savae import SAVAE
from recbole_cdr_ext.model.parts.layers import kl
from recbole_cdr_ext.splits.loader import CrossDomainLoader

SMALL = {"embedding_size": 8, "hidden_size": 24, "dropout": 0.0, "total_anneal_steps": 20}


def build(tmp_path, domains=None, seed=0, **settings):
    loaded = load(tmp_path, domains or random_domains(), "SAVAE", **{**SMALL, **settings})
    torch.manual_seed(seed)
    return loaded, SAVAE(loaded.config, loaded.data).eval()


def train(model, epochs=25, lr=0.03, phases=None):
    """As the trainer does, without validation; returns the first and the last epoch's loss of each phase."""
    losses = []
    for phase in phases or model.phases():
        optimizer = torch.optim.Adam([p for _, p in model.parameters_of(phase)], lr=lr)
        totals = []
        for epoch in range(epochs):
            model.start_epoch(phase, epoch)
            model.train()
            totals.append(0.0)
            for batch in phase.batches(np.random.default_rng(epoch)):
                optimizer.zero_grad()
                terms = phase.loss(batch)
                sum(terms).backward()
                optimizer.step()
                totals[-1] += terms.recon.item()
        model.zero_grad(set_to_none=True)
        losses.append((totals[0], totals[-1]))
    model.eval()
    return losses


def all_users(model, k, seed=0):
    (batch,) = model.user_batches(k, np.random.default_rng(seed))
    return batch


def scored(loaded, model, part="test"):
    return list(CrossDomainLoader(loaded.config, loaded.split.part(part), model))


def emptied(batch, domain):
    return batch.with_fields(**{f"history_{domain}": torch.zeros_like(batch.history(domain))})


def source_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.startswith("source_")}


def aligned(model):
    """As if the second phase had begun."""
    model.updates[1] = 1
    return model


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A model that was trained a little, and what was in its source modules after the first phases."""
    loaded, model = build(tmp_path_factory.mktemp("savae"))
    losses = train(model, phases=model.phases()[:2])
    before = source_state(model)
    losses += train(model, phases=model.phases()[2:])
    return loaded, model, before, losses


# -- the phases ----------------------------------------------------------------------------------------------------


def test_phases_are_a_vae_per_domain_then_one_against_the_other(ready):
    model = ready[1]
    assert [p.name for p in model.phases()] == [
        "source books",
        "source films",
        "target books",
        "target films",
    ]
    learn = [{name for name, _ in model.parameters_of(phase)} for phase in model.phases()]
    assert sorted(name for names in learn for name in names) == sorted(n for n, _ in model.named_parameters())
    assert all(name.split(".")[:2] in (["encoder", "1"], ["decoder", "1"]) for name in learn[3])


def test_the_loss_falls_in_every_phase(ready):
    assert len(ready[3]) == 4
    assert all(last < 0.9 * first for first, last in ready[3])


def test_the_second_phase_leaves_the_first_as_it_was(ready):
    _, model, before, _ = ready
    assert len(before) == 2 * 8
    for name, value in source_state(model).items():
        assert torch.equal(value, before[name])
    # Nor does a gradient reach it, whoever the optimiser's parameters are.
    model.zero_grad()
    sum(model.target_loss(all_users(model, 0))).backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"encoder", "decoder"}
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("alignment", ["soft", "rigid"])
def test_a_warm_start_copies_the_first_phase_once(tmp_path, alignment):
    _, model = build(tmp_path, warm_start=True, alignment=alignment)
    last = model.phases()[3]
    assert not torch.equal(model.decoder[1].items.weight, model.source_decoder[1].items.weight)
    model.start_epoch(last, 1)
    assert not torch.equal(model.decoder[1].items.weight, model.source_decoder[1].items.weight)
    model.start_epoch(last, 0)
    pairs = [
        (model.decoder, model.source_decoder),
        *([(model.encoder, model.source_encoder)] * len(model.encoder[:1])),
    ]
    for own, first in pairs:
        assert all(map(torch.equal, own[1].state_dict().values(), first[1].state_dict().values()))
        assert not any(map(torch.equal, list(own[0].parameters())[:1], list(first[0].parameters())[:1]))


# -- the equations -------------------------------------------------------------------------------------------------


def dense_loss(model, encoder, decoder, batch, beta, seed):
    """MultVAE's loss written with dense rows, its noise drawn from ``seed``."""
    k = batch.target_domain
    x = torch.zeros(len(batch), decoder.items.out_features)
    row, column = batch.own_history.nonzero(as_tuple=True)
    x[row, batch.own_history[row, column] - model.item_offsets[k]] = 1.0
    h = torch.tanh(F.normalize(x) @ encoder.read.weight + encoder.read.bias)
    mean, logvar = encoder.posterior(h).chunk(2, 1)
    torch.manual_seed(seed)
    z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    logits = decoder.items(torch.tanh(decoder.hidden(z)))
    q = Independent(Normal(mean, (0.5 * logvar).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    return -(x * logits.log_softmax(1)).sum(1).mean(), beta * kl_divergence(q, prior).mean()


@pytest.mark.parametrize("k", [0, 1])
def test_the_first_phase_is_multvae(tmp_path, k):
    _, model = build(tmp_path, anneal_cap=0.1)
    batch = all_users(model, k)
    model.train().updates[0, k] = 0
    expected = dense_loss(model, model.source_encoder[k], model.source_decoder[k], batch, 1 / 20, seed=3)
    torch.manual_seed(3)
    torch.testing.assert_close(tuple(model.source_loss(batch)), expected)
    assert model._beta(0, k) == 0.1 == model._beta(0, k)  # 2/20, then the cap
    assert model.updates[0].tolist() == ([3, 0] if k == 0 else [0, 3])


def test_without_a_source_history_the_second_phase_is_the_first(tmp_path):
    """N(0, I) is the reference, and the weight of the alignment is no matter."""
    _, model = build(tmp_path, align_weight=7.0, dropout=0.5)
    for k in (0, 1):
        model.encoder[k].load_state_dict(model.source_encoder[k].state_dict())
        model.decoder[k].load_state_dict(model.source_decoder[k].state_dict())
        batch, losses = emptied(all_users(model, k), 1 - k), []
        model.train()
        for loss in (model.source_loss, model.target_loss):
            torch.manual_seed(11)
            losses.append(loss(batch))
        torch.testing.assert_close(*losses)


def test_the_kl_of_the_second_phase_is_to_the_other_domains_posterior(tmp_path):
    _, model = build(tmp_path, align_weight=3.0, total_anneal_steps=0, anneal_cap=0.5)
    batch = all_users(model, 0)
    both = batch.history(1).any(1)
    assert both.any() and not both.all()
    q, p = model.encoder[0](model._bags(batch, 0)), model.source_encoder[1](model._bags(batch, 1))
    distributions = [Independent(Normal(g.mean, (0.5 * g.logvar).exp()), 1) for g in (q, p)]
    expected = torch.where(both, 3.0 * kl_divergence(*distributions), kl(q))
    torch.testing.assert_close(model.target_loss(batch).kl, 0.5 * expected.mean())
    # Encoders that agree have nothing to align.
    for encoder in (model.encoder[0], model.source_encoder[1]):
        torch.nn.init.zeros_(encoder.posterior.weight), torch.nn.init.constant_(encoder.posterior.bias, 0.3)
    assert model.target_loss(batch.rows(both)).kl.abs() < 1e-6 < model.target_loss(batch).kl


def test_the_reference_is_read_without_dropout(tmp_path):
    _, model = build(tmp_path, dropout=0.5)
    batch = all_users(model.train(), 0)
    first, second = (model._reference(batch) for _ in range(2))
    assert torch.equal(first.mean, second.mean) and not first.mean.requires_grad
    alone = ~batch.history(1).any(1)
    assert not first.mean[alone].any() and not first.logvar[alone].any()  # N(0, I)


def test_decode_source_prob_decodes_the_sources_latents(tmp_path):
    """At 1 and with β = 0 the target's encoder of users with both domains learns nothing."""
    for share, learns in ((0.0, True), (1.0, False)):
        _, model = build(tmp_path / str(share), decode_source_prob=share, anneal_cap=0.0)
        batch = all_users(model.train(), 0)
        model.target_loss(batch.rows(batch.history(1).any(1))).recon.backward()
        assert bool(model.encoder[0].posterior.weight.grad.any()) == learns
        assert model.decoder[0].hidden.weight.grad.any()


def test_rigid_scores_do_not_depend_on_the_target_history(tmp_path):
    loaded, model = build(tmp_path, alignment="rigid")
    train(model, 5)
    assert not len(model.encoder)
    for batch in scored(loaded, model):
        k = batch.target_domain
        assert torch.equal(model.score(emptied(batch, k)), model.score(batch))
        assert not torch.allclose(model.score(emptied(batch, 1 - k)), model.score(batch))


# -- who is served by what -----------------------------------------------------------------------------------------


def test_the_latent_is_the_targets_the_sources_or_zero(ready):
    loaded, model, _, _ = ready
    for batch in scored(loaded, model):
        k = batch.target_domain
        own = batch.own_history.any(1)
        warm = model.latent(batch)[own]
        torch.testing.assert_close(warm, model.encoder[k](model._bags(batch, k)).mean[own])
        assert torch.equal(model.latent(emptied(batch, 1 - k))[own], warm)
        cold, other = emptied(batch, k), batch.history(1 - k).any(1)
        from_source = model.source_encoder[1 - k](model._bags(batch, 1 - k)).mean
        torch.testing.assert_close(model.latent(cold)[other], from_source[other])
        assert not model.latent(emptied(cold, 1 - k)).any()
        nothing = model.score(emptied(cold, 1 - k))
        assert torch.isfinite(nothing).all() and torch.equal(nothing, nothing[:1].expand_as(nothing))


def test_before_its_second_phase_a_domain_is_scored_by_its_first(tmp_path):
    loaded, model = build(tmp_path)
    phases = model.phases()
    train(model, 2, phases=phases[:3])
    assert [model._aligned(k) for k in (0, 1)] == [True, False]
    for batch in scored(loaded, model):
        k = batch.target_domain
        decoder, encoder = (
            (model.decoder, model.encoder) if k == 0 else (model.source_decoder, model.source_encoder)
        )
        warm = batch.rows(batch.own_history.any(1))
        expected = decoder[k].items(decoder[k](encoder[k](model._bags(warm, k)).mean))
        torch.testing.assert_close(model.score(warm), expected)


def function_of_the_source(rng, n_users=96, n_items=6):
    """Each user has one film and the book of its number."""
    pick = rng.permutation(np.arange(n_users) % n_items)
    return {
        "books": [(f"u{u}", f"b{pick[u]}", 1.0) for u in range(n_users)],
        "films": [(f"u{u}", f"f{pick[u]}", 0.0) for u in range(n_users)],
    }


@pytest.mark.parametrize("alignment", ["soft", "rigid"])
def test_a_cold_user_gets_the_item_that_follows_from_the_source(tmp_path, alignment):
    loaded, model = build(tmp_path, function_of_the_source(np.random.default_rng(0)), alignment=alignment)
    train(model, 40, lr=0.03)
    item = {
        k: [loaded.id_of(name, f"{name[0]}{i}") for i in range(6)]
        for k, name in enumerate(("books", "films"))
    }
    for k in (0, 1):
        fields = {
            f"history_{k}": torch.zeros(6, 1, dtype=torch.long),
            f"history_{1 - k}": torch.tensor(item[1 - k])[:, None],
        }
        cold = Batch({"user_id": torch.zeros(6, dtype=torch.long), **fields}, k, 2)
        best = model.score(cold).argmax(1) + model.item_offsets[k]
        assert best.tolist() == item[k]


@pytest.mark.parametrize("alignment", ["soft", "rigid"])
def test_it_fits_the_bags_it_learns_from(tmp_path, alignment):
    _, model = build(tmp_path, random_domains(n_users=32), embedding_size=32, alignment=alignment)
    train(model, 60, lr=0.04)
    hits = []
    for k in (0, 1):
        batch = all_users(model, k)
        if alignment == "rigid":
            batch = batch.rows(batch.history(1 - k).any(1))
        best = model.score(batch).topk(10).indices + model.item_offsets[k]
        bag = batch.own_history
        hits += (best.unsqueeze(2) == bag.unsqueeze(1)).any(1)[bag != 0].tolist()
    assert np.mean(hits) > 0.95


# -- what holds for all models -------------------------------------------------------------------------------------


def test_rows_are_independent_and_padding_targets_and_users_are_not_looked_at(ready):
    loaded, model, _, _ = ready
    for batch in scored(loaded, model):
        whole = model.score(batch)
        assert torch.equal(model.score(batch), whole)
        padded = {f"history_{k}": F.pad(batch.history(k), (3, 0)) for k in (0, 1)}
        torch.testing.assert_close(model.score(batch.with_fields(**padded)), whole)
        alone = torch.cat([model.score(batch.rows(torch.tensor([i]))) for i in range(len(batch))])
        torch.testing.assert_close(alone, whole)
        stranger = batch.with_fields(
            item_id=torch.ones_like(batch.targets), user_id=torch.zeros_like(batch.users)
        )
        assert torch.equal(model.score(stranger), whole)


def test_swapping_the_domains_swaps_the_scores(tmp_path):
    rows = random_domains()
    one, model = build(tmp_path / "a", rows)
    two, twin = build(tmp_path / "b", dict(reversed(rows.items())), seed=1)
    # Items have the same tokens, and so the same order, in both.
    state = {
        ".".join(str(1 - int(p)) if p.isdigit() else p for p in n.split(".")): v
        for n, v in model.state_dict().items()
    }
    orders = []
    for k in (0, 1):
        ids = np.arange(*one.dataset.item_offset[k : k + 2])
        there = two.dataset.item_ids(1 - k, list(one.dataset.item_token(ids)))
        orders.append(torch.from_numpy(there))
        place = torch.from_numpy(there - two.dataset.item_offset[1 - k])
        for name in (
            n for n in state if n.split(".")[1:2] == [str(1 - k)] and state[n].shape[:1] == place.shape
        ):
            state[name] = torch.empty_like(state[name]).index_copy_(0, place, state[name])
    twin.load_state_dict(state)
    aligned(model), aligned(twin)
    for batch in scored(one, model):
        k = batch.target_domain
        fields = dict(batch.interaction.items())
        for j in (0, 1):
            ids = batch.history(j)
            fields[f"history_{1 - j}"] = torch.where(
                ids != 0, orders[j][(ids - model.item_offsets[j]).clamp(min=0)], 0
            )
        swapped = twin.score(Batch(fields, 1 - k, 2))
        torch.testing.assert_close(swapped[:, orders[k] - twin.item_offsets[1 - k]], model.score(batch))


def test_scores_survive_a_checkpoint(ready):
    loaded, model, _, _ = ready
    torch.manual_seed(99)
    fresh = SAVAE(loaded.config, loaded.data).eval()
    batch = scored(loaded, model)[0]
    before = fresh.score(batch)
    fresh.load_state_dict(model.state_dict())
    assert not torch.allclose(fresh.score(batch), before)
    assert torch.equal(fresh.score(batch), model.score(batch))


def test_targets_that_are_held_out_are_in_no_bag(ready):
    loaded, model, _, _ = ready
    seen = set()
    for k in (0, 1):
        batch = all_users(model, k)
        for j in (0, 1):
            row, column = batch.history(j).nonzero(as_tuple=True)
            seen |= set(zip(batch.users[row].tolist(), batch.history(j)[row, column].tolist(), strict=True))
    events = loaded.split.train_events
    assert seen == set(zip(events.user.tolist(), events.item.tolist(), strict=True))
    for part in (loaded.split.valid, loaded.split.test):
        assert not seen & set(zip(part.user.tolist(), part.target.tolist(), strict=True))


def test_with_train_targets_last_the_target_alone_is_predicted(tmp_path):
    loaded, model = build(tmp_path, train_targets="last")
    for k in (0, 1):
        batch = all_users(model, k)
        assert not (batch.own_history == batch.targets.unsqueeze(1)).any()
        assert torch.equal(model._predicted(batch).items, batch.targets - model.item_offsets[k])
        # Without a history in the target's domain, the source's latent is what the target is predicted from.
        model.zero_grad()
        terms = model.train().target_loss(emptied(batch, k))
        terms.recon.backward()
        assert terms.kl == 0 and not model.encoder[k].posterior.weight.grad.any()
        assert model.decoder[k].hidden.weight.grad.any()
    losses = train(model, 15)
    assert all(last < first for first, last in losses)
    assert all(torch.isfinite(model.score(batch)).all() for batch in scored(loaded, model))


def test_users_need_not_overlap(tmp_path):
    rows = random_domains()
    apart = {"books": rows["books"], "films": [("v" + user[1:], *rest) for user, *rest in rows["films"]]}
    loaded, model = build(tmp_path, apart)
    losses = train(model, 10)
    assert all(last < first for first, last in losses)
    assert all(torch.isfinite(model.score(batch)).all() for batch in scored(loaded, model))
    with pytest.raises(CDRError, match="alignment=rigid"):
        build(tmp_path / "rigid", apart, alignment="rigid")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"alignment": "firm"}, "alignment"),
        ({"align_weight": -1.0}, "align_weight"),
        ({"dropout": 1.0}, "dropout"),
        ({"decode_source_prob": 2.0}, "decode_source_prob"),
        ({"decode_source_prob": 0.5, "alignment": "rigid"}, "alignment=soft"),
    ],
)
def test_bad_settings_are_one_clear_error(tmp_path, settings, match):
    with pytest.raises(CDRError, match=match):
        build(tmp_path, **settings)
