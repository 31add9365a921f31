"""What is built on in RecBole is still there: its private methods, and the settings of its files and models."""

from __future__ import annotations

import inspect
import pkgutil

import pytest
import recbole

from recbole_cdr_ext.registry import models as model_registry
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.recbole_1_2_0 import FILE, HOOKS, VERSION, keys_read_by, recbole_settings

# This package's subclasses of RecBole's classes, by these.
SUBCLASSES = {
    "recbole.config:Config": "recbole_cdr_ext.settings.config:CDRConfig",
    "recbole.data.dataset:Dataset": "recbole_cdr_ext.data.dataset:CrossDomainDataset",
    "recbole.sampler:Sampler": "recbole_cdr_ext.splits.sampler:CrossDomainSampler",
    "recbole.trainer:Trainer": "recbole_cdr_ext.trainer.trainer:CrossDomainTrainer",
}


def test_the_version_is_the_one_that_was_read():
    assert recbole.__version__.lstrip("v") == VERSION


@pytest.mark.parametrize(
    ("owner", "method"), [(owner, name) for owner, names in HOOKS.items() for name in names]
)
def test_a_hook_has_the_arguments_that_it_had(owner, method):
    function = inspect.unwrap(getattr(pkgutil.resolve_name(owner), method))
    if method != "compatibility_settings":  # which compat replaces
        assert str(inspect.signature(function)) == HOOKS[owner][method]


@pytest.mark.parametrize("owner", SUBCLASSES)
def test_every_private_method_that_is_overridden_is_named(owner):
    base, subclass = pkgutil.resolve_name(owner), pkgutil.resolve_name(SUBCLASSES[owner])
    private = {name for name in vars(subclass) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in private if hasattr(base, name) and callable(getattr(base, name))} <= set(
        HOOKS[owner]
    )


def test_the_kept_settings_are_those_of_the_installed_recbole():
    assert FILE.read_text(encoding="utf-8") == recbole_settings()


def test_keys_that_a_model_reads_without_declaring_them_are_known_to_it_and_its_heirs():
    bpr = model_registry.recbole_class("BPR")
    assert bpr is not None
    assert keys_read_by(bpr) == keys_read_by(type("Mine", (bpr,), {})) == {"embedding_size"}
    assert keys_read_by(CDRConfig("I2VAE", "toy").model_class) == set()
