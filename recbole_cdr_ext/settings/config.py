"""``CDRConfig``: RecBole's configuration for a list of domains, in which nothing is silently ignored."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from recbole.config import Config
from recbole.utils import ModelType

from recbole_cdr_ext import compat
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.registry import metrics as metric_registry
from recbole_cdr_ext.registry import models as model_registry
from recbole_cdr_ext.settings.checks import (
    check_declared,
    check_eval_args,
    check_intervals,
    check_load_col,
    check_metrics,
    check_sizes,
    check_split,
    check_unused,
    suggestion,
)
from recbole_cdr_ext.settings.declaration import Declared, Settings
from recbole_cdr_ext.settings.defaults import Layer, model_layers, shared_layers
from recbole_cdr_ext.settings.domains import check_domain_settings, dataset_of_blocks, expand_blocks
from recbole_cdr_ext.settings.reading import (
    TASKS,
    Loader,
    check_type,
    dataset_property_files,
    file_names,
    find_config_file,
    parse_arguments,
    parse_value,
    prepared_order,
    read_mapping,
    type_of,
)
from recbole_cdr_ext.settings.recbole_1_2_0 import (
    BLOCKS,
    DERIVED_KEYS,
    DOMAIN_KEYS,
    RENAMED,
    UNDECLARED_KEYS,
    keys_read_by,
)
from recbole_cdr_ext.settings.run_settings import RunSettings

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_cdr_ext.model.recommender import CrossDomainRecommender

compat.apply()

S = TypeVar("S", bound=Settings)

# What changes where and how a run runs, and not what it computes.
RUNTIME_KEYS = {
    "data_path", "raw", "download", "allow_simulated", "checkpoint_dir", "cache_dir", "run_id", "resume",
    "result_file", "save_instances", "show_progress", "tensorboard", "use_gpu", "gpu_id", "torch_threads", "state",
    "worker", "max_seconds", "max_processor_seconds", "metric_decimal_place", "loss_decimal_place", "log_wandb",
    "wandb_project", "save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path", "config_files",
    "evaluate_test",
}  # fmt: skip
# Keys of a dataset's property file that describe it and are no settings.
DESCRIPTION_KEYS = {"homepage", *TASKS}


class CDRConfig(Config):
    """RecBole's ``Config`` over a list of domains.

    Later sources override earlier ones: RecBole's defaults, ``properties/overall.yaml``, the task's, the model's
    (RecBole's, then ours; see :mod:`~recbole_cdr_ext.settings.defaults`), ``properties/dataset/NAME.yaml``, the
    user's files, ``config_dict``, ``argv``. The command line of the process is never looked at.

    On top of RecBole's ``Config``: an unknown key, a value of the wrong type or outside of its range, and an
    ``eval_args`` that contradicts ``split`` are errors; values are read as YAML and never evaluated; RecBole-CDR's
    ``source_domain:`` and ``target_domain:`` blocks become ``domains``, ``source``, ``target`` and
    ``domain_settings``. ``config["data_root"]`` is the folder of the datasets and ``config["data_path"]``, as in
    RecBole, the dataset's own folder in it.

    Args:
        model: name or class; None: the key ``model`` of a later source.
        dataset: name; None: the key ``dataset``, or the two names of RecBole-CDR's blocks joined by ``_``.
        config_file_list: paths, or names of the package's property files.
        config_dict: settings; text is read as on the command line.
        argv: command-line words of the form ``--key=value``, or ``--key`` for True.

    Attributes:
        model_class: the model's class; RecBole's in its adapter.
        description: the dataset's property file with what ``prepare`` reads (a user's file may hold it as well);
            empty without one.

    Raises:
        CDRError: any of the errors above; an unknown model, dataset or metric; a file that can't be read.
    """

    model_class: type[CrossDomainRecommender]

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path] | str | Path | None = None,
        config_dict: Mapping[str, Any] | None = None,
        argv: Iterable[str] | None = None,
    ):
        self._arguments = parse_arguments(argv or ())
        self._variables = dict(config_dict or {})
        self._origin: dict[str, str] = {}  # of each external key, for messages
        self._described: dict[str, Any] = {}  # the description of a dataset among the user's files
        super().__init__(model, dataset, file_names(config_file_list), self._variables)
        self.final_config_dict["eval_args"] = {"mode": self.final_config_dict["eval_args"]["mode"]}
        self.model_class.check_settings(self)

    def settings_of(self, declaration: type[S]) -> S:
        """Returns the settings that a class declares, typed, as this configuration has them."""
        return declaration.of(self)

    # -- external sources (RecBole's hooks, in the order in which it calls them) -------------------------------------

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # Copies: RecBole's own code appends to its module's lists, for all configurations to come.
        self.parameters = {category: list(keys) for category, keys in self.parameters.items()}

    def _build_yaml_loader(self) -> type[Loader]:
        return Loader

    def _load_config_files(self, file_list: Sequence[str | Path]) -> dict[str, Any]:
        named = [*file_list, *file_names(self._variables.get("config_files"))]
        named += file_names(self._arguments.get("config_files"))
        settings: dict[str, Any] = {}
        for name in named:
            path = find_config_file(name)
            content = read_mapping(path)
            self._described |= {
                key: content.pop(key) for key in list(content) if _describes_dataset(key, content[key])
            }
            settings.update(content)
            self._origin.update(dict.fromkeys(content, str(path)))
        return settings

    def _load_variable_config_dict(self, config_dict: Mapping[str, Any]) -> dict[str, Any]:
        settings = {key: value for key, value in config_dict.items() if key != "config_files"}
        self._origin.update(dict.fromkeys(settings, "config_dict"))
        return settings

    def _load_cmd_line(self) -> dict[str, Any]:
        settings = {key: value for key, value in self._arguments.items() if key != "config_files"}
        self._origin.update(dict.fromkeys(settings, "command line"))
        return settings

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        external = self.external_config_dict
        model = external.get("model") if model is None else model
        if model is None:
            raise CDRError("No model is given: say --model=NAME. `recbole-cdr models` lists them.")
        for block in BLOCKS:
            if isinstance(external.get(block), str):
                external[block] = parse_value(external[block])
        dataset = dataset or external.get("dataset") or dataset_of_blocks(external)
        if dataset is None:
            raise CDRError("No dataset is given: say --dataset=NAME. `recbole-cdr datasets` lists them.")
        self.description = {**_description(str(dataset)), **self._described}
        classes = model_registry.model_classes(model)
        self._task = self._infer_task(str(getattr(model, "__name__", model)), list(classes))
        # The class as its author wrote it says of which of RecBole's types the model is; its adapter can't.
        self._written_class: type[AbstractRecommender] = classes[self._task]
        return self._written_class.__name__, model_registry.get_model(self._written_class), str(dataset)

    # -- internal sources -------------------------------------------------------------------------------------------

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        self._types: dict[str, set[type | None]] = {}
        self._declared: list[Mapping[str, Declared]] = []
        self.internal_config_dict = {}
        for layer in shared_layers(model, self._written_class.type, self._task):
            self._add_layer(layer)
        for layer in model_layers(model, self._written_class, self._task):
            self._refuse_other_meanings(model, layer)
            self._add_layer(layer)
        self.internal_config_dict["MODEL_TYPE"] = self._written_class.type
        self._add_description(dataset, self._task)

    def _refuse_other_meanings(self, model: str, layer: Layer) -> None:
        """Refuses a model that calls something else by the name of a setting of all runs, as RecBole's LINE does."""
        for key in layer.values.keys() & RunSettings.model_fields.keys():
            try:
                check_type(key, layer.values[key], self._types[key], layer.origin, is_text=False)
            except CDRError as error:
                raise CDRError(
                    f"{model} can't be used here, its '{key}' means something else: {error}"
                ) from error

    def _add_layer(self, layer: Layer) -> None:
        self.internal_config_dict.update(layer.values)
        self._declared.append(layer.declared)
        for key, value in layer.values.items():
            if key in layer.types:
                self._types[key] = set(layer.types[key])
            elif value is not None:
                self._types[key] = self._types.get(key, set()) | {type_of(value)}

    def _add_description(self, dataset: str, task: str) -> None:
        """Adds the dataset's settings, those of its block for the task last."""
        settings = {key: value for key, value in self.description.items() if key not in DESCRIPTION_KEYS}
        source = settings.get("source")
        if isinstance(source, Mapping):  # what `prepare` reads; the setting of this name is a domain's
            del settings["source"]
            settings.setdefault("simulated", source.get("kind") == "simulate")
        settings["task"] = task
        origin = f"the description of dataset '{dataset}'"
        for_task = self.description.get(settings["task"]) or {}
        if not isinstance(for_task, Mapping):
            raise CDRError(f"{origin}: '{settings['task']}:' should be a block of settings for that task.")
        settings.update(for_task)
        for key, value in settings.items():
            allowed = self._types.setdefault(key, set())
            self.internal_config_dict[key] = check_type(key, value, allowed, origin, is_text=False)

    def _infer_task(self, name: str, of_model: Sequence[str]) -> str:
        """Returns the one task that the user, the model and the dataset leave.

        Args:
            name: the model's, for messages.
            of_model: the tasks that there is a class of the model for.

        Raises:
            CDRError: none is left, or several are.
        """
        requested: str | None = self.external_config_dict.get("task")
        if requested in ("None", "~"):
            requested = None
        of_data: str | Sequence[str] | None = self.description.get("task")
        left = [task for task in of_model if of_data is None or task in _as_list(of_data)]
        if requested is not None and requested not in TASKS:
            raise CDRError(f"task={requested!r} should be one of {', '.join(TASKS)}.")
        if requested is not None and requested not in left:
            raise CDRError(
                f"task={requested}: {name} does {' and '.join(of_model)}, the data serve {of_data or TASKS}."
            )
        if requested is None and not left:
            raise CDRError(
                f"{name} does {' and '.join(of_model)}, for which this dataset can't be used ({of_data})."
            )
        if requested is None and len(left) > 1:
            raise CDRError(f"Both tasks are possible: choose --task={' or --task='.join(left)}.")
        return requested or left[0]

    # -- putting it together ----------------------------------------------------------------------------------------

    def _get_final_config_dict(self) -> dict[str, Any]:
        external = self._checked_external()
        settings = {**self.internal_config_dict, **external}
        user_args = external.get("eval_args", {})
        if "eval_args" in external:
            origin = self._origin["eval_args"]
            check_eval_args(user_args, settings["split"], origin)
            # Merged and not replaced: an eval_args without a mode keeps the default's.
            settings["eval_args"] = {**self.internal_config_dict["eval_args"], **user_args}
        # RecBole-CDR's order and split have no say here; its defaults would only contradict `split` in print.
        settings["eval_args"] = {"mode": settings["eval_args"].get("mode", "full")}
        check_unused(external, self.internal_config_dict, self._origin)
        expand_blocks(settings, external)
        self._infer_from_folder(settings, external)
        self._drop_negatives_of_ce(settings, external)
        if self._described:
            self.description |= {key: settings[key] for key in ("domains", "order")}
        check_intervals(settings)
        check_declared(settings, self._declared)
        check_sizes(settings, {key for rows in self._declared for key in rows})
        check_load_col(settings["load_col"], "")
        check_domain_settings(settings, self._known_keys() | DOMAIN_KEYS, RENAMED)
        check_split(settings, self.internal_config_dict)
        _check_metrics(settings)
        return settings

    def _checked_external(self) -> dict[str, Any]:
        """Returns the external settings, each known and of its type."""
        known = self._known_keys()
        checked: dict[str, Any] = {}
        for key, value in self.external_config_dict.items():
            origin = self._origin[key]
            if key not in known:
                raise CDRError(f"Unknown setting '{key}' ({origin}).{suggestion(key, known, RENAMED)}")
            is_text = isinstance(value, str) and origin in ("config_dict", "command line")
            if key in ("model", "dataset"):
                continue  # already resolved; RecBole sets them
            checked[key] = check_type(key, value, self._types.get(key, set()), origin, is_text=is_text)
        return checked

    def _known_keys(self) -> set[str]:
        lists = (key for keys in self.parameters.values() for key in keys)
        return {*lists, *self.internal_config_dict, *UNDECLARED_KEYS, *keys_read_by(self._written_class)} - {
            "MODEL_TYPE"
        }

    def _infer_from_folder(self, settings: dict[str, Any], external: Mapping[str, Any]) -> None:
        """Takes domains, and the order at its preparation, of a dataset without a property file from its folder.

        Raises:
            CDRError: there is no such dataset.
        """
        folder = Path(settings["data_path"]) / self.dataset
        if "order" not in external and self.dataset not in dataset_property_files():
            settings["order"] = prepared_order(folder) or settings["order"]
        if settings["domains"] is not None:
            return
        settings["domains"] = sorted(path.stem for path in folder.glob("*.inter")) or None
        if settings["domains"] is None:
            known = dataset_property_files()
            raise CDRError(
                f"Unknown dataset '{self.dataset}': it has no property file, and {folder} holds no .inter file."
                f"{did_you_mean(self.dataset, known)} `recbole-cdr datasets` lists what there is."
            )

    def _drop_negatives_of_ce(self, settings: dict[str, Any], external: Mapping[str, Any]) -> None:
        """Leaves out RecBole's own default of negatives, which it refuses beside a sequential model's full softmax."""
        sequential = settings["MODEL_TYPE"] == ModelType.SEQUENTIAL and settings.get("loss_type") == "CE"
        if sequential and "train_neg_sample_args" not in external:
            settings["train_neg_sample_args"] = None

    # -- what RecBole derives ---------------------------------------------------------------------------------------

    def _set_default_parameters(self) -> None:
        root = self.final_config_dict["data_path"]
        adapted = self.model_class
        self.model_class = cast("type[CrossDomainRecommender]", self._written_class)
        metrics, valid_metric = self.final_config_dict["metrics"], self.final_config_dict["valid_metric"]
        # RecBole knows its own metrics alone: one of the same kind stands for each.
        self.final_config_dict["metrics"] = [metric_registry.recbole_counterpart(name) for name in metrics]
        with _refusals():
            super()._set_default_parameters()
        self.model_class = adapted
        self.final_config_dict["metrics"] = metrics
        chosen_by = metric_registry.get_metric(valid_metric.partition("@")[0])
        self.final_config_dict["valid_metric_bigger"] = chosen_by.larger_is_better
        # RecBole sends "ml-100k" to its own example, whatever data_path says.
        self.final_config_dict["data_path"] = os.path.join(root, self.dataset)
        self.final_config_dict["data_root"] = root

    def _init_device(self) -> None:
        super()._init_device()
        if not self.final_config_dict["use_gpu"]:  # which RecBole 1.2.0 declares and doesn't read
            self.final_config_dict["device"] = torch.device("cpu")

    def _set_train_neg_sample_args(self) -> None:
        with _refusals():
            super()._set_train_neg_sample_args()

    # -- for others -------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON values, of which ``CDRConfig(config_dict=...)`` makes the same again."""
        settings = {
            key: _plain(value) for key, value in self.final_config_dict.items() if key not in DERIVED_KEYS
        }
        settings["data_path"] = str(self.final_config_dict["data_root"])
        negatives = settings.get("train_neg_sample_args")
        if negatives and negatives["distribution"] == "none":  # RecBole writes it so and does not read it so
            settings["train_neg_sample_args"] = None
        return settings

    def replaced(self, **settings: Any) -> CDRConfig:
        """Returns a configuration with some settings changed, unchecked; this one stays as it is."""
        changed = copy.copy(self)
        changed.final_config_dict = {**self.final_config_dict, **settings}
        return changed

    def fingerprint(self, keys: Iterable[str] | None = None) -> str:
        """Returns a hash of the settings that decide a result, equal wherever and whenever they are.

        Args:
            keys: the settings to hash; None: all but the paths and run-time settings of :data:`RUNTIME_KEYS`.
        """
        settings = self.to_dict()
        hashed = set(settings) - RUNTIME_KEYS if keys is None else set(keys)
        text = json.dumps({key: settings.get(key) for key in hashed}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _describes_dataset(key: str, value: Any) -> bool:
    """Returns whether a key of a file describes a dataset, and is no setting."""
    return (
        key in DESCRIPTION_KEYS
        or (key == "source" and isinstance(value, Mapping))
        or (key == "task" and isinstance(value, list))
    )


def _description(dataset: str) -> dict[str, Any]:
    path = dataset_property_files().get(dataset)
    return read_mapping(path) if path else {}


def _as_list(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _check_metrics(settings: dict[str, Any]) -> None:
    metrics, topk = settings["metrics"], settings["topk"]
    settings["metrics"] = _as_list(metrics)
    settings["topk"] = [topk] if isinstance(topk, int) else list(topk)
    check_metrics(settings["metrics"], settings["topk"], settings["valid_metric"])


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns RecBole's refusals of settings into errors for the user."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        raise CDRError(str(error)) from error


def _plain(value: Any) -> Any:
    """Returns a value as JSON can hold it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Enum):
        return value.name
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else str(value)
