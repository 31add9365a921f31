"""Preparing: descriptions, where raw files come from, failures that leave nothing behind, and real data."""

from __future__ import annotations

import errno
import functools
import http.server
import json
import os
import shutil
import socket
import threading
from pathlib import Path

import pandas as pd
import pytest
import support
from support import TABLE, _altered, _facts, _nothing_left, _prepare

from recbole_cdr_ext.data.atomic import fingerprint, read_inter
from recbole_cdr_ext.data.prepare import ensure_dataset, list_datasets, load_description, prepare
from recbole_cdr_ext.data.prepare import preparation as run
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import dataset_property_files

_no_raw_folder_from_outside = support._no_raw_folder_from_outside
table_raw = support.table_raw


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

    monkeypatch.setattr(run.os, "rename", fail_for_the_new_folder)
    with pytest.raises(KeyboardInterrupt):
        _prepare("mine", TABLE, table_raw, tmp_path / "out", overwrite=True)
    assert fingerprint(folder) == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_data_path_that_is_a_file_is_an_error(tmp_path, table_raw):
    (tmp_path / "out").write_text("")
    with pytest.raises(CDRError, match="cannot be written"):
        _prepare("mine", TABLE, table_raw, tmp_path / "out")


# Real data: run with RECBOLE_CDR_RAW set to a folder with one sub-folder per dataset


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
