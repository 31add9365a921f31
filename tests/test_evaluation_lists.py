"""Metrics of lists and GAUC: figures by hand as fractions, RecBole's own classes beside, and lists by a plain sort."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metrics_dict, smaller_metrics
from scipy.stats import rankdata

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation import ranking
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics
from recbole_cdr_ext.evaluation.ranking import Ranks
from recbole_cdr_ext.registry import metrics as metric_registry
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.settings.config import CDRConfig

DATA = Path(__file__).parents[1] / "dataset_atomic"
LISTS = ["ItemCoverage", "AveragePopularity", "ShannonEntropy", "GiniIndex", "TailPercentage"]
SETTINGS = {"topk": [1, 2], "metric_decimal_place": 9, "valid_metric": "GAUC", "metrics": [*LISTS, "GAUC"]}
# Three lists of a domain of four items, of which 1 was bought five times, 2 three times, 3 once and 4 never.
RANKS = Ranks(
    rank=np.array([1, 3, 3]),
    candidates=np.array([4, 4, 4]),
    fallback=np.zeros(3, bool),
    mean_rank=np.array([1, 2.5, 3]),
    items=np.array([[1, 2], [1, 3], [1, 2]]),
)
POPULARITY = np.array([0, 5, 3, 1, 0])


def figures(ranks=RANKS, popularity=POPULARITY, **settings):
    return RankingMetrics({**SETTINGS, **settings}).mean(ranks, popularity)


# -- figures -------------------------------------------------------------------------------------------------


def test_figures_are_visible_fractions():
    assert figures() == pytest.approx(
        {
            "n": 3,
            "itemcoverage@1": 1 / 4,
            "itemcoverage@2": 3 / 4,
            "averagepopularity@1": (5 + 5 + 5) / 3,
            "averagepopularity@2": ((5 + 3) / 2 + (5 + 1) / 2 + (5 + 3) / 2) / 3,
            "shannonentropy@1": 0,
            "shannonentropy@2": (3 / 6 * log(6 / 3) + 2 / 6 * log(6 / 2) + 1 / 6 * log(6 / 1)) / 3,
            # (2 i - 5) P(i) over the counts in their order: 0, 0, 0, 3 and 0, 1, 2, 3.
            "giniindex@1": 3 * 3 / (4 * 3),
            "giniindex@2": (-1 * 1 + 1 * 2 + 3 * 3) / (4 * 6),
            "tailpercentage@1": 0,
            "tailpercentage@2": (0 + 1 / 2 + 0) / 3,
            "gauc": (3 / 3 + 1.5 / 3 + 1 / 3) / 3,
        },
        abs=1e-8,
    )


@pytest.mark.parametrize(
    ("turned", "moved"),
    [
        ({"ranks": replace(RANKS, items=RANKS.items[:, ::-1])},
         {f"{name.lower()}@1" for name in LISTS}),
        ({"popularity": POPULARITY[[0, 4, 3, 2, 1]]},
         {"averagepopularity@1", "averagepopularity@2", "tailpercentage@2"}),
        ({"popularity": np.append(POPULARITY, 0)},
         {"itemcoverage@1", "itemcoverage@2", "giniindex@1", "giniindex@2"}),
        ({"ranks": replace(RANKS, mean_rank=RANKS.candidates + 1 - RANKS.mean_rank)}, {"gauc"}),
    ],
    ids=["lists", "popularity", "catalogue", "ranks"],
)  # fmt: skip
def test_what_is_turned_round_moves_the_figures_that_read_it(turned, moved):
    before, after = figures(), figures(**turned)
    assert {name for name in before if before[name] != after[name]} == moved


def test_a_tail_by_share_and_by_count():
    def tail(ratio):
        return figures(tail_ratio=ratio)["tailpercentage@2"]

    assert tail(None) == tail(0.1) == tail(1 / 3) == pytest.approx(1 / 6)  # item 3, the least bought
    assert tail(0.7) == pytest.approx(1 / 2)  # and item 2; item 4 was never bought and is of no tail
    assert tail(3) == pytest.approx(1 / 2)  # three interactions at most
    with pytest.raises(CDRError, match="tail_ratio='few' should be a number"):
        tail("few")


def test_short_lists_count_the_items_that_they_have():
    short = replace(RANKS, items=np.array([[1, 2], [3, 0], [1, 2]]))
    found = figures(short)
    assert found["itemcoverage@2"] == 3 / 4
    assert found["averagepopularity@2"] == (4 + 1 + 4) / 3
    assert found["tailpercentage@2"] == pytest.approx((0 + 1 + 0) / 3)
    assert found["giniindex@2"] == (-1 * 1 + 1 * 2 + 3 * 2) / (4 * 5)
    assert found["shannonentropy@2"] == pytest.approx((2 / 5 * log(5 / 2) * 2 + 1 / 5 * log(5)) / 3)


def test_area_is_of_the_instances_with_another_candidate():
    ranks = replace(RANKS, candidates=np.array([4, 3, 1]), mean_rank=np.array([2, 2.5, 1]))
    assert figures(ranks)["gauc"] == pytest.approx((2 / 3 + 0.5 / 2) / 2)
    assert figures(ranks.take(np.array([2])))["gauc"] is None
    assert figures(ranks.take(np.array([0])))["gauc"] == pytest.approx(2 / 3)


def test_nothing_ranked_has_no_figure():
    assert set(figures(RANKS.take(np.zeros(3, bool))).values()) == {0, None}


@pytest.mark.parametrize("tail_ratio", [None, 0.3, 4])
def test_figures_are_those_of_recboles_classes(tail_ratio):
    rng = np.random.default_rng(3)
    n, n_items, length = 50, 30, 10
    popularity = np.append(0, rng.poisson(3, n_items))
    candidates = rng.integers(2, n_items, n)
    ranks = Ranks(
        rank=np.ones(n, int),
        candidates=candidates,
        fallback=np.zeros(n, bool),
        mean_rank=rng.integers(2, 2 * candidates + 1) / 2,
        items=np.array([rng.permutation(n_items)[:length] + 1 for _ in range(n)]),
    )
    settings = {**SETTINGS, "topk": [1, 3, 10], "tail_ratio": tail_ratio, "metric_decimal_place": 6}
    struct = DataStruct()
    struct.set("rec.items", torch.from_numpy(ranks.items))
    struct.set("data.num_items", n_items)
    struct.set("data.count_items", Counter({i: int(c) for i, c in enumerate(popularity) if c}))
    columns = np.column_stack([ranks.mean_rank, candidates, np.ones(n)])
    struct.set("rec.meanrank", torch.from_numpy(columns))
    ours = RankingMetrics(settings).mean(ranks, popularity)
    theirs = {}
    for name in settings["metrics"]:
        theirs |= metrics_dict[name.lower()](settings).calculate_metric(struct)
    assert {"n": n, **theirs} == pytest.approx(ours, abs=1e-6) and list(ours) == ["n", *theirs]


def test_directions_are_recboles():
    for info in metric_registry.list_metrics():
        if info.origin == "recbole":
            assert info.larger_is_better == (info.name.lower() not in smaller_metrics), info.name
    assert metric_registry.metric_names()[:14] == [
        *("ndcg", "hit", "mrr", "map", "recall", "precision", "gauc", "itemcoverage", "averagepopularity"),
        *("shannonentropy", "giniindex", "tailpercentage", "mae", "rmse"),
    ]


# -- lists ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment():
    settings = {"data_path": str(DATA), "show_progress": False, "split": "leave_one_out", "use_gpu": False}
    config = CDRConfig(
        "Pop", "toy", config_dict={**settings, "metrics": ["GAUC", *LISTS], "valid_metric": "GAUC"}
    )
    return build(config)


class Ruled:
    """A scorer whose scores follow from user and item."""

    training, domain_names = False, ("books", "films")

    def __init__(self, split, rule):
        self.split, self.rule = split, rule

    def train(self, mode=True):
        """Does nothing."""

    eval = train

    def item_slice(self, domain):
        """Returns the domain's items."""
        return slice(int(self.split.item_offset[domain]), int(self.split.item_offset[domain + 1]))

    def can_score(self, batch):
        """Returns None: all."""

    def score(self, batch, candidates=None):
        """Returns the rule's scores."""
        if candidates is None:
            domain_items = self.item_slice(batch.target_domain)
            candidates = torch.arange(domain_items.start, domain_items.stop).expand(len(batch), -1)
        return self.rule(batch.users.unsqueeze(1), candidates)


RULES = {
    "ties": lambda user, item: ((item * 7919 + user * 104729) % 13).double(),
    "constant": lambda user, item: torch.zeros(item.shape),
    "infinite": lambda user, item: torch.where((item + user) % 3 == 0, torch.inf, -torch.inf),
    "whole": lambda user, item: (item * 7919 + user * 104729) % 1000,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["uni7", "uni30", "uni999", "full"])
def test_lists_are_those_of_a_plain_sort(experiment, mode, rule):
    split, length = experiment.split, 10
    instances = split.test
    candidates = experiment.sampler.candidates(instances, mode)
    model = Ruled(split, RULES[rule])
    ranks = ranking.evaluate(
        model, instances, candidates, experiment.loader("test"), experiment.popularity, experiment.config,
        list_length=length,
    )  # fmt: skip
    plain = ranking.evaluate(
        model, instances, candidates, experiment.loader("test"), experiment.popularity, experiment.config
    )
    assert (ranks.rank == plain.rank).all() and not len(plain.items) and not len(plain.mean_rank)
    for row in range(len(instances)):
        first, stop = split.item_offset[instances.domain[row]], split.item_offset[instances.domain[row] + 1]
        block = candidates.block(np.array([row]))
        if block is None:
            block = np.setdiff1d(np.arange(first, stop), first + candidates.touched(np.array([row]))[1])
        items = np.sort(block[block > 0])
        scores = RULES[rule](torch.tensor([[instances.user[row]]]), torch.from_numpy(items)[None])[0].numpy()
        is_target = items == instances.target[row]
        best = items[np.lexsort((items, is_target, -scores.astype(float)))][:length] - first + 1
        assert ranks.items[row].tolist() == [*best, *[0] * (length - len(best))]
        assert ranks.mean_rank[row] == rankdata(-scores)[is_target]
        target = instances.target[row] - first + 1
        place = np.flatnonzero(ranks.items[row] == target)
        assert place.tolist() == [ranks.rank[row] - 1] * int(ranks.rank[row] <= length)


def test_lists_of_popularity_are_the_same_in_any_block(experiment):
    arguments = (experiment.popularity, experiment.split.item_offset)
    instances = experiment.split.test
    for mode in ("uni20", "full"):
        candidates = experiment.sampler.candidates(instances, mode)
        lists = [
            ranking.rank_by_popularity(instances, candidates, *arguments, block=block, list_length=5).items
            for block in (7, 1024)
        ]
        assert (lists[0] == lists[1]).all() and lists[0].all()


def test_popularity_of_a_domain_begins_with_the_padding():
    by_domain = ranking.popularity_by_domain(np.array([9, 5, 3, 1, 0, 2]), np.array([1, 4, 6]))
    assert [counts.tolist() for counts in by_domain] == [[0, 5, 3, 1], [0, 0, 2]]


# -- what a run says -----------------------------------------------------------------------------------------


def test_a_table_has_a_figure_per_domain_and_group(experiment):
    table = experiment.table("test")
    for name, groups in table.items():
        n_items = experiment.dataset.n_domain_items(experiment.dataset.domain_index(name))
        coverage = groups["all"]["itemcoverage@10"]
        assert coverage * n_items == pytest.approx(round(coverage * n_items), abs=0.01)
        assert coverage >= groups["tailed"]["itemcoverage@10"]
        assert all(value is not None for value in groups["all"].values())
    frame = experiment.instance_frame("test", experiment.rank("test"))
    assert not [column for column in frame if "coverage" in column or "gauc" in column]


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        (
            "uni999",
            "of the best k among the 1,000 candidates, target included, and not of the whole catalogue.",
        ),
        ("full", "of the best k among all items of the domain that the user has not touched."),
    ],
)
def test_notes_say_from_what_the_lists_are(mode, told):
    metrics = RankingMetrics({**SETTINGS, "metrics": ["NDCG", "GiniIndex", "GAUC"], "topk": [5, 10]})
    lists, areas = metrics.notes(mode, 1000)
    assert lists == f"GiniIndex@5, GiniIndex@10: {told}"
    assert areas.startswith("GAUC: of the target against ") and ("999 other" in areas) == (mode == "uni999")
    assert not RankingMetrics({**SETTINGS, "metrics": "NDCG", "valid_metric": "NDCG@2"}).notes(mode, 1000)
    chosen = RankingMetrics({**SETTINGS, "metrics": "GiniIndex", "valid_metric": "GiniIndex@2"}).notes(
        mode, 1
    )
    assert "(fewer where there are fewer)" in chosen[0] or mode == "full"
    assert chosen[-1].startswith("valid_metric=GiniIndex@2 chose the model by what it recommends")


def test_only_what_a_metric_reads_is_noted():
    def length(*metrics):
        settings = {**SETTINGS, "metrics": list(metrics), "valid_metric": f"{metrics[0]}@2"}
        return RankingMetrics(settings).list_length

    assert length("NDCG", "Hit") is None
    assert length("NDCG", "GAUC") == 0
    assert length("NDCG", "GAUC", "GiniIndex") == 2
