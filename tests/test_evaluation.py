"""Ranks, metrics, groups and tables: every expected value is a fraction that can be read."""

from __future__ import annotations

import importlib.util
import math
from math import log2
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.evaluator.register import metrics_dict

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation import ranking
from recbole_cdr_ext.evaluation import result_table as instance_table
from recbole_cdr_ext.evaluation import result_table as report
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics, mean_over_domains
from recbole_cdr_ext.evaluation.ranking import Ranks
from recbole_cdr_ext.evaluation.recbole_metrics import topk_struct
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.runs.experiment import load_data
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.sampler import CrossDomainSampler

DATA = Path(__file__).parents[1] / "dataset_atomic"
METRICS = {"metrics": ["NDCG", "Hit"], "topk": [10], "metric_decimal_place": 6, "valid_metric": "NDCG@10"}


class Scripted(CrossDomainRecommender):
    """Scores that a test writes down: ``rule(batch, items)`` gives (B, C) from (B, C) global ids."""

    def __init__(self, config, dataset, rule, able=None):
        super().__init__(config, dataset)
        self.rule, self.able, self.calls = rule, able, []

    def score(self, batch, candidates=None):
        """Returns the rule's scores."""
        self.calls.append(len(batch))
        if candidates is None:
            own = self.item_slice(batch.target_domain)
            candidates = torch.arange(own.start, own.stop).expand(len(batch), -1)
        return self.rule(batch, candidates)

    def can_score(self, batch):
        """Returns what the test says."""
        return None if self.able is None else self.able(batch)


class World:
    """The toy data with a split, and a way to rank its test instances with a rule."""

    def __init__(self):
        self.config = CDRConfig(
            "Pop",
            "toy",
            config_dict={"data_path": str(DATA), "show_progress": False, "split": "leave_one_out"},
        )
        self.dataset, self.split = load_data(self.config)
        self.popularity = ranking.popularity_scores(self.split)
        self.sampler = CrossDomainSampler(self.split, 5)
        self._candidates = {}

    def candidates(self, mode):
        if mode not in self._candidates:
            self._candidates[mode] = self.sampler.candidates(self.split.test, mode)
        return self._candidates[mode]

    def rank(self, rule, mode="uni20", able=None, batch_size=64, model=None):
        model = model or Scripted(self.config, self.dataset, rule, able)
        config = {"eval_batch_size": batch_size, "train_batch_size": 8, "seed": 1, "targets_per_sequence": 0}
        loader = CrossDomainLoader(config, self.split.test, model)
        settings = {"device": "cpu", "show_progress": False}
        return ranking.evaluate(
            model, self.split.test, self.candidates(mode), loader, self.popularity, settings
        )


@pytest.fixture(scope="module")
def world():
    return World()


def constant(batch, items):
    return torch.zeros(items.shape)


def by_hash(batch, items):
    """Different for each user and item, with ties, and exact in any batch."""
    return ((items * 7919 + batch.users.unsqueeze(1) * 104729) % 50).double()


def ranks_of(rank):
    """Ranks among a thousand candidates each."""
    rank = np.asarray(rank)
    return Ranks(rank, np.full(len(rank), 1000), np.zeros(len(rank), bool))


def target_of(world, batch):
    return torch.from_numpy(world.split.test.target[batch["index"].numpy()]).unsqueeze(1)


# -- metrics -------------------------------------------------------------------------------------------------


def test_metric_values_are_visible_fractions():
    metrics = RankingMetrics({**METRICS, "metrics": ["NDCG", "Hit", "MRR", "Recall", "Precision", "MAP"]})
    values = metrics.per_instance(np.array([1, 3, 10, 11, 1000]))
    assert values["ndcg@10"] == pytest.approx([1 / log2(2), 1 / log2(4), 1 / log2(11), 0, 0])
    assert values["hit@10"] == pytest.approx([1, 1, 1, 0, 0])
    assert values["mrr@10"] == pytest.approx([1 / 1, 1 / 3, 1 / 10, 0, 0])
    assert values["recall@10"] == pytest.approx([1, 1, 1, 0, 0])
    assert values["precision@10"] == pytest.approx([1 / 10, 1 / 10, 1 / 10, 0, 0])
    assert values["map@10"] == pytest.approx([1 / 1, 1 / 3, 1 / 10, 0, 0])
    assert metrics.mean(ranks_of([1, 3])) == {
        "n": 2,
        "ndcg@10": (1 + 1 / log2(4)) / 2,
        "hit@10": 1,
        "mrr@10": round((1 + 1 / 3) / 2, 6),
        "recall@10": 1,
        "precision@10": 0.1,
        "map@10": round((1 + 1 / 3) / 2, 6),
    }


def test_several_cut_offs_in_the_configurations_order():
    metrics = RankingMetrics({**METRICS, "topk": [5, 1, 20]} | {"valid_metric": "Hit@20"})
    assert metrics.names == ["ndcg@5", "ndcg@1", "ndcg@20", "hit@5", "hit@1", "hit@20"]
    values = metrics.per_instance(np.array([3]))
    assert [values[f"ndcg@{k}"][0] for k in (5, 1, 20)] == pytest.approx([1 / log2(4), 0, 1 / log2(4)])


@pytest.mark.parametrize("name", ["ndcg", "hit", "mrr", "map", "recall", "precision"])
def test_means_are_recboles_own(name):
    rank = np.random.default_rng(0).integers(1, 40, 300)
    config = {**METRICS, "metrics": [name], "topk": [5, 10], "valid_metric": f"{name}@10"}
    theirs = metrics_dict[name](config).calculate_metric(topk_struct(rank, 10))
    ours = RankingMetrics(config).mean(ranks_of(rank))
    assert {key: ours[key] for key in theirs} == {key: float(value) for key, value in theirs.items()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["NDCG", "MAE"]}, "metric 'MAE' is one of ratings, and items are ranked"),
        ({"metrics": ["NDCGG"]}, "Unknown metric 'NDCGG'. Did you mean 'ndcg'"),
        ({"valid_metric": "MRR@10"}, "valid_metric 'MRR@10' is not among the metrics"),
    ],
)
def test_metrics_that_rankings_cannot_give_are_refused(settings, message):
    with pytest.raises(CDRError, match=message.replace("?", r"\?")):
        RankingMetrics({**METRICS, **settings})


def test_table_by_domain_and_group(world):
    metrics = RankingMetrics(METRICS)
    instances = world.split.test.take(np.array([0, 1, 2]))
    instances.domain[:] = [0, 0, 1]
    masks = {"all": np.ones(3, bool), "tailed": np.array([False, True, False]), "cold": np.zeros(3, bool)}
    table = metrics.table(instances, ranks_of([1, 3, 2]), masks, ["books", "films"])
    assert table["books"]["all"] == {"n": 2, "ndcg@10": (1 + 1 / log2(4)) / 2, "hit@10": 1}
    assert table["books"]["tailed"] == {"n": 1, "ndcg@10": 1 / log2(4), "hit@10": 1}
    assert table["films"]["cold"] == {"n": 0, "ndcg@10": None, "hit@10": None}
    assert mean_over_domains(table, "ndcg@10") == pytest.approx((0.75 + round(1 / log2(3), 6)) / 2)
    assert math.isnan(mean_over_domains({"books": {"all": {"n": 0, "ndcg@10": None}}}, "ndcg@10"))


# -- ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["uni20", "pop20", "full"])
def test_constant_model_gets_nothing_and_an_oracle_everything(world, mode):
    ranks = world.rank(constant, mode)
    assert (ranks.rank == world.candidates(mode).counts).all()
    assert RankingMetrics(METRICS).mean(ranks) == {"n": len(ranks), "ndcg@10": 0, "hit@10": 0}
    oracle = world.rank(lambda batch, items: (items == target_of(world, batch)).float(), mode)
    assert (oracle.rank == 1).all() and not oracle.fallback.any()


def test_rank_counts_the_negatives_that_score_as_much_or_more(world):
    candidates = world.candidates("uni20")

    def rule(batch, items):
        scores = torch.zeros(items.shape)
        scores[:, 0] = 0.5
        scores[:, 1:4] = 0.9  # three ahead
        scores[:, 4:6] = 0.5  # two that tie stand ahead as well
        return scores

    ranks = world.rank(rule)
    assert (ranks.rank == 1 + 3 + 2).all()
    assert (candidates.counts == 21).all() and (ranks.candidates == 21).all()


def test_padded_candidates_do_not_count_whatever_their_score(world):
    # 999 negatives are asked for, and the domains have fewer items.
    def rule(batch, items):
        scores = by_hash(batch, items)
        return torch.where(items == 0, torch.nan, scores)

    padded = world.rank(rule, "uni999")
    assert (world.candidates("uni999").counts < 1000).all()
    # All items that the user has not touched are the candidates then: full ranking says the same.
    assert (padded.rank == world.rank(by_hash, "full").rank).all()


@pytest.mark.parametrize("mode", ["uni20", "full"])
def test_batch_size_changes_nothing(world, mode, monkeypatch):
    expected = world.rank(by_hash, mode).rank
    assert (world.rank(by_hash, mode, batch_size=1).rank == expected).all()
    assert (world.rank(by_hash, mode, batch_size=37).rank == expected).all()
    monkeypatch.setattr(ranking, "_MAX_SCORES", 1000)  # a few rows at a time
    model = Scripted(world.config, world.dataset, by_hash)
    assert (world.rank(None, mode, model=model).rank == expected).all()
    assert max(model.calls) <= (1000 // 120 if mode == "full" else 64)
    assert sum(model.calls) == len(expected)  # each instance is encoded once


def test_full_ranking_leaves_out_what_was_touched(world):
    touched = world.candidates("full")
    rows = np.arange(len(world.split.test))

    def rule(batch, items):
        scores = torch.zeros(items.shape)
        row, column = touched.touched(batch["index"].numpy())
        scores[row, column] = 9.0  # what the user has stands first, and must not be in the way
        return scores + (items == target_of(world, batch)).float()

    assert len(touched.touched(rows)[0]) > 0
    assert (world.rank(rule, "full").rank == 1).all()


def test_target_that_a_model_rules_out_is_last(world):
    def rule(batch, items):
        return torch.where(items == target_of(world, batch), -torch.inf, items.float())

    assert (world.rank(rule, "full").rank == world.candidates("full").counts).all()


def test_full_ranking_does_not_write_into_the_models_scores(world):
    kept = torch.arange(1000.0)
    before = kept.clone()

    def rule(batch, items):
        return kept[: items.shape[1]].expand(len(batch), -1)

    world.rank(rule, "full")
    assert torch.equal(kept, before)


@pytest.mark.parametrize("mode", ["uni20", "full"])
def test_instances_without_a_score_fall_back_to_popularity_and_are_counted(world, mode):
    odd = world.rank(by_hash, mode, able=lambda batch: batch["index"] % 2 == 1)
    rows = np.arange(len(odd))
    assert (odd.fallback == (rows % 2 == 0)).all()
    popular = ranking.rank_by_popularity(
        world.split.test, world.candidates(mode), world.popularity, world.split.item_offset, block=7
    )
    assert (odd.rank[odd.fallback] == popular.rank[odd.fallback]).all()
    assert (odd.rank[~odd.fallback] == world.rank(by_hash, mode).rank[~odd.fallback]).all()
    nobody = world.rank(by_hash, mode, able=lambda batch: torch.zeros(len(batch), dtype=torch.bool))
    assert nobody.fallback.all() and (nobody.rank == popular.rank).all()


def test_popularity_counts_training_events_only(world):
    events = world.split.train_events
    item = int(events.item[0])
    assert world.popularity[item] == (events.item == item).sum()
    assert world.popularity.sum() == len(events) and len(world.popularity) == world.dataset.item_num


@pytest.mark.parametrize("mode", ["uni20", "full"])
def test_scores_that_are_no_numbers_are_an_error(world, mode):
    def rule(batch, items):
        return torch.where(items == items.max(), torch.nan, 1.0)

    with pytest.raises(CDRError, match="Scripted gives scores that are not numbers"):
        world.rank(rule, mode)
    # Infinities of both signs are no error: their sum is NaN, and each of them is a score.
    world.rank(lambda batch, items: torch.where(items % 2 == 0, torch.inf, -torch.inf), mode)


def test_model_is_left_in_the_mode_it_was_in(world):
    model = Scripted(world.config, world.dataset, constant)
    for training in (True, False):
        model.train(training)
        world.rank(None, model=model)
        assert model.training is training


# -- what is written -----------------------------------------------------------------------------------------


def result(**more):
    def cell(n, *values):
        return {"n": n, **dict(zip(("ndcg@10", "hit@10"), values or (None, None), strict=True))}

    table = {
        "cloth": {"all": cell(1200, 0.0431, 0.25), "tailed": cell(7, 0.5, 1.0), "cold": cell(0)},
        "a_domain_with_a_very_long_name": {
            "all": cell(3, 1 / 3, 1.0), "tailed": cell(0), "cold": cell(3, 1 / 3, 1.0)
        },
    }  # fmt: skip
    return {
        "model": "I2VAE", "dataset": "cloth_sport", "split": "user", "simulated": False,
        "test": table, "valid": table, "popularity": table, **more,
    }  # fmt: skip


def test_table_is_aligned_and_fits():
    text = report.result_table(result(notes=["A note that is long. " * 12]))
    lines = text.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert "0.0431" in text and "Pop NDCG@10" in text and "†" not in text
    assert lines[0] == "I2VAE on cloth_sport: test, split=user"
    row = next(line for line in lines if line.startswith("cloth"))
    assert row.split() == ["cloth", "all", "1,200", "0.0431", "0.2500", "0.0431", "0.2500"]
    assert "cold" in text and "-  " in text
    many = {**{f"ndcg@{k}": 0.5 for k in range(1, 30)}, "n": 4}
    wide = {"cloth": {"all": many, "tailed": many, "cold": many}}
    text = report.result_table(result(test=wide, popularity=wide))
    assert all(len(line) <= 100 for line in text.splitlines()) and "NDCG@29" in text


def test_table_marks_the_fallback_and_simulated_data():
    fallback = {"test": {"cloth": {"all": 12, "tailed": 0, "cold": 0}}}
    text = report.result_table(result(fallback=fallback, simulated=True))
    assert "SIMULATED" in text.splitlines()[0]
    assert "0.0431†" in text and "0.5000†" not in text
    assert "† 12 of 1,203 instances have no score from the model" in text


def test_instance_table_is_written_whole(world, tmp_path, monkeypatch):
    metrics, instances = RankingMetrics(METRICS), world.split.test
    ranks = world.rank(by_hash)
    from recbole_cdr_ext.splits.split import groups

    frame = instance_table.instance_frame(
        world.dataset, instances, ranks, metrics, groups(world.split, instances), "test"
    )
    assert list(frame.columns) == [
        "part", "user", "domain", "target", "all", "tailed", "cold", "history_books", "history_films",
        "candidates", "rank", "ndcg@10", "hit@10", "fallback",
    ]  # fmt: skip
    row = 5
    assert frame["user"][row] == world.dataset.id2token("user_id", int(instances.user[row]))
    assert frame["target"][row] == world.dataset.item_token(instances.target[row : row + 1])[0]
    assert frame["domain"][row] == world.dataset.domains[instances.domain[row]]
    assert frame["history_films"][row] == instances.lengths[row, 1]
    parquet = instance_table.write_instances(frame, tmp_path)
    assert parquet.suffix == ".parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), frame, check_dtype=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name)
    )
    csv = instance_table.write_instances(frame, tmp_path)
    assert csv.suffix == ".csv" and len(pd.read_csv(csv)) == len(frame)
    with pytest.raises(CDRError, match="cannot write"):
        instance_table.write_instances(frame, tmp_path / "nowhere")
    assert len(list(tmp_path.iterdir())) == 2


def test_ranks_of_nothing():
    empty = Ranks(np.zeros(0, int), np.zeros(0, int), np.zeros(0, bool))
    assert RankingMetrics(METRICS).mean(empty) == {"n": 0, "ndcg@10": None, "hit@10": None}
