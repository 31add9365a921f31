"""DisenCDR against its equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import load, random_domains
from test_variational import batches, build
from torch.distributions import Independent, Normal, kl_divergence

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import Gaussian


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return build(tmp_path_factory.mktemp("disencdr"), "DisenCDR")


def first_batch(model):
    return next(iter(model.edge_batches(np.random.default_rng(0))))


def as_distribution(z):
    return Independent(Normal(z.mean, (0.5 * z.logvar).exp()), 1)


def standard(z):
    return Independent(Normal(torch.zeros_like(z.mean), torch.ones_like(z.mean)), 1)


def test_the_loss_is_made_of_torchs_divergences(ready):
    _, model = ready
    found = model.calculate_loss(first_batch(model))
    own, q = model.own(), model.shared()
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


def test_binary_cross_entropy_by_hand(ready):
    _, model = ready
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


def test_a_cold_users_scores_are_its_shared_part(ready):
    loaded, model = ready
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


def test_warm_up_trains_the_specific_part_alone(ready):
    _, model = ready
    warmup, main = model.phases()
    assert dict(warmup.settings) == {"epochs": 9} and not warmup.validated and main.ranks_to_validate
    model.zero_grad()
    loss = sum(getattr(model, warmup.loss)(first_batch(model)))
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
def test_settings_that_cannot_be_are_one_clear_error(tmp_path, settings):
    with pytest.raises(CDRError, match=next(iter(settings))):
        load(tmp_path, random_domains(n_users=10), model="DisenCDR", **settings)
