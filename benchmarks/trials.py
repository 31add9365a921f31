"""What the scripts of trials on validation users share: one trial, and running those that are missing."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported

from rows import append_row, read_rows
from rows import options as common_options
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

QUIET = {"show_progress": False, "tensorboard": False}
# label: (model, settings)
Trials = Mapping[str, tuple[str, Mapping]]


def trial(label: str, model: str, settings: Mapping, dataset: str) -> dict:
    """Returns the validation scores of one trained model; the test targets are not looked at."""
    import torch

    from recbole_cdr_ext.runs.experiment import build
    from recbole_cdr_ext.settings.config import CDRConfig
    from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    config = CDRConfig(model, dataset, config_dict={**QUIET, **settings})
    experiment = build(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = CrossDomainTrainer(config, experiment.model, folder, data=experiment.split.fingerprint)
        trainer.fit(
            experiment.split,
            experiment.training_batches(),
            experiment.validate,
            saved=False,
            verbose=False,
            callback_fn=lambda epoch, score: print(f"{label}: epoch {epoch}, {score:.4f}", flush=True),
        )
    valid = {name: groups["all"] for name, groups in experiment.validate().items()}
    return {
        "valid": valid,
        # Not the trainer's, which is that of the last phase: a mapping is validated by its error.
        "score": sum(found["ndcg@10"] for found in valid.values()) / len(valid),
        "best_epoch": trainer.best_epoch,
        "epochs": trainer.epochs_run,
        "stopped": trainer.stopped,
        "seconds": round(trainer.processor_seconds),
        "history": [round(entry["valid_score"], 5) for entry in trainer.history if "valid_score" in entry],
    }


def options(doc: str, max_seconds: int) -> argparse.Namespace:
    """Reads --jobs, --only and --max-seconds."""
    parser = common_options(doc, jobs=2, only="trials' names")
    parser.add_argument(
        "--max-seconds", type=int, default=max_seconds, help="processor time of a trial (%(default)s)"
    )
    return parser.parse_args()


def run_missing(
    trials: Trials,
    dataset: str,
    path: Path,
    given: argparse.Namespace,
    write_page: Callable[[dict[str, dict]], None],
) -> None:
    """Runs the trials that have no row in ``path``, and writes the page after each."""
    os.chdir(ROOT)
    found = read_rows(path, lambda row: row["trial"])
    missing = [label for label in trials if label not in found and re.search(given.only, label)]
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(given.jobs, mp_context=context) as pool,
        tqdm(total=len(missing), ncols=100, desc="trials") as bar,
    ):
        waiting = {}
        for label in missing:
            model, settings = trials[label]
            capped = {**settings, "max_processor_seconds": given.max_seconds}
            waiting[pool.submit(trial, label, model, capped, dataset)] = label
        for future in as_completed(waiting):
            label = waiting[future]
            model, settings = trials[label]
            row = {"trial": label, "model": model, "settings": dict(settings), **future.result()}
            bar.update()
            append_row(path, row)
            # Another call of the script may have added rows meanwhile.
            write_page(read_rows(path, lambda row: row["trial"]))
            tqdm.write(f"{label}: {row['score']:.4f} at epoch {row['best_epoch']}, {row['seconds']} s")
    write_page(read_rows(path, lambda row: row["trial"]))
