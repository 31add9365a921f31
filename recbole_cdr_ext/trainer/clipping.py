"""The norm of gradients, cut to a maximum, of tables with sparse gradients too."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils.clip_grad import clip_grad_norm_


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0) -> None:
    """Scales all gradients so that their common norm is at most ``max_norm``, as torch's ``clip_grad_norm_``.

    torch refuses sparse gradients; the norm of one is that of its rows, each counted once.
    """
    learned = list(parameters)
    values, some_sparse = [], False
    for parameter in learned:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            parameter.grad, some_sparse = gradient, True
            gradient = gradient._values()
        values.append(gradient)
    if not some_sparse:
        clip_grad_norm_(learned, max_norm, norm_type)
        return
    norms = torch.stack([torch.linalg.vector_norm(value, norm_type) for value in values])
    scale = (max_norm / (torch.linalg.vector_norm(norms, norm_type) + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale)
