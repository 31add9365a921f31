"""What a step of SCDR costs: with a hundred times the users and items, and with sharpness against without, in one run.

    python benchmarks/rating_scaling.py [--users=6000] [--factor=100] [--repetitions=9]

The steps are those of CrossDomainTrainer on the real models, TGT in the form that SCDR asks for (SMF) and SCDR, over
synthetic ratings of uniformly drawn users and items (batch 256, d 10, k 5, SGD). What is compared takes turns, and
medians are reported, so that whatever else the machine does touches all of it.

Growth: the time of a step with the factor times as many users and items. All gradients are sparse, so it should stay
below 1.5; beside it the dense way, torch.nn.Embedding and torch.optim.Adam on the same batches. Times are taken from
one batch to the next: what happens once an epoch (validation, checkpoint, a look for what is not finite) is no step.

Sharpness: the time of an epoch with k steps of projected gradient ascent against one without. Each of the k costs a
forward and a backward pass to the moved rows; it should stay below 4.

Exits with 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from recbole_cdr_ext.model.rating.scdr import SCDR
from recbole_cdr_ext.model.rating.tgt import TGT
from recbole_cdr_ext.model.rating_recommender import RatingBatch, RatingRecommender, Tables
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import Ratings, RatingSplit, TrainingData
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

GROWTH, SHARPNESS = 1.5, 4.0
BATCH, SIZE, STEPS = 256, 10, 5
NAMES = ("source", "target")


class Data:
    """Two domains of synthetic ratings, as a dataset and a split are to the models.

    Args:
        n_users: in both domains; half of them train the mapping.
        n_items: of each domain.
        n_ratings: of each domain.
    """

    def __init__(self, n_users: int, n_items: int, n_ratings: int):
        rng = np.random.default_rng(0)
        offset = np.array([1, 1 + n_items, 1 + 2 * n_items])

        def ratings(domain: int, n: int, users: np.ndarray) -> Ratings:
            # Near a constant: nothing here is about what is learned, and no draw of them can diverge.
            value = np.clip(rng.normal(3.7, 0.5, n), 1, 5).astype(np.float32)
            item = rng.integers(offset[domain], offset[domain + 1], n)
            return Ratings(rng.choice(users, n), item, value)

        overlapping, held_out = np.arange(1, n_users // 2), np.arange(n_users // 2, n_users)
        self.split = RatingSplit(
            source=0,
            target=1,
            train={0: ratings(0, n_ratings, np.arange(1, n_users)), 1: ratings(1, n_ratings, overlapping)},
            valid=ratings(1, 100, held_out),
            test=ratings(1, 100, held_out),
            overlapping=overlapping,
            n_users=n_users,
            item_offset=offset,
            token_key=np.arange(offset[-1]),
            rating_range=(1.0, 5.0),
            fingerprint="synthetic",
            tables={k: self._tables(n_users, n_items) for k in (0, 1)},
        )
        self.training = TrainingData(
            domains=tuple(NAMES),
            item_offset=offset,
            token_key=np.arange(offset[-1]),
            user_num=n_users,
            item_num=int(offset[-1]),
            dataset_name="synthetic",
            split=self.split,
        )

    @staticmethod
    def _tables(n_users: int, n_items: int) -> Tables:
        user, item = torch.randn(n_users, SIZE) / 3, torch.randn(n_items, SIZE) / 3
        return Tables(user, item, torch.randn(n_users) / 3, torch.randn(n_items) / 3, 3.7)


class Contender:
    """A model and its trainer, which runs one epoch whenever it is asked to."""

    def __init__(self, data: Data, stage: str, **settings: Any):
        given = {
            "task": "rating", "use_gpu": False, "tensorboard": False, "embedding_size": SIZE, "epochs": 1,
            "pretrain_epochs": 1, "pretrain_valid_ratio": 0.0, "train_batch_size": BATCH, "pretrain_batch_size": BATCH,
            "pgd_steps": STEPS, "pretrain_pgd_steps": STEPS, **settings,
        }  # fmt: skip
        config = CDRConfig("SCDR", "toy", config_dict=given)
        model_class: type[RatingRecommender] = SCDR
        if stage == "pre-training":
            own = SCDR.stages(config)[0]
            model_class = TGT
            config = CDRConfig(own.model, "toy", config_dict={**given, **own.settings})
        self.data, self.model = data, model_class(config, data.training)
        self.trainer = CrossDomainTrainer(config, self.model, ".")
        (phase,) = self.model.phases()
        self.batches = phase.batches
        setattr(self.model, phase.batches.__name__, self._clocked)
        self.steps: list[float] = []

    def _clocked(self, rng: np.random.Generator) -> Iterator[RatingBatch]:
        """An epoch's batches; notes the time from each to the next, in which the trainer makes a step."""
        times = []
        for batch in self.batches(rng):
            times.append(perf_counter())
            yield batch
        self.steps += np.diff(times).tolist()

    def epoch(self) -> float:
        """Trains an epoch; returns its seconds, without what the trainer does between epochs."""
        self.trainer.fit(self.data.split, None, verbose=False, saved=False)
        return self.trainer.history[-1]["seconds"]

    def step(self) -> float:
        """Trains an epoch; returns the median seconds of its steps."""
        self.steps.clear()
        self.epoch()
        return median(self.steps)


class Dense:
    """The straightforward way: dense tables, and Adam over all of them in every step."""

    def __init__(self, data: Data):
        self.ratings = data.split.train[0]
        self.users = nn.Embedding(data.split.n_users, SIZE)
        self.items = nn.Embedding(int(data.split.item_offset[1]), SIZE)
        self.optimizer = torch.optim.Adam([*self.users.parameters(), *self.items.parameters()], 0.01)

    def step(self, n: int = 5) -> float:
        """Returns the median seconds of some steps."""
        times = []
        for start in range(0, n * BATCH, BATCH):
            rows = self.ratings.take(slice(start, start + BATCH))
            started = perf_counter()
            product = (self.users(torch.from_numpy(rows.user)) * self.items(torch.from_numpy(rows.item))).sum(
                1
            )
            loss = (torch.from_numpy(rows.rating) - product).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            times.append(perf_counter() - started)
        return median(times)


def in_turns(measured: list[Callable[[], float]], repetitions: int) -> list[float]:
    """Returns the median of each, after one call that allocates."""
    for measure in measured:
        measure()
    times = [[measure() for measure in measured] for _ in range(repetitions)]
    return [median(column) for column in zip(*times, strict=True)]


def main() -> int:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=6000, help="the fewer users; items are half as many")
    parser.add_argument("--factor", type=int, default=100, help="times as many users and items")
    parser.add_argument(
        "--ratings", type=int, default=30_000, help="of each domain; decides the steps an epoch"
    )
    parser.add_argument("--repetitions", type=int, default=9, help="of an epoch, of each contender")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    few, n_items = options.users, options.users // 2
    small = Data(few, n_items, options.ratings)
    large = Data(few * options.factor, n_items * options.factor, options.ratings)

    rows = []
    for stage in ("pre-training", "mapping"):
        less, more = in_turns([Contender(d, stage).step for d in (small, large)], options.repetitions)
        rows.append((f"SCDR {stage}, k {STEPS}", less, more, GROWTH))
    less, more = in_turns([Dense(d).step for d in (small, large)], options.repetitions)
    rows.append(("dense tables, Adam", less, more, None))
    print(f"\nmilliseconds a step, {options.threads} thread(s); {few:,} users x {options.factor}")
    broken = table(rows, f"{few:,} users", f"{few * options.factor:,} users")

    rows = []
    for stage, backbone in (
        ("pre-training", "MF"),
        ("mapping", "MF"),
        ("pre-training", "LightGCN"),
        ("pre-training", "NGCF"),
    ):
        key = "pretrain_sharpness" if stage == "pre-training" else "sharpness"
        both = [Contender(small, stage, backbone=backbone, **{key: kind}) for kind in ("none", "pgd")]
        plain, sharp = in_turns([contender.epoch for contender in both], options.repetitions)
        name = f"SCDR {stage}" + (f", {backbone}" if backbone != "MF" else "")
        rows.append((name, plain, sharp, SHARPNESS))
    print(f"\nmilliseconds an epoch of {options.ratings:,} ratings")
    broken += table(rows, "no sharpness", f"k {STEPS}")
    print("\n" + (f"{broken} bound(s) broken" if broken else "all bounds hold"))
    return int(broken > 0)


def table(rows: list[tuple[str, float, float, float | None]], one: str, other: str) -> int:
    """Prints (name, seconds, seconds, bound of their ratio) and returns how many bounds are broken."""
    print(f"{'':34s} {one:>14s} {other:>14s} {'ratio':>8s}  {'bound':>6s}")
    broken = 0
    for name, first, second, bound in rows:
        ratio = second / first
        missed = bound is not None and ratio >= bound
        broken += missed
        said = "" if bound is None else f"{bound:6.1f}" + ("  broken" if missed else "")
        print(f"{name:34s} {1000 * first:14.2f} {1000 * second:14.2f} {ratio:8.2f}  {said}")
    return broken


if __name__ == "__main__":
    sys.exit(main())
