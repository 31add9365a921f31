"""Backbones: propagation by hand, nobody held out in the graph, one propagation a step, and what is handed on."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import small_models
import torch
from small_models import (
    BACKBONE_NAMES,
    GRAPH_BACKBONES,
    PATH,
    SMF,
    backbone_tables,
    edges,
    fit_backbone,
    light,
    ngcf,
    some_batch,
    tgt_on,
)
from support import random_ratings, rating_config, write_ratings

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.backbones import RatingGraph
from recbole_cdr_ext.model.rating.tgt import TGT
from recbole_cdr_ext.runs.experiment import build, load_data
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import Ratings, TrainingData
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer, seed_everything

root = small_models.backbone_root


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


@pytest.mark.parametrize("backbone", GRAPH_BACKBONES)
@pytest.mark.parametrize("biases", [False, True])
def test_training_without_layers_is_mf_bit_for_bit(root, backbone, biases):
    def states(name, n_layers):
        experiment = tgt_on(root, name, n_layers=n_layers, biases=biases, **SMF)
        losses = [entry["loss"] for entry in fit_backbone(experiment).history]
        return losses, experiment.model.state_dict()

    (losses, mf), (same, none), (other, one) = states("MF", 2), states(backbone, 0), states(backbone, 1)
    assert losses == same and mf.keys() == none.keys()
    assert all(torch.equal(mf[name], none[name]) for name in mf)
    assert losses != other and not torch.equal(mf["user_vectors.weight"], one["user_vectors.weight"])


# -- who is in the graph -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", GRAPH_BACKBONES)
@pytest.mark.parametrize("biases", [False, True])
def test_nobody_held_out_has_an_edge_and_nothing_is_nan(root, backbone, biases):
    experiment = tgt_on(root, backbone, biases=biases, **SMF)
    model, split = experiment.model, experiment.split
    start = backbone_tables(experiment)
    fit_backbone(experiment)
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
    learned = backbone_tables(experiment)
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


@pytest.mark.parametrize("backbone", GRAPH_BACKBONES)
def test_deleting_the_test_rows_from_the_file_changes_no_target_output(root, tmp_path, backbone):
    settings = {"backbone": backbone, "beta": 0.3, "split_seed": 1, **SMF}
    config = rating_config(root, BACKBONE_NAMES, "TGT", **settings)
    dataset, split = load_data(config)
    asked = set(dataset.id2token("user_id", np.unique(split.test.user)))
    waiting = set(dataset.id2token("user_id", np.unique(split.valid.user)))
    data = random_ratings()
    n_rows = len(data["films"])
    data["films"] = [row for row in data["films"] if row[0] not in asked]
    assert len(data["films"]) == n_rows - len(split.test)
    write_ratings(tmp_path / "mini", data)
    without, shorter = load_data(rating_config(tmp_path, BACKBONE_NAMES, "TGT", **settings))
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


ALL = ["MF", *GRAPH_BACKBONES]


# -- training ------------------------------------------------------------------------------------------------


def counted(model) -> list[int]:
    """A list that grows by one with every propagation."""
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("backbone", GRAPH_BACKBONES)
@pytest.mark.parametrize("sharpness", ["none", "pgd"])
def test_a_step_propagates_once_whatever_its_sharpness(root, backbone, sharpness):
    experiment = tgt_on(root, backbone, **{**SMF, "pretrain_sharpness": sharpness}, pretrain_valid_ratio=0.0)
    calls, losses = counted(experiment.model), []
    original = experiment.model.factorization_loss

    def loss(batch, rows=None):
        losses.append(1)
        return original(batch, rows)

    experiment.model.factorization_loss = loss
    fit_backbone(experiment)
    steps = 2 * len(experiment.model.batches(np.random.default_rng(0)))  # of two epochs
    assert len(calls) == steps
    assert len(losses) == steps * (6 if sharpness == "pgd" else 1)
    assert experiment.model._parts is None  # no step's graph stays


@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize("biases", [False, True])
def test_smf_learns_with_every_backbone(root, backbone, biases):
    epochs = {"pretrain_epochs": 12, "pretrain_learning_rate": 0.03 if backbone == "LightGCN" else 0.01}
    experiment = tgt_on(root, backbone, biases=biases, **SMF, **epochs)
    model = experiment.model
    at_start = model.eval().validation_error()
    trainer = fit_backbone(experiment)
    errors = [entry["loss"][0] for entry in trainer.history]
    assert errors[-1] < 0.8 * errors[0]
    assert trainer.best_valid_score < 0.9 * at_start
    width = 30 if backbone == "NGCF" else 10
    assert backbone_tables(experiment).user.shape == (experiment.dataset.user_num, width)
    assert backbone_tables(experiment).item.shape == (model.n_own_items, width)


@pytest.mark.parametrize("backbone", ALL)
def test_what_a_step_keeps_changes_no_gradient(root, backbone):
    """At moved vectors, with the parts that ``user_rows`` left and without them; in double precision."""
    # Evaluation mode: no message is dropped, so that both see the same graph.
    model = tgt_on(root, backbone, pretrain_learner="adam").model.double().eval()
    if model.backbone is not None:
        graph = model.backbone.graph
        graph.users_to_items.double(), graph.items_to_users.double()
    batch = some_batch(model)
    batch = replace(batch, rating=batch.rating.double())
    shift = torch.rand(model.user_rows(batch).shape).double()
    gradients = []
    for keeps in (True, False):
        model.zero_grad()
        rows = model.user_rows(batch)
        for _ in range(2 if keeps else 0):  # looks, as pgd's
            moved = (rows + shift).detach().requires_grad_()
            torch.autograd.grad(sum(model.factorization_loss(batch, moved)), moved)
        if not keeps:
            model._parts = None
        sum(model.factorization_loss(batch, rows + shift)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) >= 4
    for name, gradient in gradients[0].items():
        assert gradient.any()
        torch.testing.assert_close(gradient, gradients[1][name])


@pytest.mark.parametrize("backbone", ALL)
def test_parts_of_another_batch_or_of_former_weights_are_not_used(root, backbone):
    model = tgt_on(root, backbone, pretrain_batch_size=64).model.eval()
    batch, other = list(model.batches(np.random.default_rng(0)))[:2]
    rows = model.user_rows(batch).detach()
    at_other = model.factorization_loss(other, rows[: len(other)]).error
    fresh = tgt_on(root, backbone).model.eval()
    fresh.load_state_dict(model.state_dict())
    assert at_other == fresh.factorization_loss(other, rows[: len(other)]).error
    model.user_rows(batch)
    before = model.factorization_loss(batch, rows).error
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    sum(model.factorization_loss(batch)).backward()
    model.user_rows(batch)
    optimizer.step()
    after = model.factorization_loss(batch, rows).error
    fresh.load_state_dict(model.state_dict())
    assert after == fresh.factorization_loss(batch, rows).error != before
    # Nor are parts without a gradient, kept by somebody who only looked.
    with torch.no_grad():
        model.user_rows(batch)
    assert model.factorization_loss(batch, rows).error.requires_grad


@pytest.mark.parametrize("backbone", GRAPH_BACKBONES)
def test_the_penalty_is_on_the_vectors_that_are_learned(root, backbone):
    model = tgt_on(root, backbone, pretrain_reg_weight=0.5, biases=False, init_std=1.0).model.eval()
    batch = some_batch(model)
    u, v = model.user_vectors.weight[batch.user], model.item_table.weight[batch.item]
    by_hand = 0.5 * (u.square().sum() + v.square().sum())
    torch.testing.assert_close(model.factorization_loss(batch).penalty, by_hand)


def test_gradients_of_mf_are_sparse_where_the_learner_can_apply_them(root):
    for learner, sparse in (("sgd", True), ("adagrad", True), ("adam", False), ("rmsprop", False)):
        experiment = tgt_on(root, "MF", pretrain_learner=learner)
        sum(experiment.model.factorization_loss(some_batch(experiment.model))).backward()
        assert all(p.grad.is_sparse == sparse for p in experiment.model.parameters())
        experiment.model.zero_grad(set_to_none=True)
        fit_backbone(experiment)


def test_ngcfs_maps_take_the_share_of_the_gradient_that_they_are_given():
    graph = RatingGraph(PATH, 2, 1)
    whole, tenth = ngcf(graph, 3, 2), ngcf(graph, 3, 2, gradient_share=0.1)
    tenth.load_state_dict(whole.state_dict())
    inputs = [tuple(torch.randn(n, 3, generator=torch.Generator().manual_seed(1)) for n in (2, 1))] * 2
    vectors = [tuple(x.clone().requires_grad_() for x in pair) for pair in inputs]
    for backbone, pair in zip((whole, tenth), vectors, strict=True):
        sum(x.square().sum() for x in backbone(*pair)).backward()
    for (name, one), (_, other) in zip(whole.named_parameters(), tenth.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, 0.1 * one.grad, msg=name)
    for one, other in zip(*vectors, strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_ngcf_drops_messages_in_training_alone():
    backbone = ngcf(RatingGraph(PATH, 2, 1), 50, 1)
    users, items = torch.randn(2, 50), torch.randn(1, 50)
    assert torch.equal(backbone(users, items)[0], backbone(users, items)[0])
    torch.manual_seed(0)
    dropped = [(backbone.train()(users, items)[0][:, 50:] == 0).float().mean() for _ in range(20)]
    assert torch.stack(dropped).mean().item() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("backbone", GRAPH_BACKBONES)
@pytest.mark.parametrize("sharpness", ["none", "sam", "pgd"])
def test_half_precision_leaves_the_propagation_alone(root, backbone, sharpness):
    assert fit_backbone(tgt_on(root, backbone, enable_amp=True, pretrain_sharpness=sharpness)).epochs_run == 2


# -- what is handed on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", GRAPH_BACKBONES)
def test_handed_on_are_the_propagated_vectors_in_evaluation_mode(root, backbone):
    experiment = tgt_on(root, backbone)
    model = experiment.model.train()
    learned = backbone_tables(experiment)
    assert model.training
    users, items = model.eval().backbone(model.user_vectors.weight, model.item_table.weight)
    assert torch.equal(learned.user, users) and torch.equal(learned.item, items)
    batch = some_batch(model)
    with torch.no_grad():
        product = (users[batch.user] * items[batch.item]).sum(1)
        fitted = model.fitted(batch) - model.mean
    torch.testing.assert_close(fitted, product)


def test_predictions_share_a_propagation_until_the_weights_change(root):
    experiment = tgt_on(root, "NGCF", biases=False, eval_batch_size=16, cold_user="mean")
    model = experiment.model.eval()
    calls = counted(model)
    first = experiment.predict("test")
    assert len(calls) == 1
    with torch.no_grad():
        model.item_table.weight.mul_(2)
    second = experiment.predict("test")
    assert len(calls) == 2 and np.abs(first - second).max() > 0


@pytest.mark.parametrize("biases", [False, True])
def test_the_bridge_takes_its_size_from_the_backbone(root, biases):
    experiment = build(rating_config(root, BACKBONE_NAMES, "SCDR", backbone="NGCF", biases=biases))
    model = experiment.model
    assert model.size == 30 and model.mapping[0].in_features == model.mapping[2].out_features == 30
    CrossDomainTrainer(experiment.config, model, "nowhere").fit(
        experiment.split, None, experiment.validate, verbose=False, saved=False
    )
    assert np.isfinite(experiment.predict("test")).all()


def test_without_vectors_there_is_nothing_to_propagate(root):
    experiment = tgt_on(root, "LightGCN", embedding_size=0)
    assert experiment.model.backbone is None
    fit_backbone(experiment)
    assert backbone_tables(experiment).user.shape[1] == 0


# -- settings ------------------------------------------------------------------------------------------------


def test_settings_that_a_graph_cannot_be_trained_with(root):
    def config(**settings) -> CDRConfig:
        return rating_config(root, BACKBONE_NAMES, "TGT", **settings)

    with pytest.raises(CDRError, match=r"sparse_adam.*LightGCN"):
        config(backbone="LightGCN", pretrain_learner="sparse_adam")
    with pytest.raises(CDRError, match=r"edge_weight=rating.*rating_range"):
        config(backbone="NGCF", edge_weight="rating", rating_range=[-1, 1])
    config(backbone="MF", pretrain_learner="sparse_adam", edge_weight="rating", rating_range=[-1, 1])


def test_edge_weight_is_the_models(root):
    binary, weighted = (tgt_on(root, "LightGCN", edge_weight=kind).model for kind in ("binary", "rating"))
    assert torch.equal(binary.user_vectors.weight, weighted.user_vectors.weight)
    one, other = (model.backbone.graph.users_to_items for model in (binary, weighted))
    assert torch.equal(one.index, other.index)
    assert (one.weight != other.weight).any()
