"""Metrics by name, RecBole's and those of a package that this one knows nothing of, used by runs to their end."""

from __future__ import annotations

import importlib
import inspect
import json
import sys

import numpy as np
import pytest
from run_toys import go, settings  # noqa: F401

from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.instance_table import read_instances
from recbole_cdr_ext.evaluation.metric import Metric, RankMetric, SetMetric, ValueMetric
from recbole_cdr_ext.registry import metrics as metric_registry
from recbole_cdr_ext.settings.config import CDRConfig

PLUGIN = '''
import numpy as np
from recbole_cdr_ext.evaluation.metric import RankMetric, SetMetric, ValueMetric


class MeanRank(RankMetric):
    """Mean of the targets' ranks."""

    cutoffs = False
    larger_is_better = False
    percent = False

    def per_instance(self, rank, k):
        return rank


class Favourite(SetMetric):
    """Share of the lists that hold the domain's most bought item."""

    larger_is_better = False

    def value(self, ranks, popularity, k):
        return (ranks.items[:, :k] == popularity.argmax()).any(1).mean()


class Within(ValueMetric):
    """Share of the predictions that are off by less than half a star."""

    larger_is_better = True

    def value(self, predicted, rating):
        return (np.abs(predicted - rating) < 0.5).mean()


class Abstract(SetMetric):
    """Has no method."""
'''
ENTRIES = """
MeanRank = elsewhere.metrics:MeanRank
Favourite = elsewhere.metrics:Favourite
Within = elsewhere.metrics:Within
Broken = elsewhere.missing:Broken
Abstract = elsewhere.metrics:Abstract
Other = elsewhere.metrics:Within
Number = elsewhere.metrics:np
NDCG = elsewhere.metrics:MeanRank
"""


@pytest.fixture
def plugin(tmp_path_factory, monkeypatch):
    """A package with metrics, installed as far as importlib.metadata can tell."""
    site = tmp_path_factory.mktemp("site")
    package = site / "elsewhere"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "metrics.py").write_text(PLUGIN, encoding="utf-8")
    info = site / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: else-where\nVersion: 1.0\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(f"[{metric_registry.ENTRY_POINTS}]{ENTRIES}", encoding="utf-8")
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "elsewhere"]:
        del sys.modules[name]


def test_every_metric_is_found_in_any_case_and_described():
    infos = metric_registry.list_metrics()
    assert [info.name.lower() for info in infos] == metric_registry.metric_names()
    for info in infos:
        metric = metric_registry.get_metric(info.name.upper())
        assert metric is metric_registry.get_metric(info.name.lower()) and issubclass(metric, Metric)
        kind = {"value": ValueMetric, "rank": RankMetric}.get(info.needs, SetMetric)
        assert issubclass(metric, kind) and (info.task == "rating") == (kind is ValueMetric)
        assert info.summary and info.origin == "recbole" and metric.__doc__ is not None


@pytest.mark.parametrize(("name", "nearest"), [("NDGC", "ndcg"), ("GAUCC", "gauc"), ("RSME", "rmse")])
def test_an_unknown_metric_is_an_error_with_the_nearest_name(name, nearest):
    with pytest.raises(CDRError, match=f"Unknown metric '{name}'. Did you mean '{nearest}'"):
        metric_registry.get_metric(name)


@pytest.mark.parametrize("base", [RankMetric, SetMetric, ValueMetric])
def test_the_contract_has_one_method(base):
    assert len(base.__abstractmethods__) == 1 and inspect.isabstract(base)


def test_another_packages_metrics_are_found_and_listed(plugin):
    infos = {info.name: info for info in metric_registry.list_metrics()}
    assert vars(infos["Favourite"]) == {
        "name": "Favourite", "task": "next_item", "needs": "lists", "larger_is_better": False,
        "origin": "else-where", "summary": "Share of the lists that hold the domain's most bought item.",
    }  # fmt: skip
    assert (infos["Within"].task, infos["Within"].larger_is_better) == ("rating", True)
    assert {"Broken", "Abstract", "Other", "Number"}.isdisjoint(infos)
    assert infos["NDCG"].origin == "recbole"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"metric 'Broken' of package else-where can't be imported from elsewhere\.missing:Broken"),
        ("Abstract", "'Abstract' of package else-where is no metric"),
        ("number", "'Number' of package else-where is no metric"),
        ("other", "The metric Within of package else-where has the entry point 'Other'"),
        ("Favorite", "Unknown metric 'Favorite'. Did you mean 'favourite'"),
    ],
)
def test_metrics_that_cannot_be_used_are_one_error(plugin, name, message):
    with pytest.raises(CDRError, match=message):
        CDRConfig("Pop", "toy", argv=[f"--metrics=[NDCG, {name}]"])


@pytest.mark.parametrize(
    ("model", "metrics", "valid_metric", "bigger"),
    [
        ("Pop", "[NDCG, MeanRank]", "NDCG@10", True),
        ("Pop", "[NDCG, MeanRank]", "meanrank", False),
        ("Pop", "[Favourite]", "Favourite@10", False),
        ("Pop", "[GiniIndex]", "GiniIndex@10", False),
        ("Pop", "[GAUC]", "GAUC", True),
        ("BiasOnly", "[MAE, Within]", "Within", True),
        ("BiasOnly", "[MAE, Within]", "MAE", False),
    ],
)
def test_the_direction_of_what_models_are_chosen_by(plugin, model, metrics, valid_metric, bigger):
    config = CDRConfig(model, "toy", argv=[f"--metrics={metrics}", f"--valid_metric={valid_metric}"])
    assert config["valid_metric_bigger"] is bigger
    again = CDRConfig(model, "toy", config_dict=config.to_dict())
    assert again["metrics"] == config["metrics"] and again.fingerprint() == config.fingerprint()


@pytest.mark.parametrize(
    ("metrics", "valid_metric", "message"),
    [
        ("[MeanRank]", "MeanRank@10", "MeanRank has no cut-off. Say valid_metric=MeanRank"),
        ("[GAUC]", "GAUC@10", "GAUC has no cut-off. Say valid_metric=GAUC"),
        ("[Favourite]", "Favourite", "should end in @k with k among topk"),
        ("[NDCG, Within]", "NDCG@10", "can not be used at the same time"),
    ],
)
def test_what_models_cannot_be_chosen_by_is_refused(plugin, metrics, valid_metric, message):
    with pytest.raises(CDRError, match=message):
        CDRConfig("Pop", "toy", argv=[f"--metrics={metrics}", f"--valid_metric={valid_metric}"])


def test_a_run_with_another_packages_metrics(plugin, settings, tmp_path, capsys):  # noqa: F811
    more = {"metrics": ["NDCG", "MeanRank", "Favourite", "GAUC"], "topk": [5], "valid_metric": "MeanRank"}
    result = go(settings, **more, epochs=3, stopping_step=0)
    (folder,) = (tmp_path / "saved").iterdir()
    frame = read_instances(folder)
    for domain, groups in result["test"].items():
        of_domain = frame[(frame["part"] == "test") & (frame["domain"] == domain)]
        assert groups["all"]["meanrank"] == pytest.approx(of_domain["rank"].mean(), abs=1e-4)
        assert 0 <= groups["all"]["favourite@5"] <= 1
        # All popular items first: whoever has not bought the favourite gets it.
        assert result["popularity"][domain]["all"]["favourite@5"] > 0
    assert "favourite@5" not in frame and "meanrank" in frame
    scores = [epoch["valid_score"] for epoch in result["history"]]
    assert result["best_valid_score"] == pytest.approx(min(scores)) and min(scores) > 1
    printed = capsys.readouterr().out
    assert "MEANRANK" in printed and "favourite@5" in printed and "favourite@5: of the best k" in printed
    go(settings, "Pop", **more)
    assert main(["report", f"--checkpoint_dir={settings['checkpoint_dir']}"]) == 0
    table = (tmp_path / "report" / "tables.md").read_text(encoding="utf-8")
    assert "No significance tests of favourite@5, GAUC" in table and "In percent: NDCG@5, GAUC." in table


def test_a_run_of_ratings_with_another_packages_metric(plugin, settings, tmp_path):  # noqa: F811
    result = go(settings, "BiasOnly", task="rating", metrics=["MAE", "Within"], valid_metric="Within")
    cell = result["test"][result["target"]]["cold"]
    (folder,) = (tmp_path / "saved").iterdir()
    frame = read_instances(folder)
    errors = frame.loc[frame["part"] == "test", "absolute_error"]
    assert cell["within"] == pytest.approx((errors < 0.5).mean(), abs=1e-6) and cell["mae"] > 0
    assert json.dumps(cell) and not np.isnan(result["best_valid_score"])


def test_a_metric_of_the_other_direction_chooses_no_phase_with_a_score_of_its_own(plugin, settings):  # noqa: F811
    with pytest.raises(
        CDRError, match="LightGCNPSG chooses the epoch of its phase 'lightgcn' by a score of its own"
    ):
        go(settings, "LightGCNPSG", metrics=["NDCG", "GiniIndex"], valid_metric="GiniIndex@10")
    with pytest.raises(
        CDRError, match=r"of which smaller is better.* Choose another valid_metric, such as MAE"
    ):
        go(settings, "TGT", task="rating", metrics=["MAE", "Within"], valid_metric="Within")
