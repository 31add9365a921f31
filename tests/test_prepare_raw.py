"""Where raw files come from: folders, downloads, stand-ins, and what is there already."""

from __future__ import annotations

import functools
import http.server
import shutil
import socket
import threading

import pytest
import raw_files
from raw_files import TABLE, _altered, _nothing_left, _prepare

from recbole_cdr_ext.data.atomic import fingerprint, read_inter
from recbole_cdr_ext.data.prepare import ensure_dataset, list_datasets, prepare
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.reading import dataset_property_files

_no_raw_folder_from_outside = raw_files._no_raw_folder_from_outside
table_raw = raw_files.table_raw


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
