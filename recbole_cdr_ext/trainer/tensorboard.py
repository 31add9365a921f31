"""TensorBoard's files of a run, in its own folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
