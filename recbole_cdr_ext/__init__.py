"""Cross-domain recommendation for RecBole: models, data and experiments.

    import recbole_cdr_ext as cdr

    result = cdr.run("I2VAE", "ml100k_genres", config_dict={"epochs": 5})
    experiment = cdr.load_model(f"saved/{result['run_id']}")
    cdr.recommend(experiment, users=["196"], k=10, domain="drama")

What is named here is imported when it is first asked for: the package itself costs nothing.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from recbole_cdr_ext.analysis.analyse import analyse as analyse
    from recbole_cdr_ext.data.dataset import CrossDomainDataset as Dataset
    from recbole_cdr_ext.data.prepare import list_datasets as list_datasets
    from recbole_cdr_ext.data.prepare import prepare as prepare
    from recbole_cdr_ext.errors import CDRError as CDRError
    from recbole_cdr_ext.model.bridge import Bridge as Bridge
    from recbole_cdr_ext.model.rating_recommender import RatingRecommender as RatingRecommender
    from recbole_cdr_ext.model.recommender import CrossDomainRecommender as Recommender
    from recbole_cdr_ext.model.recommender import Phase as Phase
    from recbole_cdr_ext.model.recommender import Stage as Stage
    from recbole_cdr_ext.registry.models import get_model as get_model
    from recbole_cdr_ext.registry.models import list_models as list_models
    from recbole_cdr_ext.reports.report import report as report
    from recbole_cdr_ext.runs.experiment import build as build
    from recbole_cdr_ext.runs.experiment import load_data as load_data
    from recbole_cdr_ext.runs.run import run as run
    from recbole_cdr_ext.runs.run import run_recbole_cdr as run_recbole_cdr
    from recbole_cdr_ext.serving.recommendation import load_model as load_model
    from recbole_cdr_ext.serving.recommendation import recommend as recommend
    from recbole_cdr_ext.settings.config import CDRConfig as Config
    from recbole_cdr_ext.splits.split import TrainingData as TrainingData
    from recbole_cdr_ext.studies import study as study
    from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer as Trainer
    from recbole_cdr_ext.tuning.tune import tune as tune

# Where each name of the front door lives; the imports above are the same table for editors and type checkers.
_HOMES = {
    "analyse": "analysis.analyse:analyse",
    "Bridge": "model.bridge:Bridge",
    "build": "runs.experiment:build",
    "CDRError": "errors:CDRError",
    "Config": "settings.config:CDRConfig",
    "Dataset": "data.dataset:CrossDomainDataset",
    "get_model": "registry.models:get_model",
    "list_datasets": "data.prepare:list_datasets",
    "list_models": "registry.models:list_models",
    "load_data": "runs.experiment:load_data",
    "load_model": "serving.recommendation:load_model",
    "Phase": "model.recommender:Phase",
    "prepare": "data.prepare:prepare",
    "RatingRecommender": "model.rating_recommender:RatingRecommender",
    "recommend": "serving.recommendation:recommend",
    "Recommender": "model.recommender:CrossDomainRecommender",
    "report": "reports.report:report",
    "run": "runs.run:run",
    "run_recbole_cdr": "runs.run:run_recbole_cdr",
    "Stage": "model.recommender:Stage",
    "study": "studies:study",
    "Trainer": "trainer.trainer:CrossDomainTrainer",
    "TrainingData": "splits.split:TrainingData",
    "tune": "tuning.tune:tune",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _FormerModule(types.ModuleType):
    """A module that was documented under another name; what it held is handed on, with a warning."""

    def __getattr__(self, name: str) -> Any:
        front_name = _FORMER[self.__name__.removeprefix(f"{__name__}.")].get(name)
        if front_name is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        warnings.warn(
            f"{self.__name__}.{name} is {__name__}.{front_name} now.", DeprecationWarning, stacklevel=2
        )
        return getattr(sys.modules[__name__], front_name)


_FORMER = {
    "run": {"run_recbole_cdr": "run_recbole_cdr"},
    "serve": {"load_model": "load_model", "recommend": "recommend"},
    "model.abstract": {"CrossDomainRecommender": "Recommender", "Phase": "Phase", "Stage": "Stage"},
}
for _name in _FORMER:
    sys.modules[f"{__name__}.{_name}"] = _FormerModule(f"{__name__}.{_name}")
