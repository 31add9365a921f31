"""Preparing plain tables: columns, ids, and bad lines."""

from __future__ import annotations

import gzip

import pytest
import raw_files
from raw_files import TABLE, _altered, _facts, _nothing_left, _prepare

from recbole_cdr_ext.data.atomic import read_inter
from recbole_cdr_ext.errors import CDRError

_no_raw_folder_from_outside = raw_files._no_raw_folder_from_outside
table_raw = raw_files.table_raw


def test_a_table_keeps_ids_as_text_and_counts_what_it_met(tmp_path, table_raw):
    folder = _prepare("mine", TABLE, table_raw, tmp_path / "out")
    assert folder == tmp_path / "out" / "mine"
    food = read_inter(folder / "food.inter")
    assert food["user_id"].tolist() == ["7", "7", "7", "8"]
    assert food["item_id"].tolist() == ["0012", "NA", "0012", "5"]
    assert food["rating"].tolist() == [5.0, 4.0, 2.0, 3.5]
    assert food["timestamp"].tolist() == [100.0, 101.0, 102.0, 104.0]
    facts = _facts(folder)
    assert facts["rows_without_id"] == {"food": 1, "kitchen": 0}
    assert facts["repeated_rows"] == {"food": 1, "kitchen": 1}
    assert facts["repeated_pairs_that_disagree"] == {"food": 1, "kitchen": 0}
    assert facts["items_with_numeric_ids"] == {"food": 2, "kitchen": 1}
    assert facts["item_ids_in_several_domains"] == 1
    assert facts["users_in_several_domains"] == 1
    text = (folder / "statistics.txt").read_text()
    assert "food         2      3        1             4    2.00  66.667%" in text
    assert "rows without user or item (left out): food 1, kitchen 0" in text


def test_item_numbers_that_each_file_gives_anew_are_no_shared_tokens(tmp_path, table_raw):
    folder = _prepare("mine", _altered(TABLE, own_item_ids=True), table_raw, tmp_path / "out")
    assert read_inter(folder / "food.inter")["item_id"].tolist() == [
        "food-0012",
        "food-NA",
        "food-0012",
        "food-5",
    ]
    assert _facts(folder)["item_ids_in_several_domains"] == 0


def test_a_table_without_header_gzipped_with_columns_by_position(tmp_path):
    with gzip.open(tmp_path / "food.csv.gz", "wt") as file:
        file.write("3\tu1\ti1\n4\tu2\ti2\n")
    (tmp_path / "kitchen.csv").write_text("1\tu1\tk1\n")
    described = _altered(
        TABLE, header=False, separator="\t", columns={"user_id": 1, "item_id": 2, "rating": 0}
    )
    folder = _prepare("mine", {**described, "order": "none"}, tmp_path, tmp_path / "out")
    food = read_inter(folder / "food.inter")
    assert food.to_dict("list") == {"user_id": ["u1", "u2"], "item_id": ["i1", "i2"], "rating": [3.0, 4.0]}


def test_amazon_ratings_need_no_columns(tmp_path):
    (tmp_path / "food.csv").write_text("A1,B1,5.0,1300000000\nA2,B1,3.0,1300000001\n")
    (tmp_path / "kitchen.csv").write_text("A1,0594451647,1.0,1300000002\n")
    source = {"kind": "amazon_ratings", "files": TABLE["source"]["files"]}
    folder = _prepare("mine", {**TABLE, "source": source}, tmp_path, tmp_path / "out")
    kitchen = read_inter(folder / "kitchen.inter").to_dict("list")
    assert kitchen == {
        "user_id": ["A1"],
        "item_id": ["0594451647"],
        "rating": [1.0],
        "timestamp": [1300000002.0],
    }


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "is empty"),
        ("who,what,stars,when\n", None, "no interactions"),
        ("who,what,stars,time\nu,i,1,2\n", 1, "no column 'when' for timestamp"),
        ("who,what,stars,when\nu,i,1,2\nu,i,1\n", 3, "3 fields instead of 4"),
        ("who,what,stars,when\nu,i,1,2\n,,1\n", 3, "no finite number|3 fields instead of 4"),
        ("who,what,stars,when\nu,i,1,2,3\n", 2, "5 fields instead of 4"),
        ("who,what,stars,when\nu,i,good,2\n", 2, "rating 'good' is no finite number"),
        ("who,what,stars,when\nu,i,1,2\nu,j,1,1_000\n", 3, "timestamp '1_000' is no finite number"),
        ('who,what,stars,when\nu,"i,1,2\nu,j,1,2\n', 2, "2 fields instead of 4"),
    ],
)
def test_a_bad_table_is_named_with_its_line_and_leaves_nothing(tmp_path, table_raw, text, line, says):
    (table_raw / "food.csv").write_text(text)
    with pytest.raises(CDRError, match=says) as error:
        _prepare("mine", TABLE, table_raw, tmp_path / "out")
    assert str(error.value).startswith(f"{table_raw / 'food.csv'}:{line or ''}")
    assert _nothing_left(tmp_path / "out")


def test_a_truncated_gzip_file_is_an_error(tmp_path, table_raw):
    packed = gzip.compress(b"who,what,stars,when\n" + b"".join(b"u%d,i,1,2\n" % i for i in range(999)))
    (table_raw / "food.csv").unlink()
    (table_raw / "food.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CDRError, match=r"food\.csv\.gz:\d+: the file cannot be read any further"):
        _prepare("mine", TABLE, table_raw, tmp_path / "out")
    assert _nothing_left(tmp_path / "out")
