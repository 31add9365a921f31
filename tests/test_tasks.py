"""The tasks as objects, and that nothing is hung on what they hand on."""

from __future__ import annotations

import pytest
from support import load, random_domains

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics, ValueMetrics
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import TASKS
from recbole_cdr_ext.splits.split import TrainingData
from recbole_cdr_ext.tasks import get_task


def test_every_task_of_the_settings_is_an_object():
    assert [get_task(name).name for name in TASKS] == list(TASKS)
    with pytest.raises(CDRError, match="task='ranking' should be one of next_item, rating"):
        get_task("ranking")


@pytest.mark.parametrize(
    ("model", "task", "splits", "metrics", "short"),
    [
        ("I2VAE", "next_item", ["user", "leave_one_out", "published"], RankingMetrics, {"epochs": 3}),
        ("SCDR", "rating", ["cold_start"], ValueMetrics, {"epochs": 3, "pretrain_epochs": 3}),
    ],
)
def test_a_task_knows_its_splits_metrics_and_keys(model, task, splits, metrics, short):
    config, of = CDRConfig(model, "toy"), get_task(task)
    assert config["task"] == task and config["split"] in of.splits() == splits
    assert isinstance(of.metrics(config), metrics)
    assert of.short(3) == short
    assert {*of.split_keys, *of.shared_keys, *of.epoch_keys} <= config.to_dict().keys()


def test_questions_are_what_settings_do_not_say():
    setting = {
        "eval_args": {"mode": {"valid": "uni99", "test": "full"}},
        "source": None,
        "target": "films",
        "beta": 0.2,
    }.get
    assert get_task("next_item").questions(setting, {}) == {"candidates": "full"}
    asked = get_task("rating").questions(setting, {"source": "books"})
    assert asked == {"source": "books", "target": "films", "beta": 0.2}


@pytest.mark.parametrize("split", ["user", "leave_one_out"])
def test_a_split_leaves_dataset_and_settings_as_they_are(tmp_path, split):
    loaded = load(tmp_path, random_domains(), split=split)
    dataset, config, task = loaded.dataset, loaded.config, get_task("next_item")
    attributes, settings, report = dict(vars(dataset)), config.to_dict(), dict(dataset.report)
    again = task.make_split(config, dataset)
    TrainingData.of(dataset, again)
    assert vars(dataset).keys() == attributes.keys()
    assert all(vars(dataset)[name] is value for name, value in attributes.items())
    assert (dataset.report, config.to_dict()) == (report, settings)
    assert again.report == loaded.split.report and not hasattr(dataset, "split")
