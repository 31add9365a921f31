"""Training one pass over a sequence against a pass per position, in one run.

    python benchmarks/one_pass_speed.py [--model=SASRec] [--dataset=food_kitchen] [--seconds=20] [--threads=1]

Both train the same model on the same training events, in turns; a target is a position that is predicted. The data must
be prepared.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from training_speed import in_turns, print_speeds

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.settings.config import CDRConfig


class Training:
    """A model, its batches without end, and the time that its steps took."""

    def __init__(self, name: str, options: argparse.Namespace, one_pass: bool):
        settings = {
            "split": "leave_one_out",
            "one_pass": one_pass,
            "use_gpu": False,
            "data_path": options.data_path,
        }
        experiment = build(CDRConfig(options.model, options.dataset, config_dict=settings))
        self.name, self.model, self.rows, self.seconds = name, experiment.model.train(), 0, 0.0
        phase = self.model.phases()[0]
        if (phase.batches is not None) != one_pass:
            raise SystemExit(f"{options.model} has no training in one pass.")
        self._loss = phase.loss or self.model.calculate_loss
        self._batches = self._forever(phase, experiment)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001, fused=True)

    def _forever(self, phase, experiment) -> Iterator:
        loader = experiment.training_batches()
        for epoch in range(1_000_000):
            loader.set_epoch(0, epoch)
            rng = np.random.default_rng(epoch)
            yield from loader if phase.batches is None else phase.batches(rng)

    def step(self) -> None:
        """One batch, from drawing it to the step of the optimiser."""
        started = time.perf_counter()
        batch = next(self._batches)
        loss = self._loss(batch)
        self._optimizer.zero_grad()
        (sum(loss) if isinstance(loss, tuple) else loss).backward()
        self._optimizer.step()
        self.seconds += time.perf_counter() - started
        self.rows += (
            int((batch["target_seq"] != 0).sum()) if "target_seq" in batch.interaction else len(batch)
        )


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="SASRec")
    parser.add_argument("--dataset", default="food_kitchen")
    parser.add_argument("--data-path", default="dataset_atomic")
    parser.add_argument(
        "--seconds", type=float, default=20, help="of training, for each of the two (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contenders = [Training("a pass per position", options, False), Training("one pass", options, True)]
    in_turns(contenders, options.seconds)
    print(f"\n{options.model} on {options.dataset}, {torch.get_num_threads()} thread(s)")
    print_speeds(contenders, "targets")


if __name__ == "__main__":
    main()
