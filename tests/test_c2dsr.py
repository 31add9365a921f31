"""C2DSR: its graphs, its losses against loops, one pass against asking at each position, and what it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import small_models
import torch
import torch.nn.functional as F
from small_models import (
    CLOCKLESS_C2DSR,
    SMALL_C2DSR,
    build_c2dsr,
    c2dsr_batches,
    c2dsr_loss_by_loops,
    train_c2dsr,
)
from support import load, random_domains

from recbole_cdr_ext.data.instances import Batch, make_batch
from recbole_cdr_ext.data.sequences import SequenceBatch, behind_the_others
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.c2dsr import GraphEmbedding
from recbole_cdr_ext.model.parts.propagation import DirectedGraph
from recbole_cdr_ext.splits.split import groups

ready = small_models.ready_c2dsr


# -- graphs and tables ---------------------------------------------------------------------------------------------


def test_a_succession_is_an_edge_in_one_direction(tmp_path):
    """u: b0 f0 b1 b2, v: b0 f0 b2; the graphs hold these and nothing else of the two users."""
    films, books = (
        [("u", "f0", 2.0), ("v", "f0", 2.0)],
        [("u", "b0", 1.0), ("u", "b1", 3.0), ("u", "b2", 4.0)],
    )
    books += [("v", "b0", 1.0), ("v", "b2", 3.0)]
    films += [(u, f"f{i}", 10.0 + i) for u in "uv" for i in (8, 9)]  # held out
    filler = random_domains(n_users=12, n_items=8)
    rename = {k: [(u, "x" + i, t) for u, i, t in rows] for k, rows in filler.items()}
    loaded, _, model = build_c2dsr(
        tmp_path, {"books": books + rename["books"], "films": films + rename["films"]}
    )
    b0, b1, b2 = (loaded.id_of("books", f"b{i}") for i in range(3))
    f0 = loaded.id_of("films", "f0")
    edges, mean = _matrices(model.merged_table.graph)
    assert (edges[b0, f0], edges[f0, b1], edges[f0, b2], edges[b1, b2]) == (2, 1, 1, 1)
    assert (mean[b0, f0], mean[f0, b1], mean[f0, b2], mean[b1, b2]) == (1, 1 / 2, 1 / 2, 1)
    assert edges[f0, b0] == edges[b2, b1] == edges[b0, b2] == 0
    own, mean = _matrices(model.table[0].graph)
    first = model.item_offsets[0]
    assert (own[b0 - first, b1 - first], own[b0 - first, b2 - first], own[b1 - first, b2 - first]) == (
        1,
        1,
        1,
    )
    assert mean[b0 - first, b1 - first] == 1 / 2 and own[b1 - first, b0 - first] == 0
    for table in (model.merged_table, *model.table):
        sums = table.graph.along(torch.ones(len(table.embedding.weight), 1))
        torch.testing.assert_close(sums, (sums > 0).float())
        edges = table.graph.edges
        assert not edges.diagonal().any() and sums.any() and not sums.all()


def _matrices(graph):
    """Counts, and what the graph multiplies with, (n, n) each."""
    return graph.edges.toarray(), graph.along(torch.eye(graph.edges.shape[0])).numpy()


@pytest.mark.parametrize("settings", [{}, CLOCKLESS_C2DSR, {**CLOCKLESS_C2DSR, "max_history_length": 2}])
def test_no_edge_leads_to_what_is_held_out(tmp_path, settings):
    _, split, model = build_c2dsr(tmp_path, random_domains(n_users=40, n_items=400), **settings)
    counts = np.bincount(split.train_events.item, minlength=model.n_items)
    hidden = np.union1d(split.valid.target, split.test.target)
    hidden = hidden[counts[hidden] == 0]
    assert len(hidden) > 3
    for table, first in zip((model.merged_table, *model.table), (0, *model.item_offsets), strict=False):
        edges, n = table.graph.edges, table.graph.edges.shape[0]
        mine = hidden[(hidden >= first) & (hidden < first + n)] - first
        assert edges[mine].nnz == edges[:, mine].nnz == 0 and edges.nnz
    events = split.train_events
    pairs = []
    for sequence in np.unique(events.sequence):
        rows = np.flatnonzero(events.sequence == sequence)
        orders = [rows]
        if not model.clock:
            orders = [sorted(rows, key=lambda e: events.domain[e] == k) for k in (0, 1)]
        for order in orders:
            pairs += zip(events.item[order][:-1], events.item[order][1:], strict=True)
    expected = np.zeros((model.n_items, model.n_items))
    np.add.at(expected, tuple(np.array(pairs).T), 1)
    assert np.array_equal(model.merged_table.graph.edges.toarray(), expected)


def test_tables_by_hand():
    """a → b, b → c, b → c, b → a; two layers."""
    graph = DirectedGraph(np.array([0, 1, 1, 1]), np.array([1, 2, 2, 0]), 3)
    table = GraphEmbedding(graph, 1, 2, 0.0)
    with torch.no_grad():
        table.embedding.weight.copy_(torch.tensor([[3.0], [6.0], [9.0]]))
        for bias, value in zip(table.bias, (1.0, 2.0), strict=True):
            bias.fill_(value)
    first = [6 + 1, (3 + 2 * 9) / 3 + 1, 0 + 1]
    second = [first[1] + 2, (first[0] + 2 * first[2]) / 3 + 2, 0 + 2]
    expected = [e + (e + a + b) / 3 for e, a, b in zip((3, 6, 9), first, second, strict=True)]
    torch.testing.assert_close(table(), torch.tensor(expected).unsqueeze(1))


def test_propagations_gradient():
    graph = DirectedGraph(np.array([0, 1, 1, 3]), np.array([1, 2, 0, 0]), 4)
    graph.along.double(), graph.against.double()
    assert torch.autograd.gradcheck(graph.step, torch.randn(4, 2, dtype=torch.double, requires_grad=True))


# -- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, CLOCKLESS_C2DSR, {"max_history_length": 5}])
@pytest.mark.parametrize("names", [("books", "films"), ("books", "films", "games")])
def test_the_loss_is_what_loops_make_of_it(tmp_path, settings, names):
    _, _, model = build_c2dsr(
        tmp_path, random_domains(n_users=12, n_items=15, length=5, names=names), **settings
    )
    model._corrupted = lambda items, x: torch.where(  # the next item of X, instead of a random one
        model._domain_of(items) == x,
        (items - model.item_offsets[x] + 1) % (model.item_offsets[x + 1] - model.item_offsets[x])
        + model.item_offsets[x],
        items,
    )
    checked = 0
    with torch.no_grad():
        for batch in list(model.training_sequences.batches(np.random.default_rng(0)))[:2]:
            torch.testing.assert_close(tuple(model.sequence_loss(batch)), c2dsr_loss_by_loops(model, batch))
            checked += 1
    assert checked


def test_corruption_replaces_the_items_of_one_domain_within_it(ready):
    _, _, model = ready
    batch = next(iter(model.training_sequences.batches(np.random.default_rng(0))))
    for x in (0, 1):
        wrong = model._corrupted(batch.items, x)
        assert torch.equal(model._domain_of(wrong), model._domain_of(batch.items))
        own = model._domain_of(batch.items) == x
        assert torch.equal(wrong[~own], batch.items[~own])
        assert (wrong[own] != batch.items[own]).float().mean() > 0.8
        assert not torch.equal(wrong, model._corrupted(batch.items, x))


def test_a_discriminator_that_knows_nothing_loses_two_bits(tmp_path):
    _, _, model = build_c2dsr(tmp_path)
    with torch.no_grad():
        for parameter in model.discriminator.parameters():
            parameter.zero_()
        batch = next(iter(model.training_sequences.batches(np.random.default_rng(0))))
        expected = (1 - model.weight) * 2 * 2 * math.log(2)
        assert model.sequence_loss(batch).infomax.item() == pytest.approx(expected, rel=1e-5)


def test_single_domain_states_see_neither_other_domains_nor_later_items(ready):
    loaded, _, model = ready
    (a, b, c, d), (v, w, z) = (
        [loaded.id_of(name, f"{name[0]}{i}") for i in range(n)] for name, n in (("books", 4), ("films", 3))
    )

    def states(*whole):
        items, targets = torch.tensor([whole[:-1]]), torch.tensor([whole[1:]])
        held = model._streams(SequenceBatch({"item_seq": items, "target_seq": targets}))[0]
        assert held.places[0].sum() == held.items.count_nonzero() == held.target.count_nonzero()
        return model._single_states(0, held.items, model._tables())[0]

    before = states(a, v, b, w, c)
    torch.testing.assert_close(states(z, a, b, z, c)[:2], before[:2])
    torch.testing.assert_close(states(a, v, b, w, d)[:2], before[:2])
    changed = states(a, v, d, w, c)
    torch.testing.assert_close(changed[0], before[0])
    assert not torch.allclose(changed[1], before[1], atol=1e-3)


def test_without_the_infomax_nothing_is_corrupted(tmp_path):
    _, _, model = build_c2dsr(tmp_path, next_item_weight=1.0)
    model._corrupted = None
    terms = model.sequence_loss(next(iter(model.training_sequences.batches(np.random.default_rng(0)))))
    assert terms.infomax == 0 and terms.single > 0


# -- states in training and in use ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, CLOCKLESS_C2DSR])
@pytest.mark.parametrize("names", [("books", "films"), ("books", "films", "games")])
def test_states_in_use_are_those_of_training(tmp_path, settings, names):
    """Each training instance asked by itself, against the pass over its sequence."""
    _, split, model = build_c2dsr(tmp_path, random_domains(names=names), train_on_histories=False, **settings)
    found, shared = {}, {}
    with torch.no_grad():
        tables = model._tables()
        for batch in model.training_sequences.batches(np.random.default_rng(0)):
            merged, streams = model._merged_states(batch.items, tables), model._streams(batch)
            events = batch["event"].numpy()
            order = split.train_events
            if not model.clock:
                order = behind_the_others(order, batch.tag, model.max_history_length)
            for x, held in enumerate(streams):
                if not model.clock and x != batch.tag:
                    continue
                states = model._single_states(x, held.items, tables)
                counts = held.places.cumsum(1)
                for row, place in (model._domain_of(batch.targets) == x).nonzero().tolist():
                    key = (order.user[events[row, place]], int(batch.targets[row, place]))
                    n = int(counts[row, place])
                    shared[key] = merged[row, place]
                    found[key] = shared[key] + (states[row, n - 1] if n else 0)
        rows = np.arange(len(split.train))
        keys = list(zip(split.train.user, split.train.target, strict=True))
        assert set(found) == set(keys)
        cold = 0
        for x in range(split.n_domains):
            mine = rows[split.train.domain == x]
            asked = model.encode(make_batch(split.train, mine, max_length=60, merged=True))
            expected = torch.stack([found[keys[row]] for row in mine])
            torch.testing.assert_close(asked[:, :-1], expected, rtol=1e-4, atol=1e-5)
            assert (asked[:, -1] == 1).all()
            cold += sum(torch.equal(found[keys[row]], shared[keys[row]]) for row in mine)
        assert cold


def test_what_follows_changes_no_earlier_position(ready):
    _, _, model = ready
    batch = next(iter(model.training_sequences.batches(np.random.default_rng(0))))
    cut = int((batch.targets != 0).sum(1).min()) // 2
    changed = batch.items.clone()
    changed[:, cut:] = torch.where(changed[:, cut:] != 0, 1 + changed[:, cut:] % (model.n_items - 1), 0)
    before, after = (model._merged_states(items, model._tables()) for items in (batch.items, changed))
    torch.testing.assert_close(before[:, :cut], after[:, :cut])
    assert cut and not torch.allclose(before[:, cut:], after[:, cut:])


def test_without_a_clock_the_other_domain_stands_in_front(tmp_path):
    loaded, split, model = build_c2dsr(tmp_path, **CLOCKLESS_C2DSR, train_on_histories=False)
    assert not model.needs_merged
    for batch in model.training_sequences.batches(np.random.default_rng(0)):
        own = (model._domain_of(batch.items) == batch.tag).long()
        real = batch.items != 0
        assert (own[:, 1:] >= own[:, :-1])[real[:, 1:]].all()
        assert (model._domain_of(batch.targets) == batch.tag).any(1).all()
    model.max_history_length = 6
    for batch in c2dsr_batches(loaded, split.test, model):
        items = model._timeline(batch)
        for row in range(len(batch)):
            other, own = (
                batch.history(k)[row][batch.history(k)[row] != 0].tolist()
                for k in (1 - batch.target_domain, batch.target_domain)
            )
            assert items[row][items[row] != 0].tolist() == [*other, *own][-6:]


def test_a_cold_user_is_scored_by_the_merged_state_alone(ready):
    loaded, split, model = ready
    for batch in c2dsr_batches(loaded, split.test, model):
        merged = batch["merged"]
        merged = merged.masked_fill(model._domain_of(merged) == batch.target_domain, 0)
        merged = merged.gather(1, (merged != 0).long().argsort(dim=1, stable=True))
        cold = merged.any(1)
        model.zero_grad()
        vectors = model.encode(batch.with_fields(merged=merged))
        length = (merged != 0).sum(1)
        for row in cold.nonzero().squeeze(1).tolist():
            states = model._merged_states(merged[row : row + 1, -length[row] :], model._tables())
            torch.testing.assert_close(vectors[row, :-1], states[0, -1])
        vectors.square().sum().backward()
        assert not any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
        assert any(p.grad.any() for p in model.merged_encoder.parameters())
        model.zero_grad()


def test_a_user_without_any_history_is_scored_by_the_bias(ready):
    loaded, split, model = ready
    batch = c2dsr_batches(loaded, split.test, model)[0]
    scores = model.score(batch.with_fields(merged=torch.zeros_like(batch["merged"])))
    torch.testing.assert_close(scores[0], model.predictor[batch.target_domain].bias)
    assert (scores == scores[0]).all()


def test_more_padding_changes_nothing_and_rows_are_independent(ready):
    loaded, split, model = ready
    for batch in c2dsr_batches(loaded, split.test, model):
        scores = model.score(batch)
        assert torch.equal(scores, model.score(batch))
        padded = batch.with_fields(merged=F.pad(batch["merged"], (3, 0)))
        torch.testing.assert_close(model.score(padded), scores)
        alone = torch.cat([model.score(batch.rows(torch.tensor([i]))) for i in range(len(batch))])
        torch.testing.assert_close(alone, scores)
        other = batch.with_fields(item_id=torch.full_like(batch.targets, batch.targets[0]))
        assert torch.equal(model.score(other), scores)


def test_swapping_the_domains_swaps_the_scores(tmp_path):
    rows = random_domains()
    one, split, model = build_c2dsr(tmp_path / "a", rows)
    two, _, twin = build_c2dsr(tmp_path / "b", dict(reversed(rows.items())))
    permutation = torch.zeros(model.n_items, dtype=torch.long)  # the twin's id of each of the model's items
    for k in (0, 1):
        ids = np.arange(*one.dataset.item_offset[k : k + 2])
        permutation[ids] = torch.from_numpy(two.dataset.item_ids(1 - k, list(one.dataset.item_token(ids))))
    state = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if name == "merged_table.embedding.weight":
            value = value[torch.argsort(permutation)]
        elif not name.startswith("merged"):
            parts[1] = str(1 - int(parts[1]))
        state[".".join(parts)] = value
    twin.load_state_dict(state)
    for batch in c2dsr_batches(one, split.test, model):
        fields = {**batch.interaction, "merged": permutation[batch["merged"]]}
        swapped = Batch(fields, 1 - batch.target_domain, 2)
        torch.testing.assert_close(model.score(batch), twin.score(swapped))


def test_tables_for_use_follow_the_weights(tmp_path):
    loaded, split, model = build_c2dsr(tmp_path)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    batch = c2dsr_batches(loaded, split.test, model)[0]
    before, start = model.score(batch), {k: v.clone() for k, v in model.state_dict().items()}
    assert model._tables() is model._tables()
    train_c2dsr(model, 1)
    for kept, fresh in zip(model._tables(), model._propagated(), strict=True):
        assert torch.equal(kept, fresh)
    after = model.score(batch)
    assert not torch.allclose(after, before, atol=1e-3)
    model.load_state_dict(start)
    assert torch.equal(model.score(batch), before)


# -- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {**CLOCKLESS_C2DSR, "train_on_histories": False}])
def test_it_learns_its_training_targets_by_heart(tmp_path, settings):
    loaded, split, model = build_c2dsr(
        tmp_path,
        random_domains(n_users=32, n_items=40),
        **{"embedding_size": 32, "inner_size": 32, "train_batch_size": 300, "n_layers": 1, **settings},
    )
    losses = train_c2dsr(model, 50, lr=1e-2)
    assert losses[-1] < 0.5 * losses[0]
    hits = total = 0
    for batch in c2dsr_batches(loaded, split.train, model):
        local = batch.targets - model.item_offsets[batch.target_domain]
        best = model.score(batch).topk(10).indices
        hits += int((best == local.unsqueeze(1)).any(1).sum())
        total += len(batch)
    assert hits / total > 0.95


def planted(n_users=120, n_topics=4, seed=0):
    """A user's books and films are all of one topic; eight items each."""
    rng = np.random.default_rng(seed)
    rows = {"books": [], "films": []}
    for u in range(n_users):
        for name in rows:
            for item in rng.choice(8, 5, replace=False):
                rows[name].append((f"u{u}", f"{name[0]}{u % n_topics}{item}", float(rng.integers(10**6))))
    return rows


def test_a_cold_user_gets_the_topic_of_the_other_domain(tmp_path):
    loaded, split, model = build_c2dsr(tmp_path, planted(), split="user", cold_start_ratio=1.0)
    train_c2dsr(model, 8, lr=1e-2)
    asked = split.test.take(groups(split, split.test)["cold"])
    assert len(asked) >= 10
    right = []
    for batch in c2dsr_batches(loaded, asked, model):
        for row, best in enumerate(model.score(batch).topk(8).indices):
            topic = str(loaded.dataset.item_token(batch.targets[row : row + 1].numpy())[0])[1]
            tokens = loaded.dataset.item_token(best.numpy() + model.item_offsets[batch.target_domain])
            right += [str(token)[1] == topic for token in tokens]
    assert np.mean(right) > 0.95


@pytest.mark.parametrize("settings", [{}, CLOCKLESS_C2DSR])
def test_users_of_one_domain_alone_are_enough(tmp_path, settings):
    rows = random_domains(n_users=40)
    rows = {name: [(f"{name}{u}", i, t) for u, i, t in part] for name, part in rows.items()}
    loaded, split, model = build_c2dsr(tmp_path, rows, **settings)
    for batch in model.training_sequences.batches(np.random.default_rng(0)):
        terms = model.sequence_loss(batch)
        assert terms.infomax == 0 and all(torch.isfinite(term) for term in terms)
    losses = train_c2dsr(model, 3)
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(model.score(batch)).all() for batch in c2dsr_batches(loaded, split.test, model))


def test_one_domain_alone(tmp_path):
    _, _, model = build_c2dsr(tmp_path, random_domains(names=("books",)))
    losses = train_c2dsr(model, 3)
    assert losses[-1] < losses[0]


def test_a_seed_is_a_model(tmp_path):
    weights = []
    for place in "ab":
        _, _, model = build_c2dsr(tmp_path / place, dropout=0.3)
        train_c2dsr(model, 1)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"train_targets": "last"}, "train_targets"),
        ({"targets_per_sequence": 2}, "targets_per_sequence"),
        ({"one_pass": False}, "one_pass"),
        ({"next_item_weight": 0.0}, "next_item_weight"),
        ({"next_item_weight": 1.1}, "next_item_weight"),
        ({"dropout": 1.0}, "dropout"),
        ({"n_graph_layers": -1}, "n_graph_layers"),
        ({"n_heads": 3}, "n_heads"),
    ],
)
def test_settings_that_cannot_be_are_one_clear_error(tmp_path, settings, key):
    with pytest.raises(CDRError, match=key):
        load(tmp_path, random_domains(n_users=10), model="C2DSR", **{**SMALL_C2DSR, **settings})
