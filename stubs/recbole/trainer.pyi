from collections.abc import Callable
from typing import Any

import torch

class Trainer:
    config: Any
    model: Any
    logger: Any
    device: torch.device
    gpu_available: bool
    learner: str
    learning_rate: float
    weight_decay: float
    clip_grad_norm: Any
    valid_metric: str
    saved_model_file: str
    optimizer: Any
    start_epoch: int
    cur_step: int
    best_valid_score: float
    best_valid_result: Any
    def __init__(self, config: Any, model: Any) -> None: ...
    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer: ...
    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Callable[..., Any] | None = ...,
        show_progress: bool = ...,
    ) -> Any: ...
    def _valid_epoch(self, valid_data: Any, show_progress: bool = ...) -> Any: ...
    def _generate_train_loss_output(
        self, epoch_idx: int, s_time: float, e_time: float, losses: Any
    ) -> str: ...
    def resume_checkpoint(self, resume_file: Any) -> None: ...
    # With a parameter of its own before RecBole's: our trainer is handed the split.
    def fit(self, *args: Any, **kwargs: Any) -> Any: ...
    def evaluate(
        self, eval_data: Any, load_best_model: bool = ..., model_file: Any = ..., show_progress: bool = ...
    ) -> Any: ...
