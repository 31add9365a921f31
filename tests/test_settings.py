"""Settings: what classes declare of them and the files written from it, and everything that is refused."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError
from run_toys import configure, refusal

from recbole_cdr_ext.baselines.settings import SETTINGS
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.i2vae_settings import I2VAESettings
from recbole_cdr_ext.registry import models as model_registry
from recbole_cdr_ext.settings.checks import INTERVALS, UNUSED, check_sizes
from recbole_cdr_ext.settings.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.settings.declaration import (
    BelowOne,
    Count,
    Positive,
    Settings,
    Share,
    Shares,
    Size,
    Sizes,
    declared,
    defaults,
    documented,
    property_file,
    section,
)
from recbole_cdr_ext.settings.property_files import (
    described_models,
    model_rows,
    model_settings,
    written_files,
)
from recbole_cdr_ext.settings.reading import check_type, properties_dir, read_mapping
from recbole_cdr_ext.settings.run_settings import TASK_SETTINGS, RatingSettings, RunSettings


class ToySettings(Settings):
    """Toy (Doe, 2026). Its comment is long enough to be wrapped at the right margin, where words would
    otherwise stand.

    --config_files=toy.yaml
    """

    width: Size = Field(64, description="Width d.", json_schema_extra=section("Vectors"))
    weight: Share | None = Field(None, description="Weight; None: the shares'.")
    shares: Shares = Field([0.5, 0.25, 0.25], description="Shares.")
    reg: Positive = Field(1e-5, description="L2 weight.")
    kind: Literal["plain", "none"] = Field(
        "none", description="What it is.", json_schema_extra=section("Rest")
    )
    text: str | int = Field("007", description="A text that YAML would take for a number.")
    block: dict[str, Any] = Field({"mode": "full", "n": 3}, description="A block.")
    sizes: Sizes = Field([8, 4], description="Sizes.")


def row(key: str):
    return declared(ToySettings)[key]


# -- what a class declares ------------------------------------------------------------------------------------------


def test_types_and_ranges_are_those_of_the_annotation():
    assert row("weight").types == {float, None}
    assert row("text").types == {str, int}
    assert [row(key).words for key in ("width", "weight", "shares", "kind", "block")] == [
        "int", "float or None", "list", "str", "dict",
    ]  # fmt: skip
    assert [row(key).range for key in ("width", "weight", "shares", "reg", "kind", "text", "sizes")] == [
        "at least 1", "between 0 and 1", "three numbers above 0 whose sum is 1", "above 0", "one of plain, none", "",
        "a list of sizes, each at least 1",
    ]  # fmt: skip
    assert [row(key).section for key in ("width", "sizes")] == ["Vectors", "Rest"]


@pytest.mark.parametrize(
    ("key", "value", "holds"),
    [
        ("width", 1, True), ("width", 0, False), ("width", True, False), ("width", 1.0, False),
        ("weight", 1, True), ("weight", 1.01, False), ("weight", float("nan"), False),
        ("reg", float("inf"), False), ("reg", 3, True), ("kind", "none", True), ("kind", "None", False),
        ("shares", (0.5, 0.25, 0.25), True), ("shares", [0.5, 0.5], False), ("sizes", [8, 0], False),
    ],
)  # fmt: skip
def test_a_value_holds_or_not(key, value, holds):
    assert row(key).holds(value) is holds


def test_every_default_of_every_class_is_of_its_type_and_range():
    for settings in (RunSettings, RatingSettings, *model_settings().values()):
        for key, declaration in declared(settings).items():
            assert declaration.holds(declaration.default), f"{settings.__name__}.{key}"
            assert declaration.meaning, f"{settings.__name__}.{key}"


def test_defaults_are_ones_own():
    defaults(ToySettings)["shares"].append(0)
    assert defaults(ToySettings)["shares"] == [0.5, 0.25, 0.25]


def test_declared_ranges_are_as_narrow_as_those_of_all_models():
    """What every model, RecBole's too, may not say, no declaration lets through."""
    for stem, settings in model_settings().items():
        heads = {"n_heads": 1} if "n_heads" in settings.model_fields else {}
        for key, declaration in declared(settings).items():
            for value in (-1, 0, 1.0):
                of_type = isinstance(value, int) or float in declaration.types
                try:
                    check_sizes({key: value, **{k: v for k, v in heads.items() if k != key}})
                except CDRError:
                    assert not (of_type and declaration.holds(value)), f"{stem}: {key}={value}"


# -- files ----------------------------------------------------------------------------------------------------------


def test_the_file_written_from_a_class_reads_as_its_defaults(tmp_path):
    path = tmp_path / "Toy.yaml"
    path.write_text(property_file(ToySettings), encoding="utf-8")
    assert read_mapping(path) == defaults(ToySettings)
    text = path.read_text(encoding="utf-8")
    assert "# Vectors\nwidth: 64                       # (int) Width d.\n" in text
    assert "reg: 0.00001 " in text and "text: '007' " in text and "kind: none " in text
    assert "block:                          # (dict) A block.\n  mode: full\n  n: 3\n" in text
    assert max(map(len, text.splitlines())) <= 118


@pytest.mark.parametrize("name", written_files())
def test_the_files_in_properties_are_those_that_are_written(name):
    written = (properties_dir() / name).read_text(encoding="utf-8")
    assert written == written_files()[name], f"{name}: run `make properties`"


def test_every_property_file_of_a_model_is_written_or_is_values_of_one():
    classes = model_settings()
    for path in sorted((properties_dir() / "model").glob("*.yaml")):
        if path.stem in classes:
            continue
        model = path.stem.rpartition("_")[0]
        of_task = [
            TASK_SETTINGS[task] for task in model_registry.model_classes(model) if task in TASK_SETTINGS
        ]
        rows = {
            key: row for cls in (RunSettings, *of_task, classes[model]) for key, row in declared(cls).items()
        }
        for key, value in read_mapping(path).items():
            assert key in rows, f"{path.name}: {key}"
            check_type(key, value, rows[key].types, path.name, is_text=False)
            assert value is None or rows[key].holds(value), f"{path.name}: {key}={value}"


def test_help_has_the_rows_of_the_classes():
    assert model_rows("I2VAE", "next_item") == documented(I2VAESettings)
    assert list(described_models("EMCDR")) == ["EMCDR_next_item", "EMCDR"]
    assert model_rows("BPR", "next_item") == documented(SETTINGS["BPR"])
    assert model_rows("GRU4Rec", "next_item")["dropout_prob"].types == "float"
    assert model_rows("OrderPop", "next_item") == {}


# -- configurations -------------------------------------------------------------------------------------------------


def test_a_model_reads_its_settings_typed():
    settings = configure("--kl_weight=1", "--pooling=mean").settings_of(I2VAESettings)
    assert (settings.kl_weight, settings.pooling, settings.n_layers) == (1.0, "mean", 1)
    with pytest.raises(ValidationError):
        settings.n_layers = 2
    assert RunSettings.of(CDRConfig("SCDR", "ml100k_genres")).eval_args["mode"]["test"] == "labeled"


def test_a_configuration_that_was_changed_past_its_checks_is_refused():
    with pytest.raises(ValidationError):
        configure().replaced(n_layers=-1).settings_of(I2VAESettings)


def test_ranges_of_a_class_are_checked_in_a_run():
    with pytest.raises(CDRError, match=re.escape("pooling='most' should be one of mean, mean_last, last.")):
        configure("--pooling=most")
    with pytest.raises(CDRError, match="lambda_a=-1 should be at least 0"):
        configure("--lambda_a=-1")


def test_rules_and_runtime_keys_name_settings_that_exist():
    known = set(configure().to_dict()) | set(CDRConfig("TGT", "toy").to_dict()) | {"config_files"}
    assert set(INTERVALS) - known == set()
    assert RUNTIME_KEYS - known == set()
    assert {*RunSettings.model_fields, *RatingSettings.model_fields} - known == set()


def test_the_words_for_ranges():
    class Ranges(Settings):
        """None."""

        below: BelowOne = Field(0.0, description=".")
        count: Count | None = Field(None, description=".")

    assert [row.range for row in declared(Ranges).values()] == ["at least 0 and below 1", "at least 0"]


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
