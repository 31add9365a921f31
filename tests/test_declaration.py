"""Settings as classes declare them: types, ranges, the files written from them, and typed access."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
from configs import configure
from pydantic import Field, ValidationError

from recbole_cdr_ext.baselines.settings import SETTINGS
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.i2vae_settings import I2VAESettings
from recbole_cdr_ext.registry import models as model_registry
from recbole_cdr_ext.settings.checks import INTERVALS, check_sizes
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
