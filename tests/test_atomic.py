"""Reading, writing and describing atomic files."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from support import load_written

from recbole_cdr_ext.data.atomic import fingerprint, format_statistics, read_inter, statistics, write_inter
from recbole_cdr_ext.errors import CDRError

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def _file(folder, text, name="a.inter"):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_tokens_stay_text_and_floats_become_numbers(tmp_path):
    path = _file(tmp_path, HEADER + '0012\tNA\t4\t100\nnull\t"x\t3.25\t1e3\n')
    frame = read_inter(path)
    assert list(frame.columns) == ["user_id", "item_id", "rating", "timestamp"]
    assert frame["user_id"].tolist() == ["0012", "null"]
    assert frame["item_id"].tolist() == ["NA", '"x']
    assert frame["rating"].tolist() == [4.0, 3.25]
    assert frame["timestamp"].tolist() == [100.0, 1000.0]
    assert frame["rating"].dtype == np.float64


def test_columns_may_stand_in_any_order_with_crlf_and_byte_order_mark(tmp_path):
    path = _file(tmp_path, "\ufeffitem_id:token\tuser_id:token\r\ni1\tu1\r\ni2\tu2\r\n")
    frame = read_inter(path)
    assert frame["user_id"].tolist() == ["u1", "u2"]
    assert frame["item_id"].tolist() == ["i1", "i2"]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "is empty"),
        (HEADER, 2, "no interactions"),
        ("user_id:token\titem_id\nu\ti\n", 1, "'item_id' is not of the form NAME:TYPE"),
        ("user_id:token\titem_id:number\nu\ti\n", 1, "'item_id:number' is not of the form NAME:TYPE"),
        ("user_id:token\titems_id:token\nu\ti\n", 1, "no column 'item_id'"),
        ("user_id:token\titem_id:token\titem_id:token\nu\ti\ti\n", 1, "'item_id' twice"),
        (HEADER + "u\ti\t4\t1\nu\ti\t4\n", 3, "3 fields instead of 4"),
        (HEADER + "u\ti\t4\t1\t9\nu\ti\t4\t1\n", 2, "5 fields instead of 4"),
        (HEADER + "u\ti\t4\t1\nu\ti\t4\t1\t9\n", 3, "5 fields instead of 4"),
        (HEADER + "u\ti\t4\t1\nu\ti\tfour\t1\n", 3, "rating 'four' is no finite number"),
        (HEADER + "u\ti\t4\t1\nu\tj\t4\tnan\n", 3, "timestamp 'nan' is no finite number"),
        (HEADER + "u\ti\tinf\t1\n", 2, "rating 'inf' is no finite number"),
        (HEADER + "u\ti\t\t1\n", 2, "rating '' is no finite number"),
        (HEADER + "u\ti\t4\t1\n\ti\t4\t1\n", 3, "the user_id is empty"),
        ("user_id:token\titem_id:token\nu\ti\nu\n", 3, "1 field instead of 2"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, line, says):
    path = _file(tmp_path, text)
    with pytest.raises(CDRError) as error:
        read_inter(path)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert says in str(error.value)


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path):
    path = _file(tmp_path, HEADER.encode() + b"u\ti\t4\t1\nu\t\xff\t4\t1\n")
    with pytest.raises(CDRError, match=r"a\.inter:3: the text is not UTF-8"):
        read_inter(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CDRError, match=r"none\.inter: there is no such file"):
        read_inter(tmp_path / "none.inter")


def test_a_needed_column_is_asked_for(tmp_path):
    path = _file(tmp_path, "user_id:token\titem_id:token\trating:float\nu\ti\t1\n")
    with pytest.raises(CDRError, match="no column 'timestamp'"):
        read_inter(path, required=("user_id", "item_id", "timestamp"))


def test_writing_and_reading_gives_the_same_back(tmp_path):
    frame = pd.DataFrame(
        {"user_id": ["007", 'q"'], "item_id": ["NA", "x y"], "rating": [0.1, 1 / 3], "timestamp": [1e9, 5.0]}
    )
    write_inter(tmp_path / "a.inter", frame)
    text = (tmp_path / "a.inter").read_text()
    assert text == HEADER + f'007\tNA\t0.1\t1000000000\nq"\tx y\t{1 / 3!r}\t5\n'
    again = read_inter(tmp_path / "a.inter")
    assert again["user_id"].tolist() == frame["user_id"].tolist()
    assert again["rating"].tolist() == frame["rating"].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["a.inter"]


@pytest.mark.parametrize("bad", ["", "a\tb", "a\nb", None])
def test_a_token_that_would_break_the_file_is_not_written(tmp_path, bad):
    with pytest.raises(CDRError, match="cannot be a user_id"):
        write_inter(tmp_path / "a.inter", pd.DataFrame({"user_id": ["u", bad], "item_id": ["i", "j"]}))
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    frame = pd.DataFrame({"user_id": ["u", "v"], "item_id": ["i", "j"], "rating": [1.0, np.nan]})
    with pytest.raises(CDRError, match="the rating in row 1 is nan"):
        write_inter(tmp_path / "a.inter", frame)


def _two_domains():
    food = pd.DataFrame({"user_id": ["a", "a", "b", "b"], "item_id": ["1", "2", "1", "3"]})
    kitchen = pd.DataFrame({"user_id": ["b", "c", "c"], "item_id": ["9", "9", "8"]})
    return {"food": food, "kitchen": kitchen}


def test_statistics():
    table = statistics(_two_domains())
    assert table.loc["food"].to_dict() == {
        "users": 2, "items": 3, "overlapping_users": 1, "interactions": 4, "mean_length": 2.0, "density": 4 /
        6,
    }  # fmt: skip
    assert table.loc["kitchen"].to_dict() == {
        "users": 2, "items": 2, "overlapping_users": 1, "interactions": 3, "mean_length": 1.5, "density": 3 /
        4,
    }  # fmt: skip


def test_statistics_of_an_empty_domain_are_zero():
    frames = _two_domains()
    frames["kitchen"] = frames["kitchen"].iloc[:0]
    assert statistics(frames).loc["kitchen"].tolist() == [0, 0, 0, 0, 0, 0]
    assert statistics(frames).loc["food", "overlapping_users"] == 0


def test_statistics_as_text():
    assert format_statistics(statistics(_two_domains())) == (
        "domain   users  items  overlap  interactions  length  density\n"
        "food         2      3        1             4    2.00  66.667%\n"
        "kitchen      2      2        1             3    1.50  75.000%"
    )


def test_fingerprint_sees_names_and_contents_of_inter_files_only(tmp_path):
    _file(tmp_path, "1", "a.inter")
    _file(tmp_path, "2", "b.inter")
    first = fingerprint(tmp_path)
    _file(tmp_path, "x", "statistics.txt")
    (tmp_path / "rows").mkdir()
    _file(tmp_path / "rows", "3", "a.inter")
    assert fingerprint(tmp_path) == first
    _file(tmp_path, "3", "b.inter")
    assert fingerprint(tmp_path) != first
    _file(tmp_path, "2", "b.inter").rename(tmp_path / "c.inter")
    assert fingerprint(tmp_path) != first


def test_fingerprint_of_no_files_is_an_error(tmp_path):
    with pytest.raises(CDRError, match=r"no \.inter file"):
        fingerprint(tmp_path)


def test_half_a_million_rows_are_read_fast(tmp_path):
    n = 500_000
    numbers = np.arange(n)
    frame = pd.DataFrame(
        {"user_id": (numbers % 50_000).astype(str), "item_id": (numbers % 9_973).astype(str)}
    )
    write_inter(tmp_path / "a.inter", frame.assign(rating=numbers % 5 + 1.0, timestamp=numbers + 1e9))
    start = time.perf_counter()
    again = read_inter(tmp_path / "a.inter")
    assert len(again) == n
    assert time.perf_counter() - start < 3  # about 0.2 s; reading line by line would take longer than this


def test_load_col_reads_the_columns_it_names_and_a_domain_may_have_its_own(tmp_path):
    rows = {name: [(f"u{u}", f"i{i}", 10 * u + i) for u in range(8) for i in range(4)] for name in "ab"}
    for name, table in rows.items():
        frame = pd.DataFrame(table, columns=["user_id", "item_id", "timestamp"])
        path = tmp_path / "mini" / f"{name}.inter"
        path.parent.mkdir(exist_ok=True)
        write_inter(path, frame.assign(timestamp=frame.timestamp.astype(float), rating=3.0))
    three = {"inter": ["user_id", "item_id", "timestamp"]}
    assert not np.isnan(load_written(tmp_path, ["a", "b"]).dataset.events.rating).any()
    assert np.isnan(load_written(tmp_path, ["a", "b"], load_col=three).dataset.events.rating).all()
    events = load_written(tmp_path, ["a", "b"], domain_settings={"b": {"load_col": three}}).dataset.events
    assert (np.isnan(events.rating) == (events.domain == 1)).all()
    with pytest.raises(CDRError, match="no timestamp column"):
        load_written(tmp_path, ["a", "b"], load_col={"inter": ["user_id", "item_id"]})
    with pytest.raises(CDRError, match=r"a.inter:1: the header has no column 'stars'"):
        load_written(tmp_path, ["a", "b"], load_col={"inter": ["user_id", "item_id", "stars"]})
