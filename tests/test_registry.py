"""Models by name, from here, from RecBole, and from a package that this one knows nothing of."""

from __future__ import annotations

import importlib
import sys

import pytest

from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.registry import models as model_registry
from recbole_cdr_ext.settings.config import CDRConfig

PLUGIN = '''
import torch
from recbole_cdr_ext.model.recommender import CrossDomainRecommender


class Constant(CrossDomainRecommender):
    """Gives every item the same score."""

    paper = "none"
    cold_start = True

    def score(self, batch, candidates=None):
        width = self.item_slice(batch.target_domain)
        return torch.full((len(batch), width.stop - width.start), self.config["constant"])
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package with a model and its defaults, installed as far as importlib.metadata can tell."""
    package = tmp_path / "far_away"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "constant.py").write_text(PLUGIN, encoding="utf-8")
    (package / "Constant.yaml").write_text("constant: 0.5   # (float) The score.\n", encoding="utf-8")
    install(tmp_path, "Constant = far_away.constant:Constant\nBroken = far_away.missing:Broken\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "far_away"]:
        del sys.modules[name]


def install(folder, entries: str) -> None:
    info = folder / "far_away-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far-away\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{model_registry.ENTRY_POINTS}]\n{entries}", encoding="utf-8")


DECLARED = PLUGIN.replace(
    "class Constant(CrossDomainRecommender):",
    """class ConstantSettings(Settings):
    constant: Share = Field(1, description="The score.")


class Constant(CrossDomainRecommender):
    settings_class = ConstantSettings
""",
).replace(
    "import torch",
    "import torch\nfrom pydantic import Field\nfrom recbole_cdr_ext.settings.declaration import Settings, Share",
    1,
)


def test_another_packages_model_may_be_one_file_that_declares_its_settings(plugin, capsys):
    (plugin / "constant.py").write_text(DECLARED, encoding="utf-8")
    (plugin / "Constant.yaml").unlink()
    assert CDRConfig("Constant", "toy")["constant"] == 1
    assert CDRConfig("Constant", "toy", argv=["--constant=0.25"])["constant"] == 0.25
    with pytest.raises(CDRError, match="constant=2 should be between 0 and 1"):
        CDRConfig("Constant", "toy", argv=["--constant=2"])
    with pytest.raises(CDRError, match="Did you mean 'constant'"):
        CDRConfig("Constant", "toy", argv=["--constnat=0"])
    assert main(["run", "--help", "--model=Constant"]) == 0
    assert "--constant=1                    (float) The score." in capsys.readouterr().out


def test_a_file_beside_another_packages_module_overrides_what_its_class_declares(plugin):
    (plugin / "constant.py").write_text(DECLARED, encoding="utf-8")
    assert CDRConfig("Constant", "toy")["constant"] == 0.5
    (plugin / "Constant.yaml").write_text("constant: half\n", encoding="utf-8")
    with pytest.raises(CDRError, match=r"constant='half' \(.*Constant\.yaml\) should be of type float"):
        CDRConfig("Constant", "toy")


def test_own_models_are_found_by_their_class_name():
    model = model_registry.get_model("I2VAE")
    assert issubclass(model, CrossDomainRecommender)
    assert model.__name__ == "I2VAE"
    assert model_registry.recbole_class("I2VAE") is None


def test_one_name_may_stand_for_a_model_per_task():
    classes = model_registry.model_classes("EMCDR")
    assert set(classes) == {"next_item", "rating"}
    for task, cls in classes.items():
        assert cls.__name__ == "EMCDR" and cls.task == task
        assert model_registry.get_model("EMCDR", task) is cls
        assert cls.__module__ == f"recbole_cdr_ext.model.{task}.emcdr"
    with pytest.raises(CDRError, match="EMCDR is a model for each of several tasks: choose --task="):
        model_registry.get_model("EMCDR")
    assert model_registry.get_model("I2VAE", "rating") is model_registry.get_model("I2VAE")
    listed = [info for info in model_registry.list_models() if info.name == "EMCDR"]
    assert sorted(info.task for info in listed) == ["next_item", "rating"]
    assert {info.task: info.needs_overlap for info in listed} == {"next_item": False, "rating": True}
    assert len({info.name for info in model_registry.list_models()}) == len(model_registry.list_models()) - 1


def test_a_models_property_file_is_that_of_its_task():
    found = {
        task: [path.name for path in model_registry.property_files("EMCDR", cls, task)]
        for task, cls in model_registry.model_classes("EMCDR").items()
    }
    assert found == {"next_item": ["EMCDR_next_item.yaml"], "rating": ["EMCDR.yaml"]}


def test_the_parts_that_models_are_made_of_are_no_models():
    names = model_registry.model_names()
    assert "CrossDomainRecommender" not in names
    assert "RecBoleBaseline" not in names


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "SASRec", "Pop", "ItemKNN", "MultiVAE"])
def test_recbole_models_come_in_their_adapter(name):
    assert issubclass(model_registry.get_model(name), CrossDomainRecommender)
    raw = model_registry.recbole_class(name)
    assert raw.__name__ == name
    assert raw.__module__.startswith("recbole.model.")


def test_every_name_of_recbole_is_a_class_of_recbole():
    """The names are read from source files: each must be importable under that very name."""
    names = set(model_registry.recbole_modules())
    assert {"BPR", "SASRec", "Random", "LightGCN", "GRU4Rec"} <= names
    for name in names:
        assert model_registry.recbole_class(name).__name__ == name


@pytest.mark.parametrize(
    ("name", "suggested"), [("I2VEA", "I2VAE"), ("sasrec", "SASRec"), ("LightGNC", "LightGCN")]
)
def test_an_unknown_model_is_an_error_with_the_nearest_name(name, suggested):
    with pytest.raises(CDRError, match=f"'{name}'.*Did you mean '{suggested}'"):
        model_registry.get_model(name)


def test_a_class_stands_for_itself():
    class Mine(CrossDomainRecommender):
        pass

    assert model_registry.get_model(Mine) is Mine
    assert model_registry.model_classes(Mine) == {"next_item": Mine}


def test_a_recbole_class_is_adapted():
    from recbole.model.general_recommender import BPR

    assert model_registry.get_model(BPR) is model_registry.get_model("BPR")


@pytest.mark.parametrize("nonsense", [int, 3, object()])
def test_what_is_no_model_is_refused(nonsense):
    with pytest.raises(CDRError, match="is no model"):
        model_registry.get_model(nonsense)


def test_another_packages_model_is_found_listed_and_configured(plugin):
    model = model_registry.get_model("Constant")
    assert model.__module__ == "far_away.constant"
    info = {info.name: info for info in model_registry.list_models()}["Constant"]
    assert (info.origin, info.cold_start, info.paper) == ("far-away", True, "none")
    assert CDRConfig("Constant", "toy")["constant"] == 0.5
    assert CDRConfig("Constant", "toy", argv=["--constant=2"])["constant"] == 2
    with pytest.raises(CDRError, match=r"'constnat'.*Did you mean 'constant'"):
        CDRConfig("Constant", "toy", argv=["--constnat=2"])


def test_another_packages_broken_model_names_the_package_and_leaves_the_list_usable(plugin):
    with pytest.raises(CDRError, match=r"'Broken' of package far-away .*far_away\.missing"):
        model_registry.get_model("Broken")
    names = [info.name for info in model_registry.list_models()]
    assert "Broken" not in names
    assert "I2VAE" in names


def test_no_other_package_takes_the_name_of_an_own_model(tmp_path, monkeypatch):
    install(tmp_path, "I2VAE = far_away.constant:Constant\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_registry.get_model("I2VAE").__module__.startswith("recbole_cdr_ext.")


def test_the_list_tells_where_models_come_from():
    infos = {info.name: info for info in model_registry.list_models()}
    assert infos["I2VAE"].origin == "recbole_cdr_ext"
    assert infos["I2VAE"].cold_start is True
    assert infos["BPR"].origin == "recbole"
    assert "Rendle" in infos["BPR"].paper
    assert all(info.task and info.domains for info in infos.values())
