"""Descriptions of data sets, and that no failure while preparing leaves anything behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import raw_files
from raw_files import TABLE, _altered, _nothing_left, _prepare

from recbole_cdr_ext.data.atomic import fingerprint, read_inter
from recbole_cdr_ext.data.prepare import list_datasets, load_description, prepare, staging
from recbole_cdr_ext.data.prepare import preparation as run
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import dataset_property_files

_no_raw_folder_from_outside = raw_files._no_raw_folder_from_outside
table_raw = raw_files.table_raw


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
