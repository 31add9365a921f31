"""Backbones: one propagation a step, what is handed on, and their settings."""

from __future__ import annotations

from dataclasses import replace

import backbone_graphs
import numpy as np
import pytest
import torch
from backbone_graphs import GRAPHS, NAMES, PATH, SMF, fit, ngcf, some_batch, tables, tgt
from support import rating_config

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.backbones import RatingGraph
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

root = backbone_graphs.root

ALL = ["MF", *GRAPHS]


# -- training ------------------------------------------------------------------------------------------------


def counted(model) -> list[int]:
    """A list that grows by one with every propagation."""
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("backbone", GRAPHS)
@pytest.mark.parametrize("sharpness", ["none", "pgd"])
def test_a_step_propagates_once_whatever_its_sharpness(root, backbone, sharpness):
    experiment = tgt(root, backbone, **{**SMF, "pretrain_sharpness": sharpness}, pretrain_valid_ratio=0.0)
    calls, losses = counted(experiment.model), []
    original = experiment.model.factorization_loss

    def loss(batch, rows=None):
        losses.append(1)
        return original(batch, rows)

    experiment.model.factorization_loss = loss
    fit(experiment)
    steps = 2 * len(experiment.model.batches(np.random.default_rng(0)))  # of two epochs
    assert len(calls) == steps
    assert len(losses) == steps * (6 if sharpness == "pgd" else 1)
    assert experiment.model._parts is None  # no step's graph stays


@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize("biases", [False, True])
def test_smf_learns_with_every_backbone(root, backbone, biases):
    epochs = {"pretrain_epochs": 12, "pretrain_learning_rate": 0.03 if backbone == "LightGCN" else 0.01}
    experiment = tgt(root, backbone, biases=biases, **SMF, **epochs)
    model = experiment.model
    at_start = model.eval().validation_error()
    trainer = fit(experiment)
    errors = [entry["loss"][0] for entry in trainer.history]
    assert errors[-1] < 0.8 * errors[0]
    assert trainer.best_valid_score < 0.9 * at_start
    width = 30 if backbone == "NGCF" else 10
    assert tables(experiment).user.shape == (experiment.dataset.user_num, width)
    assert tables(experiment).item.shape == (model.n_own_items, width)


@pytest.mark.parametrize("backbone", ALL)
def test_what_a_step_keeps_changes_no_gradient(root, backbone):
    """At moved vectors, with the parts that ``user_rows`` left and without them; in double precision."""
    # Evaluation mode: no message is dropped, so that both see the same graph.
    model = tgt(root, backbone, pretrain_learner="adam").model.double().eval()
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
    model = tgt(root, backbone, pretrain_batch_size=64).model.eval()
    batch, other = list(model.batches(np.random.default_rng(0)))[:2]
    rows = model.user_rows(batch).detach()
    at_other = model.factorization_loss(other, rows[: len(other)]).error
    fresh = tgt(root, backbone).model.eval()
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


@pytest.mark.parametrize("backbone", GRAPHS)
def test_the_penalty_is_on_the_vectors_that_are_learned(root, backbone):
    model = tgt(root, backbone, pretrain_reg_weight=0.5, biases=False, init_std=1.0).model.eval()
    batch = some_batch(model)
    u, v = model.user_vectors.weight[batch.user], model.item_table.weight[batch.item]
    by_hand = 0.5 * (u.square().sum() + v.square().sum())
    torch.testing.assert_close(model.factorization_loss(batch).penalty, by_hand)


def test_gradients_of_mf_are_sparse_where_the_learner_can_apply_them(root):
    for learner, sparse in (("sgd", True), ("adagrad", True), ("adam", False), ("rmsprop", False)):
        experiment = tgt(root, "MF", pretrain_learner=learner)
        sum(experiment.model.factorization_loss(some_batch(experiment.model))).backward()
        assert all(p.grad.is_sparse == sparse for p in experiment.model.parameters())
        experiment.model.zero_grad(set_to_none=True)
        fit(experiment)


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


@pytest.mark.parametrize("backbone", GRAPHS)
@pytest.mark.parametrize("sharpness", ["none", "sam", "pgd"])
def test_half_precision_leaves_the_propagation_alone(root, backbone, sharpness):
    assert fit(tgt(root, backbone, enable_amp=True, pretrain_sharpness=sharpness)).epochs_run == 2


# -- what is handed on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", GRAPHS)
def test_handed_on_are_the_propagated_vectors_in_evaluation_mode(root, backbone):
    experiment = tgt(root, backbone)
    model = experiment.model.train()
    learned = tables(experiment)
    assert model.training
    users, items = model.eval().backbone(model.user_vectors.weight, model.item_table.weight)
    assert torch.equal(learned.user, users) and torch.equal(learned.item, items)
    batch = some_batch(model)
    with torch.no_grad():
        product = (users[batch.user] * items[batch.item]).sum(1)
        fitted = model.fitted(batch) - model.mean
    torch.testing.assert_close(fitted, product)


def test_predictions_share_a_propagation_until_the_weights_change(root):
    experiment = tgt(root, "NGCF", biases=False, eval_batch_size=16, cold_user="mean")
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
    experiment = build(rating_config(root, NAMES, "SCDR", backbone="NGCF", biases=biases))
    model = experiment.model
    assert model.size == 30 and model.mapping[0].in_features == model.mapping[2].out_features == 30
    CrossDomainTrainer(experiment.config, model, "nowhere").fit(
        experiment.split, None, experiment.validate, verbose=False, saved=False
    )
    assert np.isfinite(experiment.predict("test")).all()


def test_without_vectors_there_is_nothing_to_propagate(root):
    experiment = tgt(root, "LightGCN", embedding_size=0)
    assert experiment.model.backbone is None
    fit(experiment)
    assert tables(experiment).user.shape[1] == 0


# -- settings ------------------------------------------------------------------------------------------------


def test_settings_that_a_graph_cannot_be_trained_with(root):
    def config(**settings) -> CDRConfig:
        return rating_config(root, NAMES, "TGT", **settings)

    with pytest.raises(CDRError, match=r"sparse_adam.*LightGCN"):
        config(backbone="LightGCN", pretrain_learner="sparse_adam")
    with pytest.raises(CDRError, match=r"edge_weight=rating.*rating_range"):
        config(backbone="NGCF", edge_weight="rating", rating_range=[-1, 1])
    config(backbone="MF", pretrain_learner="sparse_adam", edge_weight="rating", rating_range=[-1, 1])


def test_edge_weight_is_the_models(root):
    binary, weighted = (tgt(root, "LightGCN", edge_weight=kind).model for kind in ("binary", "rating"))
    assert torch.equal(binary.user_vectors.weight, weighted.user_vectors.weight)
    one, other = (model.backbone.graph.users_to_items for model in (binary, weighted))
    assert torch.equal(one.index, other.index)
    assert (one.weight != other.weight).any()
