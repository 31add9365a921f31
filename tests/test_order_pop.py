"""The order-only yardstick."""

from __future__ import annotations

import numpy as np
import pytest
from support import load

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.order_pop import OrderPop, _places
from recbole_cdr_ext.splits.loader import CrossDomainLoader


def test_places_by_hand():
    """0 → 1 → 2 → 3 and 0 → 3: paths to them 0, 1, 2, 3, from them 3, 2, 1, 0; 4 stands alone."""
    places = _places(np.array([0, 1, 2, 0, 0]), np.array([1, 2, 3, 3, 1]), 5)
    assert list(places) == [0 - 3, 1 - 2, 2 - 1, 3 - 0, 0]


def test_contradicting_sequences_are_one_clear_error():
    with pytest.raises(CDRError, match="No single order"):
        _places(np.array([0, 1]), np.array([1, 0]), 2)


def test_it_ranks_what_stands_after_the_last_item(tmp_path):
    """Every user's items ascend, so whatever is below the last one of the history cannot be the target."""
    rows = {
        name: [(f"u{u}", f"{name[0]}{i:02d}", i) for u in range(100) for i in range(u % 20, u % 20 + 6)]
        for name in ("books", "films")
    }
    loaded = load(tmp_path, rows, model="OrderPop", split="leave_one_out")
    model = OrderPop(loaded.config, loaded.data)
    for batch in CrossDomainLoader(loaded.config, loaded.split.test, model):
        scores = model.score(batch)
        local = batch.own_history[:, -1] - model.item_offsets[batch.target_domain]
        popularity = model.popularity[model.item_slice(batch.target_domain)]
        for row in range(min(len(batch), 40)):
            if local[row] < 0:
                assert (scores[row] == popularity).all()
                continue
            # What nobody was trained on has no place in the order.
            below = scores[row, : local[row] + 1]
            above = scores[row, local[row] + 1 :][popularity[local[row] + 1 :] > 0]
            assert (below == popularity[: local[row] + 1]).all()
            if len(above):
                assert above.min() > below.max()
