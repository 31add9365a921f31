"""Settings: the domains, RecBole-CDR's blocks, and what a data set's file says of itself."""

from __future__ import annotations

import pytest
import yaml
from configs import configure, refusal

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import dataset_property_files, read_mapping

RECBOLE_CDR = """
gpu_id: 0
state: INFO
field_separator: "\\t"
source_domain:
  dataset: ml-1m
  data_path: 'dataset/'
  seq_separator: " "
  USER_ID_FIELD: user_id
  ITEM_ID_FIELD: item_id
  RATING_FIELD: rating
  TIME_FIELD: timestamp
  NEG_PREFIX: neg_
  LABEL_FIELD: label
  load_col:
    inter: [user_id, item_id, rating]
  user_inter_num_interval: "[5,inf)"
  item_inter_num_interval: "[5,inf)"
  val_interval:
    rating: "[3,inf)"
  drop_filter_field: True
target_domain:
  dataset: ml-100k
  data_path: 'dataset/'
  user_inter_num_interval: "[10,inf)"
  drop_filter_field: True
epochs: 3
"""


def test_recbole_cdrs_blocks_load_unchanged(tmp_path):
    path = tmp_path / "pair.yaml"
    path.write_text(RECBOLE_CDR, encoding="utf-8")
    config = CDRConfig("I2VAE", config_file_list=[path])
    assert config["dataset"] == "ml-1m_ml-100k"
    assert config["domains"] == ["ml-1m", "ml-100k"]
    assert (config["source"], config["target"]) == ("ml-1m", "ml-100k")
    own = config["domain_settings"]
    assert own["ml-1m"]["val_interval"] == {"rating": "[3,inf)"}
    assert own["ml-100k"] == {
        "data_path": "dataset/", "user_inter_num_interval": "[10,inf)", "drop_filter_field": True,
    }  # fmt: skip
    assert (config["epochs"], config["gpu_id"]) == (3, "0")
    assert config["source_domain"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("target_domain"), "both blocks are needed"),
        (lambda c: c["source_domain"].pop("dataset"), "should be a block with 'dataset: NAME'"),
        (lambda c: c["source_domain"].update(val_intervl={}), "Did you mean 'val_interval'?"),
        (lambda c: c["source_domain"].update(epochs=7), "epochs=7 of domain 'ml-1m' has no effect"),
        (lambda c: c["source_domain"].update(TIME_FIELD="when"), "are called user_id, item_id"),
        (lambda c: c["source_domain"].update(load_col={"inter": ["user_id"]}), "lacks item_id"),
        (lambda c: c["source_domain"].update(dataset="ml-100k"), "one or more different names"),
        (lambda c: c.update(domains=["a", "b"]), "contradicts the blocks"),
    ],
)
def test_bad_blocks(change, message):
    content = yaml.safe_load(RECBOLE_CDR)
    change(content)
    assert message in refusal(dataset="pair", **content)


def test_one_domain_and_three_are_lists_too(tmp_path):
    assert configure(dataset="mine", domains=["a"])["domains"] == ["a"]
    assert configure("--domains=[a, b, c]", dataset="mine")["domains"] == ["a", "b", "c"]


def test_a_folder_without_a_property_file_names_its_domains(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("tea", "cups"):
        (tmp_path / "mine" / f"{name}.inter").touch()
    assert configure(dataset="mine", data_path=str(tmp_path))["domains"] == ["cups", "tea"]


def test_a_users_file_may_describe_a_dataset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "domains: [tea, cups]\norder: merged\ntask: [next_item, rating]\nhomepage: here\n"
        "source: {kind: table, files: {tea: t.csv, cups: c.csv}}\n"
        'next_item: {item_inter_num_interval: "[3,inf)"}\nrating: {item_inter_num_interval: "[9,inf)"}\n',
        encoding="utf-8",
    )
    config = configure(dataset="mine", config_files=str(path))
    assert (config["domains"], config["order"], config["task"]) == (["tea", "cups"], "merged", "next_item")
    assert config["item_inter_num_interval"] == "[3,inf)"
    assert config["source"] is None
    assert config.description["source"]["kind"] == "table"
    assert config.description["domains"] == ["tea", "cups"]


def test_filters_are_those_of_the_task():
    config = configure(dataset="amazon_cloth_sport")
    assert config["task"] == "next_item"
    assert config["val_interval"] == {"rating": "[3,inf)"}
    assert configure("--val_interval={rating: '[4,inf)'}", dataset="amazon_cloth_sport")["val_interval"] == {
        "rating": "[4,inf)"
    }


def test_a_dataset_that_does_not_serve_the_models_task():
    described = {name: read_mapping(path) for name, path in dataset_property_files().items()}
    rating_only = next(name for name, content in described.items() if content["task"] == "rating")
    assert "can't be used" in refusal(dataset=rating_only)


@pytest.mark.parametrize(("dataset", "task"), [("food_kitchen", "next_item"), ("books_movies", "rating")])
def test_the_dataset_says_which_of_a_names_models_is_meant(dataset, task):
    config = CDRConfig("EMCDR", dataset)
    assert config["task"] == config.model_class.task == task
    assert config.model_class.__module__ == f"recbole_cdr_ext.model.{task}.emcdr"
    assert (config["map_users"] is None) == (config["biases"] is not None) == (task == "rating")
    again = CDRConfig(config_dict=config.to_dict())
    assert again.model_class is config.model_class and again.to_dict() == config.to_dict()


def test_where_a_dataset_serves_both_tasks_the_user_says_which_of_a_names_models_is_meant():
    with pytest.raises(CDRError, match="Both tasks are possible: choose --task="):
        CDRConfig("EMCDR", "toy")
    for task in ("next_item", "rating"):
        assert CDRConfig("EMCDR", "toy", argv=[f"--task={task}"]).model_class.task == task
    with pytest.raises(CDRError, match=r"task=rating: EMCDR does .*, the data serve next_item"):
        CDRConfig("EMCDR", "food_kitchen", argv=["--task=rating"])


def test_simulated_data_says_so():
    assert configure(dataset="toy")["simulated"] is True
    assert configure(dataset="ml100k_genres")["simulated"] is False


@pytest.mark.parametrize("name", dataset_property_files())
def test_every_described_dataset_can_be_configured(name):
    task = read_mapping(dataset_property_files()[name])["task"]
    if "next_item" in ([task] if isinstance(task, str) else task):
        assert configure(dataset=name)["dataset"] == name
