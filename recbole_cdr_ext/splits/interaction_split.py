"""A split of the next-item task: who is trained on, who is asked about, what each may know; and the user groups."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.splits.user_items import UserItems

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
        """The instances of "train", "valid" or "test"."""
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
