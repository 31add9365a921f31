"""Preparing Amazon's 5-core reviews."""

from __future__ import annotations

import gzip
import json

import pytest
import raw_files
from raw_files import _facts, _nothing_left, _prepare

from recbole_cdr_ext.data.atomic import read_inter
from recbole_cdr_ext.errors import CDRError

_no_raw_folder_from_outside = raw_files._no_raw_folder_from_outside

AMAZON = {
    "domains": ["phone", "elec"],
    "task": ["next_item", "rating"],
    "order": "clock",
    "source": {"kind": "amazon_5core", "files": {"phone": "p.json.gz", "elec": "e.json.gz"}},
}


# Amazon 5-core


def _reviews(path, reviews):
    with gzip.open(path, "wt") as file:
        file.writelines((text if isinstance(text, str) else json.dumps(text)) + "\n" for text in reviews)


def _review(user, item, rating, time):
    return {
        "reviewerID": user,
        "asin": item,
        "overall": rating,
        "unixReviewTime": time,
        "reviewText": "good\t",
    }


def test_amazon_5core(tmp_path):
    _reviews(
        tmp_path / "p.json.gz",
        [_review("A", "1", 5.0, 9), "", _review("B", "2", 1.0, 8), _review("A", "2", 3, 7)],
    )
    _reviews(
        tmp_path / "e.json.gz", [_review("A", "1", 2.0, 6), {"asin": "1", "overall": 1, "unixReviewTime": 1}]
    )
    folder = _prepare("mine", AMAZON, tmp_path, tmp_path / "out")
    assert read_inter(folder / "phone.inter").to_dict("list") == {
        "user_id": ["A", "B", "A"],
        "item_id": ["1", "2", "2"],
        "rating": [5.0, 1.0, 3.0],
        "timestamp": [9.0, 8.0, 7.0],
    }
    assert _facts(folder)["rows_without_id"] == {"phone": 0, "elec": 1}


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ('{"reviewerID": "A", "asin"', "p.json.gz:2: is no valid JSON"),
        ("[1]", "p.json.gz:2: is no JSON object"),
        (_review("A", "1", "five", 1), "p.json.gz:2: the rating .* 'five' is no finite number"),
        (
            {"reviewerID": "A", "asin": "1", "overall": 5},
            "p.json.gz:2: the time .* 'None' is no finite number",
        ),
    ],
)
def test_a_bad_review_is_named_with_its_line(tmp_path, second, says):
    _reviews(tmp_path / "p.json.gz", [_review("A", "1", 5.0, 9), second])
    _reviews(tmp_path / "e.json.gz", [_review("A", "1", 2.0, 6)])
    with pytest.raises(CDRError, match=says):
        _prepare("mine", AMAZON, tmp_path, tmp_path / "out")
    assert _nothing_left(tmp_path / "out")


def test_truncated_reviews_are_an_error(tmp_path):
    _reviews(tmp_path / "p.json.gz", [_review(f"A{i}", "1", 5.0, i) for i in range(999)])
    _reviews(tmp_path / "e.json.gz", [_review("A", "1", 2.0, 6)])
    packed = (tmp_path / "p.json.gz").read_bytes()
    (tmp_path / "p.json.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CDRError, match=r"p\.json\.gz:\d+: the file cannot be read any further"):
        _prepare("mine", AMAZON, tmp_path, tmp_path / "out")
