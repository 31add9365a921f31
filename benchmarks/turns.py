"""Two ways of training side by side in one run, so that a machine's noise falls on both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tqdm import tqdm


class Contender(Protocol):
    """One way: ``step`` trains on a batch and adds to ``rows`` and ``seconds``."""

    name: str
    rows: int
    seconds: float

    def step(self) -> None:
        """Trains on the next batch."""


def in_turns(contenders: Sequence[Contender], seconds: float) -> None:
    """Lets each train for so long, the slower one first; the first step of each, which allocates, does not count."""
    for contender in contenders:
        contender.step()
        contender.rows, contender.seconds = 0, 0.0
    with tqdm(total=int(len(contenders) * seconds), ncols=100, unit="s") as bar:
        while any(c.seconds < seconds for c in contenders):
            behind = min(contenders, key=lambda c: c.seconds)
            before = behind.seconds
            behind.step()
            bar.update(behind.seconds - before)


def print_speeds(contenders: Sequence[Contender], what: str) -> None:
    """Prints each one's speed, and its ratio to the first one's."""
    base = contenders[0].rows / contenders[0].seconds
    for contender in contenders:
        speed = contender.rows / contender.seconds
        print(f"{contender.name:20s} {speed:8.0f} {what}/s  x{speed / base:.2f}")
