"""Backbones: propagation by hand, what reaches whom, and nobody held out in the graph."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import backbone_graphs
import numpy as np
import pytest
import torch
from backbone_graphs import GRAPHS, NAMES, PATH, SMF, edges, fit, light, ngcf, tables, tgt
from support import random_ratings, rating_config, write_ratings

from recbole_cdr_ext.model.backbones import RatingGraph
from recbole_cdr_ext.model.rating.tgt import TGT
from recbole_cdr_ext.runs.experiment import load_data
from recbole_cdr_ext.splits.split import Ratings, TrainingData
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer, seed_everything

root = backbone_graphs.root


# -- by hand -------------------------------------------------------------------------------------------------

HALF = 1 / sqrt(2)


def test_lightgcn_on_a_path():
    u0, u1, i0 = 2.0, 4.0, 6.0
    users, items = light(RatingGraph(PATH, 2, 1), 1, 2)(torch.tensor([[u0], [u1]]), torch.tensor([[i0]]))
    first = (i0 * HALF, i0 * HALF, (u0 + u1) * HALF)
    second = ((u0 + u1) / 2, (u0 + u1) / 2, i0)
    by_hand = [sum(layer) / 3 for layer in zip((u0, u1, i0), first, second, strict=True)]
    torch.testing.assert_close(torch.cat([users, items]).flatten(), torch.tensor(by_hand))


@pytest.mark.parametrize("normalised", [False, True])
def test_ngcf_on_a_path(normalised):
    """One layer, two dimensions; W₁ swaps them, W₂ doubles them, b = (1, -30)."""
    backbone = ngcf(RatingGraph(PATH, 2, 1), 2, 1, normalised=normalised)
    with torch.no_grad():
        backbone.maps[0].weight.copy_(torch.tensor([[0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 0.0, 2.0]]))
        backbone.maps[0].bias.copy_(torch.tensor([1.0, -30.0]))
    u0, u1, i0 = (2.0, 1.0), (4.0, 3.0), (6.0, 5.0)
    users, items = backbone(torch.tensor([u0, u1]), torch.tensor([i0]))
    assert users.shape == (2, 4) and items.shape == (1, 4) and backbone.width == 4

    def layer(own, neighbours):
        n = [x * HALF for x in neighbours]
        raw = [own[1] + n[1] + 2 * own[0] * n[0] + 1, own[0] + n[0] + 2 * own[1] * n[1] - 30]
        out = torch.tensor([x if x > 0 else 0.2 * x for x in raw])
        return out / out.norm() if normalised else out

    both = (u0[0] + u1[0], u0[1] + u1[1])
    by_hand = [layer(u0, i0), layer(u1, i0), layer(i0, both)]
    assert layer(u0, i0)[1] < 0 < layer(i0, both)[1]  # so that both slopes count
    torch.testing.assert_close(torch.cat([users, items])[:, 2:], torch.stack(by_hand))
    torch.testing.assert_close(torch.cat([users, items])[:, :2], torch.tensor([u0, u1, i0]))


def test_edges_can_weigh_their_ratings():
    """Â = r / √(Σ of the user's ratings · Σ of the item's); any factor of the ratings cancels."""
    pairs = ((1, 1), (0, 0), (1, 0))  # not in order: weights must follow their pairs
    users, items = torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    by_hand = torch.tensor([[0.0, 2 / sqrt(2 * 5)], [4 / sqrt(4 * 7), 3 / sqrt(5 * 7)]])
    for factor in (1.0, 0.2):
        weights = [4.0 * factor, 2.0 * factor, 3.0 * factor]
        graph = RatingGraph(edges(*pairs, rating=weights), 2, 2, weighted=True)
        torch.testing.assert_close(graph.step(users, items)[0], by_hand)
        torch.testing.assert_close(graph.step(users, torch.eye(2))[1], by_hand.flip(1).T @ users)
    zero = RatingGraph(edges((0, 0), (1, 1), rating=[0.0, 1.0]), 2, 2, weighted=True)
    assert zero.step(users, torch.eye(2))[0].tolist() == [[0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("make", [light, ngcf])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_new_edge_changes_what_lies_within_as_many_hops_as_there_are_layers(make, n_layers):
    """Two chains u0 – i0 – u1 – … – i4 and u5 – i5 – … – i9, and a new edge u2 – i7 between them."""
    n = 10
    chains = [(u, u) for u in range(n)] + [(u + 1, u) for u in range(n - 1) if u != 4]  # two chains of five
    new = (2, 7)
    torch.manual_seed(0)
    users, items = torch.randn(n, 3), torch.randn(n, 3)
    backbones = [make(RatingGraph(edges(*e), n, n), 3, n_layers) for e in (chains, [*chains, new])]
    backbones[1].load_state_dict(backbones[0].state_dict())
    (users0, items0), (users1, items1) = (backbone(users, items) for backbone in backbones)
    changed = {("u", int(k)) for k in (users0 != users1).any(1).nonzero()}
    changed |= {("i", int(k)) for k in (items0 != items1).any(1).nonzero()}
    # By breadth from the two ends of the edge: its weight is new, and those of its neighbours, whose degrees are.
    reached = {("u", new[0]), ("i", new[1])}
    for _ in range(n_layers):
        reached |= {("i", i) for u, i in [*chains, new] if ("u", u) in reached} | {
            ("u", u) for u, i in [*chains, new] if ("i", i) in reached
        }
    assert changed == reached
    assert len(reached) < 2 * n


# -- without layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [light, ngcf])
def test_no_layers_leave_the_vectors_as_they_are(make):
    users, items = torch.randn(2, 3), torch.randn(1, 3)
    found = make(RatingGraph(PATH, 2, 1), 3, 0)(users, items)
    assert torch.equal(found[0], users) and torch.equal(found[1], items)


@pytest.mark.parametrize("backbone", GRAPHS)
@pytest.mark.parametrize("biases", [False, True])
def test_training_without_layers_is_mf_bit_for_bit(root, backbone, biases):
    def states(name, n_layers):
        experiment = tgt(root, name, n_layers=n_layers, biases=biases, **SMF)
        losses = [entry["loss"] for entry in fit(experiment).history]
        return losses, experiment.model.state_dict()

    (losses, mf), (same, none), (other, one) = states("MF", 2), states(backbone, 0), states(backbone, 1)
    assert losses == same and mf.keys() == none.keys()
    assert all(torch.equal(mf[name], none[name]) for name in mf)
    assert losses != other and not torch.equal(mf["user_vectors.weight"], one["user_vectors.weight"])


# -- who is in the graph -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", GRAPHS)
@pytest.mark.parametrize("biases", [False, True])
def test_nobody_held_out_has_an_edge_and_nothing_is_nan(root, backbone, biases):
    experiment = tgt(root, backbone, biases=biases, **SMF)
    model, split = experiment.model, experiment.split
    start = tables(experiment)
    fit(experiment)
    held_out = np.unique(np.concatenate([split.valid.user, split.test.user]))
    graph = model.backbone.graph
    assert len(held_out) and not graph.user_degree[held_out].any()
    assert (graph.user_degree[split.overlapping] > 0).all()
    assert not graph.users_to_items(torch.ones(graph.edges.shape[1], 1))[held_out].any()
    # Nor is there an edge of the ratings that choose the epoch.
    drawn = set(zip(*(x.tolist() for x in (model._train.user, model._train.item)), strict=True))
    kept = set(zip(*(x.tolist() for x in (model._valid.user, model._valid.item)), strict=True))
    assert set(zip(*(x.tolist() for x in graph.edges.nonzero()), strict=True)) == drawn
    assert kept and not kept & drawn
    learned = tables(experiment)
    assert all(
        torch.isfinite(x).all()
        for x in (learned.user, learned.item, torch.from_numpy(experiment.predict("test")))
    )
    if backbone == "LightGCN":  # of its three layers a cold user has the first alone
        torch.testing.assert_close(
            learned.user[held_out], model.user_vectors.weight[held_out].detach() / 3, atol=1e-7, rtol=1e-6
        )
        assert torch.equal(learned.user[held_out], start.user[held_out])
        assert not torch.equal(learned.user[split.overlapping], start.user[split.overlapping])


@pytest.mark.parametrize("backbone", GRAPHS)
def test_deleting_the_test_rows_from_the_file_changes_no_target_output(root, tmp_path, backbone):
    settings = {"backbone": backbone, "beta": 0.3, "split_seed": 1, **SMF}
    config = rating_config(root, NAMES, "TGT", **settings)
    dataset, split = load_data(config)
    asked = set(dataset.id2token("user_id", np.unique(split.test.user)))
    waiting = set(dataset.id2token("user_id", np.unique(split.valid.user)))
    data = random_ratings()
    n_rows = len(data["films"])
    data["films"] = [row for row in data["films"] if row[0] not in asked]
    assert len(data["films"]) == n_rows - len(split.test)
    write_ratings(tmp_path / "mini", data)
    without, shorter = load_data(rating_config(tmp_path, NAMES, "TGT", **settings))
    # The overlapping users are others now, and so is the draw: D^t is put together from what is left of the file.
    events = without.events.take(without.events.domain == 1)
    stays = ~np.isin(without.id2token("user_id", events.user), list(waiting))
    left = Ratings(events.user[stays], events.item[stays], events.rating[stays].astype(np.float32))
    outputs = []
    for data_of, own, rows in ((dataset, split, split.train[1]), (without, shorter, left)):
        # Without times the order of a user's rows is drawn, over all of the file: here it is the items'.
        own = replace(own, train={**own.train, 1: rows.take(np.lexsort((rows.item, rows.user)))})
        seed_everything(0)
        model = TGT(config, TrainingData.of(data_of, own))
        CrossDomainTrainer(config, model, "nowhere").fit(own, None, verbose=False, saved=False)
        outputs.append(model.augment(own).tables[1])
    for name in ("user", "item", "user_bias", "item_bias"):
        assert torch.equal(*(getattr(learned, name) for learned in outputs))
