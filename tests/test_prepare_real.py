"""Preparing real data: run with RECBOLE_CDR_RAW set to a folder with one sub-folder per dataset."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import raw_files
from raw_files import _facts, _nothing_left

from recbole_cdr_ext.data.atomic import read_inter
from recbole_cdr_ext.data.prepare import load_description, prepare
from recbole_cdr_ext.errors import CDRError

_no_raw_folder_from_outside = raw_files._no_raw_folder_from_outside


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
