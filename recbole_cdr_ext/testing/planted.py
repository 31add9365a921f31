"""Small data sets with a known answer: a user keeps to one topic, the same in every domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_cdr_ext.data import atomic

N_TOPICS = 4
NAMES = ("books", "films", "songs")
# Domains of different sizes: what holds for one by chance of its size does not for the other.
SIZES = (40, 52, 44)

Rows = list[tuple[str, str, float]]


@dataclass(frozen=True)
class Plan:
    """What a task's models are checked on.

    Attributes:
        value: the column beside users and items, "timestamp" or "rating".
        settings: of a quick training from which a model that works learns the topics.
        domains: gives the rows by domain, from their number and whether users overlap.
    """

    value: str
    settings: Mapping[str, Any]
    domains: Callable[[int, bool], dict[str, Rows]]


def topic_of(token: str) -> int:
    """Returns the topic of a user or an item."""
    return int(token[1:]) % N_TOPICS


def topics(n_domains: int, *, overlap: bool = True, n_users: int = 160, seed: int = 0) -> dict[str, Rows]:
    """Returns (user, item, time) rows by domain; user and item number modulo four are their topics.

    A user has five to nine items of the own topic, in random order, in every domain; every fifth user in one domain
    alone, and without ``overlap`` every user.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, Rows] = {name: [] for name in NAMES[:n_domains]}
    for user in range(n_users):
        alone = n_domains > 1 and (not overlap or user % 5 == 4)
        for k, name in enumerate(rows):
            if alone and user // 5 % n_domains != k:
                continue
            topical = np.arange(user % N_TOPICS, SIZES[k], N_TOPICS)
            items = rng.choice(topical, int(rng.integers(5, 10)), replace=False)
            times = np.sort(rng.choice(100_000, len(items), replace=False))
            rows[name] += [
                (f"u{user}", f"{name[0]}{item}", float(t)) for item, t in zip(items, times, strict=True)
            ]
    return rows


def ratings(*, n_users: int = 120, seed: int = 0) -> dict[str, Rows]:
    """Returns (user, item, rating) rows of two domains: a user rates the own topic high, and others low."""
    rng = np.random.default_rng(seed)
    rows: dict[str, Rows] = {name: [] for name in NAMES[:2]}
    for user in range(n_users):
        for k, name in enumerate(rows):
            if user % 5 == 4 and user // 5 % 2 != k:
                continue
            for item in rng.choice(SIZES[k], int(rng.integers(8, 14)), replace=False):
                liked = item % N_TOPICS == user % N_TOPICS
                value = (4.5 if liked else 2.5) + rng.normal(0, 0.4)
                rows[name].append((f"u{user}", f"{name[0]}{item}", float(np.clip(np.round(value), 1, 5))))
    return rows


PLANS: Mapping[str, Plan] = {
    "next_item": Plan(
        value="timestamp",
        settings={
            "order": "clock", "split": "user", "split_ratio": [0.6, 0.2, 0.2], "cold_start_ratio": 0.5,
            "eval_args": {"mode": "full"}, "train_batch_size": 256, "learning_rate": 0.005, "epochs": 40,
            "stopping_step": 8,
        },
        domains=lambda n_domains, overlap: topics(n_domains, overlap=overlap),
    ),
    "rating": Plan(
        value="rating",
        settings={"order": "none", "beta": 0.3, "pretrain_epochs": 30, "epochs": 30},
        domains=lambda n_domains, overlap: ratings(),
    ),
}  # fmt: skip


def write(folder: Path, domains: dict[str, Rows], value: str) -> None:
    """Writes a data set as atomic files; ``value`` is "timestamp" or "rating"."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in domains.items():
        frame = pd.DataFrame(rows, columns=["user_id", "item_id", value])
        atomic.write_inter(folder / f"{name}.inter", frame.astype({value: float}))
