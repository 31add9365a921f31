"""C2DSR: its graphs, and its losses against loops."""

from __future__ import annotations

import math

import c2dsr_model
import numpy as np
import pytest
import torch
from c2dsr_model import NO_CLOCK, build
from support import random_domains

from recbole_cdr_ext.data.sequences import SequenceBatch
from recbole_cdr_ext.model.next_item.c2dsr import GraphEmbedding
from recbole_cdr_ext.model.parts.propagation import DirectedGraph

ready = c2dsr_model.ready


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
    loaded, _, model = build(tmp_path, {"books": books + rename["books"], "films": films + rename["films"]})
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


@pytest.mark.parametrize("settings", [{}, NO_CLOCK, {**NO_CLOCK, "max_history_length": 2}])
def test_no_edge_leads_to_what_is_held_out(tmp_path, settings):
    _, split, model = build(tmp_path, random_domains(n_users=40, n_items=400), **settings)
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


def by_loops(model, batch):
    """The three terms, position by position, each state from a prefix that is encoded alone."""
    tables = [table() for table in (model.merged_table, *model.table)]

    def state(encoder, table, ids, offset):
        return encoder(torch.tensor([ids]), lambda i: table[i - offset])[0, -1]

    def single_state(x, ids):
        return state(model.encoder[x], tables[1 + x], ids, model.item_offsets[x])

    def merged_state(ids):
        return state(model.merged_encoder, tables[0], ids, 0)

    def domain(item):
        return next(k for k in range(model.n_domains) if item < model.item_offsets[k + 1])

    k_all = range(model.n_domains)
    single, merged, infomax = ([[] for _ in k_all] for _ in range(3))
    for items, targets in zip(batch.items.tolist(), batch.targets.tolist(), strict=True):
        length = sum(i != 0 for i in items)
        items, last = items[:length], targets[length - 1]
        whole = [*items, last]
        leads = {x: [] for x in k_all}
        for t in range(length):
            h = merged_state(items[: t + 1])
            y = domain(whole[t + 1])
            merged[y].append(-model.predictor[y](h).log_softmax(0)[whole[t + 1] - model.item_offsets[y]])
            x = domain(whole[t])
            later = [i for i in whole[t + 1 :] if domain(i) == x]
            if later:
                own = single_state(x, [i for i in items[: t + 1] if domain(i) == x])
                leads[x].append((t, own, h))
                scores = model.predictor[x](h + own)
                single[x].append(-scores.log_softmax(0)[later[0] - model.item_offsets[x]])
        for x in k_all:
            others = [t for y in k_all if y != x for t, _, _ in leads[y]]
            if not leads[x] or not others:
                continue
            wrong = model._corrupted(torch.tensor([items]), x)[0].tolist()
            r_x = torch.stack([own for _, own, _ in leads[x]]).mean(0)
            r_other = torch.stack([merged_state(items[: t + 1]) for t in others]).mean(0)
            r_false = torch.stack([merged_state(wrong[: t + 1]) for t in others]).mean(0)
            matrix, bias = model.discriminator[x].weight.weight, model.discriminator[x].bias
            real, false = (torch.sigmoid(r_x @ matrix @ r + bias) for r in (r_other, r_false))
            infomax[x].append(-(real.log() + (1 - false).log()))
    asked = [x for x in k_all if model.clock or x == batch.tag]
    contrasted = [x for x in k_all if model.clock or x != batch.tag]

    def total(lists, domains):
        return sum(torch.stack(lists[x]).mean() for x in domains if lists[x])

    weight = model.weight
    return (
        weight * total(single, asked),
        weight * total(merged, asked),
        (1 - weight) * total(infomax, contrasted),
    )


@pytest.mark.parametrize("settings", [{}, NO_CLOCK, {"max_history_length": 5}])
@pytest.mark.parametrize("names", [("books", "films"), ("books", "films", "games")])
def test_the_loss_is_what_loops_make_of_it(tmp_path, settings, names):
    _, _, model = build(tmp_path, random_domains(n_users=12, n_items=15, length=5, names=names), **settings)
    model._corrupted = lambda items, x: torch.where(  # the next item of X, instead of a random one
        model._domain_of(items) == x,
        (items - model.item_offsets[x] + 1) % (model.item_offsets[x + 1] - model.item_offsets[x])
        + model.item_offsets[x],
        items,
    )
    checked = 0
    with torch.no_grad():
        for batch in list(model.training_sequences.batches(np.random.default_rng(0)))[:2]:
            torch.testing.assert_close(tuple(model.sequence_loss(batch)), by_loops(model, batch))
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
    _, _, model = build(tmp_path)
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
    _, _, model = build(tmp_path, next_item_weight=1.0)
    model._corrupted = None
    terms = model.sequence_loss(next(iter(model.training_sequences.batches(np.random.default_rng(0)))))
    assert terms.infomax == 0 and terms.single > 0
