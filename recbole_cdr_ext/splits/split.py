"""What a split holds: who is asked about what, and what may be learnt from; of interactions and of ratings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset, Events, hash_arrays
from recbole_cdr_ext.data.instances import Instances, Pool


@dataclass(frozen=True)
class UserItems:
    """Sets of items by user: user u owns ``items[indptr[u]:indptr[u+1]]``, ascending global ids."""

    indptr: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, user: np.ndarray, item: np.ndarray, n_users: int) -> UserItems:
        """Collects pairs, which may repeat."""
        span = int(item.max(initial=0)) + 1
        pairs = np.unique(user.astype(np.int64) * span + item)
        counts = np.bincount(pairs // span, minlength=n_users)
        return cls(np.append(0, np.cumsum(counts)), pairs % span)

    def rows(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns all items of the given users as (index into ``users``, item) pairs."""
        counts = self.indptr[users + 1] - self.indptr[users]
        row = np.repeat(np.arange(len(users)), counts)
        offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return row, self.items[self.indptr[users][row] + offset]


def users_as_instances(
    user: np.ndarray, item: np.ndarray, n_users: int, item_offset: np.ndarray
) -> Instances:
    """Returns what users hold, without order: an instance without a target per user of some pairs and domain.

    The histories are the user's items, each once, ascending; the instances are ordered by (domain, user).
    """
    user_items, k, span = UserItems.of(user, item, n_users), len(item_offset) - 1, np.int64(item_offset[-1])
    owners = np.flatnonzero(np.diff(user_items.indptr))
    # A user's items are ascending ids, and domains own ranges of ids: a domain's part is a range too.
    owner = np.repeat(np.arange(n_users), np.diff(user_items.indptr))
    key = owner * span + user_items.items
    bounds = np.stack([np.searchsorted(key, owners * span + offset) for offset in item_offset], 1)
    repeat, domain = np.tile(np.arange(len(owners)), k), np.repeat(np.arange(k), len(owners))
    nothing = np.zeros(len(repeat), np.int64)
    return Instances(
        user=owners[repeat],
        domain=domain,
        target=nothing,
        time=nothing.astype(float),
        sequence=owners[repeat] * k + domain,
        start=bounds[repeat, :-1],
        stop=bounds[repeat, 1:],
        pool=Pool(user_items.items, owner, owner, owner.astype(float)),
    )


PARTS = ("train", "valid", "test")
GROUPS = ("all", "tailed", "cold")


@dataclass(frozen=True)
class Split:
    """What a run works on.

    Attributes:
        name: what ``split=`` is set to.
        leaky: whether held-out targets can be reached from what trains, as is known of the published rows.
        layout: the layout of the prepared data: "users", or "rows", whose instances repeat each other.
        train, valid, test: instances; ``train`` holds the targets that ``train_targets`` asks for.
        train_events: every interaction that a model may learn from; graphs, popularity and embeddings use these alone.
        touched: every (user, item) of any part, hidden ones included: never a negative.
        thresholds: per domain, the longest history that counts as long-tailed.
        n_users, n_domains, item_offset, token_key: as in the dataset.
        ordered: whether time means anything.
        train_targets: "last" or "all", as configured.
        fingerprint: changes with the data and with anything that decides the split.
        report: what was removed, dropped and found, counted.
        test_items: (item_num,) mask of a second pool of candidates (the items in the published test file); None under
            splits without one.
        item_vectors: (item_num, d) what a generator learned of the items; None before one ran.
    """

    name: str
    train: Instances
    valid: Instances
    test: Instances
    train_events: Events
    touched: UserItems
    thresholds: list[int]
    n_users: int
    item_offset: np.ndarray
    token_key: np.ndarray
    ordered: bool
    train_targets: str
    fingerprint: str
    report: dict[str, object] = field(default_factory=dict)
    leaky: bool = False
    layout: str = "users"
    test_items: np.ndarray | None = None
    item_vectors: np.ndarray | None = None

    @property
    def n_domains(self) -> int:
        """The number of domains."""
        return len(self.item_offset) - 1

    def part(self, name: str) -> Instances:
        """Returns the instances of "train", "valid" or "test"."""
        instances: Instances = getattr(self, name)
        return instances

    @property
    def n_overlapping(self) -> int:
        """How many users have training interactions in several domains."""
        events = self.train_events
        pairs = np.unique(events.user.astype(np.int64) * self.n_domains + events.domain)
        return int((np.bincount(pairs // self.n_domains) > 1).sum())

    def with_recalled(self, recalled: dict[str, np.ndarray]) -> Split:
        """Returns the split with recalled items, (n, r) by part, in its instances.

        The report gets the share of targets among them, of instances that have any, by part: where training targets
        are recalled more, or less, often than others, a model learns something that does not hold for others.
        """
        train, valid, test = (replace(self.part(p), recalled=recalled[p]) for p in PARTS)
        split = replace(self, train=train, valid=valid, test=test, report=dict(self.report))
        rates = recall_rates(split)
        split.report["targets recalled in train / valid / test (%)"] = [
            round(100 * rates[p][0] / max(rates[p][1], 1), 2) for p in PARTS
        ]
        return split


def groups(split: Split, instances: Instances) -> dict[str, np.ndarray]:
    """Returns the (n,) masks of the user groups.

    ``cold``: no history in the target's domain, some in another. ``tailed``: at least one interaction there, at most
    the domain's threshold.
    """
    in_target = instances.own_length
    elsewhere = instances.lengths.sum(1) - in_target
    threshold = np.asarray(split.thresholds)[instances.domain]
    tailed, cold = (in_target >= 1) & (in_target <= threshold), (in_target == 0) & (elsewhere > 0)
    masks = (np.ones(len(instances), bool), tailed, cold)
    return dict(zip(GROUPS, masks, strict=True))


def recall_rates(split: Split) -> dict[str, tuple[int, int]]:
    """Returns how many targets were recalled, out of how many with recalled items, by part and for both held out.

    Of training instances only each sequence's last counts: held-out targets are last ones too, and what stands earlier
    is easier to recall, as more of what a graph holds was bought around that time.
    """
    train = split.train.take(last_of_sequences(split.train))
    counts = {}
    for name, part in (("train", train), ("valid", split.valid), ("test", split.test)):
        assert part.recalled is not None
        hits = int((part.recalled == part.target[:, None]).any(1).sum())
        counts[name] = (hits, int(part.recalled.any(1).sum()))
    held_out = (counts["valid"][0] + counts["test"][0], counts["valid"][1] + counts["test"][1])
    return {**counts, "held-out": held_out}


def last_of_sequences(instances: Instances) -> np.ndarray:
    """Returns the rows of each sequence's last instance; instances stand in their order in time."""
    behind = np.unique(instances.sequence[::-1], return_index=True)[1]
    return np.sort(len(instances) - 1 - behind)


def recalled_by_event(split: Split) -> np.ndarray | None:
    """Returns what a generator recalled for the instance whose target each training event is, (m, r), 0 without one.

    Of the published rows, which repeat each other, only an event's first row has one.

    Raises:
        AssertionError: a training instance has a target that is no training event.
    """
    train, events = split.train, split.train_events
    if train.recalled is None:
        return None
    span = np.int64(split.item_offset[-1])
    key = events.sequence * span + events.item
    order = np.argsort(key, kind="stable")
    # An instance's sequence is a block: what an event's sequence holds in one domain.
    target_key = train.sequence // split.n_domains * span + train.target
    place = order[np.minimum(np.searchsorted(key[order], target_key), len(key) - 1)]
    is_event = key[place] == target_key
    assert is_event.all() or split.layout == "rows", "a training instance's target is no training event"
    recalled = np.zeros((len(events), train.recalled.shape[1]), train.recalled.dtype)
    recalled[place[is_event]] = train.recalled[is_event]
    return recalled


@dataclass(frozen=True)
class Ratings:
    """m ratings, each of one user and one item, in the order of the dataset's events.

    Attributes:
        user: (m,) user ids.
        item: (m,) global item ids.
        rating: (m,) float32, in the dataset's own units.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray

    @classmethod
    def of(cls, events: Events) -> Ratings:
        """Takes the ratings of events."""
        return cls(events.user, events.item, events.rating.astype(np.float32))

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Ratings:
        """Returns the ratings at ``rows`` (indices or a mask)."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def fingerprint(self) -> str:
        """Changes with any of the ratings."""
        return hash_arrays(*(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class RatingSplit:
    """What a run that predicts ratings works on.

    Attributes:
        source, target: indices of the two domains.
        train: by domain, the ratings that train: all of the source (D^s), and those of the target without the
            validation and test users' (D^t).
        valid, test: the target ratings of the validation and of the test users.
        overlapping: (o,) training users with ratings in both domains (O), ascending.
        n_users, item_offset, token_key: as in the dataset.
        rating_range: the lowest and the highest rating there is.
        fingerprint: changes with the data and with anything that decides the split.
        report: what was removed and found, counted.
        tables: vectors and biases that stages have learned, by domain.
        name, leaky, layout: as in :class:`Split`.
    """

    source: int
    target: int
    train: Mapping[int, Ratings]
    valid: Ratings
    test: Ratings
    overlapping: np.ndarray
    n_users: int
    item_offset: np.ndarray
    token_key: np.ndarray
    rating_range: tuple[float, float]
    fingerprint: str
    report: dict[str, object] = field(default_factory=dict)
    tables: Mapping[int, Any] = field(default_factory=dict)
    name: str = "cold_start"
    leaky: bool = False
    layout: str = "users"

    @property
    def n_domains(self) -> int:
        """The number of the dataset's domains; two of them are used."""
        return len(self.item_offset) - 1

    def part(self, name: str) -> Ratings:
        """Returns the ratings that are asked for in "valid" or "test"."""
        ratings: Ratings = getattr(self, name)
        return ratings

    @property
    def n_overlapping(self) -> int:
        """How many users have training ratings in both domains."""
        return len(self.overlapping)

    def shared_ratings(self) -> Ratings:
        """Returns the target ratings of the overlapping training users (D^o): what mappings are learned from."""
        rows = self.train[self.target]
        return rows.take(np.isin(rows.user, self.overlapping))

    def known_items(self, domain: int) -> np.ndarray:
        """Returns which of a domain's items have a training rating, (n_k,) bool."""
        low, high = self.item_offset[domain], self.item_offset[domain + 1]
        return np.bincount(self.train[domain].item - low, minlength=high - low) > 0

    def with_tables(self, domain: int, tables: Any) -> RatingSplit:
        """Returns the split with what a stage learned of a domain."""
        return replace(self, tables={**self.tables, domain: tables})


AnySplit = TypeVar("AnySplit", Split, RatingSplit)


@dataclass(frozen=True)
class TrainingData(Generic[AnySplit]):
    """The domains and ids of a dataset, and the split of it that a model learns from.

    A model's constructor takes it where RecBole's models take their dataset. It holds no interaction beside those of
    the split: what is held out can't be reached by accident.

    Attributes:
        domains: their names, in the order of their indices.
        item_offset: (K+1,) domain k owns the global item ids ``item_offset[k] .. item_offset[k+1] - 1``.
        token_key: (item_num,) equal for items whose external token is the same.
        user_num, item_num: numbers of ids, the padding's included.
        split: what trains, and what is asked about.
    """

    domains: tuple[str, ...]
    item_offset: np.ndarray
    token_key: np.ndarray
    user_num: int
    item_num: int
    dataset_name: str
    split: AnySplit

    @classmethod
    def of(cls, dataset: CrossDomainDataset, split: AnySplit) -> TrainingData[AnySplit]:
        """Puts a split beside the ids of its dataset."""
        return cls(
            domains=tuple(dataset.domains),
            item_offset=dataset.item_offset,
            token_key=dataset.token_key,
            user_num=dataset.user_num,
            item_num=dataset.item_num,
            dataset_name=dataset.dataset_name,
            split=split,
        )

    @property
    def n_domains(self) -> int:
        """The number of domains."""
        return len(self.domains)

    def item_range(self, domain: int) -> slice:
        """Returns the global item ids of a domain."""
        return slice(int(self.item_offset[domain]), int(self.item_offset[domain + 1]))

    def n_domain_items(self, domain: int) -> int:
        """Returns how many items a domain has."""
        return int(self.item_offset[domain + 1] - self.item_offset[domain])
