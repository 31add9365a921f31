"""A seeded generator of several domains that have interests in common, at any size.

The model behind it, in the order in which it is drawn:

* Topics lie on a ring. One ring is *shared*: each of its topics has items in every domain. Besides, each
  domain has a ring of its *own*. A user has some places (``interests``) on each ring: the shared ones are the
  same in all domains, so what a user does in one domain tells about the others.
* An event has a time in [0, 1] of its user's life. It is about a shared interest with probability ``shared``,
  else about an own one; its topic is the interest's place, moved on by ``drift`` topics per life (interests
  move with time, and all in one direction, so order carries information) and blurred by ``spread``.
* Within a topic, items are drawn by Zipf's law; places on the ring follow it too, so some topics are popular.
* A rating is a user's mildness plus an item's quality plus the product of their tastes plus noise. Mildness
  and taste are the user's in all domains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_cdr_ext.data.prepare.content import Content
from recbole_cdr_ext.data.prepare.description import Description
from recbole_cdr_ext.errors import CDRError

_DAY = 86_400
_TASTES = 4  # dimensions of the taste vectors behind the ratings
_REDRAWS = 20  # tries to replace a repeated item by one of the same kind before any item will do


@dataclass(frozen=True)
class Settings:
    """What the ``source`` block of kind ``simulate`` sets.

    Args:
        users: number of users by the domain they are in, and under ``both`` of those who are in all domains.
        items: number of items of each domain; each occurs at least once if there are events enough.
        mean_length: interactions per user, by domain; met exactly in total.
        seed: the same seed gives the same data.
        min_length: fewest interactions of a user in a domain.
        topics: number of topics on the shared ring.
        own_topics: number of topics on each domain's own ring.
        interests: places of a user on each ring.
        shared: probability that an event is about a shared interest.
        spread: standard deviation of an event's topic around its interest, in topics.
        drift: by how many topics an interest moves in a user's life.
        zipf: exponent of the popularity of items within a topic.
        first_time: when the first life begins, Unix seconds.
        days: span in which lives begin; a life lasts up to half of it.
    """

    users: Mapping[str, int]
    items: Mapping[str, int]
    mean_length: Mapping[str, float]
    seed: int = 0
    min_length: int = 2
    topics: int = 40
    own_topics: int = 40
    interests: int = 2
    shared: float = 0.7
    spread: float = 0.5
    drift: float = 3.0
    zipf: float = 1.0
    first_time: int = 1_262_304_000
    days: int = 1_460


def read_simulated(description: Description, files: dict[str, Path], layout: str, progress: bool) -> Content:
    """Draws the kind ``simulate``: the ``source`` block holds the fields of :class:`Settings`.

    Raises:
        CDRError: a setting is missing for a domain or makes no sense.
    """
    settings = Settings(**{key: value for key, value in description.source.items() if key != "kind"})
    _check(settings, description)
    return Content(simulate(settings, description.domains))


def _check(settings: Settings, description: Description) -> None:
    where = f"{description.origin}: the 'source' block"
    domains = set(description.domains)
    per_domain = {"users": {*domains, "both"}, "items": domains, "mean_length": domains}
    for key, value in vars(settings).items():
        names_of_counts = per_domain.get(key)
        if names_of_counts is None and not _is_count(value):
            raise CDRError(f"{where}: '{key}' must be a number, 0 or more, not {value!r}.")
        if names_of_counts is not None and not _is_count_each(value, names_of_counts):
            names = ", ".join(sorted(names_of_counts))
            raise CDRError(f"{where}: '{key}' must give one number, 0 or more, for each of {names}.")
    if min(settings.interests, settings.topics, settings.own_topics) < 1 or settings.shared > 1:
        raise CDRError(f"{where}: interests, topics and own_topics must be 1 or more, and shared at most 1.")
    for domain in description.domains:
        _check_domain(settings, domain, where)


def _check_domain(settings: Settings, domain: str, where: str) -> None:
    items, length = settings.items[domain], settings.mean_length[domain]
    if not settings.users[domain] + settings.users["both"]:
        raise CDRError(f"{where}: the domain {domain} has no users; give it some in 'users'.")
    if items < settings.topics + settings.own_topics:
        raise CDRError(
            f"{where}: the domain {domain} has fewer items than topics; lower topics or own_topics."
        )
    if not settings.min_length <= length <= items / 4:
        raise CDRError(
            f"{where}: a mean_length of {length} in {domain} must lie between min_length "
            f"({settings.min_length}) and a quarter of the domain's {items} items."
        )


def _is_count_each(value: object, names_of_counts: set[str]) -> bool:
    return (
        isinstance(value, Mapping) and set(value) == names_of_counts and all(map(_is_count, value.values()))
    )


def _is_count(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def simulate(settings: Settings, domains: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """Draws all domains.

    Returns:
        Per domain a table ``user_id, item_id, rating, timestamp``, ordered by user and time. User tokens are
        the same in all domains, item tokens begin with the domain's name.
    """
    rng = np.random.default_rng(settings.seed)
    members, n_users = _members(settings, domains)
    people = _draw_people(rng, settings, n_users)
    return {domain: _draw_domain(rng, settings, domain, members[domain], people) for domain in domains}


def _members(settings: Settings, domains: tuple[str, ...]) -> tuple[dict[str, np.ndarray], int]:
    """Returns the user numbers of each domain (those of all domains first), and how many users there are."""
    both = np.arange(settings.users["both"])
    members, total = {}, len(both)
    for domain in domains:
        members[domain] = np.concatenate([both, total + np.arange(settings.users[domain])])
        total += settings.users[domain]
    return members, total


@dataclass(frozen=True)
class _People:
    """What is a user's own in all domains; U users, K interests."""

    places: np.ndarray  # (U, K) on the shared ring
    mildness: np.ndarray  # (U,)
    taste: np.ndarray  # (U, _TASTES)
    birth: np.ndarray  # (U,) Unix seconds
    life: np.ndarray  # (U,) seconds


def _draw_people(rng: np.random.Generator, settings: Settings, n: int) -> _People:
    return _People(
        places=_zipf_ranks(rng, settings.topics, 0.5, (n, settings.interests))
        + rng.random((n, settings.interests)),
        mildness=0.5 * rng.standard_normal(n),
        taste=0.5 * rng.standard_normal((n, _TASTES)),
        birth=settings.first_time + settings.days * _DAY * rng.random(n),
        life=settings.days * _DAY * (0.05 + 0.45 * rng.random(n)),
    )


def _draw_domain(
    rng: np.random.Generator, settings: Settings, domain: str, members: np.ndarray, people: _People
) -> pd.DataFrame:
    n_items = settings.items[domain]
    lengths = _draw_lengths(rng, settings, domain, len(members))
    local = np.repeat(np.arange(len(members)), lengths)  # (E,) user of each event, by place in `members`
    time = rng.random(len(local))
    own_places = _zipf_ranks(rng, settings.own_topics, 0.5, (len(members), settings.interests))
    places = np.concatenate(
        [people.places[members], own_places + rng.random(own_places.shape)], axis=1
    )  # (M, 2K)
    catalogue = _Catalogue(rng, settings, n_items)

    def draw(events: np.ndarray) -> np.ndarray:
        return catalogue.draw(_draw_topics(rng, settings, places[local[events]], time[events]))

    items = _without_repeats(rng, draw, local, n_items)
    _use_every_item(rng, items, catalogue.topic, n_items)
    ratings = _draw_ratings(rng, people, members[local], items, n_items)
    users = members[local]
    stamps = np.floor(people.birth[users] + people.life[users] * time)
    order = np.lexsort((items, stamps, users))
    return pd.DataFrame(
        {
            "user_id": _names("u", people.birth.size, users[order]),
            "item_id": _names(domain, n_items, items[order]),
            "rating": ratings[order],
            "timestamp": stamps[order],
        }
    )


def _draw_lengths(rng: np.random.Generator, settings: Settings, domain: str, n: int) -> np.ndarray:
    """Returns geometric lengths (many short, few long), at most a quarter of the items, exact in total; (n,)."""
    low, high = settings.min_length, settings.items[domain] // 4
    mean_above = settings.mean_length[domain] - low
    above = (
        np.floor(np.log1p(-rng.random(n)) / np.log(mean_above / (1 + mean_above)))
        if mean_above > 0
        else np.zeros(n)
    )
    lengths = np.minimum(low + above.astype(np.int64), high)
    total = round(settings.mean_length[domain] * n)
    while missing := total - int(lengths.sum()):
        free = np.flatnonzero(lengths < high) if missing > 0 else np.flatnonzero(lengths > low)
        if not free.size:
            break
        lengths[rng.permutation(free)[: abs(missing)]] += 1 if missing > 0 else -1
    return lengths


def _draw_topics(
    rng: np.random.Generator, settings: Settings, places: np.ndarray, time: np.ndarray
) -> np.ndarray:
    """Returns the topic of each event, the shared ring's first; places (E, 2K), time (E,) -> (E,)."""
    n = len(time)
    unshared = rng.random(n) >= settings.shared
    column = np.floor(rng.random(n) * settings.interests).astype(np.int64) + unshared * settings.interests
    place = places[np.arange(n), column] + settings.drift * time + settings.spread * rng.standard_normal(n)
    ring = np.where(unshared, settings.own_topics, settings.topics)
    return np.floor(place).astype(np.int64) % ring + unshared * settings.topics


class _Catalogue:
    """Items of one domain by topic; an item's rank within its topic decides how often it is drawn."""

    def __init__(self, rng: np.random.Generator, settings: Settings, n_items: int) -> None:
        n_topics = settings.topics + settings.own_topics
        self._rng = rng
        # Each topic gets an item first, so that none is empty; numbers say nothing about popularity.
        topics = np.concatenate([np.arange(n_topics), rng.integers(n_topics, size=n_items - n_topics)])
        self.topic = rng.permutation(topics)  # (I,)
        self._items = np.argsort(self.topic, kind="stable")  # item numbers, topic by topic
        size = np.bincount(self.topic, minlength=n_topics)
        self._start = np.cumsum(size) - size
        rank = np.arange(n_items) - np.repeat(self._start, size)
        weight = 1.0 / (1.0 + rank) ** settings.zipf
        weight /= np.repeat(np.bincount(self.topic[self._items], weights=weight), size)
        # One increasing curve for all topics: topic t fills (t, t + 1], so one search serves every event.
        self._curve = np.cumsum(weight)
        self._last = self._start + size - 1

    def draw(self, topics: np.ndarray) -> np.ndarray:
        """Returns one item for each topic; (E,) -> (E,)."""
        at = np.searchsorted(self._curve, topics + self._rng.random(len(topics)))
        return self._items[np.clip(at, self._start[topics], self._last[topics])]


def _zipf_ranks(rng: np.random.Generator, n: int, exponent: float, shape: tuple[int, ...]) -> np.ndarray:
    """Returns numbers below n, the low ones more often."""
    curve = np.cumsum(1.0 / (1.0 + np.arange(n)) ** exponent)
    ranks: np.ndarray = np.searchsorted(curve / curve[-1], rng.random(shape), side="right")
    return ranks.clip(max=n - 1)


def _without_repeats(
    rng: np.random.Generator, draw: Callable[[np.ndarray], np.ndarray], users: np.ndarray, n_items: int
) -> np.ndarray:
    """Returns items for all events such that no user has one twice; users (E,) -> (E,)."""
    items = draw(np.arange(len(users)))
    for attempt in range(_REDRAWS * 50):
        again = _repeats(users, items, n_items)
        if not again.size:
            break
        # A user with more events than his topics have items would otherwise draw for ever.
        items[again] = draw(again) if attempt < _REDRAWS else rng.integers(n_items, size=again.size)
    return items


def _repeats(users: np.ndarray, items: np.ndarray, n_items: int) -> np.ndarray:
    """Returns the events whose (user, item) stands before already."""
    _, first = np.unique(users * n_items + items, return_index=True)
    mask = np.ones(len(items), dtype=bool)
    mask[first] = False
    return np.flatnonzero(mask)


def _use_every_item(rng: np.random.Generator, items: np.ndarray, topic: np.ndarray, n_items: int) -> None:
    """Gives each item that was never drawn one event of an item of its topic that has several (in place).

    Where a topic has too few such events, any other topic's serve. No user can get a repeat by it.
    """
    for same_topic in (True, False):
        unused = rng.permutation(np.flatnonzero(np.bincount(items, minlength=n_items) == 0))
        if not unused.size:
            return
        shuffled = rng.permutation(len(items))
        _, first = np.unique(items[shuffled], return_index=True)
        spare = np.delete(shuffled, first)  # all but one event of each item
        if same_topic:
            spare, unused = _pair_by(topic[items[spare]], spare, topic[unused], unused)
        n = min(len(spare), len(unused))
        items[spare[:n]] = unused[:n]


def _pair_by(
    left_key: np.ndarray, left: np.ndarray, right_key: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs the i-th of each key on the left with the i-th on the right; the surplus is left out."""
    pairs = _numbered(left_key, left).merge(_numbered(right_key, right), on=["key", "turn"])
    return pairs["value_x"].to_numpy(), pairs["value_y"].to_numpy()


def _numbered(key: np.ndarray, value: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame({"key": key, "value": value})
    return frame.assign(turn=frame.groupby("key").cumcount())


def _draw_ratings(
    rng: np.random.Generator, people: _People, users: np.ndarray, items: np.ndarray, n_items: int
) -> np.ndarray:
    """Returns whole numbers from 1 to 5, (E,)."""
    quality = 0.4 * rng.standard_normal(n_items)
    style = rng.standard_normal((n_items, _TASTES))
    match = np.einsum("ek,ek->e", people.taste[users], style[items])
    opinion = 3.6 + people.mildness[users] + quality[items] + match + 0.5 * rng.standard_normal(len(users))
    ratings: np.ndarray = np.clip(np.rint(opinion), 1, 5)
    return ratings


def _names(prefix: str, n: int, numbers: np.ndarray) -> pd.Series:
    """Returns ``prefix_0`` to ``prefix_{n-1}``, taken by ``numbers``."""
    names = pd.array([f"{prefix}_{i}" for i in range(n)], dtype="str")
    return pd.Series(names.take(numbers))
