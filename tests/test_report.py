"""``recbole-cdr report``: which runs stand together, and what becomes of broken ones."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from study_toys import only_group, report_files, write_run

import recbole_cdr_ext as cdr
from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.reports.groups import collect
from recbole_cdr_ext.reports.tables import tables_of
from recbole_cdr_ext.runs.finished import FinishedRun, find_folders
from recbole_cdr_ext.settings.config import RUNTIME_KEYS, CDRConfig

# -- which runs stand together --------------------------------------------------------------------------------------


def test_seeds_are_repetitions_and_settings_are_labels(tmp_path):
    for seed in (3, 1, 2):
        write_run(tmp_path, seed=seed)
    write_run(tmp_path, seed=1, learning_rate=0.1, torch_threads=7, max_seconds=5)
    write_run(tmp_path, seed=1, embedding_size=8, learning_rate=0.1)
    write_run(tmp_path, "SASRec")
    group = only_group(tmp_path)
    assert {label: [run.seed for run in runs] for label, runs in group.members.items()} == {
        "BPR": [1, 2, 3],
        "BPR (learning_rate=0.1)": [1],
        "BPR (learning_rate=0.1, embedding_size=8)": [1],
        "SASRec": [1],
    }
    assert group.title == "toy, split=user"


def test_settings_beyond_three_are_counted_and_labels_stay_apart(tmp_path):
    changed = {"epochs": 3, "train_batch_size": 7, "eval_step": 2, "stopping_step": 3}
    write_run(tmp_path)
    write_run(tmp_path, **changed)
    write_run(tmp_path, **{**changed, "weight_decay": 0.1, "stopping_step": 10})
    short = "BPR (epochs=3, train_batch_size=7, eval_step=2, 1 more)"
    assert set(only_group(tmp_path).members) == {"BPR", f"{short} #1", f"{short} #2"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"split_seed": 7}, "split_seed=7"),
        ({"candidate_seed": 7}, "candidate_seed=7"),
        ({"density": 0.5}, "density=0.5"),
        ({"eval_args": {"mode": {"valid": "uni999", "test": "full"}}}, "candidates=full"),
    ],
)
def test_runs_that_were_asked_something_else_stand_apart(tmp_path, settings, told):
    write_run(tmp_path)
    write_run(tmp_path, **settings)
    titles = [group.title for group in collect(None, tmp_path).groups]
    assert len(titles) == 2
    assert f"toy, split=user, {told}" in titles


def test_other_numbers_of_instances_are_other_data(tmp_path):
    folder = write_run(tmp_path)
    write_run(tmp_path, "SASRec")
    result = json.loads((folder / "result.json").read_text())
    result["test"]["books"]["all"]["n"] += 1
    (folder / "result.json").write_text(json.dumps(result))
    titles = {group.title for group in collect(None, tmp_path).groups}
    assert titles == {"toy, split=user, 80 test instances", "toy, split=user, 81 test instances"}


def test_of_equal_runs_the_newest_counts(tmp_path):
    old = write_run(tmp_path, name="z-old")
    write_run(tmp_path, name="a-new")
    os.utime(old / "result.json", (1, 1))
    found = collect(None, tmp_path)
    assert [run.name for run in found.groups[0].runs] == ["a-new"]
    assert found.skipped == [(old, "the same settings and seed as a-new, which is newer")]


def test_runs_older_than_a_setting(tmp_path):
    old = write_run(tmp_path, seed=1, name="old")
    result = json.loads((old / "result.json").read_text())
    del result["settings"]["weight_averaging"]
    (old / "result.json").write_text(json.dumps(result))
    write_run(tmp_path, seed=2)
    group = only_group(tmp_path)
    assert [run.seed for run in group.members["BPR"]] == [1, 2]  # today's default is what was done then
    assert any("without the settings weight_averaging" in note for note in group.notes)
    write_run(tmp_path, seed=2, weight_averaging=0.9)
    group = only_group(tmp_path)  # now that cannot be relied on
    assert set(group.members) == {"BPR", "BPR (older version)", "BPR (weight_averaging=0.9)"}


def test_folders_are_found_by_name_pattern_and_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where a name is looked for first
    a, b = write_run(tmp_path / "saved", name="a"), write_run(tmp_path / "saved", name="b")
    (tmp_path / "saved" / "tensorboard").mkdir()
    saved = tmp_path / "saved"
    assert find_folders(None, saved) == [a, b]
    assert find_folders("b", saved) == [b]
    assert find_folders(f"{saved}/*", tmp_path) == [a, b, saved / "tensorboard"]
    assert find_folders("saved", tmp_path) == [a, b]
    assert find_folders(f"{a}/result.json,{a}", saved) == [a]
    with pytest.raises(CDRError, match=r"there is no 'c' here"):
        find_folders("c", saved)


def test_a_runs_command_gives_its_settings_again():
    given = {
        "seed": 5, "epochs": 7, "learning_rate": 1e-4, "density": 0.5, "max_seconds": 3, "checkpoint_dir": "else",
        "eval_args": {"mode": "full"}, "metrics": ["NDCG", "MRR"], "topk": [5, 10], "time_respecting": False,
    }  # fmt: skip
    settings = CDRConfig("BPR", "toy", config_dict=given).to_dict()
    run = FinishedRun(
        Path("x"), {"model": "BPR", "dataset": "toy", "seed": 5, "settings": settings, "task": "next_item"}
    )
    words = shlex.split(run.command())
    assert words[:2] == ["recbole-cdr", "run"]
    assert not any("checkpoint_dir" in word for word in words)
    again = CDRConfig(argv=words[2:]).to_dict()
    kept = set(settings) - RUNTIME_KEYS | {"max_seconds"}
    assert {key: again[key] for key in kept} == {key: settings[key] for key in kept}


# -- broken runs and misuse -----------------------------------------------------------------------------------------

TABLE = {"books": {"all": {"n": 1, "ndcg@10": 0.5}}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "not finished; go on with --resume="),
        ("{", "can't be read"),
        ("\xff", "is damaged|can't be read"),
        ("[]", "holds no result"),
        ("{}", "'model' is missing"),
        ({"seed": "x"}, "'seed' is missing or is no int"),
        ({"test": {}}, "'test' is no table"),
        ({"test": {"books": []}}, "'test' is no table"),
        ({"test": {"books": {"all": {"ndcg@10": 1}}}}, "'test' is no table"),
        ({"test": {"books": {"all": {"n": 3, "ndcg@10": float("nan")}}}}, "ndcg@10 that is no number"),
        ({"test": {"books": {"all": {"n": 3, "ndcg@10": None}}}}, "ndcg@10 that is no number"),
        ({"task": "dancing"}, "'dancing' is unknown"),
        ({"notes": "one"}, "'notes' is no list"),
        ({"floors": {"X": 3}}, "'floors: X' is no table"),
    ],
)
def test_broken_runs_are_skipped_with_the_reason(tmp_path, capsys, content, reason):
    write_run(tmp_path / "saved", name="good")
    broken = write_run(tmp_path / "saved", "SASRec", name="broken")
    file = broken / "result.json"
    if content is None:
        file.unlink()
    elif isinstance(content, dict):
        file.write_text(json.dumps({**json.loads(file.read_text()), **content}))
    else:
        file.write_text(content, encoding="latin-1")
    files = report_files(tmp_path / "saved", tmp_path / "out")
    said = capsys.readouterr().out
    assert re.search(f"Skipped {broken}: .*({reason})", said)
    assert "1 skipped" in files["report.html"]


@pytest.mark.parametrize(
    "changes",
    [
        {"history": "x"},
        {"history": [1, {"valid_score": "x"}]},
        {"seconds": 3},
        {"versions": []},
        {"report": 1},
    ],
)
def test_what_is_not_needed_may_be_odd(tmp_path, changes):
    write_run(tmp_path / "saved", changes=changes)
    assert "1 runs" in report_files(tmp_path / "saved", tmp_path / "out")["report.html"]


def test_misuse_is_one_clear_error(tmp_path, capsys):
    def error(*words: str) -> str:
        assert main(["report", f"--out={tmp_path / 'out'}", *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return said

    (tmp_path / "empty").mkdir()
    assert "There is no folder" in error(f"--checkpoint_dir={tmp_path / 'none'}")
    assert "There is no finished run" in error(f"--checkpoint_dir={tmp_path / 'empty'}")
    folder = write_run(tmp_path / "saved", name="one")
    assert "there is no 'on' here" in (said := error("--runs=on", f"--checkpoint_dir={tmp_path / 'saved'}"))
    assert "Did you mean 'one'" in said
    said = error("--baseline=SASRec", f"--checkpoint_dir={tmp_path / 'saved'}")
    assert "No run is of the baseline 'SASRec'" in said and "Known: BPR" in said
    assert "Unknown setting 'run' of `recbole-cdr report`. Did you mean 'runs'?" in error("--run=x")
    (folder / "result.json").unlink()
    assert "1 skipped" in error(f"--runs={folder}")


def test_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [write_run(tmp_path / "saved", name="a"), write_run(tmp_path / "saved", "SASRec", name="b")]
    assert cdr.report() == Path("report/report.html")
    assert Path("report/tables.tex").exists() and "Report" in Path("report/tables.md").read_text()
    page = cdr.report([runs[0], "b"], out=tmp_path / "two", baseline="BPR", title="Two of them")
    assert page == tmp_path / "two" / "report.html" and "Two of them" in page.read_text(encoding="utf-8")
    cdr.report("a,b", out="both", baseline="BPR", title="Two of them")
    assert Path("both/tables.md").read_text() == Path("two/tables.md").read_text()
    cdr.report(runs[0], out="one")
    assert "SASRec" not in Path("one/tables.md").read_text()
    with pytest.raises(CDRError, match=r"No run is of the baseline 'BPRR'\. Did you mean 'BPR'"):
        cdr.report(baseline="BPRR")
    with pytest.raises(TypeError, match="checkpoints"):
        cdr.report(checkpoints="saved")


def test_a_baseline_may_be_missing_in_some_groups(tmp_path):
    write_run(tmp_path, "BPR")
    write_run(tmp_path, "SASRec")
    write_run(tmp_path, "SASRec", split_seed=3)
    groups = collect(None, tmp_path).groups
    notes = [tables_of(group, "BPR")[0].notes for group in groups]
    assert sorted(map(len, notes)) == [0, 1]
    assert ["The baseline 'BPR' has no run here."] in notes


def test_a_baseline_that_is_several_has_to_be_named_by_its_label(tmp_path, capsys):
    for settings in ({"epochs": 7}, {"learning_rate": 0.1}):
        write_run(tmp_path, **settings)
    assert main(["report", f"--checkpoint_dir={tmp_path}", "--baseline=BPR"]) == 2
    assert "'BPR' is several here (BPR (epochs=7); BPR (learning_rate=0.1))" in capsys.readouterr().err
    (table,) = tables_of(only_group(tmp_path), "BPR (epochs=7)")
    assert table.baseline == "BPR (epochs=7)"


def test_a_killed_report_leaves_the_old_one(tmp_path, monkeypatch):
    write_run(tmp_path / "saved")
    before = report_files(tmp_path / "saved", tmp_path / "out")["report.html"]

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_cdr_ext.files.os.replace", stop)
    assert (
        main(["report", f"--checkpoint_dir={tmp_path / 'saved'}", f"--out={tmp_path / 'out'}", "--title=B"])
        == 130
    )
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == before
    assert len(list((tmp_path / "out").iterdir())) == 3
