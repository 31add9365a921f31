"""The rating task: predicting what users without ratings in the target domain would give there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.utils import set_color

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric_tables import ValueMetrics, mean_over_domains
from recbole_cdr_ext.model.rating.floors import BiasOnly, GlobalMean, ItemMean, ItemMeanUserBias
from recbole_cdr_ext.model.rating_recommender import RatingBatch, RatingRecommender, whole_batch
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Stage
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.maker import RATING_SPLIT_KEYS, make_rating_split
from recbole_cdr_ext.splits.split import Ratings, RatingSplit, TrainingData
from recbole_cdr_ext.tasks.task import Experiment, Task
from recbole_cdr_ext.trainer.stages import run_table_stages, stage_settings

compat.apply()

HELD_OUT = ("valid", "test")
FLOORS = (GlobalMean, ItemMean, ItemMeanUserBias, BiasOnly)
GROUP = "cold"


@dataclass
class RatingExperiment(Experiment):
    """A model on a split of ratings, ready to be trained and evaluated."""

    config: CDRConfig
    dataset: CrossDomainDataset
    split: RatingSplit
    model: RatingRecommender
    metrics: ValueMetrics
    _floors: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, config: CDRConfig, dataset: CrossDomainDataset, split: RatingSplit, model: RatingRecommender
    ) -> RatingExperiment:
        """Puts a model on the split that it was built on."""
        return cls(config, dataset, split, model, ValueMetrics(config))

    # -- what a run asks for -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuses a model of the source domain's ratings alone; the split was checked when it was made."""
        if not self.model.rates_target:
            raise CDRError(
                f"{self.config['model']} with these settings learns ratings of the source domain, and those of the "
                "target are asked for: factorized=source is for stages of other models. Leave factorized at target."
            )

    def training_batches(self) -> None:
        """Returns nothing: rating models bring the batches of their phases."""

    def validate(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns the validation table of the model as it is now."""
        return self.table("valid")

    def outcome(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """Returns what ``result.json`` says of the trained model, and its per-rating table."""
        parts = self.evaluated_parts
        predicted = {part: self.predict(part) for part in parts}
        tables = {part: self.table(part, predicted[part]) for part in parts}
        floors = (
            {name: self.table("test", self.floor(name)) for name in self.floor_names()}
            if "test" in parts
            else {}
        )
        result = {
            "source": self.dataset.domains[self.split.source],
            "target": self.dataset.domains[self.split.target],
            "beta": self.config["beta"],
            "best_valid_score": mean_over_domains(tables["valid"], self.metrics.valid_metric),
            **tables,
            "floors": floors,
            "unknown_items": {part: int((~self._known(part)).sum()) for part in parts},
        }
        frames = [self.rating_frame(part, predicted[part]) for part in parts]
        return result, pd.concat(frames, ignore_index=True)

    @property
    def evaluated_parts(self) -> tuple[str, ...]:
        """The held-out parts that are evaluated at the end: "valid" and, unless the settings say no, "test"."""
        return HELD_OUT if self.config["evaluate_test"] else HELD_OUT[:1]

    def notes(self) -> list[str]:
        """Returns what a reader of the result must know about its data."""
        part = self.evaluated_parts[-1]
        unknown = int((~self._known(part)).sum())
        if not unknown:
            return []
        return [
            f"{unknown:,} of {len(self.split.part(part)):,} {part} ratings are of items without a training rating: "
            "they are predicted by the mean and the user's bias."
        ]

    # -- its parts -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, part: str, model: RatingRecommender | None = None) -> np.ndarray:
        """Returns the predictions for a part's ratings, (m,), by the model or by another one on the same split."""
        model = self.model if model is None else model
        model.eval()
        batch = self.batch(part)
        size = int(self.config["eval_batch_size"])
        parts = [model.predict(batch.take(slice(i, i + size))) for i in range(0, len(batch), size)]
        return torch.cat(parts).cpu().numpy()

    def batch(self, part: str) -> RatingBatch:
        """Returns a part's ratings as one batch, on the model's device."""
        split = self.split
        ratings = whole_batch(split.part(part), int(split.item_offset[split.target]), split.target)
        return ratings.to(self.config["device"])

    def table(self, part: str, predicted: np.ndarray | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns ``{target: {"cold": {"n": …, "mae": …, "rmse": …}}}`` of a part, predicted here if it was not."""
        predicted = self.predict(part) if predicted is None else predicted
        cell = self.metrics.mean(predicted, self.split.part(part).rating)
        return {self.dataset.domains[self.split.target]: {GROUP: cell}}

    def floor_names(self) -> list[str]:
        """Returns the floors that stand beside the model: all but itself."""
        return [floor.__name__ for floor in FLOORS if floor is not type(self.model)]

    def floor(self, name: str) -> np.ndarray:
        """Returns a floor's predictions for the test ratings; BiasOnly is learned first, once per split and seed."""
        if name not in self._floors:
            floor = next(floor for floor in FLOORS if floor.__name__ == name)
            # With the floors' own settings, not the run's: all runs on a split and seed show the same floors.
            config = stage_settings(Stage(name, {}, "seed"), self.config)
            split = run_table_stages(config, self.dataset, self.split, floor)
            model = floor(config, TrainingData.of(self.dataset, split)).to(config["device"])
            self._floors[name] = self.predict("test", model)
        return self._floors[name]

    def rating_frame(self, part: str, predicted: np.ndarray) -> pd.DataFrame:
        """Returns one row per rating, in external ids: what significance tests and plots read.

        Columns: part, user, domain, item, rating, prediction, absolute_error, known_item (False where the item has
        no training rating).
        """
        ratings = self.split.part(part)
        return pd.DataFrame(
            {
                "part": part,
                "user": self.dataset.id2token(self.dataset.uid_field, ratings.user),
                "domain": self.dataset.domains[self.split.target],
                "item": self.dataset.item_token(ratings.item),
                "rating": ratings.rating,
                "prediction": predicted,
                "absolute_error": np.abs(predicted - ratings.rating),
                "known_item": self._known(part),
            }
        )

    def _known(self, part: str) -> np.ndarray:
        ratings: Ratings = self.split.part(part)
        of_item = self.split.known_items(self.split.target)
        known: np.ndarray = of_item[ratings.item - self.split.item_offset[self.split.target]]
        return known


class Rating(Task[RatingSplit]):
    """Predicting what users without ratings in the target domain would give there."""

    name = "rating"
    groups = (GROUP,)
    epoch_keys = ("epochs", "pretrain_epochs")
    split_keys = RATING_SPLIT_KEYS
    shared_keys = RATING_SPLIT_KEYS

    def metrics(self, settings: CDRConfig | Mapping[str, Any]) -> ValueMetrics:
        """Returns the metrics of predicted values that settings ask for."""
        return ValueMetrics(settings)

    def make_split(self, config: CDRConfig, dataset: CrossDomainDataset) -> RatingSplit:
        """Returns the ratings that the settings' split draws."""
        return make_rating_split(config, dataset)

    def run_stages(
        self,
        config: CDRConfig,
        dataset: CrossDomainDataset,
        split: RatingSplit,
        model_class: type[CrossDomainRecommender],
    ) -> RatingSplit:
        """Returns the split with the tables that the model's stages learn."""
        return run_table_stages(config, dataset, split, model_class)

    def experiment(
        self,
        config: CDRConfig,
        dataset: CrossDomainDataset,
        split: RatingSplit,
        model: CrossDomainRecommender,
    ) -> RatingExperiment:
        """Puts a model on the split that it was built on.

        Raises:
            CDRError: it is no model of ratings.
        """
        if not isinstance(model, RatingRecommender):
            raise CDRError(f"{config['model']} says that it predicts ratings, and is no RatingRecommender.")
        return RatingExperiment.of(config, dataset, split, model)

    def log_split(self, dataset: CrossDomainDataset, split: RatingSplit) -> None:
        """Logs how many ratings there are of what kind."""
        source, target = dataset.domains[split.source], dataset.domains[split.target]
        info = logging.getLogger().info
        info(
            f"{set_color('ratings', 'blue')}: {source} -> {target}; training: {len(split.train[split.source]):,} of "
            f"{source}, {len(split.train[split.target]):,} of {target}, {len(split.shared_ratings()):,} of these by "
            f"the {len(split.overlapping):,} overlapping training users"
        )
        for part in HELD_OUT:
            ratings = split.part(part)
            n_users = len(np.unique(ratings.user))
            info(f"{set_color(f'{part} ratings', 'blue')}: {len(ratings):,} by {n_users:,} users")

    def scene(self, config: CDRConfig) -> str:
        """Returns the share of cold-start users."""
        return f"beta{config['beta']:g}"

    def questions(self, setting: Callable[[str], Any], result: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the direction and the share, which are given or chosen."""
        return {key: result.get(key, setting(key)) for key in ("source", "target", "beta")}
