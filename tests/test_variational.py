"""What DisenCDR and CDRIB share: the graph encoder, batches of pairs, and what every model must keep to."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import load, random_domains

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.cdrib import CDRIB
from recbole_cdr_ext.model.next_item.disencdr import DisenCDR
from recbole_cdr_ext.model.parts.layers import Gaussian
from recbole_cdr_ext.model.variational_graph import DomainGraph, GaussianLayers, GraphLayer, sampled
from recbole_cdr_ext.splits.audit import LeakError
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.split import TrainingData

MODELS = {"DisenCDR": DisenCDR, "CDRIB": CDRIB}
SMALL = {
    "embedding_size": 16,
    "train_batch_size": 64,
    "dropout": 0.0,
    "deviation": "published",
    "kl_weight": 1.0,
}
# Where the noise must not stand in the way of learning by heart.
SURE = {"deviation": "softplus", "kl_weight": 1e-4}

both_models = pytest.mark.parametrize("name", list(MODELS))


def build(tmp_path, name, domains=None, seed=0, **settings):
    loaded = load(tmp_path, domains or random_domains(), model=name, **{**SMALL, **settings})
    torch.manual_seed(seed)
    return loaded, MODELS[name](loaded.config, loaded.data).eval()


def train(model, epochs, lr=0.02, seed=0):
    """All phases, a first one for two epochs; returns the loss of each epoch of the last one."""
    losses = []
    for phase in model.phases():
        optimizer = torch.optim.Adam([p for _, p in model.parameters_of(phase)], lr=lr)
        losses = []
        model.train()
        for epoch in range(2 if phase.settings else epochs):
            total = 0.0
            for batch in phase.batches(np.random.default_rng((seed, epoch))):
                optimizer.zero_grad()
                loss = sum((phase.loss or model.calculate_loss)(batch))
                loss.backward()
                optimizer.step()
                total += loss.item()
            losses.append(total)
    model.eval()
    return losses


def batches(loaded, model, part="test"):
    return list(CrossDomainLoader(loaded.config, loaded.split.part(part), model))


@pytest.fixture(scope="module", params=list(MODELS))
def ready(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp(request.param), request.param)


# -- the encoder --------------------------------------------------------------------------------------------------


def test_a_layer_by_hand():
    """Users 4 and 6 share item 0, user 6 alone has item 1; d = 1, slope 0.1."""
    graph = DomainGraph(np.array([4, 6, 6]), np.array([0, 0, 1]), 8, 3, "cpu")
    assert graph.members.tolist() == [4, 6] and graph.place.tolist() == [-1, -1, -1, -1, 0, -1, 1, -1]
    layer = GraphLayer(1, 1, 0.1)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), (2.0, -1.0, 3.0, 1.0, (0.5, 4.0), 0.25), strict=True):
            parameter.copy_(torch.tensor(value).view(parameter.shape))
    (out,) = layer(torch.tensor([[1.0], [-2.0]]), graph.to_items, graph.to_users)
    # Items: means -1/2 and -2, times 2, minus 1; the third has no user, and is its bias.
    items = [0.1 * (-0.5 * 2 - 1), 0.1 * (-2 * 2 - 1), 0.1 * -1]
    users = [items[0] * 3 + 1, (items[0] + items[1]) / 2 * 3 + 1]
    smoothed = [u if u > 0 else 0.1 * u for u in users]
    expected = [0.5 * smoothed[0] + 4 * 1 + 0.25, 0.5 * smoothed[1] + 4 * -2 + 0.25]
    torch.testing.assert_close(out, torch.tensor(expected).unsqueeze(1))


@pytest.mark.parametrize(("n_users", "n_items"), [(5, 9), (9, 5)])
def test_a_layer_and_its_gradient_equal_the_dense_ones(n_users, n_items):
    """On both sides, whichever has fewer rows."""
    rng = np.random.default_rng(0)
    dense = (rng.random((n_users, n_items)) < 0.4).astype(np.float32)
    dense[:, 0] = 1  # everybody is a member
    graph = DomainGraph(*np.nonzero(dense), n_users, n_items, "cpu")
    mean = torch.from_numpy(dense / dense.sum(1, keepdims=True))
    back = torch.from_numpy(dense.T / np.maximum(dense.T.sum(1, keepdims=True), 1))
    layer = GraphLayer(4, 2, 0.1)
    for there, here, rows in (
        (graph.to_items, (back, mean), n_users),
        (graph.to_users, (mean, back), n_items),
    ):
        other = graph.to_users if there is graph.to_items else graph.to_items
        x, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(2, rows, 4)
        found = layer(x, there, other)
        hidden = torch.nn.functional.leaky_relu(here[0] @ x @ layer.inner.weight.T + layer.inner.bias, 0.1)
        outer = torch.nn.functional.leaky_relu(
            here[1] @ hidden @ layer.outer.weight.T + layer.outer.bias, 0.1
        )
        expected = [u(torch.cat([p, x], 1)) for p, u in zip(outer.split(4, 1), layer.union, strict=True)]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        wanted = [x, *layer.parameters()]
        gradients = (torch.autograd.grad((torch.stack(o) * weight).sum(), wanted) for o in (found, expected))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_deviations():
    s = torch.tensor([[-1e3, -1.0, 0.3, 2.0]], requires_grad=True)
    made = GaussianLayers(d=4, n_layers=1, dropout=0.0, slope=0.1, deviation="published", cap=0.4)
    deviation = (0.5 * made.gaussian(s, s).logvar).exp()
    expected = [math.exp(0.1 + 0.9 * math.log1p(math.exp(v))) for v in (-1e3, -1.0, 0.3, 0.4)]
    torch.testing.assert_close(deviation, torch.tensor([expected]))
    free = made._replace(deviation="softplus", cap=None).gaussian(s, s).logvar
    torch.testing.assert_close((0.5 * free).exp()[0, 1:], torch.nn.functional.softplus(s[0, 1:]))
    free.sum().backward()
    assert torch.isfinite(free).all() and torch.isfinite(s.grad).all()


def test_noise_has_the_deviation_and_only_in_training():
    torch.manual_seed(0)
    q = Gaussian(torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [2 * math.log(3.0)]]))
    rows = torch.tensor([[0, 1]]).expand(20000, 2)
    drawn = sampled(q, rows, training=True).squeeze(2)
    assert drawn.mean(0).tolist() == pytest.approx([1, 5], abs=0.1)
    assert drawn.std(0).tolist() == pytest.approx([1, 3], rel=0.03)
    assert sampled(q, rows, training=False)[0, :, 0].tolist() == [1, 5]


# -- batches ------------------------------------------------------------------------------------------------------


def test_an_epoch_has_every_training_pair_once_and_true_negatives(ready):
    loaded, model = ready
    split = loaded.split
    trained = set(zip(split.train_events.user.tolist(), split.train_events.item.tolist(), strict=True))
    epoch = list(model.edge_batches(np.random.default_rng(0)))
    assert len(epoch) == math.ceil(len(trained) / 64)
    seen, shares = [], []
    for batch in epoch:
        user, item, negative = (batch[f].numpy() for f in ("user_id", "item_id", "neg_item_id"))
        seen += zip(user.tolist(), item.tolist(), strict=True)
        assert not trained & set(zip(user.tolist(), negative[:, 0].tolist(), strict=True))
        assert (
            np.searchsorted(split.item_offset, negative[:, 0], "right")
            == np.searchsorted(split.item_offset, item, "right")
        ).all()
        shares.append((item < split.item_offset[1]).sum())
    assert sorted(seen) == sorted(trained) and max(shares) - min(shares) <= 1
    again = list(model.edge_batches(np.random.default_rng(0)))
    assert all(torch.equal(a["neg_item_id"], b["neg_item_id"]) for a, b in zip(epoch, again, strict=True))


def test_a_held_out_pair_among_the_edges_stops_the_model(ready):
    loaded, model = ready
    split, events = loaded.split, loaded.split.train_events
    user, item = events.user.copy(), events.item.copy()
    user[0], item[0] = split.valid.user[0], split.valid.target[0]
    leaking = replace(split, train_events=replace(events, user=user, item=item))
    with pytest.raises(LeakError, match="graphs' edges"):
        type(model)(loaded.config, TrainingData.of(loaded.dataset, leaking))


# -- what every model keeps to ------------------------------------------------------------------------------------


@both_models
def test_it_learns_its_training_pairs_by_heart(tmp_path, name):
    loaded, model = build(
        tmp_path,
        name,
        random_domains(n_users=32, n_items=40),
        split="leave_one_out",
        train_targets="last",
        **{**SURE, "embedding_size": 32, "train_batch_size": 512},
    )
    losses = train(model, 80)
    assert losses[-1] < 0.5 * losses[0]
    hits = total = 0
    for batch in batches(loaded, model, "train"):
        local = batch.targets - model.item_offsets[batch.target_domain]
        hits += int((model.score(batch).topk(10).indices == local.unsqueeze(1)).any(1).sum())
        total += len(batch)
    assert hits / total > 0.95


def topics(n_users=80, n_topics=4, per_topic=6):
    """Everybody's items in both domains are of one topic, which nothing but the user's other items shows."""
    rng = np.random.default_rng(0)
    rows = {"books": [], "films": []}
    for u in range(n_users):
        for place, name in enumerate(rows):
            for item in rng.choice(per_topic, 4, replace=False) + per_topic * (u % n_topics):
                rows[name].append((f"u{u}", f"{name[0]}{item}", float(2 * rng.integers(10**6) + place)))
    return rows


@both_models
def test_a_cold_users_items_are_of_the_topic_seen_elsewhere(tmp_path, name):
    loaded, model = build(
        tmp_path,
        name,
        topics(),
        cold_start_ratio=1.0,
        split_ratio=[0.6, 0.2, 0.2],
        **{**SURE, "kl_weight": 1e-3, "dropout": 0.3, "train_batch_size": 256},
    )
    train(model, 80)
    right = []
    for batch in batches(loaded, model) + batches(loaded, model, "valid"):
        own = [graph.place[batch.users] >= 0 for graph in model.graphs]
        cold = own[1 - batch.target_domain] & ~own[batch.target_domain]
        offset = model.item_offsets[batch.target_domain]
        number = [int(t[1:]) for t in loaded.dataset.item_token(np.arange(offset, offset + 24))]
        topic = torch.tensor(number) // 6
        best = topic[model.score(batch).topk(4).indices]
        right.append((best == topic[batch.targets - offset].unsqueeze(1))[cold])
    right = torch.cat(right)
    assert len(right) > 15 and right.float().mean() > 0.9, "a quarter by chance"


def test_scores_depend_on_the_user_alone(ready):
    """Rows one by one, padding, targets, histories: nothing of them matters; two calls are equal."""
    loaded, model = ready
    for batch in batches(loaded, model):
        whole = model.score(batch)
        assert torch.isfinite(whole).all() and torch.equal(whole, model.score(batch))
        alone = torch.cat([model.score(batch.rows(torch.tensor([i]))) for i in range(len(batch))])
        torch.testing.assert_close(alone, whole)
        nothing = torch.zeros(len(batch), 3, dtype=torch.long)
        other = batch.with_fields(item_id=batch.targets * 0 + 1, history_0=nothing, history_1=nothing)
        assert torch.equal(model.score(other), whole)


@both_models
def test_propagated_vectors_are_kept_until_a_weight_changes(tmp_path, name):
    loaded, model = build(tmp_path, name)
    batch = batches(loaded, model)[0]
    before, state = model.score(batch), {k: v.clone() for k, v in model.state_dict().items()}
    assert model._tables() is model._tables()
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    assert not torch.equal(model.score(batch), before), "an optimiser's step"
    model.load_state_dict(state)
    assert torch.equal(model.score(batch), before), "a checkpoint"
    parameter = next(model.parameters())
    parameter.data = parameter.data * 2
    assert not torch.equal(model.score(batch), before), "weights that are averaged"
    _, twin = build(tmp_path / "twin", name, seed=1)
    twin.load_state_dict(state)
    assert torch.equal(twin.score(batch), before)


@both_models
def test_one_seed_one_model(tmp_path, name):
    scores = []
    for seed in (1, 1, 2):
        loaded, model = build(tmp_path, name, seed=seed, dropout=0.3, train_batch_size=512)
        train(model, 2)
        scores.append(model.score(batches(loaded, model)[0]))
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])


@both_models
def test_swapping_the_domains_swaps_the_scores(tmp_path, name):
    rows = random_domains()
    one, model = build(tmp_path / "a", name, rows, split="leave_one_out")
    two, twin = build(tmp_path / "b", name, dict(reversed(rows.items())), seed=1, split="leave_one_out")
    user = torch.from_numpy(
        two.dataset.token2id("user_id", one.dataset.id2token("user_id", range(model.n_users)))
    )
    item = torch.zeros(model.n_items, dtype=torch.long)
    for k in (0, 1):
        ids = np.arange(*one.dataset.item_offset[k : k + 2])
        item[ids] = torch.from_numpy(two.dataset.item_ids(1 - k, list(one.dataset.item_token(ids))))
    rows_of = []  # for each domain, the places in the twin of the model's members, and of its items
    for k, graph in enumerate(model.graphs):
        there = twin.graphs[1 - k]
        local = item[model.item_slice(k)] - twin.item_offsets[1 - k]
        rows_of.append((there.place[user[graph.members]], local))
    state = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if parts[0] == "critic":
            if key == "critic.0.weight":  # reads [v^X; v^Y]
                value = torch.cat(value.chunk(2, 1)[::-1], 1)
            state[key] = value
            continue
        k = int(parts[place])
        parts[place] = str(1 - k)
        if "table" in key:
            which = rows_of[k][1 if "item" in key else 0]
            value = torch.empty_like(value).index_copy(0, which, value)
        state[".".join(parts)] = value
    twin.load_state_dict(state)
    for batch in batches(one, model):
        fields = {"user_id": user[batch.users], "item_id": item[batch.targets]}
        swapped = Batch(fields, 1 - batch.target_domain, 2)
        permuted = item[model.item_slice(batch.target_domain)] - twin.item_offsets[1 - batch.target_domain]
        torch.testing.assert_close(twin.score(swapped)[:, permuted], model.score(batch), rtol=1e-4, atol=1e-5)
    epoch = next(iter(model.edge_batches(np.random.default_rng(0))))
    mirrored = type(epoch)(
        {"user_id": user[epoch["user_id"]], **{f: item[epoch[f]] for f in ("item_id", "neg_item_id")}}
    )
    model._contrast = twin._contrast = lambda users: torch.zeros(())  # who is drawn differs
    for a, b in zip(model.calculate_loss(epoch), twin.calculate_loss(mirrored), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@both_models
def test_without_overlapping_users_it_trains(tmp_path, name, caplog):
    rows = random_domains(n_users=40)
    rows = {d: [r for r in rows[d] if int(r[0][1:]) % 2 == k] for k, d in enumerate(rows)}
    loaded, model = build(tmp_path, name, rows, split="leave_one_out")
    assert (name == "CDRIB") == ("both domains" in caplog.text)
    losses = train(model, 3)
    assert np.isfinite(losses).all()
    for batch in batches(loaded, model):
        assert torch.isfinite(model.score(batch)).all() and model.can_score(batch).all()


@both_models
def test_users_without_any_training_pair_are_disowned(tmp_path, name):
    """overlap_ratio takes the overlapping held-out users out of training."""
    loaded, model = build(tmp_path, name, overlap_ratio=0.5)
    found = []
    for batch in batches(loaded, model):
        known = model.can_score(batch)
        trained = np.isin(batch.users.numpy(), loaded.split.train_events.user)
        assert known.tolist() == trained.tolist()
        assert not model.encode(batch)[~known].any()
        found.append(known)
    assert 0 < torch.cat(found).sum() < len(torch.cat(found))


@both_models
@pytest.mark.parametrize(
    "settings",
    [
        {"train_on_histories": False},
        {"deviation": "exp"},
        {"kl_weight": -1.0},
        {"n_layers": 0},
        {"dropout": 1.0},
        {"leaky_slope": -0.1},
    ],
)
def test_settings_that_cannot_be_are_one_clear_error(tmp_path, name, settings):
    with pytest.raises(CDRError, match=next(iter(settings))):
        load(tmp_path, random_domains(n_users=10), model=name, **settings)
