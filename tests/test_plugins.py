"""Splits and metrics by name: this package's, and those of packages that it knows nothing of."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import run_toys
from run_toys import go
from support import here

from recbole_cdr_ext import evaluation, splits
from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric import Metric, RankMetric, SetMetric, ValueMetric
from recbole_cdr_ext.evaluation.result_table import read_instances
from recbole_cdr_ext.registry import metrics as metric_registry
from recbole_cdr_ext.registry import splits as split_registry
from recbole_cdr_ext.settings.config import CDRConfig

settings = run_toys.settings
TOY = Path(__file__).parents[1] / "dataset_atomic"

SPLITS = '''
from dataclasses import replace

import numpy as np

from recbole_cdr_ext.data.instances import Timeline
from recbole_cdr_ext.splits.cold_start import ColdStartSplit
from recbole_cdr_ext.splits.maker import InteractionParts, InteractionSplitMaker
from recbole_cdr_ext.splits.maker import long_tail_thresholds, without_held_out_tokens


class LateSplit(InteractionSplitMaker):
    """The last tenth of all time is tested and the tenth before it validates."""

    needs_order = True
    without_effect = ("cold_start_ratio", "split_ratio")

    def draw(self, config, dataset, report):
        valid, test = np.quantile(dataset.events.time, [0.8, 0.9])
        timeline = Timeline(dataset.events, dataset.user_num - 1, dataset.n_domains)
        part = np.searchsorted([valid, test], timeline.events.time, side="right")
        timeline, part = without_held_out_tokens(timeline, part, dataset, report)
        events, rank = timeline.events, np.arange(len(timeline.events))
        report["interactions in train / valid / test"] = np.bincount(part, minlength=3).tolist()
        train, valid, test = (timeline.instances(rank[part == p], others="strict") for p in range(3))
        trained = self.trained(events, part)
        return InteractionParts(train, valid, test, trained, long_tail_thresholds(trained, dataset.n_domains))

    def trained(self, events, part):
        return events.take(part == 0)


class Leaking(LateSplit):
    """The same, and all of it trains."""

    def trained(self, events, part):
        return events


class SaysThatItLeaks(Leaking):
    """The same, and says so."""

    leaky = True


class LeakingRatings(ColdStartSplit):
    """Cold-start users whose ratings train too."""

    def draw(self, config, dataset, report):
        parts = super().draw(config, dataset, report)
        return replace(parts, valid=parts.target_ratings.take(np.arange(5)))


class NoSplit:
    pass
'''
SPLIT_ENTRIES = """
late = far_away.late:LateSplit
leaking = far_away.late:Leaking
leaking_ratings = far_away.late:LeakingRatings
known_to_leak = far_away.late:SaysThatItLeaks
no_split = far_away.late:NoSplit
missing = far_away.missing:Missing
user = far_away.late:LateSplit
"""


@contextmanager
def installed(site, name, module, text, group, entries, monkeypatch):
    """A package of one file, installed in ``site`` as far as importlib.metadata can tell."""
    package, _, file = module.partition(".")
    info = site / f"{package}-1.0.dist-info"
    (site / package).mkdir()
    info.mkdir()
    (site / package / "__init__.py").touch()
    (site / package / f"{file}.py").write_text(text, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]{entries}", encoding="utf-8")
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    yield
    for known in [known for known in sys.modules if known.split(".")[0] == package]:
        del sys.modules[known]


@pytest.fixture
def far_away_splits(tmp_path, monkeypatch):
    group = split_registry.ENTRY_POINTS
    with installed(tmp_path, "far-away", "far_away.late", SPLITS, group, SPLIT_ENTRIES, monkeypatch):
        yield


@pytest.fixture
def elsewhere_metrics(tmp_path_factory, monkeypatch):
    site, group = tmp_path_factory.mktemp("site"), metric_registry.ENTRY_POINTS
    with installed(site, "else-where", "elsewhere.metrics", METRICS, group, METRIC_ENTRIES, monkeypatch):
        yield


def run(root: Path, *words: str, model: str = "Pop") -> int:
    options = {**here(root), "data_path": TOY, "epochs": 1, "result_file": root / "result.json"}
    words = (*words, *(f"--{key}={value}" for key, value in options.items()))
    return main(["run", f"--model={model}", "--dataset=toy", *words])


def test_the_list_says_what_each_split_is():
    infos = {info.name: info for info in split_registry.list_splits()}
    assert list(infos) == ["user", "leave_one_out", "published", "cold_start"] == split_registry.split_names()
    assert {name for name, info in infos.items() if info.leaky} == {"published"}
    assert {name for name, info in infos.items() if info.ordered} == {"leave_one_out"}
    assert {name: info.layout for name, info in infos.items() if info.layout != "users"} == {
        "published": "rows"
    }
    assert {name for name, info in infos.items() if info.task == "rating"} == {"cold_start"}
    assert all(info.origin == "recbole_cdr_ext" and info.summary.endswith(".") for info in infos.values())


def test_an_unknown_split_is_an_error_with_the_names():
    with pytest.raises(
        CDRError, match="split='users' should be one of user, leave_one_out, published, cold_start"
    ):
        CDRConfig("I2VAE", "toy", argv=["--split=users"])


def test_a_split_of_another_package_is_listed(far_away_splits, caplog):
    infos = {info.name: info for info in split_registry.list_splits()}
    late = infos["late"]
    assert (late.task, late.leaky, late.ordered, late.layout) == ("next_item", False, True, "users")
    assert (late.origin, late.summary) == (
        "far-away", "The last tenth of all time is tested and the tenth before it validates."
    )  # fmt: skip
    assert "no_split" not in infos and "missing" not in infos
    assert infos["user"].origin == "recbole_cdr_ext", "no other package takes the name of an own split"
    assert "user (far_away.late:LateSplit) is ignored: that name is taken." in caplog.text


def test_a_split_of_another_package_is_used_by_a_run(far_away_splits, tmp_path, capsys):
    assert run(tmp_path, "--split=late") == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["split"] == "late"
    n_train, n_valid, n_test = result["report"]["interactions in train / valid / test"]
    assert min(n_train, n_valid, n_test) > 0
    tested = sum(groups["all"]["n"] for groups in result["test"].values())
    assert tested == n_test - result["report"]["test: instances without any history dropped"] > 0
    leaks = {what: n for what, n in result["report"].items() if what.startswith("leak: ")}
    assert len(leaks) == 5 and not any(leaks.values())


def test_a_split_that_leaks_is_refused(far_away_splits, tmp_path, capsys):
    assert run(tmp_path, "--split=leaking") != 0
    said = capsys.readouterr().err
    assert "The data leak what is to be predicted. held-out pairs among training interactions: " in said
    assert not (tmp_path / "result.json").exists()


def test_a_split_of_ratings_that_leaks_is_refused(far_away_splits, tmp_path, capsys):
    assert run(tmp_path, "--task=rating", "--split=leaking_ratings", model="BiasOnly") != 0
    said = capsys.readouterr().err
    assert "held-out users with training ratings in the target domain: " in said
    assert not (tmp_path / "result.json").exists()


def test_a_split_that_says_that_it_leaks_is_counted(far_away_splits, tmp_path):
    assert run(tmp_path, "--split=known_to_leak") == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["report"]["leak: held-out pairs among training interactions"] > 0
    assert any("split=known_to_leak leaks" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split=no_split"], "split=no_split: .*NoSplit.* makes no split"),
        (["--split=missing"], "The split 'missing' of package far-away can't be imported from far_away.missing"),
        (["--split=late", "--split_ratio=[0.5,0.2,0.3]"], "split_ratio has no effect with split=late"),
        (["--split=late", "--order=none"], "split=late needs an order"),
        (["--split=late", "--task=rating", "--model=BiasOnly"], "split=late does not serve task=rating: split=cold"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_split_of_another_package_is_refused(far_away_splits, words, message):
    model = next((word.partition("=")[2] for word in words if word.startswith("--model=")), "I2VAE")
    with pytest.raises(CDRError, match=message):
        CDRConfig(model, "toy", argv=words)


@pytest.fixture
def new_file(tmp_path, monkeypatch):
    """Gives a function that puts a module into a room of this package, as a contributor's new file would be there."""
    clear = (split_registry._built_in.cache_clear, metric_registry._built_in.cache_clear)
    modules = []

    def put(room, name: str, text: str) -> None:
        folder = tmp_path / f"of_{name}"
        folder.mkdir()
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(room, "__path__", [*room.__path__, str(folder)])
        modules.append((room, name))
        importlib.invalidate_caches()
        for forget in clear:
            forget()

    yield put
    for forget in clear:
        forget()
    for room, name in modules:
        sys.modules.pop(f"{room.__name__}.{name}", None)
        vars(room).pop(name, None)


def test_a_new_split_is_one_new_file(new_file, tmp_path):
    new_file(splits, "late", SPLITS.partition("class Leaking(")[0])
    info = {info.name: info for info in split_registry.list_splits()}["late"]
    assert (info.origin, info.task, info.ordered) == ("recbole_cdr_ext", "next_item", True)
    assert run(tmp_path, "--split=late") == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["split"] == "late" and sum(what.startswith("leak: ") for what in result["report"]) == 5


def test_a_new_split_that_leaks_is_refused(new_file, tmp_path, capsys):
    text = SPLITS.partition("class Leaking(")[0]
    new_file(splits, "late", text.replace("events.take(part == 0)", "events"))
    assert run(tmp_path, "--split=late") != 0
    assert "held-out pairs among training interactions: " in capsys.readouterr().err


def test_a_new_metric_is_one_new_file(new_file, tmp_path):
    new_file(evaluation, "list_metrics", METRICS)
    origins = {info.name: info.origin for info in metric_registry.list_metrics()}
    assert {"MeanRank", "Favourite", "Within"} <= {
        name for name in origins if origins[name] == "recbole_cdr_ext"
    }
    assert "Abstract" not in origins and origins["NDCG"] == "recbole"
    assert run(tmp_path, "--metrics=[MeanRank,Hit]", "--topk=[5]", "--valid_metric=MeanRank") == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    cells = [groups["all"] for groups in result["test"].values()]
    assert all(cell["meanrank"] >= 1 and list(cell) == ["n", "meanrank", "hit@5"] for cell in cells)


METRICS = '''
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
METRIC_ENTRIES = """
MeanRank = elsewhere.metrics:MeanRank
Favourite = elsewhere.metrics:Favourite
Within = elsewhere.metrics:Within
Broken = elsewhere.missing:Broken
Abstract = elsewhere.metrics:Abstract
Other = elsewhere.metrics:Within
Number = elsewhere.metrics:np
NDCG = elsewhere.metrics:MeanRank
"""


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


def test_another_packages_metrics_are_found_and_listed(elsewhere_metrics):
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
def test_metrics_that_cannot_be_used_are_one_error(elsewhere_metrics, name, message):
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
def test_the_direction_of_what_models_are_chosen_by(elsewhere_metrics, model, metrics, valid_metric, bigger):
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
def test_what_models_cannot_be_chosen_by_is_refused(elsewhere_metrics, metrics, valid_metric, message):
    with pytest.raises(CDRError, match=message):
        CDRConfig("Pop", "toy", argv=[f"--metrics={metrics}", f"--valid_metric={valid_metric}"])


def test_a_run_with_another_packages_metrics(elsewhere_metrics, settings, tmp_path, capsys):
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


def test_a_run_of_ratings_with_another_packages_metric(elsewhere_metrics, settings, tmp_path):
    result = go(settings, "BiasOnly", task="rating", metrics=["MAE", "Within"], valid_metric="Within")
    cell = result["test"][result["target"]]["cold"]
    (folder,) = (tmp_path / "saved").iterdir()
    frame = read_instances(folder)
    errors = frame.loc[frame["part"] == "test", "absolute_error"]
    assert cell["within"] == pytest.approx((errors < 0.5).mean(), abs=1e-6) and cell["mae"] > 0
    assert json.dumps(cell) and not np.isnan(result["best_valid_score"])


def test_a_metric_of_the_other_direction_chooses_no_phase_with_a_score_of_its_own(
    elsewhere_metrics, settings
):
    with pytest.raises(
        CDRError, match="LightGCNPSG chooses the epoch of its phase 'lightgcn' by a score of its own"
    ):
        go(settings, "LightGCNPSG", metrics=["NDCG", "GiniIndex"], valid_metric="GiniIndex@10")
    with pytest.raises(
        CDRError, match=r"of which smaller is better.* Choose another valid_metric, such as MAE"
    ):
        go(settings, "TGT", task="rating", metrics=["MAE", "Within"], valid_metric="Within")
