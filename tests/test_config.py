"""Settings: where they come from, which one wins, what becomes of them, and the domains."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml
from run_toys import configure, refusal

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import (
    dataset_property_files,
    find_config_file,
    parse_arguments,
    parse_value,
    properties_dir,
    read_mapping,
)

# -- which source wins ----------------------------------------------------------------------------------------------


def test_each_source_overrides_the_one_before(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("epochs: 1\nlearning_rate: 0.1\ntopk: [1, 10]\nseed: 1\n", encoding="utf-8")
    second.write_text("learning_rate: 0.2\ntopk: [2, 10]\nseed: 2\n", encoding="utf-8")
    config = CDRConfig("I2VAE", "toy", [str(first), second], {"topk": [3, 10], "seed": 3}, argv=["--seed=4"])
    found = [config[key] for key in ("epochs", "learning_rate", "topk", "seed")]
    assert found == [1, 0.2, [3, 10], 4]


def test_the_packages_own_files_come_in_the_documented_order():
    recbole_default = configure(model="BPR")
    assert recbole_default["field_separator"] == "\t"  # RecBole's alone
    assert recbole_default["eval_args"]["mode"]["test"] == "uni999"  # ours over RecBole's full
    assert recbole_default["train_batch_size"] == 2048  # the model's over our 512
    assert configure(model="GRU4Rec")["dropout_prob"] == 0.3  # a file of RecBole's that we have none of
    assert configure(dataset="ml100k_genres")["split_ratio"] == [0.6, 0.2, 0.2]  # the dataset's over our own


def test_the_dataset_overrides_the_model_and_the_user_both():
    assert configure(dataset="food_kitchen")["order"] == "clock"
    assert configure(dataset="cloth_sport")["order"] == "none"
    assert configure("--order=merged", dataset="cloth_sport")["order"] == "merged"


def test_the_process_command_line_is_never_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--epochs=7", "--nonsense=1"])
    assert configure()["epochs"] == read_mapping(properties_dir() / "overall.yaml")["epochs"]


@pytest.mark.parametrize("name", ["properties/model/I2VAE_paper.yaml", "I2VAE_paper.yaml", "I2VAE_paper"])
def test_a_property_file_of_the_package_is_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config_file(name) == properties_dir() / "model" / "I2VAE_paper.yaml"
    assert configure(f"--config_files={name}")["kl_weight"] == 1


def test_a_file_of_the_users_goes_before_one_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "I2VAE_paper.yaml").write_text("kl_weight: 0.125\n", encoding="utf-8")
    assert configure("--config_files=I2VAE_paper.yaml")["kl_weight"] == 0.125


@pytest.mark.parametrize("between", [" ", ",", ", "])
def test_several_files_in_one_setting(between, tmp_path):
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    files[0].write_text("epochs: 3\nseed: 3\n", encoding="utf-8")
    files[1].write_text("seed: 5\n", encoding="utf-8")
    text = between.join(map(str, files))
    for config in (configure(f"--config_files={text}"), configure(config_files=text)):
        assert (config["epochs"], config["seed"]) == (3, 5)
    words = [f"--config_files={files[0]}", str(files[1]), "--topk=10"]  # as a shell splits RecBole's way
    assert configure(*words)["seed"] == 5


def test_model_and_dataset_may_come_from_any_source():
    config = CDRConfig(argv=["--model=I2VAE", "--dataset=toy"])
    assert (config["model"], config["dataset"]) == ("I2VAE", "toy")
    assert CDRConfig(config_dict={"model": "BPR", "dataset": "toy"})["model"] == "BPR"


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001), ("1E3", 1000.0), ("-2.5e-1", -0.25), (".5", 0.5), ("3", 3), ("True", True), ("None", None),
        ("~", None), ("none", "none"), ("[1, 2]", [1, 2]), ("{'a': 1}", {"a": 1}), ("{mode: full}", {"mode": "full"}),
        ("a: b: c", "a: b: c"), ("__import__('os')", "__import__('os')"), ("1e", "1e"),
        ("2024-13-45", "2024-13-45"), ("{[1, 2]: 3}", "{[1, 2]: 3}"), ("!!int x", "!!int x"), ("", None),
    ],
)  # fmt: skip
def test_text_is_read_as_yaml_and_never_evaluated(text, value):
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


def test_yaml_builds_no_objects(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("epochs: !!python/object/apply:os.getpid []\n", encoding="utf-8")
    with pytest.raises(CDRError, match=r"evil\.yaml, line 1"):
        read_mapping(path)


def test_text_that_must_stay_text():
    config = configure("--user_inter_num_interval=[5,inf)", "--run_id=20240101", seq_separator=" ")
    assert config["user_inter_num_interval"] == "[5,inf)"
    assert config["run_id"] == "20240101"
    assert config["seq_separator"] == " "


def test_lists_and_tuples():
    for text in ("[1,10]", "(1,10)", "1"):
        config = configure(f"--topk={text}", f"--valid_metric=NDCG@{text.strip('[()]').split(',')[-1]}")
        assert config["topk"] in ([1, 10], [1])
    assert configure("--metrics=NDCG")["metrics"] == ["NDCG"]


def test_an_int_is_a_float_and_a_bare_flag_is_true():
    config = configure("--max_seconds=60", "--download", "--cold_start_ratio=0")
    assert config["max_seconds"] == 60
    assert config["download"] is True
    assert config["cold_start_ratio"] == 0


def test_parse_arguments_keeps_what_follows_the_first_sign():
    assert parse_arguments(["--a=b=c", "--flag", "--a=b=c"]) == {"a": "b=c", "flag": "True"}
    for words in (["a=b"], ["-a=b"], ["--a=1", "--a=2"], ["--=1"]):
        with pytest.raises(CDRError):
            parse_arguments(words)


# -- what RecBole makes of it ---------------------------------------------------------------------------------------


def test_data_path_is_the_datasets_folder_and_data_root_the_one_above(tmp_path):
    for dataset in ("toy", "ml-100k"):  # RecBole sends the latter to its own example
        config = configure(f"--data_path={tmp_path}", "--domains=[a, b]", dataset=dataset)
        assert config["data_root"] == str(tmp_path)
        assert config["data_path"] == str(tmp_path / dataset)


def test_use_gpu_is_honoured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert configure("--use_gpu=True")["device"] == torch.device("cuda")
    assert configure("--use_gpu=False")["device"] == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert configure("--use_gpu=True")["device"] == torch.device("cpu")


def test_recboles_types_of_models_get_recboles_defaults():
    sequential = configure(model="SASRec")
    assert sequential["MODEL_TYPE"].name == "SEQUENTIAL"
    assert sequential["repeatable"] is True
    assert sequential["train_neg_sample_args"]["distribution"] == "none"  # beside a full softmax
    pairwise = configure(model="BPR")
    assert pairwise["MODEL_INPUT_TYPE"].name == "PAIRWISE"
    assert pairwise["train_neg_sample_args"]["distribution"] == "uniform"


def test_a_refusal_of_recboles_is_an_error_for_the_user():
    asked = {"distribution": "uniform", "sample_num": 1}
    assert "train_neg_sample_args" in refusal(model="SASRec", train_neg_sample_args=asked)


def test_one_configuration_leaves_no_trace_in_the_next():
    from recbole.utils import dataset_arguments

    before = list(dataset_arguments)
    given = {"topk": [5, 10], "eval_args": {"mode": "full"}}
    CDRConfig("I2VAE", "ml100k_genres", config_dict=given)
    assert dataset_arguments == before
    assert given == {"topk": [5, 10], "eval_args": {"mode": "full"}}
    assert configure()["topk"] == [10]


# -- as plain data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["I2VAE", "SASRec", "BPR", "Pop"])
@pytest.mark.parametrize("split", ["user", "leave_one_out"])
def test_settings_survive_json_and_give_the_same_configuration(model, split, tmp_path):
    first = configure(f"--split={split}", f"--data_path={tmp_path}", "--learning_rate=1e-4", model=model)
    text = json.dumps(first.to_dict(), allow_nan=False)
    second = CDRConfig(config_dict=json.loads(text))
    assert second.to_dict() == first.to_dict()
    assert second["data_path"] == first["data_path"]
    assert second.fingerprint() == first.fingerprint()


def test_the_fingerprint_is_that_of_the_result():
    base = configure().fingerprint()
    assert configure().fingerprint() == base
    for word in (
        "--data_path=elsewhere",
        "--show_progress=False",
        "--run_id=x",
        "--gpu_id=1",
        "--torch_threads=2",
    ):
        assert configure(word).fingerprint() == base, word
    for word in (
        "--seed=1",
        "--learning_rate=0.5",
        "--split_seed=1",
        "--kl_weight=0.5",
        "--eval_args={mode: full}",
    ):
        assert configure(word).fingerprint() != base, word
    assert configure(dataset="ml100k_genres").fingerprint() != base
    assert configure(model="BPR").fingerprint() != base


def test_a_fingerprint_of_some_keys():
    keys = ["split", "split_seed"]
    assert configure("--seed=1").fingerprint(keys) == configure("--seed=2").fingerprint(reversed(keys))
    assert configure("--split_seed=1").fingerprint(keys) != configure("--split_seed=2").fingerprint(keys)


# -- domains -------------------------------------------------------------------------------------------------------


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
