"""SVAE against its equations, on whole sequences and on instances; what its scores depend on, and its training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import small_models
import torch
from small_models import CLOCKLESS_SVAE, SVAE_FORMS, build_svae, svae_batches, svae_sequence_batches
from support import random_domains
from torch.distributions import Independent, Normal, kl_divergence

from recbole_cdr_ext.data.instances import Batch, make_batch
from recbole_cdr_ext.data.sequences import SequenceBatch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.svae import SVAE
from recbole_cdr_ext.model.parts.layers import kl
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.splits.loader import CrossDomainLoader

ready = small_models.ready_svae


# -- the equations -------------------------------------------------------------------------------------------


def by_hand(net, items):
    """(μ, s, o) after reading a list of local ids, with W_o of all the net's items."""
    gru = net.gru
    h = torch.zeros(gru.hidden_size)
    for item in items:
        given = gru.weight_ih_l0 @ net.embedding.weight[item] + gru.bias_ih_l0
        kept = gru.weight_hh_l0 @ h + gru.bias_hh_l0
        (r_in, u_in, c_in), (r_h, u_h, c_h) = given.chunk(3), kept.chunk(3)
        reset, update = torch.sigmoid(r_in + r_h), torch.sigmoid(u_in + u_h)
        h = (1 - update) * torch.tanh(c_in + reset * c_h) + update * h
    a = torch.tanh(net.encoder.weight @ h + net.encoder.bias)
    mu, s = (net.latent.weight @ a + net.latent.bias).chunk(2)
    hidden = torch.tanh(net.decoder.weight @ mu + net.decoder.bias)
    return mu, s, net.output[:, :-1] @ hidden + net.output[:, -1]


def one_sequence(tmp_path, **settings):
    """A model whose first domain has one training sequence: three items, without a start token."""
    rows = {
        "books": [("solo", f"b{i}", float(i)) for i in (1, 2, 3)],
        "films": [("solo", "f0", 0.5), ("solo", "f1", 4.0), ("solo", "f2", 5.0)],
    }
    _, model = build_svae(tmp_path, rows, bos=False, next_k=2, **settings)
    with torch.no_grad():
        model.nets[0].output[:, -1].normal_()
    (batch,) = [batch for batch in svae_sequence_batches(model) if batch.tag == 0]
    assert batch.items.shape == (1, 2)
    model.start_epoch(Phase(), 0)
    model.anneal_users = 0  # the weight of the KL is its cap
    return model, batch


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_of_three_items_by_hand(tmp_path, reduction):
    model, batch = one_sequence(tmp_path, kl_reduction=reduction)
    net = model.nets[0]
    first, second, third = [int(x) for x in (*batch.items[0], batch.targets[0, 1])]
    (mu_1, s_1, o_1), (mu_2, s_2, o_2) = by_hand(net, [first]), by_hand(net, [first, second])
    log_p, log_q = o_1.log_softmax(0), o_2.log_softmax(0)
    # Items of the first domain start from 1. Two targets after the first item, one after the second.
    expected = -(log_p[second - 1] + log_p[third - 1]) / 2 - log_q[third - 1]
    divergences = [0.5 * (mu**2 + (2 * s).exp() - 1 - 2 * s).sum() for mu, s in ((mu_1, s_1), (mu_2, s_2))]
    recon, held = model.sequence_loss(batch)
    torch.testing.assert_close(recon, expected)
    torch.testing.assert_close(held, 0.2 * sum(divergences) / (2 if reduction == "mean" else 1))


def test_the_deviation_of_the_latent_is_exp_s_in_kl_and_sample(ready):
    net = ready[1].nets[0]
    torch.manual_seed(0)
    mean, s = torch.randn(2, 6, 4)
    with torch.no_grad():
        net.latent.weight.zero_()
        net.latent.bias.copy_(torch.cat([mean[0], s[0]]))
    posterior = net.posterior(torch.randn(20_000, 10))
    expected = kl_divergence(
        Independent(Normal(mean[0], s[0].exp()), 1), Independent(Normal(torch.zeros(4), torch.ones(4)), 1)
    )
    torch.testing.assert_close(kl(posterior), expected.expand(20_000))
    drawn = posterior.sample(training=True)
    torch.testing.assert_close(drawn.std(0), s[0].exp(), rtol=0.03, atol=0)
    assert torch.equal(posterior.sample(training=False), posterior.mean)
    torch.manual_seed(0)
    net.latent.reset_parameters()


def test_scores_by_hand(ready):
    loaded, model = ready
    batch = svae_batches(loaded, model)[0]
    net, own = model.nets[batch.target_domain], batch.own_history
    for row, scores in zip(own, model.score(batch), strict=True):
        read = [net.n + 1, *(int(x) - net.first + 1 for x in row if x)]
        torch.testing.assert_close(scores, by_hand(net, read)[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"input": "merged"}])
def test_what_all_batches_say_does_not_depend_on_their_size(tmp_path, settings):
    """Each target counts alike, and each user's KL, whatever the batch: the mean over all users."""
    totals = []
    for size in (1, 30, 10**6):
        _, model = build_svae(tmp_path / str(size), train_batch_size=size, total_anneal_steps=0, **settings)
        total = torch.zeros(2)
        for batch in svae_sequence_batches(model):
            n = (batch.targets != 0).sum() / model.targets_per_user[batch.tag]
            total += torch.stack(model.sequence_loss(batch)) * n
        totals.append(total)
    torch.testing.assert_close(totals[0], totals[1])
    torch.testing.assert_close(totals[0], totals[2])
    assert sum(len(s.events) for s in model.training_sequences.kinds) > sum(model.users)


def test_weight_of_the_kl_grows_with_the_users_seen(tmp_path):
    _, model = build_svae(tmp_path, total_anneal_steps=1000)
    users = [len(np.unique(s.events.sequence)) for s in model.training_sequences.kinds]
    assert model.users == users
    for epoch in (0, 1):
        model.train().start_epoch(Phase(), epoch)
        for net in (0, 1):
            assert model.kl_weight(net) == epoch * users[net] / 1000
        for batch in svae_sequence_batches(model):
            model.sequence_loss(batch)
        for net in (0, 1):
            assert model.kl_weight(net) == pytest.approx((epoch + 1) * users[net] / 1000)
    model.eval().start_epoch(Phase(), 1000)
    assert model.kl_weight(0) == 0.2
    assert model.epoch_facts()["kl weight"] == 0.2


# -- one pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", SVAE_FORMS)
def test_one_pass_is_asking_at_each_position(tmp_path, form):
    """The state at a position is that of the instance whose target comes next; its other targets follow that one."""
    loaded, model = build_svae(tmp_path, random_domains(n_users=25), next_k=3, **form)
    split, asked = loaded.split, 0
    row_of = {(u, i): r for r, (u, i) in enumerate(zip(split.train.user, split.train.target, strict=True))}
    for batch in svae_sequence_batches(model):
        source, net = model.training_sequences.kinds[batch.tag], model.nets[model._net_of(batch.tag)]
        targets, states = batch["next_seq"], net.states(batch.items)
        for row, place in (targets[:, :, 0] != 0).nonzero().tolist():
            event, target = int(batch["event"][row, place]), targets[row, place].tolist()
            user, domain = source.events.user[event], source.events.domain[event]
            later = source.events.item[event:][
                (source.events.user[event:] == user) & (source.events.domain[event:] == domain)
            ]
            assert target == [*later[:3], 0, 0][:3]
            asked += 1
            if (user, target[0]) not in row_of:  # an instance without any history
                assert batch.items[row, 0] == model.n_items and place == 0
                continue
            instance = make_batch(
                split.train, np.array([row_of[user, target[0]]]), max_length=60, merged=model.needs_merged
            )
            mean = net.posterior(states[row, place].unsqueeze(0)).mean
            torch.testing.assert_close(model.posterior(instance).mean, mean, rtol=1e-4, atol=1e-5)
    assert asked == sum(len(source.owner) for source in model.training_sequences.kinds)
    if model.bos:  # every training event is a target
        assert asked == len(split.train_events)


@pytest.mark.parametrize("form", SVAE_FORMS)
def test_what_follows_changes_no_earlier_step(tmp_path, form):
    _, model = build_svae(tmp_path, **form)
    batch = max(svae_sequence_batches(model), key=lambda b: (b.targets != 0).sum(1).min())
    net = model.nets[model._net_of(batch.tag)]
    cut = int((batch.items != 0).sum(1).min()) - 1
    assert cut >= 1
    changed = batch.items.clone()
    first, n = net.first, net.n
    changed[:, cut:] = torch.where(changed[:, cut:] != 0, first + (changed[:, cut:] - first + 1) % n, 0)
    before, after = net.states(batch.items), net.states(changed)
    assert torch.equal(before[:, :cut], after[:, :cut])
    assert (before[:, cut] != after[:, cut]).any(1).all()


def test_windows_cut_what_is_read_and_not_what_is_predicted(tmp_path):
    rows = {
        "books": [("solo", f"b{i}", float(i)) for i in range(9)] + [("other", "b0", 1.0)],
        "films": [("solo", f"f{i}", 20.0 + i) for i in range(3)],
    }
    loaded, model = build_svae(tmp_path, rows, max_history_length=4, next_k=3)
    b = [loaded.id_of("books", f"b{i}") for i in range(9)]
    found = []
    for batch in svae_sequence_batches(model):
        if batch.tag == 0:
            for read, target in zip(batch.items, batch["next_seq"], strict=True):
                found.append((read[read != 0].tolist(), target[read != 0].tolist()))
    following = [[*b[i : i + 3], 0, 0][:3] for i in range(9)]
    assert (
        sorted(found)
        == sorted(
            [
                ([model.n_items], [following[0]]),
                ([model.n_items], [[b[0], 0, 0]]),  # a single item is a target, too
                (b[:4], following[1:5]),
                (b[4:8], following[5:]),
            ]
        )
    )


# -- scores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", SVAE_FORMS)
def test_padding_neighbours_targets_and_repetition_change_no_score(tmp_path, form):
    loaded, model = build_svae(tmp_path, **form)
    fields = ["history_0", "history_1", *(["merged"] if model.needs_merged else [])]
    for batch in svae_batches(loaded, model):
        whole = model.encode(batch)
        padded = {name: torch.nn.functional.pad(batch[name], (3, 0)) for name in fields}
        torch.testing.assert_close(model.encode(batch.with_fields(**padded)), whole)
        alone = torch.cat([model.encode(batch.rows(torch.tensor([i]))) for i in range(len(batch))])
        torch.testing.assert_close(alone, whole)
        assert torch.equal(model.encode(batch.with_fields(item_id=torch.ones_like(batch.targets))), whole)
        assert torch.equal(model.encode(batch), whole)


def test_the_last_item_matters_and_the_other_domain_does_not(ready):
    loaded, model = ready
    for batch in svae_batches(loaded, model):
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
    loaded, model = build_svae(tmp_path, bos=bos)
    for batch in svae_batches(loaded, model):
        cold = batch.with_fields(**{f"history_{batch.target_domain}": torch.zeros_like(batch.own_history)})
        scores = model.score(cold)
        assert torch.isfinite(scores).all()
        torch.testing.assert_close(scores, scores[:1].expand_as(scores))
        assert model.can_score(cold) is None if bos else not model.can_score(cold).any()
        if not bos:
            assert torch.equal(model.can_score(batch), batch.own_history.any(1))
            with torch.no_grad():  # nothing to learn, and nothing that is not a number
                assert sum(model.calculate_loss(cold)) == 0


@pytest.mark.parametrize("settings", [{"input": "merged"}, CLOCKLESS_SVAE])
def test_merged_input_reads_the_other_domain(tmp_path, settings):
    loaded, model = build_svae(tmp_path, **settings)
    seen = 0
    for batch in svae_batches(loaded, model):
        x, read = batch.target_domain, model.read(batch)
        span = model.item_slice(x)
        own = (read >= span.start) & (read < span.stop)
        known = (batch.own_history != 0).sum(1)
        assert torch.equal(own.sum(1), known)
        other = ((read != 0) & (read != model.n_items) & ~own).sum(1)
        assert torch.equal(other, (batch.history(1 - x) != 0).sum(1))
        assert ((read == model.n_items).sum(1) == 1).all()
        if settings is CLOCKLESS_SVAE:  # own items behind all others
            assert all(bool(row[len(row) - n :].all()) for row, n in zip(own, known.tolist(), strict=True))
        seen += int(other.sum())
        assert model.score(batch).shape == (len(batch), span.stop - span.start)
    assert seen


def test_swapping_the_domains_swaps_the_scores(tmp_path):
    rows = random_domains()
    one, model = build_svae(tmp_path / "a", rows)
    two, twin = build_svae(tmp_path / "b", dict(reversed(rows.items())), seed=1)
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
    for batch in svae_batches(one, model):
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
    loaded, model = build_svae(tmp_path, rows, **{**wide, **settings})
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
    loaded, model = build_svae(tmp_path, rows, next_k=2)
    train(loaded, model, 20, lr=1e-2)
    batch = next(b for b in svae_batches(loaded, model) if b.target_domain == 0)
    cold = batch.with_fields(history_0=torch.zeros_like(batch.own_history))
    best = set((model.score(cold)[0].topk(2).indices + 1).tolist())
    assert best == {loaded.id_of("books", "b3"), loaded.id_of("books", "b7")}


def test_domains_train_side_by_side_and_share_nothing(ready):
    _, model = ready
    for batch in svae_sequence_batches(model):
        model.zero_grad()
        sum(model.sequence_loss(batch)).backward()
        assert all(p.grad is None for p in model.nets[1 - batch.tag].parameters())
        assert all(p.grad is not None and p.grad.any() for p in model.nets[batch.tag].parameters())
    model.zero_grad()


def test_same_seed_same_weights_and_a_round_trip_keeps_the_scores(tmp_path):
    loaded, model = build_svae(tmp_path)
    twin, other = SVAE(loaded.config, loaded.data).eval(), build_svae(tmp_path)[1]
    for each in (model, other):
        torch.manual_seed(3)
        train(loaded, each, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    twin.load_state_dict(model.state_dict())
    for batch in svae_batches(loaded, model):
        assert torch.equal(twin.score(batch), model.score(batch))


def test_a_batch_without_targets_is_no_loss(tmp_path):
    _, model = build_svae(tmp_path, **CLOCKLESS_SVAE)
    batch = svae_sequence_batches(model)[0]
    batch = SequenceBatch({**batch.interaction, "next_seq": torch.zeros_like(batch["next_seq"])}, batch.tag)
    loss = sum(model.train().sequence_loss(batch))
    loss.backward()
    assert loss == 0 and not any(p.grad is not None and p.grad.isnan().any() for p in model.parameters())


def test_three_domains_and_users_without_overlap(tmp_path):
    rows = {
        name: [(f"{name}{u}", i, t) for u, i, t in events]
        for name, events in random_domains(names=("books", "films", "games")).items()
    }
    loaded, model = build_svae(tmp_path, rows, input="merged")
    losses = train(loaded, model, 3)
    assert losses[-1] < losses[0] and all(math.isfinite(loss) for loss in losses)
    assert {b.target_domain for b in svae_batches(loaded, model)} == {0, 1, 2}


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
        build_svae(tmp_path, random_domains(n_users=10), **settings)
