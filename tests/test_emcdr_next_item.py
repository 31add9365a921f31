"""EMCDR for next items: factors, and mappings between them."""

from __future__ import annotations

import math

import emcdr_model
import numpy as np
import pytest
import torch
from emcdr_model import asking, fit, make
from support import random_domains

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.evaluation import ranking
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics
from recbole_cdr_ext.model.next_item.emcdr import EMCDR
from recbole_cdr_ext.splits.loader import CrossDomainLoader

ready = emcdr_model.ready


def tables(model) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items() if not name.startswith("maps")}


# -- factors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["BPR", "MF"])
def test_the_loss_of_the_factors_by_hand(tmp_path, form):
    _, model = make(tmp_path, embedding_size=2, latent_factor_model=form, reg_weight=0.5, train_neg_num=2)
    first = model.item_offsets[1]
    with torch.no_grad():
        model.users[1].weight[3] = torch.tensor([1.0, 2.0])
        for item, vector in enumerate([(3.0, 0.0), (0.0, 1.0), (1.0, -1.0)]):
            model.items[1].weight[item] = torch.tensor(vector)
    fields = {"user_id": [3], "item_id": [first], "neg_item_id": [[first + 1, first + 2]]}
    loss = model.factor_loss(Batch({name: torch.tensor(x) for name, x in fields.items()}, 1, 2))
    # Scores: 3 of the item, 2 and −1 of the negatives.
    bpr = (math.log(1 + math.exp(2 - 3)) + math.log(1 + math.exp(-1 - 3))) / 2
    squares = (1 - 3) ** 2 + (2**2 + 1) / 2
    assert loss.error.item() == pytest.approx(bpr if form == "BPR" else squares)
    assert loss.l2.item() == pytest.approx(0.5 * (5 + 9 + (1 + 2) / 2))


def test_an_epoch_holds_each_training_pair_once_and_negatives_the_user_never_touched_in_training(ready):
    loaded, model = ready
    events = loaded.split.train_events
    trained = set(zip(events.user.tolist(), events.item.tolist(), strict=True))
    seen, drawn = [], []
    for k in (0, 1):
        for epoch in (0, 1):
            batches = list(model.pair_batches(k, np.random.default_rng(epoch)))
            assert {batch.target_domain for batch in batches} == {k}
            users = torch.cat([batch.users for batch in batches])
            items, negatives = (
                torch.cat([batch[name] for batch in batches]).view(-1) for name in ("item_id", "neg_item_id")
            )
            own = model.item_slice(k)
            assert ((negatives >= own.start) & (negatives < own.stop)).all()
            drawn.append(negatives.tolist())
            assert not trained & set(zip(users.tolist(), negatives.tolist(), strict=True))
        seen += zip(users.tolist(), items.tolist(), strict=True)
    assert len(seen) == len(set(seen)) and set(seen) == trained
    assert drawn[0] != drawn[1]


def test_each_phase_learns_its_own_part(ready):
    _, model = ready
    learns = {p.name: {name for name, _ in model.parameters_of(p)} for p in model.phases()}
    of_map = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert list(learns) == ["factors_books", "factors_films", "map_to_books", "map_to_films"]
    for k, name in enumerate(model.domain_names):
        assert learns[f"factors_{name}"] == {f"users.{k}.weight", f"items.{k}.weight"}
        assert learns[f"map_to_{name}"] == {f"maps.{k}.{part}" for part in of_map}


@pytest.mark.parametrize("mode", ["uni20", "full"])
def test_factors_are_validated_by_ndcg_of_warm_users(tmp_path, mode):
    rows = random_domains(n_users=200)
    loaded, model = make(tmp_path, rows, cold_start_ratio=0.5, eval_args={"mode": mode}, train_batch_size=512)
    metrics, split = RankingMetrics(loaded.config), loaded.split
    popularity = ranking.popularity_scores(split)
    fit(model, split)
    for k in (0, 1):
        warm = (split.valid.domain == k) & model.trained[k].numpy()[split.valid.user]
        assert 0 < warm.sum() < (split.valid.domain == k).sum(), "there are cold ones too"
        instances = split.valid.take(warm)
        candidates = model._sampler.candidates(instances, mode)
        ranks = ranking.evaluate(
            model,
            instances,
            candidates,
            CrossDomainLoader(loaded.config, instances, model),
            popularity,
            loaded.config,
        )
        expected = metrics.per_instance(ranks.rank)["ndcg@10"].mean()
        assert model.warm_ndcg(k) == pytest.approx(expected, abs=1e-6)
        assert expected > 0


# -- mappings ------------------------------------------------------------------------------------------------


class Watched(EMCDR):
    """Remembers its tables as the first mapping phase finds them."""

    found = None

    def start_epoch(self, phase, epoch):
        if phase.name.startswith("map_to") and self.found is None:
            self.found = tables(self)


@pytest.mark.parametrize("mapping", ["mlp", "linear"])
def test_mapping_phases_leave_the_tables_bit_for_bit(tmp_path, mapping):
    loaded, model = make(tmp_path, cls=Watched, mapping=mapping)
    start, maps = tables(model), [p.clone() for p in model.maps.parameters()]
    fit(model, loaded.split)
    assert not any(torch.equal(start[name], model.found[name]) for name in start)
    assert all(torch.equal(model.found[name], now) for name, now in tables(model).items())
    assert all(not torch.equal(old, new) for old, new in zip(maps, model.maps.parameters(), strict=True))


class MapsOnly(EMCDR):
    def phases(self):
        return super().phases()[2:]


def test_a_linear_mapping_finds_a_rotation(tmp_path):
    long = {"epochs": 100, "map_learning_rate": 0.05, "stopping_step": 100, "map_batch_size": 200}
    loaded, model = make(tmp_path, random_domains(n_users=120), MapsOnly, mapping="linear", **long)
    turn = torch.linalg.qr(torch.randn(8, 8))[0]
    with torch.no_grad():
        model.users[1].weight.normal_()
        model.users[0].weight.copy_(model.users[1].weight @ turn.T)
    assert model.map_error(0, model._held_out).mean() > 1
    fit(model, loaded.split)
    for k, matrix in enumerate((turn, turn.T)):
        assert model.map_error(k, model._held_out).mean() < 1e-3
        torch.testing.assert_close(model.maps[k].weight.detach(), matrix, atol=0.01, rtol=0)


def test_the_penalty_on_the_linear_mapping_is_one_users_share(tmp_path):
    _, model = make(tmp_path, embedding_size=2, mapping="linear", map_reg_weight=0.6)
    users = model._fit[:2]
    with torch.no_grad():
        model.maps[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        model.users[1].weight[users] = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        model.users[0].weight[users] = torch.tensor([[4.0, 1.0], [0.0, 1.0]])
    # f(1, 0) = (1, 3), off by (3, 2); f(0, 2) = (4, 8), off by (4, 7).
    loss = model.map_loss(asking(users, 0))
    assert loss.item() == pytest.approx((9 + 4 + 16 + 49) / 2 + 0.6 / len(model._fit) * (1 + 4 + 9 + 16))


@pytest.mark.parametrize("least", [1, 4])
def test_who_fits_the_mapping(tmp_path, least):
    loaded, model = make(tmp_path, map_min_items=least, map_validation=0.25)
    events = loaded.split.train_events
    pairs = {(u, i, d) for u, i, d in zip(events.user, events.item, events.domain, strict=True)}
    counts = np.zeros((2, model.n_users), int)
    for user, _, domain in pairs:
        counts[domain, user] += 1
    expected = set(np.flatnonzero((counts >= least).all(0)).tolist())
    fitting, held_out = model._fit.tolist(), model._held_out.tolist()
    assert set(fitting) | set(held_out) == expected and not set(fitting) & set(held_out)
    assert len(held_out) == round(0.25 * len(expected)) > 0
    batches = list(model.overlap_batches(0, np.random.default_rng(0)))
    assert sorted(torch.cat([batch.users for batch in batches]).tolist()) == sorted(fitting)
    error = (model.maps[1](model.users[0](model._held_out)) - model.users[1](model._held_out)).square().sum(1)
    assert model.fit_of_held_out(1) == pytest.approx(-error.mean().item())
