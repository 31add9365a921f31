"""Means over seeds, paired tests, Holm's correction and effect sizes."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.significance import (
    Spread,
    align,
    compare,
    holm,
    is_per_instance,
    paired,
    per_user,
    summary,
)


def ranked(rank, *, domain="books", part="test", tailed=None, candidates=1000) -> pd.DataFrame:
    """A per-instance table as a next-item run writes it."""
    n = len(rank)
    return pd.DataFrame(
        {
            "part": part,
            "user": [f"u{i}" for i in range(n)],
            "domain": domain,
            "target": [f"i{i}" for i in range(n)],
            "all": True,
            "tailed": np.zeros(n, bool) if tailed is None else np.asarray(tailed, bool),
            "candidates": candidates,
            "rank": rank,
            "mrr@10": [1 / r if r <= 10 else 0.0 for r in rank],
            "fallback": False,
        }
    )


def rated(prediction, rating) -> pd.DataFrame:
    """A per-rating table."""
    prediction, rating = np.asarray(prediction, float), np.asarray(rating, float)
    n = len(rating)
    return pd.DataFrame(
        {
            **{"part": "test", "user": [f"u{i // 2}" for i in range(n)], "domain": "films"},
            **{"item": [f"i{i}" for i in range(n)], "rating": rating, "prediction": prediction},
            **{"absolute_error": np.abs(prediction - rating), "known_item": True},
        }
    )


# -- two models -----------------------------------------------------------------------------------------------------


def test_a_row_per_user_says_what_a_row_per_rating_does():
    rng = np.random.default_rng(4)
    user, item = np.array(["a", "a", "a", "b", "b", "c", "d"]), np.arange(7).astype(str)
    whole = {
        name: [
            pd.DataFrame(
                {"part": "test", "domain": "books", "user": user, "item": item, "rating": 3.0}
            ).assign(prediction=3.0, absolute_error=np.abs(rng.normal(size=7)))
            for _ in range(2)
        ]
        for name in "AB"
    }
    short = {name: [per_user(frame) for frame in frames] for name, frames in whole.items()}
    assert list(short["A"][0]["ratings"]) == [3, 2, 1, 1]
    for table in (summary, lambda found: compare(found, "B")):
        pd.testing.assert_frame_equal(table(align(whole)), table(align(short)))
    # The same number of ratings, but not the same ratings.
    other = per_user(whole["B"][0].assign(item=item[::-1]))
    with pytest.raises(CDRError, match="'asked' differs in 4 of them"):
        align({"A": short["A"][:1], "B": [other]})


def test_paired_by_hand():
    # d = 1, 2, 3, -2: mean 1, sum of squares about it 0 + 1 + 4 + 9 = 14, s = √(14/3), t = 1 / (s/2).
    found = paired(np.array([2.0, 3, 4, 1]), np.array([1.0, 1, 1, 3]))
    s = math.sqrt(14 / 3)
    assert found.difference == 1
    assert found.d_z == pytest.approx(1 / s)
    assert (found.low, found.high) == pytest.approx((1 - 3.182446305 * s / 2, 1 + 3.182446305 * s / 2))
    # Ranks of |d|: 1, 2.5, 4, 2.5; W⁺ = 7.5, W⁻ = 2.5.
    assert found.rank_biserial == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["continuous", "ties and zeros"])
def test_paired_is_scipys(kind):
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.2, 1, 80), rng.normal(0, 1, 80)
    if kind != "continuous":
        a, b = np.round(a), np.round(b)
        assert (a == b).any()
    found, t = paired(a, b), stats.ttest_rel(a, b)
    assert found.t_p == pytest.approx(t.pvalue, rel=1e-9)
    interval = t.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(a, b).pvalue, rel=1e-6)
    d = (a - b)[a != b]
    ranks = stats.rankdata(np.abs(d))
    assert found.rank_biserial == pytest.approx((ranks * np.sign(d)).sum() / ranks.sum())


def test_swapped_models_have_the_opposite_difference():
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(30)
    there, back = paired(a, b), paired(b, a)
    assert (back.difference, back.low, back.d_z) == pytest.approx(
        (-there.difference, -there.high, -there.d_z)
    )
    assert (back.t_p, back.wilcoxon_p) == pytest.approx((there.t_p, there.wilcoxon_p))
    assert back.rank_biserial == pytest.approx(-there.rank_biserial)


def test_models_that_agree_do_not_differ():
    a = np.array([0.1 + 0.2, 0.5, 0.0])
    found = paired(a, np.array([0.3, 0.5, 0.0]))  # but for the last bit
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert (found.t_p, found.wilcoxon_p, found.d_z, found.rank_biserial) == (1, 1, 0, 0)


def test_equal_differences_and_single_instances():
    same = paired(np.array([0.3, 0.4, 0.5]), np.array([0.2, 0.3, 0.4]))
    assert (same.t_p, same.d_z, same.rank_biserial) == (0, math.inf, 1)
    assert same.low == same.high == pytest.approx(0.1)
    one = paired(np.array([1.0]), np.array([0.0]))
    assert (one.t_p, one.wilcoxon_p, one.rank_biserial) == (1, 1, 1)
    assert math.isnan(one.low) and math.isnan(one.d_z)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([1.0], [1.0, 2.0], "same instances"),
        ([], [], "same instances"),
        ([math.nan], [1.0], "must be numbers"),
    ],
)
def test_values_that_cannot_be_paired(a, b, said):
    with pytest.raises(CDRError, match=said):
        paired(np.array(a), np.array(b))


# -- Holm -----------------------------------------------------------------------------------------------------------


def test_holm_by_a_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and none below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_at_its_ends():
    assert holm([0.6, 0.9]).tolist() == [1, 1]
    assert holm([0.2]).tolist() == [0.2]
    assert holm([]).tolist() == []
    with pytest.raises(CDRError, match="between 0 and 1"):
        holm([0.5, math.nan])


# -- tables ---------------------------------------------------------------------------------------------------------


def test_metrics_follow_from_ranks():
    found = align({"A": [ranked([1, 3, 10, 11])]})
    assert found.metrics == ("ndcg@10", "hit@10")
    assert pytest.approx(np.array([[1, 0.5, 1 / math.log2(11), 0], [1, 1, 1, 0]])) == found.values["A"][0].T
    other = align({"A": [ranked([1, 3, 10, 11])]}, metrics=["hit@3", "mrr@10"])
    assert pytest.approx(np.array([[1, 1, 0, 0], [1, 1 / 3, 0.1, 0]])) == other.values["A"][0].T


def test_metrics_of_ratings_are_errors_and_less_is_better():
    models = {"A": [rated([3, 4], [3, 5])], "B": [rated([1, 2], [3, 5])]}
    found = align(models)
    assert found.values["B"][0].T.tolist() == [[2, 3], [4, 9]]
    table = compare(found)
    assert table["metric"].tolist() == ["absolute_error", "squared_error"]
    assert (table["model"] == "A").all() and (table["other"] == "B").all()
    assert table["difference"].tolist() == [-2, -6]
    assert table["better"].all()
    assert table["group"].tolist() == ["cold", "cold"]


def test_spread_over_seeds_is_that_of_the_runs_means():
    # HR@10 of the runs: 2/4 and 4/4.
    models = {"A": [ranked([1, 1, 99, 99]), ranked([1, 1, 1, 1])], "B": [ranked([1, 99, 99, 99])]}
    table = summary(align(models, metrics=["hit@10"])).query("group == 'all'").set_index("model")
    assert table.loc["A", ["mean", "seeds", "n"]].tolist() == [0.75, 2, 4]
    assert table.loc["A", "std"] == pytest.approx(math.sqrt(0.125))
    assert table.loc["B", "mean"] == 0.25
    assert pd.isna(table.loc["B", "std"])
    assert Spread.of([0.25]).std is None


def test_instances_are_averaged_over_seeds_before_they_are_compared():
    # A: 1, 0.5, 0, 0.5 over its seeds; B: 0, 0, 0, 1.
    models = {"A": [ranked([1, 1, 99, 1]), ranked([1, 99, 99, 99])], "B": [ranked([99, 99, 99, 1])]}
    row = compare(align(models, metrics=["hit@10"]), "B").query("group == 'all'").iloc[0]
    assert (row["model"], row["other"], row["n"]) == ("A", "B", 4)
    expected = stats.ttest_rel([1, 0.5, 0, 0.5], [0, 0, 0, 1])
    assert row["difference"] == 0.25
    assert row["t_p"] == pytest.approx(expected.pvalue)


def test_a_user_counts_once():
    # u0 has one rating, u1 three; the mean over users of the scaled sums is the mean over ratings.
    mine = rated([3, 3, 4, 5], [4, 4, 4, 4]).assign(user=["u0", "u1", "u1", "u1"])
    its = rated([4, 4, 4, 4], [4, 4, 4, 4]).assign(user=mine["user"])
    row = compare(align({"A": [mine], "B": [its]}, metrics=["absolute_error"]), "B").iloc[0]
    assert (row["n"], row["difference"]) == (2, pytest.approx(3 / 4))
    assert row["t_p"] == pytest.approx(stats.ttest_1samp([2 / 4 * 1, 2 / 4 * 2], 0).pvalue)


def test_errors_that_go_together_within_users_are_no_finding():
    """Two models whose differences are a matter of the user alone, zero on average: one test in twenty may err."""
    rng, found = np.random.default_rng(0), []
    user = np.repeat([f"u{u}" for u in range(30)], 40)
    for _ in range(200):
        shift = np.repeat(rng.normal(0, 0.3, 30), 40)
        truth = np.zeros(len(user))
        a = rated(1 + np.abs(rng.normal(0, 0.1, len(user))), truth).assign(user=user)
        b = a.assign(prediction=a["prediction"] + shift, absolute_error=a["absolute_error"] + shift)
        row = compare(align({"A": [a], "B": [b]}, metrics=["absolute_error"]), "B").iloc[0]
        found.append((row["t_p"] < 0.05, row["wilcoxon_p"] < 0.05))
    assert (np.mean(found, axis=0) < 0.1).all()


def test_rows_in_another_order_are_the_same_instances():
    rng = np.random.default_rng(1)
    a, b = ranked(rng.integers(1, 30, 40)), ranked(rng.integers(1, 30, 40))
    straight = compare(align({"A": [a], "B": [b]}), "A")
    mixed = compare(align({"A": [a], "B": [b.sample(frac=1, random_state=0)]}), "A")
    pd.testing.assert_frame_equal(straight, mixed)


def test_cells_are_domains_and_groups_with_instances():
    frame = pd.concat([ranked([1, 2], tailed=[True, False]), ranked([1, 2, 3], domain="films")])
    other = frame.assign(rank=5)
    table = compare(align({"A": [frame], "B": [other]}, metrics=["hit@1"]), "B")
    cells = table[["domain", "group", "n"]].to_numpy().tolist()
    assert cells == [["books", "all", 2], ["books", "tailed", 1], ["films", "all", 3]]


def test_the_correction_is_over_all_rows_of_a_table():
    rng = np.random.default_rng(2)
    models = {name: [ranked(rng.integers(1, 25, 60))] for name in "ABC"}
    table = compare(align(models), "C")
    assert len(table) == 2 * 2  # models, metrics; nobody is tailed
    assert table["t_holm"].tolist() == holm(table["t_p"]).tolist()
    assert (table["p"] == np.maximum(table["t_holm"], table["wilcoxon_holm"])).all()
    assert (table["t_holm"] > table["t_p"]).any()


def test_without_a_baseline_the_best_meets_the_second_best():
    models = {"low": [ranked([9, 9, 9])], "best": [ranked([1, 1, 1])], "second": [ranked([2, 2, 2])]}
    table = compare(align(models, metrics=["ndcg@10"]))
    assert table[["model", "other"]].to_numpy().tolist() == [["best", "second"]]


def test_the_same_pair_may_be_asked_for_twice():
    frame = ranked([1, 99]).assign(user="u", target="i")
    found = align({"A": [frame], "B": [frame]}, metrics=["hit@10"])
    assert found.values["B"][0, :, 0].tolist() == [1, 0]


# -- misuse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            ranked([1, 2]),
            "1 are in the first alone, 0 in the second alone, such as user u2, item i2 of books",
        ),
        (ranked([1, 2, 3]).assign(user=["u0", "u1", "x"]), "1 are in the first alone, 1 in the second"),
        (ranked([1, 2, 3], candidates=100), "'candidates' differs in 3 of them"),
        (ranked([1, 2, 3], tailed=[0, 0, 1]), "'tailed' differs in 1 of them, such as user u2"),
        (ranked([1, 2, 3]).drop(columns="tailed"), "their groups are"),
        (rated([3], [3]), "different tasks"),
        (ranked([1, 2, 3], part="valid"), "no rows of the part 'test'"),
        (ranked([1, 2, 3]).drop(columns="user"), "no column 'user'"),
        (ranked([1, 2, 3]).drop(columns="rank"), "no 'ndcg@10'"),
        (ranked([1, 2, 3]).assign(rank="x"), "other things than numbers"),
        (ranked([1, 2, 3]).assign(rank=[1, 2, math.nan]), "no numbers"),
    ],
)
def test_runs_that_were_not_asked_the_same(other, said):
    with pytest.raises(CDRError, match=r"run 1 of B") as error:
        align({"A": [ranked([1, 2, 3])], "B": [other]})
    assert said in str(error.value)


def test_ratings_that_differ_are_other_data():
    with pytest.raises(CDRError, match="'rating' differs in 1"):
        align({"A": [rated([3, 4], [3, 5])], "B": [rated([3, 4], [3, 4])]})


def test_misuse_is_said():
    found = align({"A": [ranked([1])], "other": [ranked([2])]})
    with pytest.raises(CDRError, match=r"'Other' is none of the models: A, other\. Did you mean 'other'"):
        compare(found, "Other")
    with pytest.raises(CDRError, match="at least two"):
        compare(align({"A": [ranked([1])]}))
    with pytest.raises(CDRError, match="at least one run"):
        align({"A": []})


# -- metrics of other kinds -----------------------------------------------------------------------------------------


def test_which_metrics_a_table_says_of_each_instance():
    ranks, ratings = ranked([1, 2]), rated([3, 4], [3, 5])
    assert all(is_per_instance(ranks, name) for name in ("ndcg@7", "hit@10", "mrr@10"))
    assert not any(
        is_per_instance(ranks, name) for name in ("mrr@5", "giniindex@10", "gauc", "absolute_error")
    )
    assert all(is_per_instance(ratings, name) for name in ("absolute_error", "squared_error"))
    assert not any(is_per_instance(ratings, name) for name in ("mae", "ndcg@10"))


def test_a_smaller_rank_is_better_where_the_metric_says_so():
    """Of a metric of another package, which is not installed: without a cut-off, so less is better."""
    good, bad = ([ranked(rank).assign(meanrank=rank)] for rank in ([1, 2, 3, 1], [5, 9, 7, 8]))
    for metric, model in (("meanrank", "good"), ("ndcg@10", "good")):
        table = compare(align({"bad": bad, "good": good}, metrics=[metric]))
        best = table[table["group"] == "all"].iloc[0]
        assert (best["model"], best["better"]) == (model, True)
