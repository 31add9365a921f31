"""Settings: everything that is refused."""

from __future__ import annotations

import pytest
from configs import configure, refusal

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.checks import UNUSED
from recbole_cdr_ext.settings.config import CDRConfig

# -- refusals -------------------------------------------------------------------------------------------------------

BAD_WORDS = [
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
]  # fmt: skip


@pytest.mark.parametrize(("word", "message"), BAD_WORDS)
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
