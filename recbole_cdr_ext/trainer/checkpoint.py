"""Checkpoints: tensors plus JSON, so that reading one runs no code.

A file holds ``{"meta": JSON text, state name: state dictionary, ...}`` and is loaded with
``weights_only=True``. A run folder has two: ``last.pth``, written after each epoch, from which a run resumes
("model", "best", "optimizer"), and ``model.pth``, the best weights, for use ("model"). Both appear whole or not
at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import replacing

FORMAT = "recbole_cdr_ext/1"
LAST, MODEL = "last.pth", "model.pth"

State = dict[str, Any]


def save(path: str | Path, meta: Mapping[str, Any], **states: State) -> None:
    """Writes a checkpoint whole or not at all: a failure leaves the one before untouched.

    Args:
        meta: what JSON can hold; no NaN or infinity.
        states: state dictionaries; tensors that several of them share are stored once.

    Raises:
        CDRError: the file cannot be written.
    """
    text = json.dumps({"format": FORMAT, **meta}, allow_nan=False)
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"meta": text, **states}, file)
        except RuntimeError as error:
            # torch's writer raises an error of its own over the system's, which says what is wrong.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
                raise
            raise OSError(f"torch could not write it ({str(error).splitlines()[0]})") from error


def load(
    path: str | Path, *, model: str | None = None, data: str | None = None, device: Any = "cpu"
) -> tuple[dict[str, Any], dict[str, State]]:
    """Returns (meta, states) of a checkpoint.

    Args:
        model: the name that the checkpoint's model must have; None: any.
        data: the fingerprint of data and split that it must have; None: any.
        device: where the tensors go.

    Raises:
        CDRError: there is no such file, it is none of ours, it is damaged, or of another model or other data.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            # A zip archive's first bytes: what torch.save writes, and what a truncated one still begins with.
            looks_right = file.read(2) == b"PK"
    except OSError as error:
        raise CDRError(f"cannot read checkpoint {path}: {error.strerror or error}.") from error
    if not looks_right:
        raise CDRError(f"{path} is not a checkpoint (or an empty one): choose another file, or delete it.")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # zip, pickle and torch each have errors of their own for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CDRError(
            f"checkpoint {path} is truncated, damaged, or holds more than tensors ({reason}). Delete it, "
            "and its run trains anew; or use another checkpoint."
        ) from error
    try:
        meta = json.loads(content.pop("meta"))
        known = meta["format"] == FORMAT
    except (AttributeError, KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise CDRError(f"{path} was not written by this library (or by a version that this one cannot read).")
    if model is not None and meta.get("model") != model:
        raise CDRError(f"checkpoint {path} is of model '{meta.get('model')}', not of '{model}'.")
    if data is not None and meta.get("data") != data:
        raise CDRError(
            f"checkpoint {path} was trained on other data or another split (fingerprint {meta.get('data')}, "
            f"not {data}). Prepare the data it was trained on, or train again."
        )
    return meta, content


def restore(model: nn.Module, state: State, path: str | Path = "checkpoint") -> None:
    """Loads a state into a model.

    A model that learns in closed form keeps what it learnt in buffers, whose size follows from the data:
    they take the size of what is loaded.

    Raises:
        CDRError: the state does not fit the model; ``path`` is named.
    """
    for name, tensor in state.items():
        owner_name, _, leaf = name.rpartition(".")
        try:
            buffers = model.get_submodule(owner_name)._buffers
        except AttributeError:
            continue  # load_state_dict says what does not fit
        if leaf in buffers:
            old = buffers[leaf]
            if old is None or old.shape != tensor.shape or old.layout != tensor.layout:
                buffers[leaf] = tensor.clone()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        what = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise CDRError(f"{path} does not fit the model as it is set up now: {what}") from error


def snapshot(module: nn.Module) -> State:
    """Returns a copy of a module's state that later training leaves alone."""
    return {
        name: value.detach().clone() if torch.is_tensor(value) else value
        for name, value in module.state_dict().items()
    }
