"""A sweep's folder, page and summary, without Ray."""

from __future__ import annotations

import fcntl
import json
import socket
from dataclasses import replace

import numpy as np
import pytest
import tuning_toys
from study_toys import EVIL, Page, check_harmless
from tuning_toys import prepared, space_file

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.pages.page import plotly_script
from recbole_cdr_ext.tuning import sweep, sweep_page
from recbole_cdr_ext.tuning import tune as tune_module
from recbole_cdr_ext.tuning.records import CUT, FAILED, FINISHED, Record, best_first
from recbole_cdr_ext.tuning.space import Parameter
from recbole_cdr_ext.tuning.sweep import DEFAULTS, prepare
from recbole_cdr_ext.tuning.tune import tune

quick = tuning_toys.quick


# -- the folder, without Ray -----------------------------------------------------------------------------------------


def test_two_sweeps_in_one_folder(quick, tmp_path):
    (tmp_path / "sweep").mkdir()
    with (tmp_path / "sweep" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CDRError, match="Another sweep is at work in"):
            tune("BPR", "toy", config_dict=quick, space=space_file(tmp_path), out=str(tmp_path / "sweep"))


def test_another_sweep_in_the_folder(quick, tmp_path):
    made = prepared(tmp_path, quick, "BPR")
    tune_module._begin(made)
    tune_module._begin(prepared(tmp_path, quick, "BPR", jobs=2))  # how it runs may change
    options = {**DEFAULTS, "resume": True, "out": str(made.folder)}
    found = tune_module._stored(None, None, options, None, (), None)
    assert prepare(*found[:3], None, found[3]).identity() == made.identity()
    with pytest.raises(CDRError, match="model=Pop contradicts the sweep"):
        tune_module._stored("Pop", None, options, None, (), None)
    with pytest.raises(CDRError, match=r"holds another sweep \(settings: .*epochs.: 4.*epochs.: 5"):
        tune_module._begin(prepared(tmp_path, {**quick, "epochs": 5}, "BPR"))
    with pytest.raises(CDRError, match=r"holds another sweep \(space"):
        tune_module._begin(prepared(tmp_path, quick, "BPR", space="learning_rate: {choice: [0.01, 0.004]}\n"))


def test_a_sweep_does_not_go_on_where_defaults_have_changed(quick, tmp_path):
    made = prepared(tmp_path, quick, "BPR")
    tune_module._begin(made)
    path = made.folder / "sweep.json"
    state = json.loads(path.read_text())
    tune_module._begin(made)
    state["resolved"]["embedding_size"] = 7
    path.write_text(json.dumps(state))
    with pytest.raises(CDRError, match="where embedding_size is 7 unless it is given, and here it is 64"):
        tune_module._begin(made)
    path.write_text(json.dumps({**state, "finished": True}))
    tune_module._begin(made)  # there is nothing to go on with


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CDRError, match="There is no sweep to resume"):
        tune(resume=True, out=str(tmp_path))
    with pytest.raises(CDRError, match="Which sweep is to go on"):
        tune(resume=True)


def test_an_address_that_does_not_answer(quick, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for given, message in (
        (address, f"No Ray cluster answers at {address}"),
        ("nowhere", "should be HOST:PORT"),
    ):
        with pytest.raises(CDRError, match=message):
            tune(
                "BPR",
                "toy",
                config_dict=quick,
                space=space_file(tmp_path),
                out=str(tmp_path / "s"),
                ray_address=given,
            )


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "optuna" else object())
    sweep.require("random")
    with pytest.raises(CDRError, match=r"needs optuna.*pip install 'recbole_cdr_ext\[tune\]'"):
        sweep.require("optuna")


# -- page and summary ------------------------------------------------------------------------------------------------

PARAMETERS = (
    Parameter("learning_rate", "loguniform", (1e-4, 1e-1)),
    Parameter("kind", "choice", ("a", "b")),
    Parameter("size", "int", (1, 9), {"kind": ("b",)}),
)


def made_up(n, seed=0):
    """Trials whose score depends on the learning rate alone."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        rate, kind = float(10 ** rng.uniform(-4, -1)), "ab"[i % 2]
        settings = {"learning_rate": rate, "kind": kind} | (
            {"size": int(rng.integers(1, 9))} if kind == "b" else {}
        )
        score = 1 - abs(np.log10(rate) + 2.5) / 3
        found.append(Record(f"{i:04d}", settings, FINISHED, score, 2, "epochs", [[1, score / 2], [2, score]]))
    return found


def test_importance_finds_what_matters():
    found = sweep_page.importance(made_up(40), PARAMETERS)
    assert next(iter(found)) == "learning_rate" and found["learning_rate"][0] > 10 * abs(found["kind"][0])
    assert sweep_page.importance(made_up(7), PARAMETERS) is None


def test_what_comes_from_files_is_no_markup_in_the_page(tmp_path):
    parameters = (*PARAMETERS, Parameter("word", "choice", (EVIL, "b")))
    records = [replace(record, settings={**record.settings, "word": EVIL}) for record in made_up(9)]
    failed = Record(EVIL, {"word": EVIL, "learning_rate": 0.5}, FAILED, reason=EVIL)
    about = sweep_page.About(EVIL, EVIL, EVIL, True, parameters, EVIL, EVIL, [EVIL])
    sweep_page.write_page([*records, failed], about, tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    check_harmless(page)
    assert page.title == about.title
    # Title and heading; command, how and note; nine values, and the failed trial's with its name.
    assert page.text.count(EVIL) == 2 * 3 + 3 + 9 + 2
    assert set(page.figures) == {"parallel", "importance", "curves"}
    # Parallel coordinates are drawn by code that plotly compiles.
    assert "script-src 'unsafe-inline' 'unsafe-eval';" in page.policy


def test_trials_are_sorted_by_their_numbers(tmp_path):
    failed = Record("9999", {"kind": "a", "learning_rate": 0.5}, FAILED, reason="x")
    about = sweep_page.About("M", "D", "NDCG@10", True, PARAMETERS, "command", "how")
    sweep_page.write_page([*made_up(1), failed], about, tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    numbers = [attributes.get("data-value") for tag, attributes in page.tags if tag == "td"]
    first = made_up(1)[0]
    assert numbers[:4] == [
        None,
        str(first.settings["learning_rate"]),
        None,
        "",
    ]  # of trial, rate, kind and size
    assert numbers[8:] == [None, "0.5", None, "", "0", "", "0.0", None]  # a missing score comes last


@pytest.mark.parametrize("n", [3, 12])
def test_page_and_summary(tmp_path, n):
    failed = Record("9999", {"kind": "a", "learning_rate": 0.5}, FAILED, reason="<b>out</b> | of memory")
    records = best_first([*made_up(n), failed], True)
    about = sweep_page.About("M", "D", "NDCG@10", True, PARAMETERS, "recbole-cdr run --x", "how")
    sweep_page.write_page(records, about, tmp_path / "p.html")
    sweep_page.write_summary(records, about, tmp_path / "p.md")
    text, summary = (tmp_path / "p.html").read_text(), (tmp_path / "p.md").read_text()
    own = text.replace(plotly_script(), "")
    assert "<script src" not in text and "http" not in own.replace("http-equiv", "")
    assert "<b>out" not in text and "&lt;b&gt;out" in text and "recbole-cdr run --x" in text
    assert ('id="importance"' in text) == (n == 12) and 'id="parallel"' in text and 'id="curves"' in text
    assert ("there are fewer" in text) == (n == 3)
    assert records[0].trial in summary and f"{n + 1} trials: {n} finished, 1 failed" in summary


def test_order_of_records():
    records = [
        Record("a", {}, FINISHED, 0.1),
        Record("b", {}, CUT, 0.3),
        Record("c", {}, FAILED, 0.9),
        Record("d", {}, FINISHED, 0.3),
    ]
    assert [r.trial for r in best_first(records, True)] == ["b", "d", "a", "c"]
    assert [r.trial for r in best_first(records, False)] == ["a", "b", "d", "c"]
