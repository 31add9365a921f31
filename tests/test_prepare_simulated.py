"""Preparing MovieLens by genre, and what the generator draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import raw_files
from raw_files import _altered, _facts, _nothing_left, _prepare

from recbole_cdr_ext.data.atomic import fingerprint, read_inter
from recbole_cdr_ext.data.prepare import prepare
from recbole_cdr_ext.errors import CDRError

_no_raw_folder_from_outside = raw_files._no_raw_folder_from_outside

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
