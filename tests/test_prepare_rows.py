"""Preparing published rows, in either layout."""

from __future__ import annotations

import pytest
import raw_files
from raw_files import TABLE, _facts, _nothing_left, _prepare

from recbole_cdr_ext.data.atomic import fingerprint, read_inter
from recbole_cdr_ext.errors import CDRError

_no_raw_folder_from_outside = raw_files._no_raw_folder_from_outside
table_raw = raw_files.table_raw

ROWS = {
    "domains": ["cloth", "sport"],
    "task": "next_item",
    "order": "none",
    "source": {
        "kind": "rows",
        "files": {"train": "train.csv", "test": "test.csv"},
        "columns": {"user_id": "user_id", "target": "domain_id", "cloth": "seq_d1", "sport": "seq_d2"},
    },
}


@pytest.fixture
def rows_raw(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    head = "user_id,seq_d1,seq_d2,domain_id\n"
    (raw / "train.csv").write_text(
        head + '1,"[10, 11]","[10]",0\n2,[],"[20, 21]",1\n3,[],[],0\n1,"[10, 11]","[10]",1\n'
    )
    (raw / "test.csv").write_text(head + '1,"[11]","[10]",0\n4,"[12, 10]","[20]",1\n')
    return raw


# Published rows


def test_rows_merge_to_the_longest_sequence_per_user_and_domain(tmp_path, rows_raw):
    folder = _prepare("mine", ROWS, rows_raw, tmp_path / "out")
    cloth, sport = read_inter(folder / "cloth.inter"), read_inter(folder / "sport.inter")
    assert cloth.to_dict("list") == {
        "user_id": ["1", "1", "4", "4"],
        "item_id": ["10", "11", "12", "10"],
        "timestamp": [0.0, 1.0, 0.0, 1.0],
    }
    assert sport["user_id"].tolist() == ["1", "2", "2", "4"]
    facts = _facts(folder)
    assert facts["rows"] == {"train": 4, "test": 2}
    assert facts["users_with_several_rows"] == 1
    assert facts["users_whose_rows_disagree"] == 1
    assert facts["users_in_train_and_test"] == 1
    assert facts["users_without_history"] == 1
    assert facts["rows_without_target"] == 1
    assert facts["item_ids_in_several_domains"] == 1


def test_layout_rows_keeps_each_row(tmp_path, rows_raw):
    folder = _prepare("mine", ROWS, rows_raw, tmp_path / "out", layout="rows")
    assert folder == tmp_path / "out" / "mine" / "rows"
    rows = read_inter(folder / "rows.inter", required=("row_id", "user_id", "target_domain", "part"))
    assert rows.to_dict("list") == {
        "row_id": ["train-2", "train-3", "train-5", "test-2", "test-3"],
        "user_id": ["1", "2", "1", "1", "4"],
        "target_domain": ["cloth", "sport", "sport", "cloth", "sport"],
        "part": ["train", "train", "train", "test", "test"],
    }
    cloth = read_inter(folder / "cloth.inter")
    assert list(cloth.columns) == ["row_id", "user_id", "item_id", "timestamp"]
    assert cloth["row_id"].tolist() == [
        "train-2",
        "train-2",
        "train-5",
        "train-5",
        "test-2",
        "test-3",
        "test-3",
    ]
    assert cloth["item_id"].tolist() == ["10", "11", "10", "11", "11", "12", "10"]
    assert cloth["timestamp"].tolist() == [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("layouts", [("users", "rows"), ("rows", "users")])
def test_both_layouts_live_in_one_folder(tmp_path, rows_raw, layouts):
    out = tmp_path / "out"
    marks = {layout: fingerprint(_prepare("mine", ROWS, rows_raw, out, layout=layout)) for layout in layouts}
    (out / "mine" / "note.txt").write_text("mine")
    for layout in layouts:
        folder = _prepare("mine", ROWS, rows_raw, out, layout=layout, overwrite=True)
        assert fingerprint(folder) == marks[layout]
    assert sorted(p.name for p in (out / "mine").iterdir()) == [
        "cloth.inter", "note.txt", "rows", "sport.inter", "statistics.json", "statistics.txt",
    ]  # fmt: skip
    assert [p.name for p in out.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('1,"[10, 11","[10]",0', "the cloth sequence .* is no valid JSON list"),
        ('1,"[10]",7,0', "the sport sequence '7' is no JSON list of item ids"),
        ('1,"[10, null]",[],0', "the cloth sequence .* is no JSON list of item ids"),
        ('1,"[10]",[],2', "the target domain '2' is none of 0 to 1"),
        ('1,"[10]",[]', "3 fields instead of 4"),
        (',"[10]",[],0', "the user is empty"),
    ],
)
@pytest.mark.parametrize("layout", ["users", "rows"])
def test_a_bad_row_is_named_with_its_line(tmp_path, rows_raw, line, says, layout):
    lines = (rows_raw / "train.csv").read_text().splitlines()
    (rows_raw / "train.csv").write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    with pytest.raises(CDRError, match=rf"train\.csv:3: {says}"):
        _prepare("mine", ROWS, rows_raw, tmp_path / "out", layout=layout)
    assert _nothing_left(tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["", "user_id,seq_d1,seq_d2,domain_id\n", "user,seq_d1,seq_d2,domain_id\n1,[1],[],0\n"]
)
def test_an_empty_rows_file_or_a_wrong_header_is_an_error(tmp_path, rows_raw, text):
    (rows_raw / "test.csv").write_text(text)
    with pytest.raises(CDRError, match=r"test\.csv:[12]: "):
        _prepare("mine", ROWS, rows_raw, tmp_path / "out")


def test_layout_rows_needs_rows(tmp_path, table_raw):
    with pytest.raises(CDRError, match="has no published rows"):
        _prepare("mine", TABLE, table_raw, tmp_path / "out", layout="rows")
    with pytest.raises(CDRError, match="Did you mean 'users'"):
        _prepare("mine", TABLE, table_raw, tmp_path / "out", layout="user")
