"""A phase names functions: what it takes for one, and what it says of anything else."""

from __future__ import annotations

import pytest

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.phase import Phase


def test_a_phase_without_anything_is_the_usual_one():
    phase = Phase()
    assert phase.name == "train" and phase.ranks_to_validate


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("loss", "sequence_loss", "write loss=self.sequence_loss"),
        ("batches", "pairs", "write batches=self.pairs"),
        ("rows", "source_rows", "write rows=self.source_rows"),
        ("rows", "", "leave rows out"),
        ("row_gradient", 1, "leave row_gradient out"),
        ("validate", "own_score", "write validate=self.own_score"),
        ("validate", "", "write validated=False"),
    ],
)
def test_a_name_is_no_function(field, value, advice):
    with pytest.raises(CDRError, match=f"phase 'map' has {field}=") as error:
        Phase("map", **{field: value})
    assert advice in str(error.value)


def test_a_score_of_the_models_own_ranks_nothing():
    assert not Phase(validate=lambda: 0.0).ranks_to_validate
    assert not Phase(validated=False).ranks_to_validate
