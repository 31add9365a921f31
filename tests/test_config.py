"""Settings: where they come from, which one wins, and everything that is refused."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml

from recbole_cdr_ext._checks import RULES, UNUSED
from recbole_cdr_ext._settings import (
    documented_keys,
    find_config_file,
    parse_arguments,
    parse_value,
    read_mapping,
)
from recbole_cdr_ext.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.paths import dataset_property_files, properties_dir


def configure(*argv: str, model="I2VAE", dataset="toy", **settings) -> CDRConfig:
    return CDRConfig(model, dataset, config_dict=settings, argv=argv)


def refusal(*argv: str, **settings) -> str:
    with pytest.raises(CDRError) as caught:
        configure(*argv, **settings)
    return str(caught.value)


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


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--learning_rte=0.1", "Unknown setting 'learning_rte' (command line). Did you mean 'learning_rate'?"),
        ("--neg_sampling=1", "Unknown setting 'neg_sampling' (command line). It is called 'train_neg_num' here."),
        ("--MODEL_TYPE=x", "Unknown setting 'MODEL_TYPE'"),
        ("--shrink=1", "Unknown setting 'shrink'"),  # ItemKNN's, not I2VAE's
        ("--learning_rate=abc", "learning_rate='abc' (command line) should be of type float."),
        ("--epochs=ten", "epochs='ten' (command line) should be of type int."),
        ("--epochs=True", "should be of type int"),
        ("--epochs=None", "should be of type int"),
        ("--epochs=1.5", "should be of type int"),
        ("--use_gpu=1", "should be of type bool"),
        ("--time_respecting=maybe", "should be of type None or bool"),
        ("--eval_args=full", "should be of type dict"),
        ("--split=users", "split='users' should be one of user, leave_one_out, published, cold_start."),
        ("--cold_start_ratio=1.5", "cold_start_ratio=1.5 should be between 0 and 1."),
        ("--split_ratio=[0.8,0.1]", "three numbers above 0 whose sum is 1"),
        ("--split_ratio=[0.8,0.3,0.1]", "three numbers above 0 whose sum is 1"),
        ("--density=0", "density=0 should be above 0"),
        ("--train_batch_size=0", "train_batch_size=0 should be at least 1."),
        ("--state=LOUD", "state='LOUD' should be one of DEBUG, INFO"),
        ("--resume", "stands alone: say --resume=NAME"),
        ("--config_files", "stands alone: say --config_files=NAME"),
        ("--learning_rate=.nan", "learning_rate=nan should be above 0."),
        ("--seed=-1", "seed=-1 should be between 0"),
        ("--domains=[a, a]", "domains=['a', 'a'] should be a list of one or more different names"),
        ("--domains=[]", "should be a list of one or more different names"),
        ("--domains=[../a, b]", "should be a list of one or more different names"),
        ("--metrics=[NDGC]", "Unknown metric 'NDGC'. Did you mean 'ndcg'?"),
        ("--metrics=[]", "metrics should name one metric or more."),
        ("--metrics=[NDCG, MAE]", "Ranking metrics and value metrics"),
        ("--topk=0", "topk=[0] should hold positive integers."),
        ("--valid_metric=MRR@10", "valid_metric=MRR@10 is not among metrics"),
        ("--valid_metric=NDCG@20", "k among topk=[10]"),
        ("--valid_metric=NDCG", "k among topk=[10]"),
        ("--eval_args={mode: uni}", "should be full, labeled, uniN or popN"),
        ("--eval_args={mod: full}", "has no key 'mod'. Did you mean 'mode'?"),
        ("--eval_args={split: {RS: [0.8, 0.1, 0.1]}}", "contradicts split=user"),
        ("--eval_args={order: TO}", "contradicts split=user"),
        ("--task=rating", "task=rating: I2VAE does next_item"),
        ("--task=ranking", "task='ranking' should be one of next_item, rating."),
        ("--source=games", "source=games is none of the domains books, films."),
        ("--domain_settings={games: {}}", "unknown domain 'games'"),
        ("--domain_settings={books: {val_intervl: {}}}", "of domain 'books'. Did you mean 'val_interval'?"),
        ("--domain_settings={books: 3}", "'books' has 3, and should have settings"),
        ("--user_inter_num_interval=[7,inf", "user_inter_num_interval='[7,inf' should be an interval such as"),
        ("--user_inter_num_interval=7", "user_inter_num_interval='7' should be an interval such as"),
        ("--item_inter_num_interval=[a,b]", "item_inter_num_interval='[a,b]' should be"),
        ("--item_inter_num_interval=[9,3]", "should be an interval such as"),
        (
            "--domain_settings={books: {user_inter_num_interval: foo}}",
            "domain_settings of 'books': user_inter_num_interval='foo' should be",
        ),
        ("--config_files=.", "'.' exists neither here nor among"),
        ("--config_files=nowhere.yaml", "'nowhere.yaml' exists neither here nor among"),
        ("--config_files=I2VAE_papr", "Did you mean 'model/I2VAE_paper.yaml'?"),
        ("epochs=3", "'epochs=3' is not of the form --key=value."),
    ],
)  # fmt: skip
def test_a_bad_word_is_one_clear_error(word, message):
    assert message in refusal(word)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split=leave_one_out", "--cold_start_ratio=0.5"], "has no effect with split=leave_one_out"),
        (["--split=published", "--split_ratio=[0.6,0.2,0.2]"], "split_ratio has no effect with split=published"),
        (["--split=leave_one_out", "--order=none"], "needs an order"),
        (["--time_respecting=True", "--order=none"], "needs an order"),
    ],
)  # fmt: skip
def test_settings_that_contradict_the_split(words, message):
    assert message in refusal(*words)


def test_eval_args_that_say_what_the_split_says_pass():
    words = ["--split=leave_one_out", "--eval_args={split: {LS: valid_and_test}, order: TO, mode: full}"]
    assert configure(*words)["eval_args"] == {"mode": {"valid": "full", "test": "full"}}


def test_eval_args_without_a_mode_keep_ours():
    assert configure("--eval_args={}")["eval_args"] == {"mode": {"valid": "uni999", "test": "uni999"}}


def test_unknown_names():
    assert "Unknown model 'I2VEA'. Did you mean 'I2VAE'?" in refusal(model="I2VEA")
    assert "Did you mean 'cloth_sport'?" in refusal(dataset="cloth_sprot")
    with pytest.raises(CDRError, match="No model is given"):
        CDRConfig(dataset="toy")
    with pytest.raises(CDRError, match="No dataset is given"):
        CDRConfig("I2VAE")


def test_a_model_that_calls_something_else_by_one_of_our_names():
    assert "its 'order' means something else" in refusal(model="LINE")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: 1\nsplit: [user\n", "line 3"),
        ("epochs: 1\nseed: 1\nepochs: 2\n", "line 3: the key 'epochs' stands here a second time"),
        ("- epochs\n", "expected lines of the form 'key: value'"),
        ("1: 2\n", "expected lines of the form 'key: value'"),
        ("epohcs: 1\n", "Did you mean 'epochs'?"),
        ("epochs: ten\n", "should be of type int"),
        ("epochs: '1'\n", "should be of type int"),  # in a file a type is as it is written
    ],
)
def test_a_bad_file_is_an_error_that_names_it(content, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    error = refusal(config_files=str(path))
    assert message in error
    assert "mine.yaml" in error


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00epochs")
    assert "can't be read" in refusal(config_files=str(path))


# -- domains --------------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MAX_ITEM_LIST_LENGTH": 30}, "say max_history_length"),
        ({"rm_dup_inter": "last"}, "the first is kept"),
        ({"unload_col": {"inter": ["rating"]}}, "in load_col"),
        ({"benchmark_filename": ["a", "b", "c"]}, "say split"),
        ({"normalize_all": True}, "as they stand"),
        ({"encoding": "gbk"}, "UTF-8"),
        ({"save_dataset": True}, "keeps its folder"),
        ({"load_col": {"user": ["user_id"]}}, "should be None or {inter:"),
        ({"load_col": ["user_id"]}, "should be of type"),
        ({"load_col": {"inter": ["user_id", "rating"]}}, "lacks item_id"),
    ],
)
def test_settings_of_recbole_that_would_be_ignored_are_refused(settings, message):
    assert message in refusal(**settings)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("BPR", {"embedding_size": 0}, "at least 1"),  # of RecBole's own files
        ("SASRec", {"hidden_size": 63}, "no multiple of n_heads=2"),
        ("SASRec", {"n_layers": 0}, "at least 1"),
        ("SASRec", {"attn_dropout_prob": 1.0}, "below 1"),
        ("MultiVAE", {"latent_dimension": -4}, "at least 1"),
        ("MultiVAE", {"mlp_hidden_size": [600, 0]}, "at least 1"),
        ("I2VAE", {"kl_warmup_epochs": -1}, "at least 0"),
        ("LightGCN", {"n_layers": -1}, "at least 0"),
    ],
)
def test_sizes_are_checked_before_anything_is_read(model, settings, message):
    error = refusal(model=model, **settings)
    assert message in error
    assert next(iter(settings)) in error


def test_a_graph_may_have_no_layer_and_rating_models_no_vectors():
    assert configure(model="LightGCN", n_layers=0)["n_layers"] == 0
    ratings = configure(model="SCDR", dataset="ml100k_genres", embedding_size=0, pgd_step_size=0.3)
    assert (ratings["embedding_size"], ratings["pgd_step_size"]) == (0, 0.3)
    assert configure(world_size=-1)["world_size"] == -1  # as RecBole's own run script says it


def test_what_is_ignored_may_be_said_as_it_is():
    said = {"MAX_ITEM_LIST_LENGTH": 50, "rm_dup_inter": None, "enable_scaler": False}
    assert configure(**said).fingerprint() == configure().fingerprint()
    assert configure(shuffle=True, encoding="utf-8")["shuffle"] is True


def test_every_setting_that_is_refused_as_ignored_is_one_of_recboles():
    known = configure()._known_keys()
    assert set(UNUSED) <= known
    assert {"load_col", "max_history_length", "val_interval", "tensorboard", "split"} <= known - set(UNUSED)


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


# -- the property files themselves ----------------------------------------------------------------------------------


def test_every_key_of_overall_has_a_type_and_a_meaning_and_a_default_that_fits():
    path = properties_dir() / "overall.yaml"
    documented = documented_keys(path)
    assert list(documented) == list(read_mapping(path))
    assert [
        key for key, told in documented.items() if not (told.types and told.meaning and told.section)
    ] == []


def test_rules_and_runtime_keys_name_settings_that_exist():
    rating = CDRConfig("TGT", "toy").to_dict()
    known = set(configure().to_dict()) | set(rating) | {"config_files"}
    assert set(RULES) - known == set()
    assert RUNTIME_KEYS - known == set()
