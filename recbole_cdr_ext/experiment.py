"""The pieces that a run is made of, for those who call them one by one: data, split, and a model on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_cdr_ext import compat
from recbole_cdr_ext.config import CDRConfig
from recbole_cdr_ext.data.audit import audit_candidates
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.loader import CrossDomainLoader
from recbole_cdr_ext.data.prepare import Ensured, ensure_dataset
from recbole_cdr_ext.data.sampler import Candidates, CrossDomainSampler
from recbole_cdr_ext.data.split import Split, groups, make_split
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation import ranking, report
from recbole_cdr_ext.evaluation.metrics import RankingMetrics
from recbole_cdr_ext.evaluation.ranking import Ranks
from recbole_cdr_ext.model.abstract import CrossDomainRecommender
from recbole_cdr_ext.stages import run_stages
from recbole_cdr_ext.trainer.trainer import seed_everything

compat.apply()

_DOMAINS_TAKEN = {"one": (1, 1), "two": (2, 2), "two or more": (2, None)}


@dataclass
class Experiment:
    """A model on a split of a dataset, ready to be trained, evaluated, or to recommend.

    Attributes:
        popularity: (item_num,) training interactions per global item id.
    """

    config: CDRConfig
    dataset: CrossDomainDataset
    split: Split
    model: CrossDomainRecommender
    sampler: CrossDomainSampler
    metrics: RankingMetrics
    popularity: np.ndarray
    _candidates: dict[str, Candidates] = field(default_factory=dict, repr=False)

    def candidates(self, part: str) -> Candidates:
        """What the targets of "valid" or "test" are ranked against: drawn, and audited for leaks, once."""
        if part not in self._candidates:
            mode = self.config["eval_args"]["mode"]
            mode = mode[part] if isinstance(mode, Mapping) else mode
            drawn = self.sampler.candidates(self.split.part(part), mode)
            if drawn.mode != "full":
                audit_candidates(self.split, self.split.part(part), drawn.blocks())
            self._candidates[part] = drawn
        return self._candidates[part]

    def among_test_items(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns the tables of the model and of popularity on the test part, with the negatives drawn from the
        items of the published test file alone, as its authors drew them; None under the other splits.
        """
        pool, mode = self.split.test_items, self.config["eval_args"]["mode"]["test"]
        if pool is None or mode == "full":
            return None
        instances = self.split.test
        drawn = self.sampler.candidates(instances, mode, pool)
        audit_candidates(self.split, instances, drawn.blocks())
        loader = self.loader("test")
        ranks = ranking.evaluate(
            self.model, instances, drawn, loader, self.popularity, self.config, progress="test"
        )
        popular = ranking.rank_by_popularity(instances, drawn, self.popularity, self.split.item_offset)
        return self.table("test", ranks), self.table("test", popular)

    def loader(self, part: str, *, training: bool = False) -> CrossDomainLoader:
        """Batches of a part's instances."""
        return CrossDomainLoader(
            self.config, self.split.part(part), self.model, sampler=self.sampler, training=training
        )

    def rank(self, part: str) -> Ranks:
        """Ranks a part's targets with the model as it is now."""
        return ranking.evaluate(
            self.model,
            self.split.part(part),
            self.candidates(part),
            self.loader(part),
            self.popularity,
            self.config,
            progress=part,
        )

    def rank_by_popularity(self, part: str) -> Ranks:
        """Ranks a part's targets by training popularity."""
        return ranking.rank_by_popularity(
            self.split.part(part), self.candidates(part), self.popularity, self.split.item_offset
        )

    def table(self, part: str, ranks: Ranks | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns ``{domain: {group: {"n": …, metric: …}}}`` of a part, ranked here if it was not."""
        instances = self.split.part(part)
        ranks = ranks or self.rank(part)
        return self.metrics.table(instances, ranks.rank, groups(self.split, instances), self.dataset.domains)

    def instance_frame(self, part: str, ranks: Ranks) -> pd.DataFrame:
        """Returns the per-instance table of a part."""
        instances = self.split.part(part)
        masks = groups(self.split, instances)
        return report.instance_frame(self.dataset, instances, ranks, self.metrics, masks, part)

    def fallbacks(self, part: str, ranks: Ranks) -> dict[str, dict[str, int]]:
        """Returns how many instances popularity ranked in the model's place, by domain and group."""
        instances = self.split.part(part)
        masks = groups(self.split, instances)
        return {
            name: {
                g: int((mask & ranks.fallback & (instances.domain == k)).sum()) for g, mask in masks.items()
            }
            for k, name in enumerate(self.dataset.domains)
        }


def load_data(config: CDRConfig) -> tuple[CrossDomainDataset, Split]:
    """Returns the dataset that the settings ask for, prepared first if need be, and its split.

    Raises:
        CDRError: the data cannot be had, are malformed, do not fit the settings, or the split leaks.
    """
    ensure_data(config, allow_simulated=False)
    dataset = CrossDomainDataset(config)
    return dataset, make_split(config, dataset)


def ensure_data(config: CDRConfig, *, allow_simulated: bool) -> Ensured:
    """Has the dataset that the settings ask for prepared, and says which one is there."""
    return ensure_dataset(
        config["dataset"],
        data_path=config["data_root"],
        raw=config["raw"],
        download=bool(config["download"]),
        layout="rows" if config["split"] == "published" else "users",
        allow_simulated=allow_simulated,
        progress=bool(config["show_progress"]),
    )


def build(
    config: CDRConfig, dataset: CrossDomainDataset | None = None, split: Split | None = None
) -> Experiment:
    """Returns an untrained model with all it needs, its stages trained.

    Args:
        config: the settings.
        dataset, split: as :func:`load_data` returns them; loaded if not given.

    Raises:
        CDRError: as :func:`load_data`; or the data are not what the model needs.
    """
    metrics = RankingMetrics(config)
    if dataset is None or split is None:
        dataset, split = load_data(config)
    model_class = config.model_class
    _check_fit(model_class, dataset, split)
    split = run_stages(config, dataset, split, model_class)
    dataset.split = split
    split = model_class.prepare_data(config, dataset, split)
    dataset.split = split
    # After all that may draw, so that a stage from the cache and one trained just now leave the same start.
    seed_everything(int(config["seed"]))
    model = model_class(config, dataset).to(config["device"])
    return Experiment(
        config=config,
        dataset=dataset,
        split=split,
        model=model,
        sampler=CrossDomainSampler(split, int(config["candidate_seed"])),
        metrics=metrics,
        popularity=ranking.popularity_scores(split),
    )


# -- checks --------------------------------------------------------------------------------------------------


def _check_fit(model_class: type[CrossDomainRecommender], dataset: CrossDomainDataset, split: Split) -> None:
    """Refuses data that a model cannot learn from, by what the model says of itself."""
    low, high = _DOMAINS_TAKEN.get(model_class.domains, (1, None))
    if dataset.n_domains < low or (high is not None and dataset.n_domains > high):
        raise CDRError(
            f"{model_class.__name__} takes {model_class.domains} domain(s), dataset '{dataset.dataset_name}' "
            f"has {dataset.n_domains}: {', '.join(dataset.domains)}. Choose among them with 'domains'."
        )
    if model_class.needs_overlap and not n_overlapping(split):
        raise CDRError(
            f"{model_class.__name__} learns from users with interactions in several domains, and the "
            f"training data of '{dataset.dataset_name}' have none "
            f"(of {len(np.unique(split.train_events.user)):,} users)."
        )


def n_overlapping(split: Split) -> int:
    """Returns how many users have training interactions in more than one domain."""
    events = split.train_events
    pairs = np.unique(events.user.astype(np.int64) * split.n_domains + events.domain)
    return int((np.bincount(pairs // split.n_domains) > 1).sum())


def set_threads(config: CDRConfig) -> None:
    """Sets how many threads torch computes with, if the settings say so."""
    if config["torch_threads"]:
        torch.set_num_threads(int(config["torch_threads"]))
