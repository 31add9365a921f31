"""Preparing datasets: each kind of source, each error, and that no error leaves anything behind."""

from __future__ import annotations

import errno
import functools
import gzip
import http.server
import json
import os
import shutil
import socket
import threading
from pathlib import Path

import pandas as pd
import pytest

from recbole_cdr_ext.config import CDRConfig
from recbole_cdr_ext.data.atomic import fingerprint, read_inter
from recbole_cdr_ext.data.prepare import (
    ensure_dataset,
    list_datasets,
    load_description,
    prepare,
    run,
    staging,
)
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.paths import dataset_property_files

REPOSITORY = Path(__file__).resolve().parents[1]

TABLE = {
    "domains": ["food", "kitchen"],
    "task": "rating",
    "order": "clock",
    "source": {
        "kind": "table",
        "files": {"food": "food.csv", "kitchen": "kitchen.csv"},
        "columns": {"user_id": "who", "item_id": "what", "rating": "stars", "timestamp": "when"},
    },
}
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
AMAZON = {
    "domains": ["phone", "elec"],
    "task": ["next_item", "rating"],
    "order": "clock",
    "source": {"kind": "amazon_5core", "files": {"phone": "p.json.gz", "elec": "e.json.gz"}},
}


@pytest.fixture(autouse=True)
def _no_raw_folder_from_outside(request, monkeypatch):
    if "real_raw" not in request.fixturenames:
        monkeypatch.delenv("RECBOLE_CDR_RAW", raising=False)


@pytest.fixture
def table_raw(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    # Columns in another order, one that is not needed, ids that look numeric, 'NA', a repeated pair, an empty
    # user.
    (raw / "food.csv").write_text(
        'when,what,note,who,stars\n100,0012,"a, b",7,5\n101,NA,,7,4\n'
        "102,0012,x,7,2\n103,5,x,,3\n104,5,x,8,3.5\n"
    )
    (raw / "kitchen.csv").write_text("who,what,stars,when\n8,5,1,90\n9,k,2,91\n9,k,2,92\n")
    return raw


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


def _nothing_left(folder):
    return not folder.exists() or list(folder.iterdir()) == []


def _facts(folder):
    return json.loads((folder / "statistics.json").read_text())["facts"]


def _prepare(name, description, raw, out, **options):
    return prepare(name, description=description, raw=raw, data_path=out, progress=False, **options)


def _altered(description, **source):
    return {**description, "source": {**description["source"], **source}}


# Plain tables


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


# MovieLens and the generator


def test_ml100k_genres_cuts_every_title_into_exactly_one_domain(tmp_path):
    folder = prepare("ml100k_genres", data_path=tmp_path, progress=False)
    action, drama = read_inter(folder / "action.inter"), read_inter(folder / "drama.inter")
    assert (action["item_id"].nunique(), drama["item_id"].nunique()) == (701, 981)
    assert not set(action["item_id"]) & set(drama["item_id"])
    users = set(action["user_id"]), set(drama["user_id"])
    assert len(users[0] | users[1]) == 943
    # 30 % of the 937 users of both domains keep one only; 6 had one only from the start.
    assert (len(users[0] & users[1]), len(users[0] - users[1]), len(users[1] - users[0])) == (656, 147, 140)
    left_out = _facts(folder)["ratings_left_out_by_that_cut"]
    assert len(action) + len(drama) + sum(left_out.values()) == 100_000
    assert {"rating", "timestamp"} <= set(action.columns)


def test_the_committed_toy_is_what_its_property_file_draws(tmp_path):
    folder = prepare("toy", data_path=tmp_path, progress=False)
    for name in ("books.inter", "films.inter", "statistics.json", "statistics.txt"):
        assert (folder / name).read_bytes() == (REPOSITORY / "dataset_atomic" / "toy" / name).read_bytes(), (
            name
        )


def test_simulated_sizes_are_met(tmp_path):
    folder = prepare("cloth_sport_sim", data_path=tmp_path, progress=False)
    sizes = json.loads((folder / "statistics.json").read_text())["domains"]
    keys = ("users", "items", "overlapping_users", "interactions")
    assert tuple(sizes["cloth"][key] for key in keys) == (13_650, 13_826, 5_602, 64_415)
    assert tuple(sizes["sport"][key] for key in keys) == (13_242, 10_859, 5_602, 82_902)
    cloth = read_inter(folder / "cloth.inter")
    assert not cloth.duplicated(["user_id", "item_id"]).any()
    assert cloth.groupby("user_id").size().min() == 2
    assert set(cloth["rating"]) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert cloth.groupby("user_id")["timestamp"].is_monotonic_increasing.all()


def test_another_seed_draws_other_data_of_the_same_size(tmp_path):
    toy = {
        "domains": ["books", "films"],
        "task": "next_item",
        "order": "clock",
        "source": {
            "kind": "simulate",
            "users": {"both": 20, "books": 5, "films": 0},
            "items": {"books": 90, "films": 80},
            "mean_length": {"books": 4, "films": 6},
        },
    }
    first = _prepare("one", toy, None, tmp_path)
    same = _prepare("two", toy, None, tmp_path)
    other = _prepare("three", _altered(toy, seed=1), None, tmp_path)
    assert fingerprint(first) == fingerprint(same) != fingerprint(other)
    assert len(read_inter(first / "books.inter")) == len(read_inter(other / "books.inter")) == 100


def test_one_domain_tells_about_the_other(tmp_path):
    """Neighbours found in sport alone must say more about cloth than popularity does."""
    folder = prepare("cloth_sport_sim", data_path=tmp_path, progress=False)
    cloth, sport = read_inter(folder / "cloth.inter"), read_inter(folder / "sport.inter")
    both = sorted(set(cloth["user_id"]) & set(sport["user_id"]))
    held_out = set(both[::20])
    known = cloth[~cloth["user_id"].isin(held_out)]
    # Votes for cloth items by the known users who share a sport item with the held-out one.
    near = sport[sport["user_id"].isin(held_out)].merge(sport[~sport["user_id"].isin(held_out)], on="item_id")
    votes = near.merge(known, left_on="user_id_y", right_on="user_id")
    votes = votes.groupby(["user_id_x", "item_id_y"]).size().reset_index(name="votes")
    votes = votes.sort_values("votes", ascending=False, kind="stable").groupby("user_id_x").head(50)
    truth = {user: set(items) for user, items in cloth.groupby("user_id")["item_id"]}
    hits = sum(item in truth[user] for user, item in zip(votes["user_id_x"], votes["item_id_y"], strict=True))
    popular = set(known["item_id"].value_counts().index[:50])
    popular_hits = sum(len(popular & truth[user]) for user in held_out)
    assert hits > 1.3 * popular_hits


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": "x"}, "'seed' must be a number"),
        ({"items": {"books": 90}}, "'items' must give one number"),
        ({"mean_length": {"books": 90, "films": 4}}, "a mean_length of 90 in books"),
        ({"users": {"both": 0, "books": 3, "films": 0}}, "films has no users"),
        ({"topics": 200}, "fewer items than topics"),
        ({"topic": 200}, "unknown key 'topic'.*Did you mean 'topics'"),
    ],
)
def test_senseless_settings_of_the_generator_are_errors(tmp_path, change, says):
    source = {
        "kind": "simulate",
        "users": {"both": 9, "books": 0, "films": 0},
        "items": {"books": 90, "films": 90},
        "mean_length": {"books": 4, "films": 4},
    }
    with pytest.raises(CDRError, match=says):
        _prepare("x", {"domains": ["books", "films"], "source": source | change}, None, tmp_path)
    assert _nothing_left(tmp_path)


# Descriptions


def test_every_property_file_is_well_formed():
    for name in dataset_property_files():
        described = load_description(name)
        assert described.name == name
        assert described.tasks


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({**TABLE, "domains": ["food"]}, "two different domains"),
        ({**TABLE, "domains": ["food", "a/b"]}, "'a/b' cannot be a domain"),
        ({**TABLE, "domains": ["food", "rows"]}, "'rows' cannot be a domain"),
        ({**TABLE, "order": "clocks"}, "Did you mean 'clock'"),
        ({**TABLE, "task": "next_items"}, "Did you mean 'next_item'"),
        ({**TABLE, "ordr": "none"}, "unknown key 'ordr'.* Did you mean 'order'"),
        ({**TABLE, "homepge": "x"}, "Did you mean 'homepage'"),
        (
            _altered(TABLE, columns={"user_id": "who", "item_id": "what", "rating": "stars"}),
            "order: clock needs the column timestamp",
        ),
        (
            {
                **_altered(TABLE, columns={"user_id": "who", "item_id": "what", "timestamp": "when"}),
                "task": "rating",
            },
            "task: rating needs the column rating",
        ),
        (_altered(TABLE, files={"food": "food.csv", "kitchen": None}), "'files' must have exactly one entry"),
        ({"domains": ["a", "b"]}, "no 'source' block"),
        (_altered(TABLE, kind="tables"), "Did you mean 'table'"),
        (_altered(TABLE, seperator=","), "Did you mean 'separator'"),
        (_altered(TABLE, files={"food": "food.csv"}), "'files' must have exactly one entry"),
        (_altered(TABLE, files={"food": "../food.csv", "kitchen": "k"}), "bare file name"),
        (_altered(TABLE, columns={"user_id": "who"}), "user_id and item_id"),
        (
            _altered(TABLE, columns={"user_id": "who", "item_id": "what", "rate": "stars"}),
            "Did you mean 'rating'",
        ),
        (_altered(TABLE, separator="::"), "must be one character"),
        (_altered(TABLE, header=False), "a column is a position"),
        (
            _altered(TABLE, own_item_ids="yes please"),
            "own_item_ids is 'yes please' and should be true or false",
        ),
    ],
)
def test_a_description_that_contradicts_itself_is_an_error(tmp_path, table_raw, description, says):
    with pytest.raises(CDRError, match=says):
        _prepare("mine", description, table_raw, tmp_path / "out")
    assert _nothing_left(tmp_path / "out")


def test_an_unknown_dataset_is_an_error_with_a_suggestion(tmp_path):
    with pytest.raises(CDRError, match=r"unknown dataset 'cloth_sprot'.*Did you mean 'cloth_sport'"):
        prepare("cloth_sprot", data_path=tmp_path)
    with pytest.raises(CDRError, match="cannot be a dataset"):
        prepare("../toy", data_path=tmp_path)


# Nothing half-written


def test_what_is_prepared_is_not_replaced_unasked(tmp_path, table_raw):
    folder = _prepare("mine", TABLE, table_raw, tmp_path / "out")
    before = fingerprint(folder)
    (table_raw / "food.csv").write_text("who,what,stars,when\nu,i,1,2\n")
    with pytest.raises(CDRError, match="prepared already"):
        _prepare("mine", TABLE, table_raw, tmp_path / "out")
    assert fingerprint(folder) == before
    _prepare("mine", TABLE, table_raw, tmp_path / "out", overwrite=True)
    assert len(read_inter(folder / "food.inter")) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CDRError),
        (PermissionError(errno.EACCES, "Permission denied"), CDRError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_while_writing_leaves_everything_as_it_was(
    tmp_path, table_raw, monkeypatch, raised, expected, exists
):
    out = tmp_path / "a" / "out"
    before = fingerprint(_prepare("mine", TABLE, table_raw, out)) if exists else None
    write = run.write_inter

    def fail_at_the_second_file(path, frame):
        if path.name == "kitchen.inter":
            raise raised
        write(path, frame)

    monkeypatch.setattr(run, "write_inter", fail_at_the_second_file)
    with pytest.raises(expected) as error:
        _prepare("mine", TABLE, table_raw, out, overwrite=True)
    if expected is CDRError:
        assert str(error.value).startswith(f"{out / 'mine'}: cannot be written: {raised.strerror}")
    if exists:
        assert [path.name for path in out.iterdir()] == ["mine"]
        assert fingerprint(out / "mine") == before
    else:
        assert not (tmp_path / "a").exists()


def test_a_failure_of_the_last_rename_brings_the_old_folder_back(tmp_path, table_raw, monkeypatch):
    folder = _prepare("mine", TABLE, table_raw, tmp_path / "out")
    before = fingerprint(folder)
    rename = os.rename

    def fail_for_the_new_folder(source, target):
        if ".preparing-" in Path(source).name:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(staging.os, "rename", fail_for_the_new_folder)
    with pytest.raises(KeyboardInterrupt):
        _prepare("mine", TABLE, table_raw, tmp_path / "out", overwrite=True)
    assert fingerprint(folder) == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_data_path_that_is_a_file_is_an_error(tmp_path, table_raw):
    (tmp_path / "out").write_text("")
    with pytest.raises(CDRError, match="cannot be written"):
        _prepare("mine", TABLE, table_raw, tmp_path / "out")


# Raw files, downloads, stand-ins


def test_raw_is_a_folder_of_files_or_of_datasets_or_the_environment_variable(
    tmp_path, table_raw, monkeypatch
):
    nested = tmp_path / "nested"
    shutil.copytree(table_raw, nested / "mine")
    for number, raw in enumerate([table_raw, nested]):
        _prepare("mine", TABLE, raw, tmp_path / f"out{number}")
    monkeypatch.setenv("RECBOLE_CDR_RAW", str(nested))
    folder = _prepare("mine", TABLE, None, tmp_path / "out2")
    assert (
        fingerprint(folder)
        == fingerprint(tmp_path / "out0" / "mine")
        == fingerprint(tmp_path / "out1" / "mine")
    )


def test_missing_raw_files_say_what_was_looked_for(tmp_path):
    with pytest.raises(CDRError, match=r"food\.csv, kitchen\.csv in .*pass --raw=FOLDER"):
        _prepare("mine", TABLE, tmp_path, tmp_path / "out")
    with pytest.raises(CDRError, match="neither --raw nor RECBOLE_CDR_RAW is set"):
        _prepare("mine", TABLE, None, tmp_path / "out")
    with pytest.raises(CDRError, match="there is no such folder"):
        _prepare("mine", TABLE, tmp_path / "nowhere", tmp_path / "out")
    assert _nothing_left(tmp_path / "out")


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; what is asked for under /short/ comes with twice its length announced."""

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and self.path.startswith("/short/"):
            value = str(2 * int(value))
        super().send_header(keyword, value)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(table_raw):
    (table_raw / "short").mkdir()
    shutil.copy(table_raw / "food.csv", table_raw / "short" / "food.csv")
    handler = functools.partial(_Handler, directory=str(table_raw))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def _with_urls(food, kitchen):
    return _altered(TABLE, urls={"food": food, "kitchen": kitchen})


def test_download(tmp_path, server, table_raw, capsys):
    out = tmp_path / "out"
    described = _with_urls(f"{server}/food.csv", f"{server}/kitchen.csv")
    folder = prepare("mine", description=described, data_path=out, download=True)
    assert len(read_inter(folder / "kitchen.inter")) == 3
    assert (out / ".raw" / "mine" / "food.csv").read_bytes() == (table_raw / "food.csv").read_bytes()
    printed = capsys.readouterr()
    assert "food.csv" in printed.err  # the progress bar
    assert "mine (layout users, order: clock)" in printed.out
    # The next time, what was downloaded is found without the server.
    _prepare("mine", TABLE, None, out, overwrite=True)


def test_a_failed_download_names_the_address_and_leaves_no_file(tmp_path, server):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}/food.csv"
        for url, says in [
            (f"{server}/none.csv", "the server answered 404"),
            (f"{server}/short/food.csv", "bytes came instead of"),
            (refused, "refused"),
            ("file:///etc/hostname", "no http or https address"),
        ]:
            with pytest.raises(CDRError, match=says) as error:
                _prepare("mine", _with_urls(url, url), None, tmp_path / "out", download=True)
            assert url in str(error.value)
            assert list((tmp_path / "out").rglob("*.csv*")) == []


def test_no_address_to_download_from(tmp_path):
    with pytest.raises(CDRError, match="no address is known"):
        _prepare("mine", TABLE, None, tmp_path / "out", download=True)


def test_ensure_uses_what_is_prepared_and_prepares_what_is_there(tmp_path, table_raw):
    first = ensure_dataset(
        "mine", data_path=tmp_path / "out", raw=table_raw, description=TABLE, progress=False
    )
    assert (first.folder, first.name, first.simulated) == (tmp_path / "out" / "mine", "mine", False)
    shutil.rmtree(table_raw)
    again = ensure_dataset("mine", data_path=tmp_path / "out", description=TABLE)
    assert (again.folder, again.notes) == (first.folder, [])


def test_ensure_prepares_what_needs_no_raw_files(tmp_path):
    toy = ensure_dataset("toy", data_path=tmp_path, progress=False)
    assert (toy.name, toy.simulated) == ("toy", True)
    assert (tmp_path / "toy" / "books.inter").is_file()


def test_a_stand_in_is_used_only_where_it_is_allowed(tmp_path):
    with pytest.raises(CDRError, match=r"cloth_sport_train\.csv.*github\.com"):
        ensure_dataset("cloth_sport", data_path=tmp_path)
    found = ensure_dataset("cloth_sport", data_path=tmp_path, allow_simulated=True, progress=False)
    assert (found.name, found.simulated) == ("cloth_sport_sim", True)
    assert found.folder == tmp_path / "cloth_sport_sim"
    assert "cloth_sport_train.csv" in found.notes[0]
    with pytest.raises(CDRError, match="were not found"):
        ensure_dataset("cloth_sport", data_path=tmp_path, layout="rows", allow_simulated=True)
    with pytest.raises(CDRError, match="were not found"):
        ensure_dataset("game_video", data_path=tmp_path, allow_simulated=True)


def test_a_wrong_raw_folder_is_an_error_even_where_a_stand_in_is_allowed(tmp_path):
    with pytest.raises(CDRError, match="were not found"):
        ensure_dataset("cloth_sport", data_path=tmp_path / "out", raw=tmp_path, allow_simulated=True)


def test_ensure_knows_folders_without_property_file(tmp_path, table_raw):
    _prepare("my_pair", TABLE, table_raw, tmp_path / "out")
    assert ensure_dataset("my_pair", data_path=tmp_path / "out").folder == tmp_path / "out" / "my_pair"
    with pytest.raises(CDRError, match=r"unknown dataset 'my_pear'.*Did you mean 'my_pair'"):
        ensure_dataset("my_pear", data_path=tmp_path / "out")


def test_list_datasets(tmp_path, table_raw):
    _prepare("my_pair", TABLE, table_raw, tmp_path / "out")
    prepare("toy", data_path=tmp_path / "out", progress=False)
    listed = {entry["name"]: entry for entry in list_datasets(tmp_path / "out")}
    assert set(listed) == {*dataset_property_files(), "my_pair"}
    assert listed["my_pair"]["domains"] == ["food", "kitchen"]
    assert listed["toy"] == {
        "name": "toy",
        "domains": ["books", "films"],
        "tasks": ["next_item", "rating"],
        "order": "clock",
        "prepared": True,
        "layouts": ["users"],
        "simulated": True,
        "homepage": None,
    }
    assert not listed["cloth_sport"]["prepared"]
    assert list_datasets(tmp_path / "nowhere")


# Real data: run with RECBOLE_CDR_RAW set to a folder with one sub-folder per dataset


@pytest.fixture
def real_raw():
    raw = os.environ.get("RECBOLE_CDR_RAW")
    if not raw or not Path(raw).is_dir():
        pytest.skip("RECBOLE_CDR_RAW is not set")
    return Path(raw)


REAL = {  # per domain: users, items, overlapping users, interactions
    "cloth_sport": [(13_650, 13_826, 5_602, 64_415), (13_242, 10_859, 5_602, 82_902)],
    "game_video": [(13_105, 12_236, 1_170, 107_654), (12_519, 8_725, 1_170, 111_888)],
    "food_kitchen": [(7_144, 11_837, 7_144, 83_663), (7_144, 16_258, 7_144, 89_885)],
    "food_kitchen_partial": [(14_870, 8_661, 9_398, 98_316), (47_589, 27_637, 9_398, 337_811)],
    "books_movies": [(1_426, 723, 1_329, 38_149), (1_381, 1_338, 1_329, 68_023)],
    "douban_book_music": [(2_110, 6_777, 1_566, 96_041), (1_672, 5_567, 1_566, 69_709)],
}


@pytest.mark.parametrize("name", REAL)
def test_real_sizes(tmp_path, real_raw, name):
    if not (real_raw / name).is_dir():
        pytest.skip(f"no {name} in RECBOLE_CDR_RAW")
    folder = prepare(name, data_path=tmp_path, progress=False)
    table = pd.DataFrame(json.loads((folder / "statistics.json").read_text())["domains"]).T
    assert [tuple(row) for row in table.iloc[:, :4].astype(int).to_numpy().tolist()] == REAL[name]


def test_real_rows(tmp_path, real_raw):
    if not (real_raw / "cloth_sport").is_dir():
        pytest.skip("no cloth_sport in RECBOLE_CDR_RAW")
    folder = prepare("cloth_sport", data_path=tmp_path, layout="rows", progress=False)
    rows = read_inter(folder / "rows.inter", required=("row_id", "user_id", "target_domain", "part"))
    assert rows["part"].value_counts().to_dict() == {"train": 18_537, "test": 4_635}
    facts = _facts(folder)
    assert facts["users_with_several_rows"] == 1_882
    assert facts["users_whose_rows_disagree"] == 160
    assert facts["users_in_train_and_test"] == 609
    assert facts["item_ids_in_several_domains"] == 639


@pytest.mark.parametrize("name", REAL)
def test_a_corrupted_copy_of_real_data_is_an_error_and_leaves_nothing(tmp_path, real_raw, name):
    if not (real_raw / name).is_dir():
        pytest.skip(f"no {name} in RECBOLE_CDR_RAW")
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in (real_raw / name).iterdir():
        shutil.copyfile(path, raw / path.name)
    damaged = raw / load_description(name).files[list(load_description(name).files)[-1]]
    lines = damaged.read_bytes().splitlines()
    lines[499] = lines[499][:1]  # cut off after the first character
    damaged.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(CDRError) as error:
        prepare(name, raw=raw, data_path=tmp_path / "out", progress=False)
    assert str(error.value).startswith(f"{damaged}:500: 1 field instead of")
    assert _nothing_left(tmp_path / "out")


def test_what_was_prepared_without_an_order_has_none_without_its_description(tmp_path, table_raw):
    """`run` is told the description by --config_files, or knows from the folder what stood there."""
    out = tmp_path / "out"
    for name, order in (("mine", "none"), ("timed", "clock")):
        _prepare(name, {**TABLE, "order": order}, table_raw, out)
        config = CDRConfig("Pop", name, config_dict={"data_path": str(out), "task": "next_item"})
        assert (config["order"], config["domains"]) == (order, ["food", "kitchen"])
        assert next(one for one in list_datasets(out) if one["name"] == name)["order"] == order
    told = {"data_path": str(out), "task": "next_item", "order": "merged"}
    assert CDRConfig("Pop", "mine", config_dict=told)["order"] == "merged"
    (out / "mine" / "statistics.json").write_text("[")
    assert (
        CDRConfig("Pop", "mine", config_dict={"data_path": str(out), "task": "next_item"})["order"] == "clock"
    )
