from enum import Enum

import torch

class ModelType(Enum):
    GENERAL = 1
    SEQUENTIAL = 2
    CONTEXT = 3
    KNOWLEDGE = 4
    TRADITIONAL = 5
    DECISIONTREE = 6

class InputType(Enum):
    POINTWISE = 1
    PAIRWISE = 2
    LISTWISE = 3

class FeatureType(Enum):
    TOKEN = "token"
    FLOAT = "float"
    TOKEN_SEQ = "token_seq"
    FLOAT_SEQ = "float_seq"

class FeatureSource(Enum):
    INTERACTION = "inter"
    USER = "user"
    ITEM = "item"
    USER_ID = "user_id"
    ITEM_ID = "item_id"
    KG = "kg"
    NET = "net"

def set_color(log: str, color: str, highlight: bool = ...) -> str: ...
def get_gpu_usage(device: torch.device | None = ...) -> str: ...
def early_stopping(
    value: float, best: float, cur_step: int, max_step: int, bigger: bool = ...
) -> tuple[float, int, bool, bool]: ...
