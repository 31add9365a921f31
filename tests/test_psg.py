"""LightGCN-PSG: propagation, recall, and that nothing held out is reachable; and the order-only yardstick."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import here, load, load_written, random_domains

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.lightgcn_psg import LightGCNPSG, graph_edges
from recbole_cdr_ext.model.next_item.order_pop import OrderPop, _places
from recbole_cdr_ext.model.parts.propagation import BipartiteGraph
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.audit import LeakError, audit_recalled
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.split import TrainingData, recall_rates

QUICK = {"embedding_size": 16, "train_batch_size": 512}


def train(model, epochs=8, seed=0, lr=0.01):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for batch in model.edge_batches(np.random.default_rng((seed, epoch))):
            optimizer.zero_grad()
            loss = sum(model.calculate_loss(batch))
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    model.eval()
    return losses


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    loaded = load(
        tmp_path_factory.mktemp("psg"),
        random_domains(n_users=150, n_items=60),
        model="LightGCNPSG",
        train_targets="last",
        **QUICK,
    )
    torch.manual_seed(0)
    model = LightGCNPSG(loaded.config, loaded.data)
    losses = train(model, epochs=20, lr=0.03)
    return loaded, model, losses


def test_propagation_by_hand():
    """u0 – i0 – u1: degrees 1, 2, 1, so every edge weighs 1/√2."""
    graph = BipartiteGraph(np.array([0, 1, 1]), np.array([0, 0, 0]), 2, 2)
    users, items = torch.tensor([[2.0], [4.0]]), torch.tensor([[6.0], [8.0]])
    new_users, new_items = graph.step(users, items)
    half = 1 / 2**0.5
    torch.testing.assert_close(new_users, torch.tensor([[6 * half], [6 * half]]))
    torch.testing.assert_close(new_items, torch.tensor([[(2 + 4) * half], [0.0]]))


def test_propagations_gradient():
    graph = BipartiteGraph(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 2]), 3, 4)
    graph.users_to_items.double(), graph.items_to_users.double()
    users, items = (torch.randn(n, 2, dtype=torch.double, requires_grad=True) for n in (3, 4))
    assert torch.autograd.gradcheck(lambda u, i: graph.propagate(u, i, 2)[-1], (users, items))
    assert torch.autograd.gradcheck(lambda u, i: graph.mean_of_layers(u, i, 3), (users, items))


@pytest.mark.parametrize("n_layers", [0, 1, 3])
def test_the_mean_of_the_layers_at_once_is_that_of_each(n_layers):
    graph = BipartiteGraph(np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 0]), 4, 5)
    users, items = torch.randn(4, 3), torch.randn(5, 3)
    layers = graph.propagate(users, items, n_layers)
    mean = graph.mean_of_layers(users, items, n_layers)
    for found, part in zip(mean, zip(*layers, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(part).mean(0))


def test_it_learns(ready):
    _, _, losses = ready
    assert losses[-1] < 0.9 * losses[0]


def test_history_vectors_are_lightgcns_less_the_users_own_embedding(ready):
    _, model, _ = ready
    layers = model._full_graph.propagate(
        model.user_embedding.weight, model.item_embedding.weight, model.n_layers
    )
    final = torch.stack([u for u, _ in layers]).mean(0)
    messages, _ = model._read_out(model._full_graph)
    user = int(model.edge_user[0])
    mine = model.edge_item[model.edge_user == user]
    depth = model.n_layers
    by_hand = messages[mine].sum(0) * depth / (depth + 1) / len(mine) ** 0.5
    torch.testing.assert_close(by_hand, final[user] - model.user_embedding.weight[user] / (depth + 1))


def test_encode_sums_the_histories(ready):
    loaded, model, _ = ready
    messages, _ = model._vectors()
    for batch in CrossDomainLoader(loaded.config, loaded.split.test, model):
        vectors = model.encode(batch)
        for row, index in enumerate(batch["index"][:5]):
            items = np.concatenate([loaded.split.test.history(index, k) for k in (0, 1)])
            torch.testing.assert_close(vectors[row], messages[items].sum(0), rtol=1e-4, atol=1e-6)


def test_training_targets_are_no_edges(ready):
    loaded, _model, _ = ready
    split = loaded.split
    edges = set(zip(*graph_edges(split), strict=True))
    for part in (split.train, split.valid, split.test):
        assert not edges & set(zip(part.user, part.target, strict=True))
    assert edges and edges <= set(zip(split.train_events.user, split.train_events.item, strict=True))


def test_a_leaking_graph_stops_the_model(ready):
    loaded, _, _ = ready
    split, events = loaded.split, loaded.split.train_events
    user, item = events.user.copy(), events.item.copy()
    user[0], item[0] = split.valid.user[0], split.valid.target[0]
    leaking = replace(split, train_events=replace(events, user=user, item=item))
    with pytest.raises(LeakError, match="graph's edges"):
        LightGCNPSG(loaded.config, TrainingData.of(loaded.dataset, leaking))


def test_recalled_items(ready):
    loaded, model, _ = ready
    split = model.augment(loaded.split)
    audit_recalled(split)
    for part in (split.train, split.valid, split.test):
        assert part.recalled.shape == (len(part), 20)
        for row in range(len(part)):
            items = part.recalled[row][part.recalled[row] > 0]
            domain = int(part.domain[row])
            assert len(set(items)) == len(items)
            assert not set(items) & set(part.history(row, domain))
            assert ((items >= split.item_offset[domain]) & (items < split.item_offset[domain + 1])).all()
    again = model.augment(loaded.split)
    assert (again.train.recalled == split.train.recalled).all()


def test_one_seed_one_recall(ready):
    """Training from one seed gives the same recall; from another seed another."""
    loaded, _, _ = ready

    def recall(seed):
        torch.manual_seed(seed)
        model = LightGCNPSG(loaded.config, loaded.data)
        train(model, epochs=3, seed=seed, lr=0.03)
        return model.augment(loaded.split).test.recalled

    first = recall(1)
    assert (recall(1) == first).all()
    assert (recall(2) != first).any()


def test_the_first_round_takes_the_best_unseen_items(ready):
    loaded, model, _ = ready
    split = model.augment(loaded.split)
    for batch in CrossDomainLoader(loaded.config, loaded.split.test, model):
        scores = model.score(batch)
        offset = model.item_offsets[batch.target_domain]
        own = batch.own_history
        row, column = (own > 0).nonzero(as_tuple=True)
        scores[row, own[row, column] - offset] = -torch.inf
        best = scores.topk(5).indices + offset
        assert (best.numpy() == split.test.recalled[batch["index"].numpy(), :5]).all()


def test_pseudo_edges_change_later_rounds(ready):
    """Propagating again over the recalled items matters: one round of twenty is not four of five."""
    loaded, model, _ = ready
    rounds, per_round = model.rounds, model.per_round
    four = model.augment(loaded.split).test.recalled
    try:
        model.rounds, model.per_round = 1, 20
        once = model.augment(loaded.split).test.recalled
    finally:
        model.rounds, model.per_round = rounds, per_round
    assert (four[:, :5] == once[:, :5]).all()
    assert (np.sort(four) != np.sort(once)).any()


def test_a_pseudo_sequence_is_the_history_then_the_recalled(ready):
    loaded, model, _ = ready
    part = model.augment(loaded.split).test
    for k in (0, 1):
        rows = np.flatnonzero(part.domain == k)[:20]
        sequences = part.gather_pseudo(rows, 24)
        for row, sequence in zip(rows, sequences, strict=True):
            recalled = part.recalled[row][part.recalled[row] > 0]
            expected = [*part.history(row, k)[-4:], *recalled]
            assert list(sequence[sequence > 0]) == expected
            assert not sequence[: len(sequence) - len(expected)].any()


def test_where_every_position_is_a_target_only_those_out_of_the_graph_have_recalled_items(tmp_path):
    loaded = load(tmp_path, random_domains(), model="LightGCNPSG", train_targets="all", **QUICK)
    model = LightGCNPSG(loaded.config, loaded.data)
    split = model.augment(loaded.split)
    train_, edges = split.train, set(zip(*model._train_edges, strict=True))
    is_edge = np.array([pair in edges for pair in zip(train_.user, train_.target, strict=True)])
    assert 0.1 < 1 - is_edge.mean() < 0.3
    assert np.array_equal(train_.recalled.any(1), ~is_edge)
    assert split.valid.recalled.any(1).all() and split.test.recalled.any(1).all()
    assert model._recall_graph is model._train_graph
    assert split.item_vectors.shape == (loaded.dataset.item_num, model.item_embedding.weight.shape[1])


@pytest.mark.parametrize("train_targets", ["last", "all"])
def test_training_and_held_out_targets_are_recalled_alike(tmp_path_factory, train_targets):
    """On data with a signal: neither looked up nor masked out."""
    from recbole_cdr_ext.data.prepare import prepare

    root = tmp_path_factory.mktemp("toy")
    prepare("toy", data_path=str(root), progress=False)
    loaded = load_written(
        root, ["books", "films"], model="LightGCNPSG", dataset="toy", train_targets=train_targets, **QUICK
    )
    torch.manual_seed(1)
    model = LightGCNPSG(loaded.config, loaded.data)
    train(model, epochs=30)
    split = model.augment(loaded.split)
    audit_recalled(split)
    (a, n), (b, m) = recall_rates(split)["train"], recall_rates(split)["held-out"]
    pooled = (a + b) / (n + m)
    error = (pooled * (1 - pooled) * (1 / n + 1 / m)) ** 0.5
    assert abs(a / n - b / m) < 3 * error
    assert a / n > 1.2 * 20 / 130, "better than chance: twenty of 120 to 130 items"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"validation_edges": 0}, "validation_edges=0 should be between 0 and 1"),
        ({"validation_edges": 1.5}, "validation_edges=1.5"),
        ({"recall_size": 0}, "recall_size=0 should be at least 1"),
        ({"n_layers": -1}, "n_layers=-1 should be at least 0"),
        ({"train_neg_num": 5}, "draws one negative per edge"),
    ],
)
def test_settings_that_leave_nothing_to_choose_or_recall_are_refused(tmp_path, settings, said):
    with pytest.raises(CDRError, match=said):
        CDRConfig(
            "LightGCNPSG", "mini", config_dict={**here(tmp_path), "domains": ["books", "films"], **settings}
        )


def test_places_by_hand():
    """0 → 1 → 2 → 3 and 0 → 3: paths to them 0, 1, 2, 3, from them 3, 2, 1, 0; 4 stands alone."""
    places = _places(np.array([0, 1, 2, 0, 0]), np.array([1, 2, 3, 3, 1]), 5)
    assert list(places) == [0 - 3, 1 - 2, 2 - 1, 3 - 0, 0]


def test_contradicting_sequences_are_one_clear_error():
    with pytest.raises(CDRError, match="No single order"):
        _places(np.array([0, 1]), np.array([1, 0]), 2)


def test_it_ranks_what_stands_after_the_last_item(tmp_path):
    """Every user's items ascend, so whatever is below the last one of the history cannot be the target."""
    rows = {
        name: [(f"u{u}", f"{name[0]}{i:02d}", i) for u in range(100) for i in range(u % 20, u % 20 + 6)]
        for name in ("books", "films")
    }
    loaded = load(tmp_path, rows, model="OrderPop", split="leave_one_out")
    model = OrderPop(loaded.config, loaded.data)
    for batch in CrossDomainLoader(loaded.config, loaded.split.test, model):
        scores = model.score(batch)
        local = batch.own_history[:, -1] - model.item_offsets[batch.target_domain]
        popularity = model.popularity[model.item_slice(batch.target_domain)]
        for row in range(min(len(batch), 40)):
            if local[row] < 0:
                assert (scores[row] == popularity).all()
                continue
            # What nobody was trained on has no place in the order.
            below = scores[row, : local[row] + 1]
            above = scores[row, local[row] + 1 :][popularity[local[row] + 1 :] > 0]
            assert (below == popularity[: local[row] + 1]).all()
            if len(above):
                assert above.min() > below.max()
