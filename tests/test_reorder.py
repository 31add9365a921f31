"""``reorder``: where order means nothing, an epoch reads each training sequence in an order of its own."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from support import here, random_domains, write_domains

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.sequences import new_order, reorders
from recbole_cdr_ext.model.parts.whole_sequences import _without_known
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.settings.config import CDRConfig

MODELS = {
    "I2VAE": {},
    "I2VAE, recalled items": {"psg": "random", "random_recall_size": 3},
    "SASRec": {},
    "SASRec, merged": {"baseline_scope": "all"},
    "PiNet": {},
    "SVAE": {"input": "own"},
    "SVAE, merged": {"input": "merged", "next_k": 2},
    "C2DSR": {},
}


def model_of(tmp_path, name: str, **settings):
    if not (tmp_path / "mini").exists():
        write_domains(tmp_path / "mini", random_domains(n_users=20))
    given = {**here(tmp_path), "domains": ["books", "films"], "order": "none", **MODELS[name], **settings}
    return build(CDRConfig(model=name.split(",")[0], dataset="mini", config_dict=given)).model


def read(model, seed: int) -> list[tuple[int, ...]]:
    """The sequences that an epoch reads, each with its last target."""
    found = []
    for batch in model.training_sequences.batches(np.random.default_rng(seed)):
        for items, targets in zip(batch.items.tolist(), batch.targets.tolist(), strict=True):
            held = [item for item in items if item]
            found.append((batch.tag, *held, [t for t in targets if t][-1]))
    return sorted(found)


@pytest.mark.parametrize("name", MODELS)
def test_each_epoch_has_an_order_of_its_own(tmp_path, name):
    model = model_of(tmp_path, name)
    first, second = read(model, 1), read(model, 2)
    assert first != second and read(model, 1) == first
    fixed = model_of(tmp_path, name, reorder=False)
    assert read(fixed, 1) == read(fixed, 2)
    # Of the same users' events: sequences here are shorter than what is read at most.
    whole = Counter(frozenset(row) for row in read(fixed, 1))
    assert Counter(map(frozenset, first)) == whole == Counter(map(frozenset, second))


@pytest.mark.parametrize("name", MODELS)
def test_where_there_is_an_order_it_stays(tmp_path, name):
    model = model_of(tmp_path, name, order="clock")
    assert read(model, 1) == read(model, 2)


def test_what_was_recalled_follows_its_event(tmp_path):
    model = model_of(tmp_path, "I2VAE, recalled items")
    sequences, expected = model.training_sequences, defaultdict(set)
    for item, items in zip(sequences.events.item.tolist(), sequences.recalled.tolist(), strict=True):
        expected[item].add(frozenset(items))
    assert len(expected) > 20
    for batch in sequences.batches(np.random.default_rng(3)):
        row, place = (batch["event"] >= 0).nonzero(as_tuple=True)
        recalled = sequences.recalled_at(batch, row, place)
        assert recalled.any()
        for target, items in zip(batch.targets[row, place].tolist(), recalled.tolist(), strict=True):
            # What has become history is 0.
            assert any(set(items) - {0} <= before for before in expected[target])


def test_what_has_become_history_is_no_recalled_item():
    items = torch.tensor([[5, 7, 9, 0], [5, 7, 9, 0]])
    recalled = torch.tensor([[9, 7, 3, 0], [9, 7, 3, 0]])
    left = _without_known(recalled, items, torch.tensor([1, 2]))
    assert left.tolist() == [[9, 0, 3, 0], [0, 0, 3, 0]]


def test_training_reads_no_recalled_item_that_is_history(tmp_path, monkeypatch):
    model = model_of(tmp_path, "I2VAE, recalled items")
    seen, views = [], model.positions.views

    def spy(states, x, row, place, recalled):
        seen.append((row, place, recalled))
        return views(states, x, row, place, recalled)

    monkeypatch.setattr(model.positions, "views", spy)
    for batch in model.training_sequences.batches(np.random.default_rng(3)):
        seen.clear()
        model.sequence_loss(batch)
        for rows, places, recalled in seen:
            for row, place, found in zip(rows.tolist(), places.tolist(), recalled.tolist(), strict=True):
                assert not set(batch.items[row, : place + 1].tolist()) & set(found) - {0}


def test_the_next_items_are_those_of_the_new_order(tmp_path):
    model = model_of(tmp_path, "SVAE, merged")
    for batch in model.training_sequences.batches(np.random.default_rng(3)):
        for items, following in zip(batch.items.tolist(), batch["next_seq"].tolist(), strict=True):
            for place, coming in enumerate(following):
                assert not set(items[: place + 1]) & {item for item in coming if item}


def test_sequences_keep_their_events():
    sequence = np.repeat(np.arange(3), [4, 1, 5])
    n = len(sequence)
    events = Events(sequence, np.arange(n), np.zeros(n, int), np.zeros(n), np.zeros(n), sequence)
    orders = {tuple(new_order(events, np.random.default_rng(seed)).tolist()) for seed in range(20)}
    assert len(orders) > 10
    assert all(
        [sorted(order[:4]), order[4], sorted(order[5:])] == [[0, 1, 2, 3], 4, [5, 6, 7, 8, 9]]
        for order in orders
    )


@pytest.mark.parametrize(
    ("settings", "whether"),
    [
        ({"order": "none", "split": "user"}, True),
        ({"order": "none", "split": "published"}, False),
        ({"order": "merged", "split": "user"}, False),
        ({"order": "none", "split": "user", "reorder": False}, False),
    ],
)
def test_when_sequences_are_reordered(settings, whether):
    assert reorders({"reorder": True, **settings}) is whether
