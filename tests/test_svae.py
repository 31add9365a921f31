"""SVAE against its equations, on whole sequences and on instances."""

from __future__ import annotations

import numpy as np
import pytest
import svae_model
import torch
from support import random_domains
from svae_model import FORMS, batches, build, sequence_batches
from torch.distributions import Independent, Normal, kl_divergence

from recbole_cdr_ext.data.instances import make_batch
from recbole_cdr_ext.model.parts.layers import kl
from recbole_cdr_ext.model.phase import Phase

ready = svae_model.ready


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
    _, model = build(tmp_path, rows, bos=False, next_k=2, **settings)
    with torch.no_grad():
        model.nets[0].output[:, -1].normal_()
    (batch,) = [batch for batch in sequence_batches(model) if batch.tag == 0]
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
    batch = batches(loaded, model)[0]
    net, own = model.nets[batch.target_domain], batch.own_history
    for row, scores in zip(own, model.score(batch), strict=True):
        read = [net.n + 1, *(int(x) - net.first + 1 for x in row if x)]
        torch.testing.assert_close(scores, by_hand(net, read)[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"input": "merged"}])
def test_what_all_batches_say_does_not_depend_on_their_size(tmp_path, settings):
    """Each target counts alike, and each user's KL, whatever the batch: the mean over all users."""
    totals = []
    for size in (1, 30, 10**6):
        _, model = build(tmp_path / str(size), train_batch_size=size, total_anneal_steps=0, **settings)
        total = torch.zeros(2)
        for batch in sequence_batches(model):
            n = (batch.targets != 0).sum() / model.targets_per_user[batch.tag]
            total += torch.stack(model.sequence_loss(batch)) * n
        totals.append(total)
    torch.testing.assert_close(totals[0], totals[1])
    torch.testing.assert_close(totals[0], totals[2])
    assert sum(len(s.events) for s in model.training_sequences.kinds) > sum(model.users)


def test_weight_of_the_kl_grows_with_the_users_seen(tmp_path):
    _, model = build(tmp_path, total_anneal_steps=1000)
    users = [len(np.unique(s.events.sequence)) for s in model.training_sequences.kinds]
    assert model.users == users
    for epoch in (0, 1):
        model.train().start_epoch(Phase(), epoch)
        for net in (0, 1):
            assert model.kl_weight(net) == epoch * users[net] / 1000
        for batch in sequence_batches(model):
            model.sequence_loss(batch)
        for net in (0, 1):
            assert model.kl_weight(net) == pytest.approx((epoch + 1) * users[net] / 1000)
    model.eval().start_epoch(Phase(), 1000)
    assert model.kl_weight(0) == 0.2
    assert model.epoch_facts()["kl weight"] == 0.2


# -- one pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_one_pass_is_asking_at_each_position(tmp_path, form):
    """The state at a position is that of the instance whose target comes next; its other targets follow that one."""
    loaded, model = build(tmp_path, random_domains(n_users=25), next_k=3, **form)
    split, asked = loaded.split, 0
    row_of = {(u, i): r for r, (u, i) in enumerate(zip(split.train.user, split.train.target, strict=True))}
    for batch in sequence_batches(model):
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


@pytest.mark.parametrize("form", FORMS)
def test_what_follows_changes_no_earlier_step(tmp_path, form):
    _, model = build(tmp_path, **form)
    batch = max(sequence_batches(model), key=lambda b: (b.targets != 0).sum(1).min())
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
    loaded, model = build(tmp_path, rows, max_history_length=4, next_k=3)
    b = [loaded.id_of("books", f"b{i}") for i in range(9)]
    found = []
    for batch in sequence_batches(model):
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
