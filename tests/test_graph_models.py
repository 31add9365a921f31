"""CDRIB and DisenCDR, two models on variational graphs, against their equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import load, random_domains
from test_variational import batches, build
from torch.distributions import Independent, Normal, kl_divergence

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.cdrib import another, contrastive_loss
from recbole_cdr_ext.model.parts.layers import Gaussian


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cdrib"), "CDRIB")


def first_batch(model):
    return next(iter(model.edge_batches(np.random.default_rng(0))))


def test_vectors_are_the_outputs_of_all_layers(ready):
    _, model = ready
    users, items = model.vectors()
    assert all(table.shape[1] == 3 * 16 for table in (*users, *items))
    domain, graph = model.encoders[0], model.graphs[0]
    hidden, last = domain.items(domain.item_table, graph.to_users, graph.to_items)
    assert len(hidden) == 2 and all((h >= 0).all() for h in hidden)
    torch.testing.assert_close(items[0], torch.cat([*hidden, last.mean], 1))


def test_an_overlapping_users_pairs_train_the_other_domains_row(ready):
    """And a user of one domain its own."""
    _, model = ready
    batch = first_batch(model)
    k = 0
    is_x = (batch["item_id"] < model.item_offsets[1]).nonzero().squeeze(1)
    both = torch.isin(batch["user_id"], model.overlapping)
    for asked, trained in ((is_x[both[is_x]][:1], 1 - k), (is_x[~both[is_x]][:1], k)):
        model.zero_grad()
        one = type(batch)({f: batch[f][asked] for f in ("user_id", "item_id", "neg_item_id")})
        model.calculate_loss(one).bce.backward()
        user = one["user_id"][0]
        row = model.encoders[trained].user_table.grad[model.graphs[trained].place[user]]
        assert row.any()
        silent = model.encoders[1 - trained].user_table.grad
        assert silent is None or not silent.any()


def test_represented_by_the_other_encoder_where_there_is_one(ready):
    _, model = ready
    made = [encoder()[0] for encoder in model.encoders]
    asked = model.graphs[0].members.flip(0)
    order, vectors = model.represented(0, asked, made)
    assert sorted(order.tolist()) == list(range(len(asked)))
    for user, vector in zip(asked[order], vectors, strict=True):
        k = 1 if user in model.overlapping else 0
        torch.testing.assert_close(vector, made[k].means()[model.graphs[k].place[user]])


def test_the_loss_by_hand(ready):
    _, model = ready
    batch = first_batch(model)
    found = model.calculate_loss(batch)
    users, items = model.vectors()  # warm_score is cross, as in training
    bce = 0.0
    for k in (0, 1):
        span = model.item_slice(k)
        own = (batch["item_id"] >= span.start) & (batch["item_id"] < span.stop)
        u = users[k][batch["user_id"][own]]
        scores = [
            (u * items[k][i - span.start]).sum(1)
            for i in (batch["item_id"][own], batch["neg_item_id"][own, 0])
        ]
        bce += -scores[0].sigmoid().log().mean() - (1 - scores[1].sigmoid()).log().mean()
    torch.testing.assert_close(found.bce, bce, rtol=1e-4, atol=1e-4)
    divergence = 0.0
    for encoder in model.encoders:
        for weight, nodes in zip((1.5, 1.0), encoder(), strict=True):
            q = Normal(nodes.last.mean, (0.5 * nodes.last.logvar).exp())
            p = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))
            divergence += weight * kl_divergence(Independent(q, 1), Independent(p, 1)).mean()
    torch.testing.assert_close(found.kl, divergence)
    assert 0 < found.contrastive < 2 * (0.3 + 1)


def test_contrastive_losses_by_hand():
    c = torch.tensor([-2.0, 0.0, 3.0])
    assert contrastive_loss(c, [c, c], 0.3).item() == pytest.approx(2 * 0.3), "γ a side at c⁺ = c⁻"
    sure = torch.full((3,), 9.0)
    assert contrastive_loss(sure, [-sure, -sure], 0.3).item() == 0
    one, other = torch.tensor([1.0]), torch.tensor([0.5])
    sigmoid = [1 / (1 + math.exp(-x)) for x in (1.0, 0.5)]
    expected = 2 * (0.3 - sigmoid[0] + sigmoid[1])
    assert contrastive_loss(one, [other, other], 0.3).item() == pytest.approx(expected)
    expected = -math.log(sigmoid[0]) - 2 * math.log(1 - sigmoid[1])
    assert contrastive_loss(one, [other, other], None).item() == pytest.approx(expected)


def test_a_negative_is_another_user():
    torch.manual_seed(0)
    rows = torch.arange(5).repeat(400)
    drawn = another(rows, 5)
    assert (drawn != rows).all()
    counts = torch.bincount(drawn[rows == 2], minlength=5)
    assert counts[2] == 0 and (counts[[0, 1, 3, 4]] > 60).all()
    assert another(torch.zeros(3, dtype=torch.long), 1).tolist() == [0, 0, 0]


def test_the_critic_sees_pairs_of_one_user_and_of_two(ready, monkeypatch):
    _, model = ready
    seen = []
    monkeypatch.setattr(model.critic, "forward", lambda pairs: seen.append(pairs) or pairs[:, :1])
    model.calculate_loss(first_batch(model))
    made = [encoder()[0].means() for encoder in model.encoders]
    positive, with_y, with_x = (part.chunk(2, 1) for part in seen[0].chunk(3))
    assert len(positive[0]) == min(64, len(model.overlapping))
    places = [graph.place[model.overlapping] for graph in model.graphs]
    pairs = torch.cat([m[p] for m, p in zip(made, places, strict=True)], 1)
    found = torch.cdist(torch.cat(positive, 1), pairs).argmin(1)
    torch.testing.assert_close(torch.cat(positive, 1), pairs[found])
    assert torch.equal(with_y[0], positive[0]) and torch.equal(with_x[1], positive[1])
    assert not (with_y[1] == positive[1]).all(1).any() and not (with_x[0] == positive[0]).all(1).any()


def test_warm_users_are_represented_as_asked_and_cold_ones_by_the_other_encoder(ready):
    _, model = ready
    made = [encoder()[0].means() for encoder in model.encoders]
    places = [graph.place for graph in model.graphs]
    cold = (places[0] < 0) & (places[1] >= 0)
    single = (places[0] >= 0) & (places[1] < 0)
    both = model.overlapping
    assert cold.any() and single.any()
    own, cross = made[0][places[0][both]], made[1][places[1][both]]
    try:
        for kind, expected in (("cross", cross), ("own", own), ("mean", (own + cross) / 2)):
            model.warm_score = kind
            users = model.vectors()[0][0]
            torch.testing.assert_close(users[both], expected)
            torch.testing.assert_close(users[single], made[0][places[0][single]])
            torch.testing.assert_close(users[cold], made[1][places[1][cold]])
            assert not users[(places[0] < 0) & (places[1] < 0)].any()
    finally:
        model.warm_score = "cross"


def test_a_cold_users_scores_change_with_an_edge_elsewhere(tmp_path):
    """The same weights on the data with and without one of the user's films."""
    rows = random_domains(n_users=30)
    cold = [("cold", f"f{i}", float(i)) for i in range(5)]
    scores = []
    for place, films in (("a", cold), ("b", cold[1:])):
        given = {**rows, "films": rows["films"] + films}
        loaded, model = build(tmp_path / place, "CDRIB", given, split="leave_one_out")
        users, items = model.vectors()
        user = loaded.user("cold")
        assert model.graphs[0].place[user] < 0
        scores.append(users[0][user] @ items[0].T)
    assert scores[0].shape == scores[1].shape and not torch.allclose(*scores)


def test_the_deviation_is_capped(ready):
    _, model = ready
    for encoder in model.encoders:
        for nodes in encoder():
            deviation = (0.5 * nodes.last.logvar).exp()
            highest = math.exp(0.1 + 0.9 * math.log1p(math.exp(0.4)))
            assert math.exp(0.1) <= deviation.min() and deviation.max() <= highest + 1e-5


def test_the_authors_prior(tmp_path):
    _, model = build(tmp_path, "CDRIB", official_prior=True)
    z = model.encoders[0]()[0].last
    prior = Normal(0.0, math.exp(0.1 + 0.9 * math.log1p(math.exp(0.4))))
    assert prior.stddev.item() == pytest.approx(2.5, abs=0.02)
    expected = kl_divergence(Normal(z.mean, (0.5 * z.logvar).exp()), prior).sum(1)
    torch.testing.assert_close(model._to_prior(z), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"warm_score": "other"},
        {"contrastive": "nce"},
        {"margin": -0.1},
        {"contrast_users": 0},
        {"user_kl_weight": -1.0},
    ],
)
def test_settings_that_cannot_be_are_one_clear_error(tmp_path, settings):
    with pytest.raises(CDRError, match=next(iter(settings))):
        load(tmp_path, random_domains(n_users=10), model="CDRIB", **settings)


@pytest.fixture(scope="module")
def disencdr_ready(tmp_path_factory):
    return build(tmp_path_factory.mktemp("disencdr"), "DisenCDR")


def as_distribution(z):
    return Independent(Normal(z.mean, (0.5 * z.logvar).exp()), 1)


def standard(z):
    return Independent(Normal(torch.zeros_like(z.mean), torch.ones_like(z.mean)), 1)


def test_the_loss_is_made_of_torchs_divergences(disencdr_ready):
    _, model = disencdr_ready
    found = model.calculate_loss(first_batch(model))
    own, q = model.specific_parts(), model.shared()
    specific = sum(kl_divergence(as_distribution(z), standard(z)).mean() for pair in own for z in pair)
    torch.testing.assert_close(found.specific, specific)
    known = torch.stack([graph.place >= 0 for graph in model.graphs]).any(0).nonzero().squeeze(1)
    torch.testing.assert_close(
        found.shared, 0.1 * kl_divergence(as_distribution(q[known]), standard(q[known])).mean()
    )
    alignment = sum(
        kl_divergence(as_distribution(q[g.members]), as_distribution(model.from_one_domain(k))).mean()
        for k, g in enumerate(model.graphs)
    )
    torch.testing.assert_close(found.alignment, 0.9 * alignment)


def test_binary_cross_entropy_by_hand(disencdr_ready):
    _, model = disencdr_ready
    users, items = ([t.detach() for t in tables] for tables in model.vectors())
    batch = first_batch(model)
    expected = 0.0
    for k in (0, 1):
        span = model.item_slice(k)
        scores = []
        for user, item, negative in zip(
            *(batch[f].tolist() for f in ("user_id", "item_id", "neg_item_id")), strict=True
        ):
            if span.start <= item < span.stop:
                scores.append([float(users[k][user] @ items[k][i - span.start]) for i in (item, *negative)])
        scores = np.array(scores)
        expected += np.log1p(np.exp(-scores[:, 0])).mean() + np.log1p(np.exp(scores[:, 1])).mean()
    assert model.calculate_loss(batch).bce.item() == pytest.approx(expected, rel=1e-4)


def test_the_mixture_is_by_each_users_share_of_interactions(tmp_path):
    rows = random_domains(n_users=20)
    rows["books"] += [("mixed", f"b{i}", float(i)) for i in range(3)]
    rows["films"] += [("mixed", "f0", 3.0)]
    rows["books"] += [("reader", f"b{i}", float(i)) for i in range(4)]
    # Four events of "mixed" train: leave_one_out would hold out two of them.
    rows["films"] += [("mixed", f"f{i}", 3.0 + i) for i in (1, 2)]
    loaded, model = build(tmp_path, "DisenCDR", rows, split="leave_one_out")
    mixed, reader = loaded.user("mixed"), loaded.user("reader")

    def weight(k, user):
        return float(getattr(model.shared, f"weight_{k}")[model.graphs[k].place[user], 0])

    assert weight(0, mixed) == 0.75 and weight(1, mixed) == 0.25
    assert weight(0, reader) == 1.0 and model.graphs[1].place[reader] == -1
    torch.manual_seed(0)
    q = model.shared()
    # One layer only: the mean and s are the mixture of those of the branches.
    model.shared.design = model.shared.design._replace(n_layers=1)
    for branch in model.shared.branches:
        branch[0] = branch[1]
    q = model.shared()
    parts = [
        branch[0](table, g.to_items, g.to_users)
        for branch, table, g in zip(model.shared.branches, model.shared.tables, model.graphs, strict=True)
    ]
    rows_of = [model.graphs[k].place[mixed] for k in (0, 1)]
    mean = 0.75 * parts[0][0][rows_of[0]] + 0.25 * parts[1][0][rows_of[1]]
    s = 0.75 * parts[0][1][rows_of[0]] + 0.25 * parts[1][1][rows_of[1]]
    expected = model.shared.design.gaussian(mean, s)
    torch.testing.assert_close(q[torch.tensor([mixed])].mean[0], expected.mean)
    torch.testing.assert_close(q[torch.tensor([mixed])].logvar[0], expected.logvar)
    torch.testing.assert_close(q.mean[reader], parts[0][0][model.graphs[0].place[reader]])


def test_a_cold_users_scores_are_its_shared_part(disencdr_ready):
    loaded, model = disencdr_ready
    checked = 0
    for batch in batches(loaded, model):
        k = batch.target_domain
        cold = (model.graphs[k].place[batch.users] < 0) & (model.graphs[1 - k].place[batch.users] >= 0)
        if not cold.any():
            continue
        users, items = model.vectors()
        asked = batch.users[cold]
        torch.testing.assert_close(users[k][asked], model.shared().mean[asked])
        model.zero_grad()
        (users[k][asked] @ items[k].T).square().sum().backward()
        assert not _gradient(model.specific[k].user_table), "specific tables of X"
        assert not _gradient(model.specific[1 - k].user_table)
        assert _gradient(model.shared.tables[1 - k]) and _gradient(model.specific[k].item_table)
        warm = model.graphs[k].members
        model.zero_grad()
        model.vectors()[0][k][warm].square().sum().backward()
        assert _gradient(model.specific[k].user_table)
        checked += int(cold.sum())
    assert checked


def _gradient(parameter):
    return parameter.grad is not None and bool(parameter.grad.any())


def test_warm_up_trains_the_specific_part_alone(disencdr_ready):
    _, model = disencdr_ready
    warmup, main = model.phases()
    assert dict(warmup.settings) == {"epochs": 9} and not warmup.validated and main.ranks_to_validate
    model.zero_grad()
    loss = sum(warmup.loss(first_batch(model)))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert _gradient(parameter) == name.startswith("specific."), name
    assert {n for n, _ in model.parameters_of(warmup)} == {
        n for n, _ in model.named_parameters() if n.startswith("specific.")
    }
    model.zero_grad()
    sum(model.calculate_loss(first_batch(model))).backward()
    assert all(_gradient(parameter) for parameter in model.parameters())


def test_without_warm_up_there_is_one_phase(tmp_path):
    _, model = build(tmp_path, "DisenCDR", warmup_epochs=0)
    assert [phase.name for phase in model.phases()] == ["train"]


def test_what_a_user_did_elsewhere_changes_the_shared_part(tmp_path):
    """The same start on the data with and without one user's films."""
    rows = random_domains(n_users=30)
    user = rows["books"][0][0]
    without = {**rows, "films": [r for r in rows["films"] if r[0] != user]}
    shared = []
    for place, given in (("a", rows), ("b", without)):
        loaded, model = build(tmp_path / place, "DisenCDR", given, split="leave_one_out")
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                values = torch.arange(parameter.shape[-1] if parameter.dim() else 1, dtype=torch.float32)
                parameter.copy_(torch.sin(values * 0.37 + i).expand_as(parameter) * 0.3)
        shared.append(model.shared().mean[loaded.user(user)])
    assert not torch.allclose(*shared)


def test_the_authors_noise_and_prior(tmp_path):
    _, model = build(tmp_path, "DisenCDR", official_noise=True)
    z = Gaussian(torch.zeros(1, 16), torch.full((1, 16), 0.4))
    deviation = float(np.exp(0.2))
    assert (0.5 * model._noisy(z).logvar).exp()[0, 0].item() == pytest.approx(np.exp(deviation))
    prior = Normal(0.0, np.exp(0.1 + 0.9 * np.log1p(np.e)))
    assert prior.stddev.item() == pytest.approx(3.6, abs=0.01)
    expected = 16 * kl_divergence(Normal(0.0, deviation), prior)
    torch.testing.assert_close(model._to_prior(z), expected.float().view(1))


def test_three_domains(tmp_path):
    loaded, model = build(tmp_path, "DisenCDR", random_domains(names=("books", "films", "games")))
    total = torch.zeros(model.n_users, 1)
    for k, graph in enumerate(model.graphs):
        total.index_add_(0, graph.members, getattr(model.shared, f"weight_{k}"))
    torch.testing.assert_close(total[model.shared.known], torch.ones(len(model.shared.known), 1))
    assert all(torch.isfinite(term) for term in model.train().calculate_loss(first_batch(model)))
    model.eval()
    assert {batch.target_domain for batch in batches(loaded, model)} == {0, 1, 2}
    assert all(torch.isfinite(model.score(batch)).all() for batch in batches(loaded, model))


@pytest.mark.parametrize("settings", [{"alignment_weight": 1.5}, {"warmup_epochs": -1}])
def test_disencdrs_settings_that_cannot_be_are_one_clear_error(tmp_path, settings):
    with pytest.raises(CDRError, match=next(iter(settings))):
        load(tmp_path, random_domains(n_users=10), model="DisenCDR", **settings)
