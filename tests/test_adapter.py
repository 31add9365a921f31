"""RecBole's own models as baselines, and a model that is no dot product: scores, scopes and refusals."""

from __future__ import annotations

import importlib

import adapter_toys
import numpy as np
import pytest
import torch
from adapter_toys import Setup, train
from toy_models import ToyMLP

from recbole_cdr_ext import compat
from recbole_cdr_ext.splits.split import TrainingData

compat.apply()

from recbole.model.context_aware_recommender import FM
from recbole.model.general_recommender import (
    BPR,
    EASE,
    NCL,
    ItemKNN,
    LightGCN,
    MultiDAE,
    MultiVAE,
    NeuMF,
    Pop,
    Random,
)
from recbole.model.knowledge_aware_recommender import CKE
from recbole.model.sequential_recommender import BERT4Rec, GRU4Rec, SASRec, SASRecF

from recbole_cdr_ext.baselines.adapter import adapt
from recbole_cdr_ext.baselines.view import EventView, item_spaces
from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.errors import CDRError

one_thread = adapter_toys.one_thread
toys = adapter_toys.toys
build = adapter_toys.build

SHOWN = (Pop, ItemKNN, BPR, LightGCN, SASRec, MultiVAE)


def candidates_of(setup: Setup, batch: Batch, width: int = 7) -> torch.Tensor:
    """The targets, some random items of the domain, and a column of padding."""
    items = setup.dataset.item_range(batch.target_domain)
    random = torch.randint(items.start, items.stop, (len(batch), width - 2))
    return torch.cat([batch.targets.unsqueeze(1), random, torch.zeros(len(batch), 1, dtype=torch.long)], 1)


# -- every model that the issue shows, and the toy that is no dot product -------------------------------------------


@pytest.mark.parametrize("scope", ["target", "all"])
@pytest.mark.parametrize("n_domains", [2, 3])
@pytest.mark.parametrize("model_class", [*SHOWN, ToyMLP, GRU4Rec, NeuMF, EASE, BERT4Rec])
@torch.no_grad()
def test_models_score_what_they_are_asked_for(build, model_class, n_domains, scope):
    setup = build(model_class, n_domains, baseline_scope=scope)
    seen = set()
    for batch in setup.batches():
        seen.add(batch.target_domain)
        items = setup.dataset.item_range(batch.target_domain)
        full = setup.model.score(batch)
        assert full.shape == (len(batch), items.stop - items.start)
        assert torch.isfinite(full).all()
        candidates = candidates_of(setup, batch)
        some = setup.model.score(batch, candidates)
        assert some.shape == candidates.shape
        real = candidates != 0
        expected = full.gather(1, (candidates - items.start).clamp(min=0))
        torch.testing.assert_close(some[real], expected[real], rtol=1e-4, atol=1e-5)
        alone = setup.model.score(batch.rows(torch.tensor([0])), candidates[:1])
        torch.testing.assert_close(alone, some[:1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(setup.model.predict(batch), some[:, 0], rtol=1e-4, atol=1e-5)
    assert seen == set(range(n_domains))


@pytest.mark.parametrize("scope", ["target", "all"])
@pytest.mark.parametrize("model_class", [BPR, LightGCN, SASRec, MultiVAE, GRU4Rec, ToyMLP])
def test_loss_falls_and_scores_survive_a_checkpoint(build, model_class, scope):
    setup = build(model_class, 2, baseline_scope=scope)
    losses = train(setup, epochs=3)
    assert losses[-1] < 0.97 * losses[0]
    fresh = setup.rebuilt().eval()
    batch = setup.batches()[0]
    with torch.no_grad():
        before = fresh.score(batch)  # fills what the model keeps between evaluations
        fresh.load_state_dict(setup.model.state_dict())
        after, expected = fresh.score(batch), setup.model.score(batch)
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(after, expected)


@pytest.mark.parametrize("model_class", [Pop, ItemKNN, EASE])
def test_models_without_gradients_are_complete_once_built(build, model_class):
    setup = build(model_class)
    assert setup.model.phases() == []
    fresh = setup.rebuilt().eval()
    fresh.load_state_dict(setup.model.state_dict())
    for batch in setup.batches():
        torch.testing.assert_close(fresh.score(batch), setup.model.score(batch))


@pytest.mark.parametrize(
    ("model_class", "epochs"),
    [(BPR, 25), (LightGCN, 10), (SASRec, 2), (MultiVAE, 15), (ItemKNN, 0), (ToyMLP, 5)],
)
def test_topics_are_found(build, model_class, epochs):
    """The toy's users keep to one of three topics: a third of the items, so 1/6 of them stand before a target.

    Chance is 1/2.
    """
    setup = build(model_class, 2, cold_start_ratio=0.0)
    train(setup, epochs)
    places = []
    with torch.no_grad():
        for batch in setup.batches():
            scores = setup.model.score(batch)
            able = setup.model.can_score(batch)
            first = setup.dataset.item_range(batch.target_domain).start
            better = (scores > scores.gather(1, (batch.targets - first).unsqueeze(1))).float().mean(1)
            places += better[slice(None) if able is None else able].tolist()
    assert np.mean(places) < 0.3


@pytest.mark.parametrize("model_class", [BPR, SASRec, MultiVAE, ItemKNN])
def test_scope_decides_what_is_seen(build, model_class):
    """The other domain's history changes the scores under ``all``, and under ``target`` never does."""
    moved = {}
    for scope in ("target", "all"):
        setup = build(model_class, 2, baseline_scope=scope)
        assert len(setup.model.wrapped) == (2 if scope == "target" else 1)
        assert setup.model.needs_merged == (model_class is SASRec and scope == "all")
        batch = setup.batches()[0]
        other = 1 - batch.target_domain
        emptied = batch.with_fields(**{f"history_{other}": torch.zeros_like(batch.history(other))})
        if setup.model.needs_merged:
            low = setup.dataset.item_range(other)
            merged = batch["merged"]
            foreign = (merged >= low.start) & (merged < low.stop)
            emptied = emptied.with_fields(merged=torch.where(foreign, merged[:, -1:], merged))
        with torch.no_grad():
            moved[scope] = not torch.equal(setup.model.score(batch), setup.model.score(emptied))
    # BPR knows users by their id: what the instance says of them is never looked at.
    assert moved == {"target": False, "all": model_class is not BPR}


# -- what can be scored --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [BPR, LightGCN, SASRec, MultiDAE, ItemKNN])
def test_cold_instances_are_disowned_in_scope_target_and_served_in_scope_all(build, model_class):
    for scope in ("target", "all"):
        setup = build(model_class, 2, baseline_scope=scope, cold_start_ratio=0.5)
        events, cold, warm = setup.split.train_events, [], []
        for batch in setup.batches("test") + setup.batches("valid"):
            able = setup.model.can_score(batch)
            has_history = batch.own_history.any(1)
            known = np.isin(batch.users.numpy(), events.user)
            cold += able[~has_history & torch.from_numpy(known)].tolist()
            warm += able[has_history & torch.from_numpy(known)].tolist()
        assert cold and any(warm)
        assert all(cold) if scope == "all" else not any(cold)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [FM, CKE, NCL, SASRecF])
def test_other_kinds_are_refused_with_a_reason(model_class):
    with pytest.raises(CDRError, match=f"{model_class.__name__} cannot serve as a baseline here: "):
        adapt(model_class)


def test_settings_that_are_not_served_are_refused(build):
    with pytest.raises(CDRError, match="only uniform negatives"):
        build(BPR, train_neg_sample_args={"distribution": "popularity"})
    with pytest.raises(CDRError, match="must not be empty"):
        build(BPR, train_neg_sample_args=None)


def test_adapted_classes_say_what_they_are():
    assert adapt(BPR) is adapt(BPR)
    assert adapt(BPR).__name__ == "BPR"
    assert "Rendle" in adapt(BPR).paper
    assert adapt(Pop).cold_start and adapt(Random).cold_start and not adapt(SASRec).cold_start
    assert adapt(Pop).paper == "RecBole"


def test_sequential_models_leave_anomaly_detection_off():
    importlib.reload(importlib.import_module("recbole.model.sequential_recommender.sine"))
    assert (
        torch.is_anomaly_enabled()
    )  # RecBole's doing; when this fails, the repair in adapt() has become superfluous
    adapt.__wrapped__(GRU4Rec)
    assert not torch.is_anomaly_enabled()


def test_view_answers_what_recboles_models_ask(build):
    setup = build(BPR, 3)
    data = TrainingData.of(setup.dataset, setup.split)
    for space in (*item_spaces(data, "target"), *item_spaces(data, "all")):
        view = EventView(data, space, setup.model.settings)
        assert view.num("item_id") == view.item_num == len(space) + 1
        assert view.num("user_id") == setup.dataset.user_num
        items = view.inter_feat["item_id"]
        assert items.min() >= 1 and items.max() <= len(space)
        assert view.inter_matrix().shape == (view.user_num, view.item_num)
        assert sum(view.item_counter.values()) == len(view)
        history, _, length = view.history_item_matrix()
        assert history.shape[0] == view.user_num and length.sum() == len(view)
        token = view.id2token("item_id", [1])[0]
        assert view.token2id("item_id", token) == 1
