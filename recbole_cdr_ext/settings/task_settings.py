"""The settings of a task, on top of those of every run; written into ``properties/task/``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from recbole_cdr_ext.settings.declaration import (
    BelowOne,
    Condition,
    Count,
    Learner,
    NonNegative,
    Positive,
    Reduction,
    Settings,
    Size,
    section,
)


def _is_range(value: list[float]) -> bool:
    return len(value) == 2 and value[0] < value[1]


RatingRange = Annotated[
    list[float], AfterValidator(Condition(_is_range, "two numbers, the lowest and the highest rating"))
]


class RatingSettings(Settings):
    """What runs that predict ratings read on top of overall.yaml."""

    split: str = Field(
        "cold_start",
        description="cold_start: test users have no ratings in the target domain.",
        json_schema_extra=section("Split"),
    )
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="Share of the overlapping users who are test users."
    )
    rating_range: RatingRange = Field(
        [1, 5], description="The lowest and the highest rating there is; others are an error."
    )
    biases: bool = Field(
        True,
        description="Whether a rating is mean + user bias + item bias + product, or product alone.",
        json_schema_extra=section("Ratings"),
    )
    bias_map: Literal["ratings", "biases", "identity"] = Field(
        "ratings",
        description=(
            "Fits a cold-start user's bias a * b + c, b that of the source: on ratings, on biases, or "
            "identity (a = 1, c = 0)."
        ),
    )
    clip_ratings: bool = Field(False, description="Whether predictions are clipped to rating_range.")
    backbone: Literal["MF", "LightGCN", "NGCF"] = Field(
        "MF",
        description="What makes the vectors: MF, LightGCN or NGCF.",
        json_schema_extra=section(
            "Vectors of users and items, learned before any mapping; equal ones for all models with equal "
            "settings"
        ),
    )
    embedding_size: Count = Field(10, description="Size d of the vectors; 0: none, the biases alone.")
    n_layers: Count = Field(2, description="Layers of propagation, for the backbones LightGCN and NGCF.")
    edge_weight: Literal["binary", "rating"] = Field(
        "binary", description="Edges of the rating graphs: binary, or rating (as a share of the highest)."
    )
    init_std: Positive = Field(0.1, description="Standard deviation that the vectors start with.")
    pretrain_learning_rate: Positive = Field(
        0.01, description="Step size; a step per rating where pretrain_reduction is sum."
    )
    pretrain_learner: Learner = Field("sgd", description="Learner of the vectors.")
    pretrain_reduction: Reduction = Field("sum", description="sum or mean of a batch's losses.")
    pretrain_reg_weight: NonNegative | None = Field(
        None, description="L2 penalty per rating; None: 0.02, but 0.1 for MF without biases."
    )
    pretrain_batch_size: Size = Field(256, description="Ratings in a batch.")
    pretrain_epochs: Count = Field(30, description="The most epochs.")
    pretrain_stopping_step: Count = Field(
        3, description="It stops after more than so many validations without improvement."
    )
    pretrain_valid_ratio: BelowOne = Field(
        0.05, description="Share of a domain's own training ratings that choose the epoch; 0: the last."
    )
    pretrain_sharpness: Literal["none", "sam", "asam", "pgd"] = Field(
        "none", description="none, sam, asam, or pgd: the worst user vectors within rho_pretrain."
    )
    rho_pretrain: NonNegative = Field(0.1, description="Radius of what pretrain_sharpness looks at.")
    pretrain_pgd_steps: Count = Field(5, description="Steps k of projected gradient ascent there.")
    mapping_hidden_size: Size = Field(
        50,
        description="Hidden units of the mapping d -> hidden -> d (tanh).",
        json_schema_extra=section("The mapping from source to target, or whatever a model learns itself"),
    )
    reduction: Reduction = Field("mean", description="sum or mean of a batch's losses.")
    train_batch_size: Size = Field(256, description="Ratings (or users) in a batch.")
    learner: Learner = Field("sgd", description="adam, adamw, sgd, adagrad, rmsprop or sparse_adam.")
    learning_rate: Positive = Field(0.01, description="Step size of the learner.")
    epochs: Count = Field(50, description="The most epochs of a phase.")
    stopping_step: Count = Field(
        5, description="Training stops after more than so many validations without improvement."
    )
    eval_args: dict[str, Any] = Field(
        {"mode": "labeled"},
        description="mode: labeled; there are no candidates to rank.",
        json_schema_extra=section("Evaluation"),
    )
    metrics: list | str = Field(["MAE", "RMSE"], description="RecBole's metrics of values.")
    valid_metric: str = Field(
        "MAE", description="The metric, over the validation users' ratings, that early stopping watches."
    )


# By task, for those that have settings of their own.
TASK_SETTINGS: Mapping[str, type[Settings]] = {"rating": RatingSettings}
