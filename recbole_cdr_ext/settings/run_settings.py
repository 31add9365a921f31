"""The settings of every run, and those of a task on top of them.

``properties/overall.yaml`` and the files in ``properties/task/`` are written from these classes.
"""

from __future__ import annotations

import re
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
    Seed,
    Settings,
    Share,
    Shares,
    Size,
    section,
)

# -- every run -----------------------------------------------------------------------------------------------------


LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _are_domains(value: list[Any]) -> bool:
    are_names = all(isinstance(name, str) and name and not re.search(r"[/\\:]", name) for name in value)
    return len(value) > 0 and are_names and len(set(value)) == len(value)


Domains = Annotated[
    list,
    AfterValidator(
        Condition(_are_domains, "a list of one or more different names, without slashes and colons")
    ),
]
Level = Annotated[
    str,
    AfterValidator(Condition(lambda value: value.upper() in LEVELS, "one of " + ", ".join(LEVELS))),
]


class RunSettings(Settings):
    """What every run reads first, on top of RecBole's own defaults. A model's and a dataset's property file,
    your files (--config_files), a Python dict and the command line (--key=value) override it, in this order.
    A comment's first word in brackets is the type a value must have.
    """

    data_path: str = Field(
        "dataset_atomic/",
        description="Folder of the datasets; each lies in a folder of its name.",
        json_schema_extra=section("Data"),
    )
    raw: str | None = Field(
        None,
        description=(
            "Folder of raw files to prepare a missing dataset from; None: the environment variable "
            "RECBOLE_CDR_RAW."
        ),
    )
    download: bool = Field(
        False, description="Whether a missing dataset may be fetched from its public address."
    )
    allow_simulated: bool = Field(
        True, description="Whether a single run may fall back to simulated data, under that name."
    )
    simulated: bool = Field(False, description="Whether the dataset is simulated; its property file says so.")
    task: Literal["next_item", "rating"] | None = Field(
        None, description="next_item or rating; None: the one that model and dataset share."
    )
    domains: Domains | None = Field(
        None, description="Names of the domains; the dataset's property file gives them."
    )
    source: str | None = Field(
        None, description="The source domain, for models that transfer in one direction."
    )
    target: str | None = Field(
        None, description="The target domain, for models that transfer in one direction."
    )
    domain_settings: dict[str, Any] | None = Field(
        None,
        description=(
            "What single domains have for themselves, {domain: {key: value}}: val_interval, "
            "user_inter_num_interval, item_inter_num_interval, load_col."
        ),
    )
    order: Literal["clock", "merged", "none"] = Field(
        "clock",
        description=(
            "What timestamps mean: clock (comparable between domains), merged (positions in the user's "
            "merged sequence) or none."
        ),
    )
    load_col: dict[str, Any] | None = Field(
        None,
        description=(
            "Columns to read, {inter: [user_id, item_id, ...]}; None: all. Without timestamp there is no "
            "order, without rating no rating."
        ),
    )
    split: str = Field(
        "user", description="user, leave_one_out or published.", json_schema_extra=section("Split")
    )
    split_seed: Seed = Field(2024, description="Seed of the split, the same for every seed of training.")
    split_ratio: Shares = Field(
        [0.8, 0.1, 0.1], description="Shares of users in training, validation and test, for split user."
    )
    cold_start_ratio: Share = Field(
        0.2, description="Share of overlapping held-out users who lose one domain's history."
    )
    overlap_ratio: Share = Field(1.0, description="Share of overlapping training users who are kept.")
    density: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of each history that is kept."
    )
    time_respecting: bool | None = Field(
        None,
        description=(
            "Whether the other domain's history ends at the target's time; None: True unless order is "
            "none. Training sequences read in one pass are in time order either way."
        ),
    )
    train_on_histories: bool = Field(
        True, description="Whether what held-out users did before their targets is training data."
    )
    train_targets: Literal["last", "all"] = Field(
        "all", description="all positions of a training sequence, or its last one only."
    )
    targets_per_sequence: Count = Field(
        0, description="Of all positions, how many are drawn anew each epoch; 0: every one."
    )
    one_pass: bool = Field(
        True,
        description=(
            "Whether models that can train all positions of a sequence in one pass do so, or encode the "
            "history before each position anew."
        ),
    )
    reorder: bool = Field(
        True,
        description=(
            "Whether, where order is none, one_pass reads each training sequence in another random order "
            "in every epoch."
        ),
    )
    max_history_length: Size = Field(
        20, description="The most recent items of a history that a model sees, per domain."
    )
    seed: Seed = Field(
        2024,
        description="Seed of initialisation, batch order and sampling in training.",
        json_schema_extra=section("Training"),
    )
    psg_seed: Seed = Field(2024, description="Seed of the pseudo-sequence generator.")
    epochs: Count = Field(100, description="The most epochs of a phase.")
    train_batch_size: Size = Field(512, description="Instances in a training batch.")
    train_neg_num: Size = Field(1, description="Negatives drawn per training instance.")
    learner: Learner = Field("adam", description="adam, adamw, sgd, adagrad, rmsprop or sparse_adam.")
    learning_rate: Positive = Field(0.001, description="Step size of the learner.")
    weight_decay: NonNegative = Field(0.0, description="L2 penalty of the learner.")
    weight_averaging: BelowOne = Field(
        0.0,
        description=(
            "Decay per step of a moving average of the weights, which is validated and kept in their "
            "place (0.99: over a hundred steps); 0: none."
        ),
    )
    eval_step: Count = Field(
        1, description="Epochs between two validations; 0: none, the last epoch is kept."
    )
    stopping_step: Count = Field(
        10, description="Training stops after more than so many validations without improvement."
    )
    max_seconds: NonNegative = Field(
        0, description="Training ends after this time, best weights kept; 0: no limit."
    )
    max_processor_seconds: NonNegative = Field(
        0, description="The same in processor time, which other programs do not change."
    )
    sharpness: Literal["none", "sam", "asam", "pgd"] = Field(
        "none",
        description=(
            "What each step looks at besides the current weights: none; sam or asam: the worst weights "
            "within rho; pgd: the worst rows that a model names within rho."
        ),
    )
    rho: NonNegative | None = Field(
        None, description="Radius of the neighbourhood; None: the model's own, else 0.05."
    )
    rho_scope: Literal["row", "batch"] = Field(
        "row", description="For pgd, whether rho bounds each row of a batch or the batch as a whole."
    )
    rho_relative: bool = Field(False, description="For pgd, whether rho is a share of the rows' own length.")
    pgd_steps: Count = Field(5, description="Steps k of projected gradient ascent; 0: as sharpness none.")
    pgd_step_size: Positive | None = Field(
        None, description="Length alpha of a step per coordinate; None: 2.5 rho / (k sqrt(d))."
    )
    baseline_scope: Literal["target", "all"] = Field(
        "target", description="What RecBole's own models see: the target's domain, or all domains' union."
    )
    eval_args: dict[str, Any] = Field(
        {"mode": "uni999"},
        description="mode: full, uniN (N uniform negatives), popN (by popularity) or labeled.",
        json_schema_extra=section("Evaluation"),
    )
    candidate_seed: Seed = Field(
        2024, description="Seed of the negatives, drawn once for all models and epochs."
    )
    eval_batch_size: Size = Field(512, description="Instances in an evaluation batch.")
    metrics: list | str = Field(
        ["NDCG", "Hit"], description="RecBole's metrics, all of ranking or all of values."
    )
    topk: list | int = Field([10], description="Cut-offs of the ranking metrics.")
    valid_metric: str = Field(
        "NDCG@10", description="The metric, averaged over domains, that early stopping watches."
    )
    metric_decimal_place: Count = Field(6, description="Decimals of the reported metrics.")
    evaluate_test: bool = Field(
        True,
        description="Whether the test part is evaluated at the end; False while settings are searched for.",
    )
    checkpoint_dir: str = Field(
        "saved",
        description="Folder of checkpoints, results and per-instance tables.",
        json_schema_extra=section("Output"),
    )
    cache_dir: str = Field(
        "cache", description="Folder of what can be computed again, such as pseudo-sequences."
    )
    run_id: str | None = Field(None, description="Name of the run; None: a new unique one.")
    resume: str | None = Field(
        None, description="The run_id, or checkpoint folder, of an interrupted run to go on with."
    )
    result_file: str | None = Field(None, description="Where else to write the result as JSON.")
    save_instances: bool = Field(
        True, description="Whether to write the table of per-instance ranks and metrics."
    )
    show_progress: bool = Field(True, description="Whether to show progress bars.")
    tensorboard: bool = Field(True, description="Whether to write TensorBoard's event files.")
    use_gpu: bool = Field(
        True, description="Whether to use a GPU where there is one.", json_schema_extra=section("Machine")
    )
    gpu_id: str | int | list = Field("0", description="The GPUs to use, as in CUDA_VISIBLE_DEVICES.")
    torch_threads: Count = Field(0, description="Threads of torch; 0: torch's choice.")
    enable_amp: bool = Field(
        False,
        description=(
            "Mixed precision. On a GPU, and on processors that multiply bfloat16 (AVX512-BF16, AMX), "
            "models that score all items train 1.4 to 2 times faster; elsewhere they are slower."
        ),
    )
    state: Level = Field("INFO", description="Logging level.")


# -- a task --------------------------------------------------------------------------------------------------------


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
