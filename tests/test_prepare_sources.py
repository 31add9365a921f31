"""Preparing each kind of source: plain tables, published rows, Amazon's reviews, MovieLens, simulated data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import support
from support import TABLE, _altered, _facts, _nothing_left, _prepare

from recbole_cdr_ext.data.atomic import fingerprint, read_inter
from recbole_cdr_ext.data.prepare import prepare
from recbole_cdr_ext.errors import CDRError

_no_raw_folder_from_outside = support._no_raw_folder_from_outside
table_raw = support.table_raw


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


REPOSITORY = Path(__file__).resolve().parents[1]


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
