"""The next-item task: ranking one domain's items for a user with histories in several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from recbole.utils import set_color

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.evaluation import ranking
from recbole_cdr_ext.evaluation import result_table as instance_table
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics, mean_over_domains
from recbole_cdr_ext.evaluation.ranking import Ranks
from recbole_cdr_ext.model.recommender import CrossDomainRecommender
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.audit import audit_candidates
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.maker import SPLIT_KEYS, make_split
from recbole_cdr_ext.splits.sampler import Candidates, CrossDomainSampler
from recbole_cdr_ext.splits.split import GROUPS, PARTS, Split, groups
from recbole_cdr_ext.tasks.task import Experiment, Task
from recbole_cdr_ext.trainer.stages import run_recall_stages

compat.apply()

HELD_OUT = ("valid", "test")
# Under split=published: the test part again, among the items of the test file.
TEST_ITEMS = ("test_among_test_items", "popularity_among_test_items")
# Fewer candidates than this are another, easier question than the one the literature's figures answer.
COMPARABLE_CANDIDATES = 1000


@dataclass
class NextItemExperiment(Experiment):
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

    @classmethod
    def of(
        cls, config: CDRConfig, dataset: CrossDomainDataset, split: Split, model: CrossDomainRecommender
    ) -> NextItemExperiment:
        """Puts a model on the split that it was built on."""
        return cls(
            config=config,
            dataset=dataset,
            split=split,
            model=model,
            sampler=CrossDomainSampler(split, int(config["candidate_seed"])),
            metrics=RankingMetrics(config),
            popularity=ranking.popularity_scores(split),
        )

    # -- what a run asks for -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Draws and audits what validation ranks, so that an error comes before training."""
        self.candidates("valid")

    def training_batches(self) -> CrossDomainLoader:
        """Returns what phases without batches of their own train on."""
        return self.loader("train", training=True)

    def validate(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns the validation table of the model as it is now."""
        return self.table("valid")

    def outcome(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """Returns what ``result.json`` says of the trained model, and its per-instance table."""
        parts = self.evaluated_parts
        ranks = {part: self.rank(part) for part in parts}
        tables = {part: self.table(part, ranks[part]) for part in parts}
        result = {
            "best_valid_score": mean_over_domains(tables["valid"], self.metrics.valid_metric),
            **tables,
            **(self._beside_the_test() if "test" in parts else {}),
            "fallback": {part: self.fallbacks(part, ranks[part]) for part in parts},
        }
        frames = [self.instance_frame(part, ranks[part]) for part in parts]
        return result, pd.concat(frames, ignore_index=True)

    @property
    def evaluated_parts(self) -> tuple[str, ...]:
        """The held-out parts that are evaluated at the end: "valid" and, unless the settings say no, "test"."""
        return HELD_OUT if self.config["evaluate_test"] else HELD_OUT[:1]

    def _beside_the_test(self) -> dict[str, Any]:
        """Returns what stands beside the test table: popularity, and both among the items of the test file."""
        second_pool = self.among_test_items()
        return {
            "popularity": self.table("test", self.rank_by_popularity("test")),
            **({} if second_pool is None else dict(zip(TEST_ITEMS, second_pool, strict=True))),
        }

    def notes(self) -> list[str]:
        """Returns what a reader of the result must know about its data."""
        notes, dataset, split = [], self.dataset, self.split
        part = self.evaluated_parts[-1]
        candidates, instances = self.candidates(part), split.part(part)
        most = {
            name: int(candidates.counts[instances.domain == k].max(initial=0))
            for k, name in enumerate(dataset.domains)
        }
        few = {name: count for name, count in most.items() if 0 < count < COMPARABLE_CANDIDATES}
        if few:
            said = ", ".join(
                f"{count:,} ('{name}' has {dataset.n_domain_items(dataset.domain_index(name)):,} items)"
                for name, count in few.items()
            )
            notes.append(
                f"Fewer than {COMPARABLE_CANDIDATES:,} candidates are ranked, at most {said}: the metrics are "
                "not comparable with those from 999 negatives."
            )
        notes += self.metrics.notes(candidates.mode, int(candidates.counts.max(initial=1)))
        if not split.ordered and split.layout != "rows":
            notes.append(
                "order: none: targets are random items and histories are shuffled; order plays no part."
            )
        if split.leaky:
            notes.append(
                f"split={split.name} leaks and is not chronological; the counts stand in the log and in the result."
            )
        return notes

    # -- its parts -----------------------------------------------------------------------------------------------

    def candidates(self, part: str) -> Candidates:
        """Returns what the targets of "valid" or "test" are ranked against: drawn, and audited for leaks, once."""
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
            self.model,
            instances,
            drawn,
            loader,
            self.popularity,
            self.config,
            progress="test",
            list_length=self.metrics.list_length,
        )
        popular = ranking.rank_by_popularity(
            instances,
            drawn,
            self.popularity,
            self.split.item_offset,
            list_length=self.metrics.list_length,
        )
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
            list_length=self.metrics.list_length,
        )

    def rank_by_popularity(self, part: str) -> Ranks:
        """Ranks a part's targets by training popularity."""
        return ranking.rank_by_popularity(
            self.split.part(part),
            self.candidates(part),
            self.popularity,
            self.split.item_offset,
            list_length=self.metrics.list_length,
        )

    def table(self, part: str, ranks: Ranks | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns ``{domain: {group: {"n": …, metric: …}}}`` of a part, ranked here if it was not."""
        instances = self.split.part(part)
        ranks = ranks or self.rank(part)
        popularity = ranking.popularity_by_domain(self.popularity, self.split.item_offset)
        masks = groups(self.split, instances)
        return self.metrics.table(instances, ranks, masks, self.dataset.domains, popularity)

    def instance_frame(self, part: str, ranks: Ranks) -> pd.DataFrame:
        """Returns the per-instance table of a part."""
        instances = self.split.part(part)
        masks = groups(self.split, instances)
        return instance_table.instance_frame(self.dataset, instances, ranks, self.metrics, masks, part)

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


class NextItem(Task[Split]):
    """Ranking the items of one domain for users with histories in several."""

    name = "next_item"
    groups = GROUPS
    epoch_keys = ("epochs",)
    split_keys = SPLIT_KEYS
    # What else decides a split only changes what is trained on.
    shared_keys = (
        *(key for key in SPLIT_KEYS if key not in ("train_targets", "train_on_histories")),
        "candidate_seed",
    )

    def metrics(self, settings: CDRConfig | Mapping[str, Any]) -> RankingMetrics:
        """Returns the metrics of ranks that settings ask for."""
        return RankingMetrics(settings)

    def make_split(self, config: CDRConfig, dataset: CrossDomainDataset) -> Split:
        """Returns the instances that the settings' split draws."""
        return make_split(config, dataset)

    def run_stages(
        self,
        config: CDRConfig,
        dataset: CrossDomainDataset,
        split: Split,
        model_class: type[CrossDomainRecommender],
    ) -> Split:
        """Returns the split with the items that the model's stages recall."""
        return run_recall_stages(config, dataset, split, model_class)

    def experiment(
        self, config: CDRConfig, dataset: CrossDomainDataset, split: Split, model: CrossDomainRecommender
    ) -> NextItemExperiment:
        """Puts a model on the split that it was built on."""
        return NextItemExperiment.of(config, dataset, split, model)

    def log_split(self, dataset: CrossDomainDataset, split: Split) -> None:
        """Logs how many instances there are, by part, domain and group."""
        for part in PARTS:
            instances = split.part(part)
            masks = groups(split, instances)
            said = [
                f"{name} {int((instances.domain == k).sum()):,} ("
                + ", ".join(
                    f"{g} {int((m & (instances.domain == k)).sum()):,}"
                    for g, m in masks.items()
                    if g != "all"
                )
                + ")"
                for k, name in enumerate(dataset.domains)
            ]
            logging.getLogger().info(
                f"{set_color(f'{part} instances', 'blue')}: {len(instances):,}: {', '.join(said)}"
            )

    def scene(self, config: CDRConfig) -> str:
        """Returns the split's name."""
        return str(config["split"])

    def questions(self, setting: Callable[[str], Any], result: Mapping[str, Any]) -> dict[str, Any]:
        """Returns how the candidates of the test part were chosen."""
        mode = (setting("eval_args") or {}).get("mode")
        return {"candidates": mode.get("test") if isinstance(mode, Mapping) else mode}
