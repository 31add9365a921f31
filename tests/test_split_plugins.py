"""Splits by name: this package's, and those of a package that it knows nothing of."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from support import here

from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.registry import splits as split_registry
from recbole_cdr_ext.settings.config import CDRConfig

TOY = Path(__file__).parents[1] / "dataset_atomic"

PLUGIN = '''
import numpy as np

from recbole_cdr_ext.data.instances import Timeline
from recbole_cdr_ext.splits.maker import long_tail_thresholds, without_held_out_tokens
from recbole_cdr_ext.splits.maker import InteractionParts, InteractionSplitMaker


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


class NoSplit:
    pass
'''
ENTRIES = """
late = far_away.late:LateSplit
leaking = far_away.late:Leaking
known_to_leak = far_away.late:SaysThatItLeaks
no_split = far_away.late:NoSplit
missing = far_away.missing:Missing
user = far_away.late:LateSplit
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package with a split in one file, installed as far as importlib.metadata can tell."""
    package, info = tmp_path / "far_away", tmp_path / "far_away-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").touch()
    (package / "late.py").write_text(PLUGIN, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far-away\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{split_registry.ENTRY_POINTS}]{ENTRIES}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "far_away"]:
        del sys.modules[name]


def run(root: Path, *words: str) -> int:
    settings = {**here(root), "data_path": TOY, "epochs": 1, "result_file": root / "result.json"}
    return main(
        [
            "run",
            "--model=Pop",
            "--dataset=toy",
            *words,
            *(f"--{key}={value}" for key, value in settings.items()),
        ]
    )


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


def test_a_split_of_another_package_is_listed(plugin, caplog):
    infos = {info.name: info for info in split_registry.list_splits()}
    late = infos["late"]
    assert (late.task, late.leaky, late.ordered, late.layout) == ("next_item", False, True, "users")
    assert (late.origin, late.summary) == (
        "far-away", "The last tenth of all time is tested and the tenth before it validates."
    )  # fmt: skip
    assert "no_split" not in infos and "missing" not in infos
    assert infos["user"].origin == "recbole_cdr_ext", "no other package takes the name of an own split"
    assert "user (far_away.late:LateSplit) is ignored: that name is taken." in caplog.text


def test_a_split_of_another_package_is_used_by_a_run(plugin, tmp_path, capsys):
    assert run(tmp_path, "--split=late") == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["split"] == "late"
    n_train, n_valid, n_test = result["report"]["interactions in train / valid / test"]
    assert min(n_train, n_valid, n_test) > 0
    tested = sum(groups["all"]["n"] for groups in result["test"].values())
    assert tested == n_test - result["report"]["test: instances without any history dropped"] > 0
    leaks = {what: n for what, n in result["report"].items() if what.startswith("leak: ")}
    assert len(leaks) == 5 and not any(leaks.values())


def test_a_split_that_leaks_is_refused(plugin, tmp_path, capsys):
    assert run(tmp_path, "--split=leaking") != 0
    said = capsys.readouterr().err
    assert "The data leak what is to be predicted. held-out pairs among training interactions: " in said
    assert not (tmp_path / "result.json").exists()


def test_a_split_that_says_that_it_leaks_is_counted(plugin, tmp_path):
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
def test_what_does_not_go_with_a_split_of_another_package_is_refused(plugin, words, message):
    model = next((word.partition("=")[2] for word in words if word.startswith("--model=")), "I2VAE")
    with pytest.raises(CDRError, match=message):
        CDRConfig(model, "toy", argv=words)
