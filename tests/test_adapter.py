"""RecBole's own models as baselines: scores, scopes and refusals, and MultiVAE over bags against RecBole's own."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy_models
from support import load, random_domains
from toy_models import Setup, ToyMLP, train

from recbole_cdr_ext import compat
from recbole_cdr_ext.splits.split import TrainingData

compat.apply()

from recbole.data.interaction import Interaction
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
from recbole_cdr_ext.data.instances import Batch, make_batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.bags import BagLinear, Bags, multinomial_loss
from recbole_cdr_ext.splits.loader import CrossDomainLoader

one_thread = toy_models.one_thread
toys = toy_models.toys
build = toy_models.build

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


SMALL = {"mlp_hidden_size": [24], "latent_dimension": 16, "dropout_prob": 0.0, "total_anneal_steps": 100}


def build_multivae(tmp_path, domains=None, seed=0, **settings):
    loaded = load(tmp_path, domains or random_domains(), "MultiVAE", **{**SMALL, **settings})
    cls = adapt(MultiVAE)
    torch.manual_seed(seed)
    return loaded, cls(loaded.config, loaded.data).eval()


def scored(loaded, model, part="test"):
    return list(CrossDomainLoader(loaded.config, loaded.split.part(part), model))


def train_multivae(model, epochs, lr=0.01):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for epoch in range(epochs):
        for batch in model.user_batches(np.random.default_rng(epoch)):
            optimizer.zero_grad()
            model.calculate_loss(batch).backward()
            optimizer.step()
    return model.eval()


def emptied(batch, domain):
    return batch.with_fields(**{f"history_{domain}": torch.zeros_like(batch.history(domain))})


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return build_multivae(tmp_path_factory.mktemp("multivae"))


# -- bags ----------------------------------------------------------------------------------------------------------

HISTORIES = torch.tensor([[0, 0, 7, 5], [5, 9, 5, 6], [0, 0, 0, 0], [0, 0, 0, 8]])


def multi_hot(n=5, first=5):
    dense = torch.zeros(len(HISTORIES), n)
    row, column = HISTORIES.nonzero(as_tuple=True)
    dense[row, HISTORIES[row, column] - first] = 1.0
    return dense


def test_bags_hold_each_item_once():
    bags = Bags.of(HISTORIES, first=5)
    assert bags.items.tolist() == [0, 2, 0, 1, 4, 3]
    assert bags.sizes.tolist() == [2, 3, 0, 1] and bags.owners.tolist() == [0, 0, 1, 1, 1, 3]


def test_bag_linear_is_the_linear_layer_on_the_normalised_multi_hot_row():
    layer, bags = BagLinear(5, 3), Bags.of(HISTORIES, first=5)
    torch.nn.init.normal_(layer.bias)
    expected = F.linear(F.normalize(multi_hot()), layer.weight.T, layer.bias)
    torch.testing.assert_close(layer(bags), expected)
    assert torch.equal(layer(bags)[2], layer.bias)
    ours, theirs = (torch.autograd.grad(y.square().sum(), layer.weight)[0] for y in (layer(bags), expected))
    torch.testing.assert_close(ours, theirs)


def test_input_dropout_scales_what_is_left():
    layer = BagLinear(5, 1, dropout=0.5)
    torch.nn.init.ones_(layer.weight)
    drawn = torch.cat([layer(Bags.of(torch.tensor([[1]]))) for _ in range(200)])
    assert set(drawn.flatten().tolist()) == {0.0, 2.0}
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("block", [1, 10, 10**6])
def test_the_multinomial_loss_is_the_dense_one(block):
    torch.manual_seed(0)
    bags = Bags.of(HISTORIES, first=5)
    inputs = [torch.randn(size, requires_grad=True) for size in ((4, 3), (5, 3), (5,))]
    vectors, items, bias = inputs
    expected = -((vectors @ items.T + bias).log_softmax(1) * multi_hot()).sum(1).mean()
    ours = multinomial_loss(*inputs, bags, block)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(
        torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


# -- RecBole's model underneath ------------------------------------------------------------------------------------


def recboles(model, index):
    """RecBole's own MultiVAE with the weights of one of ours."""
    original = MultiVAE(model.settings, model.views[index])
    state = {
        name: value.T if name == "encoder.0.weight" else value
        for name, value in model.wrapped[index].state_dict().items()
    }
    original.load_state_dict(state)
    return original


@pytest.mark.parametrize("scope", ["target", "all"])
def test_loss_and_scores_are_recboles(tmp_path, scope):
    _, model = build_multivae(tmp_path, noise_std=0.01, baseline_scope=scope)
    batches = list(model.user_batches(np.random.default_rng(0)))
    assert len(batches) == len(model.spaces)
    for batch in batches:
        index = model.space_index(batch.target_domain)
        original = recboles(model, index)
        users = Interaction({"user_id": batch.users})
        torch.manual_seed(5)
        expected = original.calculate_loss(users)
        torch.manual_seed(5)
        torch.testing.assert_close(model.train().calculate_loss(batch), expected)
        expected = original.eval().full_sort_predict(users).view(len(batch), -1).softmax(1)
        ours = model.eval().score(batch)
        own = model.spaces[index].columns(model.item_slice(batch.target_domain))
        shift = ours - expected[:, own].log()  # scores are logits: equal up to a constant per row
        torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), rtol=1e-4, atol=1e-4)


def test_noise_has_the_deviation_that_is_asked_for(ready):
    wrapped = ready[1].wrapped[0]
    mean, logvar = torch.full((1, 20000), 3.0), torch.full((1, 20000), 2.0).log() * 2
    z = wrapped.train().reparameterize(mean, logvar)
    assert z.mean().item() == pytest.approx(3, abs=0.1)
    assert z.std().item() == pytest.approx(2, rel=0.05)
    assert torch.equal(wrapped.eval().reparameterize(mean, logvar), mean)


def test_the_weight_of_the_kl_rises_to_its_cap(tmp_path):
    _, model = build_multivae(tmp_path, total_anneal_steps=4, anneal_cap=0.5, noise_std=0.0)
    model.train()
    batch = next(iter(model.user_batches(np.random.default_rng(0))))
    losses = [model.calculate_loss(batch).item() for _ in range(4)]
    steps = np.diff(losses)
    assert steps[0] > 0 and steps[1:] == pytest.approx(0, abs=1e-4)  # β = 1/4, 2/4, 2/4, 2/4


# -- what is read --------------------------------------------------------------------------------------------------


def test_all_cold_users_get_the_same_finite_scores(ready):
    loaded, model = ready
    for batch in scored(loaded, model):
        scores = model.score(emptied(batch, batch.target_domain))
        assert torch.isfinite(scores).all() and torch.equal(scores, scores[:1].expand_as(scores))
        assert not torch.allclose(scores, model.score(batch))
        assert model.can_score(batch) is None


def test_the_history_and_not_the_users_id_is_looked_at(ready):
    loaded, model = ready
    for batch in scored(loaded, model):
        stranger = batch.with_fields(
            user_id=torch.zeros_like(batch.users), item_id=torch.ones_like(batch.targets)
        )
        assert torch.equal(model.score(stranger), model.score(batch))
        own = batch.own_history
        another = batch.with_fields(**{f"history_{batch.target_domain}": own.roll(1, 0)})
        assert not torch.allclose(model.score(another), model.score(batch))


@pytest.mark.parametrize(("settings", "reads_other"), [({}, False), ({"input": "both"}, True)])
def test_the_input_decides_what_is_read_and_not_what_is_predicted(tmp_path, settings, reads_other):
    loaded, model = build_multivae(tmp_path, **settings)
    for batch in scored(loaded, model):
        own, other = batch.target_domain, 1 - batch.target_domain
        size = loaded.dataset.n_domain_items(own)
        assert model.score(batch).shape == (len(batch), size)
        assert model.wrapped[own].items.out_features == size + 1  # RecBole's padding is a row
        moved = not torch.allclose(model.score(emptied(batch, other)), model.score(batch))
        assert moved == reads_other
        padded = {f"history_{k}": F.pad(batch.history(k), (3, 0)) for k in (0, 1)}
        torch.testing.assert_close(model.score(batch.with_fields(**padded)), model.score(batch))


def test_targets_that_are_held_out_are_in_no_bag(ready):
    loaded, model = ready
    held_out = {
        pair
        for part in (loaded.split.valid, loaded.split.test)
        for pair in zip(part.user.tolist(), part.target.tolist(), strict=True)
    }
    seen = set()
    for batch in model.user_batches(np.random.default_rng(0)):
        for k in (0, 1):
            row, column = batch.history(k).nonzero(as_tuple=True)
            seen |= set(zip(batch.users[row].tolist(), batch.history(k)[row, column].tolist(), strict=True))
    events = loaded.split.train_events
    assert seen == set(zip(events.user.tolist(), events.item.tolist(), strict=True))
    assert not seen & held_out


@pytest.mark.parametrize("settings", [{}, {"input": "both"}, {"baseline_scope": "all"}])
def test_it_fits_the_bags_it_learns_from(tmp_path, settings):
    loaded, model = build_multivae(tmp_path, random_domains(n_users=32), latent_dimension=64, **settings)
    train_multivae(model, 80, lr=0.03)
    hits = []
    for k in (0, 1):
        rows = np.flatnonzero((model.bags.domain == k) & (model.bags.lengths[:, k] > 0))
        batch = make_batch(model.bags, rows, max_length=model.longest)
        best = model.score(batch).topk(10).indices + loaded.dataset.item_range(k).start
        bag = batch.own_history
        hits += (best.unsqueeze(2) == bag.unsqueeze(1)).any(1)[bag != 0].tolist()
    assert np.mean(hits) > 0.95


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"input": "all"}, "input"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"latent_dimension": 7}, "latent_dimension"),
    ],
)
def test_bad_settings_are_one_clear_error(tmp_path, settings, match):
    with pytest.raises(CDRError, match=match):
        build_multivae(tmp_path, **settings)
