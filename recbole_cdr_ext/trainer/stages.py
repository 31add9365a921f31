"""Models that run before others: trained once per data and settings, and kept in the cache folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import set_color
from tqdm import tqdm

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.dataset import CrossDomainDataset, data_key
from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import make_folder
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Stage
from recbole_cdr_ext.settings.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.splits.audit import audit_recalled
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.maker import RATING_SPLIT_KEYS, SPLIT_KEYS
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.splits.split import PARTS, AnySplit, RatingSplit, Split, TrainingData
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer, seed_everything

compat.apply()

RECALLED = "recalled.pth"


def run_recall_stages(
    config: CDRConfig, dataset: CrossDomainDataset, split: Split, model_class: type[CrossDomainRecommender]
) -> Split:
    """Returns the split with the items that a model's stages recall for its instances, stage by stage.

    Raises:
        CDRError: a stage cannot be trained or written, or what it recalled leaks held-out targets.
    """
    for stage in model_class.stages(config):
        split = _recall(stage, config, dataset, split)
    return split


def run_table_stages(
    config: CDRConfig,
    dataset: CrossDomainDataset,
    split: RatingSplit,
    model_class: type[CrossDomainRecommender],
) -> RatingSplit:
    """Returns the split with the tables that a model's stages learn of its ratings, stage by stage.

    Raises:
        CDRError: a stage cannot be trained or written.
    """
    for stage in model_class.stages(config):
        model, _ = _trained(stage, config, dataset, split)
        split = model.augment(split)
    return split


def augment(
    config: CDRConfig, dataset: CrossDomainDataset, split: Split, stage: Stage, instances: Instances
) -> Instances:
    """Returns instances that are none of the split's (users to be served, say) as the stage enriches them."""
    model, _ = _trained(stage, config, dataset, split, _instance_batches)
    augmented: Split = model.augment(replace(split, test=instances))
    return augmented.test


def _recall(stage: Stage, config: CDRConfig, dataset: CrossDomainDataset, split: Split) -> Split:
    stage_config = stage_settings(stage, config)
    path = _folder(stage_config, split) / RECALLED
    data = _model_class(stage_config).learns_from(stage_config, split)
    recall = _read_recalled(path, stage, split, data)
    if recall is None:
        model, stage_config = _trained(stage, config, dataset, split, _instance_batches)

        def bar(blocks: Iterable[Any]) -> Iterable[Any]:
            label = set_color(f"{stage.model} recalls", "pink")
            hidden = not config["show_progress"]
            wrapped: Iterable[Any] = tqdm(blocks, ncols=100, desc=label, disable=hidden, leave=False)
            return wrapped

        augmented: Split = model.augment(split, bar)
        recalled = {part: _recalled(augmented.part(part)) for part in PARTS}
        tensors = {part: torch.from_numpy(items.astype(np.int32)) for part, items in recalled.items()}
        learned = (
            {} if augmented.item_vectors is None else {"items": torch.from_numpy(augmented.item_vectors)}
        )
        meta = {"model": stage.model, "data": data, "settings": stage_config.to_dict()}
        checkpoint.save(path, meta, recalled=tensors, vectors=learned)
        recall = recalled, augmented.item_vectors
    split = replace(split.with_recalled(recall[0]), item_vectors=recall[1])
    for what, value in split.report.items():
        if what.startswith("targets recalled"):
            getLogger().info(f"  {what}: {value}")
    split.report.update(audit_recalled(split, fail=not split.leaky))
    return split


def _recalled(instances: Instances) -> np.ndarray:
    assert instances.recalled is not None, "the stage left instances as they were"
    return instances.recalled


def _read_recalled(
    path: Path, stage: Stage, split: Split, data: str
) -> tuple[dict[str, np.ndarray], np.ndarray | None] | None:
    """Returns the recalled items by part and the item vectors that the cache holds, None if nothing of use."""
    if not path.exists():
        return None
    try:
        _, states = checkpoint.load(path, model=stage.model, data=data)
        recalled = {part: states["recalled"][part].numpy().astype(np.int64) for part in PARTS}
        vectors = states["vectors"].get("items")
    except (CDRError, KeyError) as error:
        getLogger().warning(f"The cached {path} is not used and made again: {error}")
        return None
    if any(len(recalled[part]) != len(split.part(part)) for part in PARTS):
        getLogger().warning(f"The cached {path} is of another size and made again.")
        return None
    getLogger().info(f"{stage.model} was run before on these data: {path}")
    return recalled, None if vectors is None else vectors.numpy()


def _instance_batches(
    config: CDRConfig, split: Split, prepared: Split, model: CrossDomainRecommender
) -> CrossDomainLoader:
    """Returns the training instances in batches, as models of instances are trained on."""
    return CrossDomainLoader(config, prepared.train, model, sampler=CrossDomainSampler(split), training=True)


def _trained(
    stage: Stage,
    config: CDRConfig,
    dataset: CrossDomainDataset,
    split: AnySplit,
    batches: Callable[[CDRConfig, AnySplit, AnySplit, CrossDomainRecommender], CrossDomainLoader]
    | None = None,
) -> tuple[CrossDomainRecommender, CDRConfig]:
    """Returns the stage's trained model, from the cache if it is there, and its settings.

    Args:
        batches: gives what phases without batches of their own train on, from the stage's settings, the split, the
            split as the model prepared it, and the model; None: there are no such phases.
    """
    stage_config = stage_settings(stage, config)
    folder = make_folder(_folder(stage_config, split))
    seed_everything(int(stage_config["seed"]))
    model_class = _model_class(stage_config)
    data = model_class.learns_from(stage_config, split)
    prepared: AnySplit = model_class.prepare_data(stage_config, dataset, split)
    model = model_class(stage_config, TrainingData.of(dataset, prepared)).to(stage_config["device"])
    path = folder / checkpoint.MODEL
    if path.exists():
        try:
            _, states = checkpoint.load(path, model=stage.model, data=data, device=stage_config["device"])
            checkpoint.restore(model, states["model"], path)
        except (CDRError, KeyError) as error:
            getLogger().warning(f"The cached {path} is not used and made again: {error}")
        else:
            return model, stage_config
    of = f" ({stage.settings['factorized']} domain)" if "factorized" in stage.settings else ""
    getLogger().info(f"Stage {stage.model}{of}: trained once for these data and settings, kept in {folder}")
    run = Path(config["checkpoint_dir"]) / (config["run_id"] or "")
    hint = (
        f"go on with --resume={run}" if config["run_id"] else "what was trained is kept; call again to go on"
    )
    trainer = CrossDomainTrainer(stage_config, model, folder, data=data, resume_hint=hint)
    last = folder / checkpoint.LAST
    if last.exists():
        try:
            trainer.resume_checkpoint(last)
        except CDRError as error:
            getLogger().warning(f"{last} is not used: {error}")
    loader = batches(stage_config, split, prepared, model) if batches else None
    trainer.fit(split, loader, show_progress=bool(config["show_progress"]))
    last.unlink(missing_ok=True)
    return model, stage_config


def stage_settings(stage: Stage, config: CDRConfig) -> CDRConfig:
    """Returns a stage's settings: its own property file, on the run's data, with nothing of the run's model."""
    shared = {*SPLIT_KEYS, *RATING_SPLIT_KEYS, *RUNTIME_KEYS} - {
        "run_id",
        "resume",
        "result_file",
        "tensorboard",
    }
    shared -= {"max_seconds", "max_processor_seconds"}
    settings = {key: value for key, value in config.to_dict().items() if key in shared}
    seed = config[stage.seed_key]
    settings |= {"seed": seed, "psg_seed": seed, "tensorboard": False}
    return CDRConfig(stage.model, config["dataset"], config_dict={**settings, **stage.settings})


def _model_class(config: CDRConfig) -> type[CrossDomainRecommender]:
    model_class: type[CrossDomainRecommender] = config.model_class
    return model_class


def _folder(stage_config: CDRConfig, split: Split | RatingSplit) -> Path:
    data = _model_class(stage_config).learns_from(stage_config, split)
    keys = None
    if data != split.fingerprint:  # then the split's settings decide nothing beyond those data
        keys = set(stage_config.to_dict()) - RUNTIME_KEYS - {*SPLIT_KEYS, *RATING_SPLIT_KEYS}
    key = data_key(data, stage_config.fingerprint(keys))
    return Path(stage_config["cache_dir"]) / f"{stage_config['model']}-{stage_config['dataset']}-{key}"
