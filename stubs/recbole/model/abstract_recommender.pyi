from typing import Any, ClassVar

import torch
from recbole.utils import InputType, ModelType
from torch import nn

class AbstractRecommender(nn.Module):
    logger: Any
    type: ClassVar[ModelType]  # type: ignore[assignment]
    input_type: ClassVar[InputType]
    # No method: so the one of nn.Module, which gives every name a type, is hidden from mypy.
    __getattr__: ClassVar[None]  # type: ignore[assignment, misc]
    def calculate_loss(self, interaction: Any) -> Any: ...
    def predict(self, interaction: Any) -> torch.Tensor: ...
    def full_sort_predict(self, interaction: Any) -> torch.Tensor: ...
    def other_parameter(self) -> Any: ...
    def load_other_parameter(self, para: Any) -> None: ...

class GeneralRecommender(AbstractRecommender):
    USER_ID: str
    ITEM_ID: str
    NEG_ITEM_ID: str
    n_users: int
    n_items: int
    device: torch.device
    def __init__(self, config: Any, dataset: Any) -> None: ...

class SequentialRecommender(AbstractRecommender):
    n_items: int
    max_seq_length: int
    device: torch.device
    def __init__(self, config: Any, dataset: Any) -> None: ...

class AutoEncoderMixin:
    def build_histroy_items(self, dataset: Any) -> None: ...
    def get_rating_matrix(self, user: torch.Tensor) -> torch.Tensor: ...
