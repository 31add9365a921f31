"""Serving from what a run saved."""

from __future__ import annotations

import numpy as np
import pytest
import run_toys
import torch
from run_toys import Staged, go
from toy_models import ToyMLP, write_toy_domains

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.serving import recommendation as serve
from recbole_cdr_ext.serving.recommendation import load_model, recommend
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader

settings = run_toys.settings


def test_saved_model_scores_as_it_did(settings, tmp_path):
    result = go(settings, run_id="kept")
    experiment = load_model(tmp_path / "saved" / "kept", ToyMLP)
    assert experiment.table("test") == result["test"]
    with pytest.raises(CDRError, match="'seed' decides what the run"):
        load_model(tmp_path / "saved" / "kept", ToyMLP, seed=3)
    with pytest.raises(CDRError, match="no run's folder"):
        load_model(tmp_path / "nothing")


def test_saved_model_of_changed_data_is_refused(settings, tmp_path):
    write_toy_domains(tmp_path / "own" / "mine", 2)
    own = {**settings, "data_path": str(tmp_path / "own"), "run_id": "old"}
    run_recbole_cdr(ToyMLP, "mine", config_dict=own)
    with (tmp_path / "own" / "mine" / "books.inter").open("a") as file:
        file.write("u0\tbooks-2\t99999\n")
    with pytest.raises(CDRError, match="other data or another split"):
        load_model(tmp_path / "saved" / "old", ToyMLP)


@pytest.fixture
def experiment(settings):
    return build(CDRConfig(ToyMLP, "toy", config_dict=settings))


def test_recommendations_are_the_best_untouched_items(experiment):
    dataset, split, model = experiment.dataset, experiment.split, experiment.model
    tokens = [dataset.id2token("user_id", int(u)) for u in np.unique(split.train_events.user)[:3]]
    frame = recommend(experiment, tokens, k=4, domain="films")
    assert list(frame.columns) == ["user", "rank", "item", "score", "source"]
    assert list(frame["user"]) == [t for t in tokens for _ in range(4)] and set(frame["source"]) == {"model"}
    assert list(frame["rank"]) == [1, 2, 3, 4] * 3
    assert list(recommend(experiment, tokens[0], k=4, domain="films")["user"]) == [tokens[0]] * 4
    for token, part in frame.groupby("user"):
        user = dataset.token2id("user_id", token)
        own = split.touched.items[split.touched.indptr[user] : split.touched.indptr[user + 1]]
        recommended = dataset.item_ids(1, list(part["item"]))
        assert not np.isin(recommended, own).any()
        assert (np.diff(part["score"]) <= 0).all()
        # By hand: a batch of one, over what the user did in training.
        instances = serve._serving_instances(dataset, split, np.array([user]), 1)
        for k in range(2):
            events = split.train_events
            known = events.item[(events.user == user) & (events.domain == k)]
            assert set(known) <= set(instances.history(0, k))
        (batch,) = CrossDomainLoader(experiment.config, instances, model)
        with torch.no_grad():
            scores = model.eval().score(batch)[0]
        scores[own[(own >= dataset.item_range(1).start)] - dataset.item_range(1).start] = -torch.inf
        best = scores.topk(4).indices.numpy() + dataset.item_range(1).start
        assert list(best) == list(recommended)


def test_held_out_users_are_served_from_all_their_histories_but_not_their_last_target(experiment):
    split, dataset = experiment.split, experiment.dataset
    for row in range(len(split.test)):
        user = split.test.user[row : row + 1]
        instances = serve._serving_instances(dataset, split, user, int(split.test.domain[row]))
        for k in range(dataset.n_domains):
            assert set(split.test.history(row, k)) <= set(instances.history(0, k))
        # The earlier of two targets stands in the history of the later one; the later stands in none.
        last = row == max(np.flatnonzero(split.test.user == user), key=lambda r: split.test.time[r])
        assert not last or split.test.target[row] not in instances.pool.item


def test_unknown_users_get_what_is_popular_and_are_told(experiment):
    known = experiment.dataset.id2token("user_id", 1)
    frame = recommend(experiment, ["nobody", known, "nobody either"], k=3, domain="books")
    assert list(frame["source"]) == ["popularity"] * 3 + ["model"] * 3 + ["popularity"] * 3
    own = experiment.dataset.item_range(0)
    top = np.sort(experiment.popularity[own])[::-1][:3]
    assert list(frame["score"][:3]) == list(top)
    with pytest.raises(CDRError, match="Which domain"):
        recommend(experiment, [known])
    with pytest.raises(CDRError, match="Unknown domain 'music'"):
        recommend(experiment, [known], domain="music")
    everything = recommend(experiment, [known], k=10_000, domain="books")
    touched = experiment.split.touched.rows(np.array([1]))[1]
    assert len(everything) == experiment.dataset.n_domain_items(0) - (touched < own.stop).sum()
    assert recommend(experiment, [], domain="books").empty


def test_users_whom_the_model_cannot_score_are_told(settings):
    class Blind(CrossDomainRecommender):
        def score(self, batch, candidates=None):
            raise AssertionError("no one is scored")

        def can_score(self, batch):
            return torch.zeros(len(batch), dtype=torch.bool)

        def phases(self):
            return []

    experiment = build(CDRConfig(Blind, "toy", config_dict=settings))
    frame = recommend(experiment, [experiment.dataset.id2token("user_id", 1)], k=2, domain="books")
    assert list(frame["source"]) == ["popularity"] * 2


def test_staged_model_serves_users_with_pseudo_sequences_of_their_own(settings):
    experiment = build(CDRConfig(Staged, "toy", config_dict={**settings, "pseudo_length": 12}))
    tokens = [experiment.dataset.id2token("user_id", u) for u in (1, 2)]
    both = recommend(experiment, tokens, k=3, domain="films")
    one = recommend(experiment, tokens[1:], k=3, domain="films")
    assert list(both["item"][3:]) == list(one["item"]) and set(both["source"]) == {"model"}
