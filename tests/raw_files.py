"""Raw files of a made-up data set, and preparing them, for the tests of ``prepare``."""

from __future__ import annotations

import json

import pytest

from recbole_cdr_ext.data.prepare import prepare

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


def _nothing_left(folder):
    return not folder.exists() or list(folder.iterdir()) == []


def _facts(folder):
    return json.loads((folder / "statistics.json").read_text())["facts"]


def _prepare(name, description, raw, out, **options):
    return prepare(name, description=description, raw=raw, data_path=out, progress=False, **options)


def _altered(description, **source):
    return {**description, "source": {**description["source"], **source}}
