"""The rating task: predicting what users without ratings in the target domain would give there."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.utils import set_color

from recbole_cdr_ext import compat
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.ranking_metrics import mean_over_domains
from recbole_cdr_ext.evaluation.rating_metrics import ValueMetrics
from recbole_cdr_ext.model.phase import Stage
from recbole_cdr_ext.model.rating.floors import BiasOnly, GlobalMean, ItemMean, ItemMeanUserBias
from recbole_cdr_ext.model.rating_recommender import RatingRecommender, whole_batch
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.rating_split import Ratings, RatingSplit
from recbole_cdr_ext.trainer.stages import run_stages, stage_settings

compat.apply()

HELD_OUT = ("valid", "test")
FLOORS = (GlobalMean, ItemMean, ItemMeanUserBias, BiasOnly)
GROUP = "cold"


@dataclass
class RatingExperiment:
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
        """Nothing: rating models bring the batches of their phases."""

    def validate(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The validation table of the model as it is now."""
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
        found = {
            "source": self.dataset.domains[self.split.source],
            "target": self.dataset.domains[self.split.target],
            "beta": self.config["beta"],
            "best_valid_score": mean_over_domains(tables["valid"], self.metrics.valid_metric),
            **tables,
            "floors": floors,
            "unknown_items": {part: int((~self._known(part)).sum()) for part in parts},
        }
        frames = [self.rating_frame(part, predicted[part]) for part in parts]
        return found, pd.concat(frames, ignore_index=True)

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

    def batch(self, part: str):
        """A part's ratings as one batch, on the model's device."""
        split = self.split
        ratings = whole_batch(split.part(part), int(split.item_offset[split.target]), split.target)
        return ratings.to(self.config["device"])

    def table(self, part: str, predicted: np.ndarray | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns ``{target: {"cold": {"n": …, "mae": …, "rmse": …}}}`` of a part, predicted here if it was not."""
        predicted = self.predict(part) if predicted is None else predicted
        cell = self.metrics.mean(predicted, self.split.part(part).rating)
        return {self.dataset.domains[self.split.target]: {GROUP: cell}}

    def floor_names(self) -> list[str]:
        """The floors that stand beside the model: all but itself."""
        return [floor.__name__ for floor in FLOORS if floor is not type(self.model)]

    def floor(self, name: str) -> np.ndarray:
        """Returns a floor's predictions for the test ratings; BiasOnly is learned first, once per split and seed."""
        if name not in self._floors:
            floor = next(floor for floor in FLOORS if floor.__name__ == name)
            # With the floors' own settings, not the run's: all runs on a split and seed show the same floors.
            config = stage_settings(Stage(name, {}, "seed"), self.config)
            dataset, before = self.dataset, self.dataset.split
            try:
                dataset.split = run_stages(config, dataset, self.split, floor)
                self._floors[name] = self.predict("test", floor(config, dataset).to(config["device"]))
            finally:
                dataset.split = before
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
        known = self.split.known_items(self.split.target)
        return known[ratings.item - self.split.item_offset[self.split.target]]


def log_parts(dataset: CrossDomainDataset, split: RatingSplit) -> None:
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
        info(
            f"{set_color(f'{part} ratings', 'blue')}: {len(ratings):,} by {len(np.unique(ratings.user)):,} users"
        )
