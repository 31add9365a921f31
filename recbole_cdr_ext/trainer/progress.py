"""What is reported of training: time spent, an epoch's lines, TensorBoard's files, what made a loss diverge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from recbole.utils import set_color


class Clock:
    """The time that a run has spent, interrupted parts included, and the caps on it.

    Args:
        max_seconds: of training and validation together; 0: no cap.
        max_processor_seconds: of this process and its threads; 0: no cap.

    Attributes:
        seconds: spent in "training" and "validation".
        processor_seconds: of this process and its threads, over the same.
    """

    def __init__(self, max_seconds: float, max_processor_seconds: float):
        self.max_seconds, self.max_processor_seconds = max_seconds, max_processor_seconds
        self.seconds = {"training": 0.0, "validation": 0.0}
        self.processor_seconds = 0.0
        self._mark = 0.0

    def start(self) -> None:
        """Counts the processor's time from now on."""
        self._mark = process_time()

    def is_up(self) -> bool:
        """Counts the processor's time up to now; returns whether a cap is reached."""
        now = process_time()
        self.processor_seconds += now - self._mark
        self._mark = now
        return 0 < self.max_seconds <= sum(self.seconds.values()) or self._processor_is_up()

    def _processor_is_up(self) -> bool:
        return 0 < self.max_processor_seconds <= self.processor_seconds

    @property
    def cap(self) -> str:
        """The cap that was reached, as the user set it."""
        if self._processor_is_up():
            return f"max_processor_seconds={self.max_processor_seconds:g}"
        return f"max_seconds={self.max_seconds:g}"


Table = dict[str, dict[str, dict[str, Any]]]


def with_names(line: str, names: Mapping[str, float]) -> str:
    """Returns RecBole's line on numbered losses with the names of the terms in place of the numbers."""
    for place, name in enumerate(names, start=1):
        line = line.replace(set_color(f"train_loss{place}", "blue"), set_color(name, "blue"))
    return line


def validation_line(seconds: float, score: float, result: Table | None, metric: str, improved: bool) -> str:
    """Returns what is said of a validation: its score, and that of each domain if there are several.

    Args:
        result: the table that the score is the mean of; None for a score of the model's own.
        metric: ``valid_metric``, in small letters.
    """
    first_groups = ((domain, next(iter(cells.values()))) for domain, cells in (result or {}).items())
    parts = [f"{domain} {cell[metric]:.4f}" for domain, cell in first_groups if cell["n"]]
    detail = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    label, time_label = set_color("valid_score", "blue"), set_color("time", "blue")
    return (
        f" {set_color('evaluating', 'green')} "
        f"[{time_label}: {seconds:.2f}s, {label}: {score:.6f}{detail}]" + (" best" if improved else "")
    )


def facts_of(facts: Mapping[str, float]) -> str:
    """Returns what is said of what a model measured in an epoch; nothing if that is nothing."""
    return " [" + ", ".join(f"{name} {value:.3g}" for name, value in facts.items()) + "]" if facts else ""


class TensorBoard:
    """Writes what a trainer measures to ``folder/tensorboard``.

    RecBole's own writer makes its folder in the working directory, whatever the settings say.
    """

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def add_scalars(self, scalars: Mapping[str, float], epoch: int, phase: str | None) -> None:
        """Writes an epoch's figures, under the phase's name if there are several phases."""
        for tag, value in scalars.items():
            self._writer.add_scalar(f"{phase}/{tag}" if phase else tag, value, epoch)

    def add_settings(self, settings: Mapping[str, Any], best_valid_score: float) -> None:
        """Writes RecBole's table of settings and best score, which TensorBoard compares runs by."""
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}
        self._writer.add_hparams(plain, {"hparam/best_valid_result": best_valid_score}, run_name=".")

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()


def describe_batch(
    terms: Mapping[str, torch.Tensor],
    batch: Any,
    domains: Sequence[str],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, str],
) -> str:
    """Returns the facts of a batch whose loss is not finite, for the error that stops the run.

    Args:
        terms: the terms of the loss.
        batch: has a length, and a ``target_domain`` where it is of one domain.
        domains: the domains' names.
        optimizer: its parameters still hold the gradients of the batch before.
        facts: what sharpness and model have to say.
    """
    domain = getattr(batch, "target_domain", None)
    entries = {
        "domain": "-" if domain is None else domains[domain],
        "rows": len(batch),
        "learning rate": optimizer.param_groups[0]["lr"],
        "gradient norm of the batch before": _gradient_norm(optimizer),
        "loss terms": ", ".join(f"{name or 'loss'} {term.item():g}" for name, term in terms.items()),
        **facts,
    }
    return "; ".join(f"{name}: {fact}" for name, fact in entries.items())


def _gradient_norm(optimizer: torch.optim.Optimizer) -> str:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return "none before it"
    return f"{math.sqrt(sum(g.float().pow(2).sum().item() for g in gradients)):g}"
