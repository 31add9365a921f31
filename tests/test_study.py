"""``recbole-cdr study``: what is refused, what is run and what is not run again, and what the tables say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_cdr_ext.cli import main
from recbole_cdr_ext.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.report import write_instances
from recbole_cdr_ext.files import locked
from recbole_cdr_ext.reports import page
from recbole_cdr_ext.reports.collect import Run, collect
from recbole_cdr_ext.reports.tables import tables_of
from recbole_cdr_ext.studies import drive, processes, study
from recbole_cdr_ext.studies.cells import make_cells
from recbole_cdr_ext.studies.definition import read_study, shipped_studies
from recbole_cdr_ext.studies.processes import Job, ends_on_sigterm, run_all
from recbole_cdr_ext.studies.state import State
from recbole_cdr_ext.studies.store import Store
from recbole_cdr_ext.studies.tables import matrices, tables_by_group

ROOT = Path(__file__).resolve().parents[1]
CHILD = ROOT / "tests" / "study_child.py"
DATA = f"--data_path={ROOT / 'dataset_atomic'}"
QUIET = [DATA, "--show_progress=False", "--jobs=2"]
TWO = """
title: Two models
task: next_item
datasets: [toy]
seeds: [1, 2]
rows:
  Popular: {model: Pop}
  Neighbours: {model: ItemKNN, k: 5}
baseline: Popular
"""
VARIED = f"{TWO}vary: {{density: [0.5, 1.0]}}\nmetrics: [hit@10]\ngroups: [cold, all]\n"
RATED = """
task: rating
scenes: {books → films: {dataset: toy, source: books, target: films}}
seeds: [0, 1]
settings: {split_seed: seed}
models: [EMCDR, SCDR]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, where runs are made by the stand-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drive, "child", lambda words: [sys.executable, "-S", str(CHILD), *words])
    monkeypatch.setattr(page, "_plotly", lambda: "")  # five megabytes in each page
    (tmp_path / "moods").mkdir()
    return tmp_path


def written(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def calls() -> list[str]:
    """What was told to the runs since the last look."""
    path = Path("calls.txt")
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def go(text: str, *words: str, name: str = "mine", status: int = 0) -> str:
    """Runs a study to its end; returns its Markdown."""
    assert main(["study", written(Path.cwd(), text, name), *QUIET, *words]) == status
    out = next(
        (word.removeprefix("--out=") for word in words if word.startswith("--out=")), f"studies/{name}"
    )
    return (Path(out) / "tables.md").read_text(encoding="utf-8")


def cells(tmp_path: Path, text: str, **passed):
    return make_cells(
        read_study(written(tmp_path, text)), {"data_path": str(ROOT / "dataset_atomic"), **passed}
    )


def state(text: str, out: str = "studies/mine") -> State:
    found = read_study(written(Path.cwd(), text))
    made = make_cells(found, {"data_path": str(ROOT / "dataset_atomic")})
    return State.of(found, made, Path(out), Path("saved"))


# -- what is refused -------------------------------------------------------------------------------------------------


def changed(**lines: str) -> str:
    """TWO with other lines: text in place of a key's own, None without it."""
    kept = re.split(r"\n(?=\w)", TWO.strip())
    blocks = {block.split(":")[0]: block for block in kept} | {k: f"{k}: {v}" for k, v in lines.items()}
    left_out = {key for key, value in lines.items() if value is None} | (
        {"baseline"} if "rows" in lines else set()
    )
    return "\n".join(block for key, block in blocks.items() if key not in left_out) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(colour="red"), r"unknown key 'colour'\..*settings of all runs stand under 'settings'"),
        (changed(setting="{k: 5}"), r"unknown key 'setting'\. Did you mean 'settings'"),
        (changed(task="dancing"), "task: dancing should be one of next_item, rating"),
        (changed(title="[1]"), "title: .* should be text"),
        (changed(notes="{toys: Text}"), "notes: there is no scene 'toys'. Did you mean 'toy'"),
        (changed(notes="{toy: [Text]}"), "notes, 'toy': should be text"),
        (changed(quoted="{Popular: {toy: {}}}"), "quoted: 'Popular' is a row"),
        (changed(quoted="{Theirs: {toys: {}}}"), "quoted, 'Theirs': there is no scene 'toys'"),
        (changed(quoted="{Theirs: {toy: [1]}}"), "quoted, 'Theirs', 'toy': should be lines"),
        (changed(quoted="{Theirs: {toy: {books: {all: {ndcg@10: a}}}}}"), "ndcg@10: a is no number"),
        (changed(rows="{}"), "'rows' and 'models' are missing"),
        (changed(rows=None), "'rows' and 'models' are missing"),
        (changed(models="[Pop]"), "'rows' and 'models' both stand here"),
        (changed(datasets="[]"), "'scenes' and 'datasets' are missing"),
        (changed(datasets="[toy, toy]"), "datasets: toy stands there twice"),
        (changed(rows="\n  A: {model: Pop}\n  A: {model: BPR}"), "line 7: the key 'A' stands here a second time"),
        (changed(rows="{A: {k: 5}}"), "rows, 'A': should be settings with 'model: NAME'"),
        (changed(rows="{A: Pop}"), "rows, 'A': should be settings with 'model: NAME'"),
        (changed(rows="{A: {model: Pop}, B: {model: Pop}}"), "the rows 'A' and 'B' are the same run on 'toy'"),
        (changed(rows="{A: {model: Popp}}"), "row 'A' on 'toy': Unknown model 'Popp'. Did you mean 'Pop'"),
        (changed(datasets="[toyy]"), "on 'toyy': Unknown dataset 'toyy'.*Did you mean 'toy'"),
        (changed(settings="{epoch: 3}"), r"row 'Popular' on 'toy': Unknown setting 'epoch'\. Did you mean 'epochs'"),
        (changed(settings="{epochs: many}"), r"epochs=many should be of type int"),
        (changed(settings="{density: 2}"), "density=2"),
        (changed(settings="{seed: 3}"), "settings: 'seed' is not given here but in 'seeds'"),
        (changed(settings="{run_id: a}"), "'run_id' is no part of a study: the study sets it itself"),
        (changed(settings="{cache_dir: a}"), "'cache_dir' is no part of a study: give it on the command line"),
        (changed(settings="3"), "settings: should be settings"),
        (changed(seeds="[1, 1]"), "seeds: 1 stands there twice"),
        (changed(seeds="[-1]"), "seeds: -1 should be a whole number"),
        (changed(seeds="[]"), "seeds: there is none"),
        (changed(vary="{k: [1, 2]}"), "vary: 'k' is given in 'Neighbours' as well"),
        (changed(vary="{density: 0.5}"), "vary: 'density' should have a list of values"),
        (changed(vary="{density: [1, 1.0]}"), "vary, 'density': 1.0 stands there twice"),
        (changed(vary="{densty: [0.5]}"), "Unknown setting 'densty'. Did you mean 'density'"),
        (changed(metrics="[ndcg@5]"), "metrics: the runs of 'Popular' on 'toy' have no 'ndcg@5', only ndcg@10"),
        (changed(groups="[warm]"), "groups: the runs of 'Popular' on 'toy' have no 'warm'"),
        (changed(baseline="Popula"), r"baseline: 'Popula' is no row\. Did you mean 'Popular'"),
        (changed(analyses="{fgms: {}}"), r"analyses: unknown kind 'fgms'\. Did you mean 'fgsm'"),
        (changed(analyses="{fgsm: {epsilon: 1}}"), r"unknown option 'epsilon'\. Did you mean 'epsilons'"),
        (changed(analyses="{fgsm: {runs: a}}"), "unknown option 'runs'"),
        (changed(analyses="{fgsm: {}}"), "row 'Popular' on 'toy': Pop can't be analysed: it predicts next items"),
        ("", "'scenes' and 'datasets' are missing"),
        ("[1]", "expected lines of the form"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_study_is_one_error_before_any_run(here, capsys, text, message):
    assert main(["study", written(here, text), *QUIET]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "mine.yaml" in error and "(command line)" not in error and len(error.splitlines()) == 1
    assert not calls() and not Path("studies").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=BPR"], "'model' is set by the study for each of its runs: leave it out. Rows say which"),
        (["--seed=3"], "'seed' is set by the study .* Say --seeds=1,2"),
        (["--run_id=x"], "'run_id' is set by the study"),
        (["--density=0.5"], "'density' is what mine varies"),
        (["--epoch=3"], r"Unknown setting 'epoch' \(command line\)\. Did you mean 'epochs'"),
        (["--seeds=a"], "seeds: a should be a whole number"),
        (["--seeds=,"], "names nothing"),
        (["--jobs=0"], "jobs=0 should be at least 1"),
        (["--only=("], "is no regular expression"),
        (["--only=LightGCN"], "is found in no run; --dry_run lists them"),
        (["--dataset=nowhere"], "Unknown dataset 'nowhere'"),
    ],
)
def test_what_is_wrong_in_a_command(here, capsys, words, message):
    words = [word for word in QUIET if word.partition("=")[0] != words[0].partition("=")[0]] + words
    assert main(["study", written(here, VARIED), *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not calls()


def test_a_study_that_is_none(capsys):
    assert main(["study", "i2vae_groops"]) == 2
    assert "Did you mean 'i2vae_groups'?" in capsys.readouterr().err
    assert main(["study", "--epochs=3"]) == 2
    assert "Which study?" in capsys.readouterr().err


# -- cells -----------------------------------------------------------------------------------------------------------

COUNTS = {
    "i2vae_groups": (3 * 3 + 2) * 20, "i2vae_ablation": 4 * 5, "i2vae_density": 3 * 4 * 5, "i2vae_overlap": 3 * 4 * 5,
    "i2vae_sensitivity": 25 * 5, "scdr_results": 4 * 17 * 3 * 3, "scdr_robustness": 2 * 5, "scdr_backbones": 3 * 3 * 3,
    "scdr_ablation": 3 * 3 * 3, "scdr_sensitivity": 2, "i2vae_tuned": 6 * 5,
    "i2vae_user": 6 * 5, "i2vae_tuned_ablation": 6 * 3,
}  # fmt: skip


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_are_resolved_without_data(name, tmp_path):
    found = read_study(name)
    made = make_cells(found, {"data_path": str(tmp_path)})
    assert len(made) == found.n_runs == COUNTS[name]
    assert all(cell.source.digest() is None for cell in made[:3])


def test_the_paper_forms_are_what_their_files_say():
    made = make_cells(read_study("i2vae_sensitivity"))
    lengths = {cell.settings["max_history_length"] for cell in made if cell.varied[0] == "max_history_length"}
    assert lengths == {10, 15, 20, 25, 30}
    others = [cell for cell in made if cell.varied[0] == "lambda_c"]
    assert {cell.settings["lambda_a"] for cell in others} == {0.005}  # the paper's, one at a time
    assert {cell.settings["n_layers"] for cell in made} == {2}


def test_studies_are_listed_and_described(capsys):
    assert main(["study"]) == 0
    shown = capsys.readouterr().out
    for name in shipped_studies():
        assert re.search(rf"{name} .* {COUNTS[name]}\n", shown)
    assert main(["study", "i2vae_density", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "density in 0.25, 0.5, 0.75, 1.0" in shown and "60 runs" in shown and "--dry_run" in shown


def test_first_seeds_come_first_and_each_value_is_a_run_of_each_row(tmp_path):
    text = f"{TWO}vary: {{density: [0.5, 1.0], overlap_ratio: [0.5, 1.0]}}\n"
    made = cells(tmp_path, text)
    assert [cell.seed for cell in made] == [1] * 8 + [2] * 8
    varied = [(c.row, c.settings["density"], c.settings["overlap_ratio"]) for c in made[:8]]
    both = ("Popular", "Neighbours")
    assert varied == [(r, d, o) for d, o in ((0.5, 1.0), (1.0, 1.0), (1.0, 0.5), (1.0, 1.0)) for r in both]
    # What is varied to its default in both panels is one run.
    assert len({cell.identity for cell in made}) == 12


def test_seeds_of_splits_follow_seeds_of_training(tmp_path):
    made = cells(tmp_path, RATED)
    assert [(c.settings["seed"], c.settings["split_seed"]) for c in made] == [(0, 0)] * 2 + [(1, 1)] * 2
    assert "--split_seed=1" in made[-1].words
    alone = cells(tmp_path, RATED.replace("seeds: [0, 1]", "seeds: [1]"))  # resolved for itself
    assert [cell.identity for cell in alone] == [cell.identity for cell in made[2:]]


def test_settings_stand_above_those_that_are_more_general(tmp_path):
    text = (
        "scenes: {s: {dataset: toy, epochs: 2, dropout: 0.2}}\ntask: next_item\n"
        "settings: {epochs: 1, dropout: 0.1, eval_step: 2, stopping_step: 3}\n"
        "rows: {r: {model: I2VAE, dropout: 0.3, config_files: I2VAE_paper.yaml, n_layers: 3}}"
    )
    (cell,) = cells(tmp_path, text, stopping_step="4", one_pass="True", config_files="I2VAE_plain.yaml")
    keys = ("eval_step", "epochs", "dropout", "n_layers", "stopping_step", "pooling", "psg")
    assert [cell.settings[key] for key in keys] == [2, 2, 0.3, 3, 4, "mean", "none"]


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"data_path": "elsewhere"}, True),
        ({"cache_dir": "elsewhere"}, True),
        ({"state": "ERROR"}, True),
        ({"use_gpu": False}, True),
        ({"epochs": 3}, False),
        ({"max_seconds": 3}, False),
        ({"torch_threads": 2}, False),
        ({"metric_decimal_place": 2}, False),
        ({"candidate_seed": 3}, False),
    ],
)
def test_keys_change_with_what_decides_a_result(tmp_path, given, same):
    before, after = cells(tmp_path, TWO)[0], cells(tmp_path, TWO, **given)[0]
    assert (before.key("data") == after.key("data")) == same
    assert before.key("data") != before.key("other data")


def test_digests_change_with_the_data(tmp_path):
    shutil.copytree(ROOT / "dataset_atomic" / "toy", tmp_path / "toy")
    here, there = (
        cells(tmp_path, TWO, data_path=str(p))[0].source for p in (ROOT / "dataset_atomic", tmp_path)
    )
    assert here.digest() == there.digest()
    with (tmp_path / "toy" / "films.inter").open("a") as file:
        file.write("u_1\tfilms_1\t3.0\t5.0\n")
    assert here.digest() != there.digest()
    (tmp_path / "toy" / "films.inter").unlink()
    assert there.digest() is None


def test_other_datasets_and_seeds(tmp_path):
    text = TWO.replace("[toy]", "[cloth_sport, food_kitchen]")
    found = read_study(written(tmp_path, text)).on(["toy", "ml100k_genres"])
    assert list(found.scenes) == ["toy", "ml100k_genres"]
    found = read_study("scdr_robustness").on(["toy"])
    assert found.scenes == {
        "toy, biases=False": {"dataset": "toy", "biases": False},
        "toy, biases=True": {"dataset": "toy", "biases": True},
    }
    assert read_study("scdr_results").on(["toy"]).n_runs == 17 * 3 * 3  # four directions are one
    assert read_study(written(tmp_path, TWO)).with_seeds(["7"]).seeds == (7,)


SOME = TWO.replace(
    "datasets: [toy]",
    "scenes:\n  many: {dataset: toy}\n  one: {dataset: toy, split: leave_one_out, seeds: 2}",
)


def test_a_scene_may_have_seeds_of_its_own(tmp_path):
    found, made = read_study(written(tmp_path, SOME)), cells(tmp_path, SOME)
    assert found.n_runs == len(made) == 6
    assert {(cell.scene, cell.seed) for cell in made} == {("many", 1), ("many", 2), ("one", 2)}
    assert found.seeds_in_words == "1, 2 (one: 2)"
    assert found.with_seeds([7, 8]).n_runs == 8
    bad = SOME.replace("seeds: 2}", "seeds: [2, 2]}")
    with pytest.raises(CDRError, match="scenes, 'one', seeds: 2 stands there twice"):
        read_study(written(tmp_path, bad))


# -- running ---------------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(here):
    first = go(TWO)
    assert len(calls()) == 4
    assert go(TWO) == first and not calls()
    # Another name is no other run; another setting is, and only where it is.
    renamed = go(TWO.replace("Popular", "The popular"))
    assert "| The popular (2) |" in renamed and not calls()
    go(TWO.replace("k: 5", "k: 6"))
    assert len(found := calls()) == 2 and all("--k=6" in words for words in found)
    go(TWO, "--seeds=2,3")
    assert len(calls()) == 2  # of the third seed


def test_figures_of_others_and_notes_stand_in_the_tables(here):
    text = (
        f"{TWO}quoted: {{Theirs: {{toy: {{books: {{all: {{ndcg@10: 0.987}}}}}}}}}}\n"
        "notes: {toy: Made of nothing.}\n"
    )
    shown = go(text)
    (line,) = [line for line in shown.splitlines() if line.startswith("| *Theirs*") and "98.70" in line]
    assert line.count("–") == line.count("|") - 3  # all columns but one, and the label
    assert "- Made of nothing." in shown and "**98.70**" not in shown
    best = [line for line in go(TWO).splitlines() if "**" in line and line.startswith("| Neigh")]
    assert [line for line in shown.splitlines() if "**" in line and line.startswith("| Neigh")] == best
    elsewhere = read_study(written(here, text)).on(["ml100k_genres"])  # where they do not hold
    assert elsewhere.quoted == {"Theirs": {}} and elsewhere.notes == {}


def test_finished_runs_are_adopted_where_their_settings_are_the_same(here):
    go(TWO)
    assert len(calls()) == 4
    ready = state(TWO)
    for number, cell in enumerate(ready.cells):
        folder = ready.run_folder(cell)
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "settings": dict(cell.settings)}))
        folder.rename(folder.with_name(f"mine-{number}"))
    shutil.rmtree("studies")
    expected = go(TWO, "--adopt", "--seeds=1,2")
    assert not calls() and "4 of 4 runs" in expected
    shutil.rmtree("studies")
    go(TWO.replace("k: 5", "k: 6"), "--adopt")
    assert len(found := calls()) == 2 and all("--k=6" in words for words in found)


def test_settings_that_a_kept_run_is_older_than_count_as_their_defaults(here):
    go(TWO)
    assert len(calls()) == 4
    shutil.rmtree("saved")
    path = Path("studies/mine/cells.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["settings"]["density"]
        line["key"] = line["identity"] = line["key"][::-1]
    for line, name in zip(lines, sorted(Path("studies/mine/instances").glob("run-*")), strict=True):
        name.rename(name.with_name(f"run-{line['key'][:12]}.npz"))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    go(TWO)
    assert not calls()
    go(TWO.replace("seeds:", "settings: {density: 0.5}\nseeds:"))
    assert len(calls()) == 4
    lines[0]["settings"]["gone"] = 1  # what no longer exists can't be told
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree("saved")
    go(TWO)
    assert len(calls()) == 1


def test_other_data_are_other_runs(here):
    shutil.copytree(ROOT / "dataset_atomic" / "toy", here / "data" / "toy")
    go(TWO)
    calls()
    assert main(["study", "mine.yaml", "--data_path=data", "--show_progress=False"]) == 0
    assert not calls()  # elsewhere, and the same
    with (here / "data" / "toy" / "films.inter").open("a") as file:
        file.write("u_1\tfilms_1\t3.0\t5.0\n")
    assert main(["study", "mine.yaml", "--data_path=data", "--show_progress=False"]) == 0
    assert len(calls()) == 4


def test_studies_share_what_they_share(here):
    go(TWO)
    assert len(calls()) == 4
    more = TWO.replace("  Popular: {model: Pop}\n", "  Popular: {model: Pop}\n  B: {model: BPR}\n")
    go(more, name="more")  # from the folders of runs
    assert len(calls()) == 2
    shutil.rmtree("saved")
    table = go(TWO, name="third")  # from what stands beside it
    assert not calls() and "**" in table
    assert table.splitlines()[3:] == go(TWO).splitlines()[3:]
    kept = sorted(path.name for path in Path("studies/third/instances").iterdir())
    assert kept == sorted(path.name for path in Path("studies/mine/instances").iterdir())


def test_a_failing_run_leaves_the_others(here, capsys):
    for mood, reason in (
        ("raise", "ValueError: bad luck"),
        ("refuse", "the loss is not finite."),
        ("die", "SIGKILL"),
    ):
        Path("moods/ItemKNN").write_text(mood)
        table = go(TWO, status=1)
        assert len(calls()) == (4 if mood == "raise" else 2)  # what failed is tried again
        shown = capsys.readouterr().out
        assert re.search(rf"Failed: Neighbours, toy, seed 2: .*{reason}", shown), shown
        assert ("Traceback" in shown) == (mood == "raise")
        assert "| Popular (2) |" in table and "| Neighbours (0) | – | – |" in table
        assert "There is no run yet of: Neighbours." in table and reason in table
    Path("moods/ItemKNN").unlink()
    table = go(TWO)
    assert all("--resume=study-ItemKNN-toy-" in words for words in calls())  # it had begun
    assert "| Neighbours (2) |" in table and "Failed" not in table and "no run yet" not in table


def test_seeds_that_are_missing_are_said(here):
    go(TWO, "--only=seed 1")
    table = (here / "studies/mine/tables.md").read_text()
    assert len(calls()) == 2 and "4 runs" in table and "2 of 4 runs" in table
    assert "There is no run yet of: Popular (seeds 2); Neighbours (seeds 2)." in table
    assert study("mine.yaml", {"dry_run": True, "data_path": str(ROOT / "dataset_atomic")})["done"] == 2


def test_a_run_that_ended_unseen_counts(here):
    go(TWO)
    lines = Path("studies/mine/cells.jsonl").read_text().splitlines(keepends=True)
    Path("studies/mine/cells.jsonl").write_text(
        "".join(lines[:2]) + lines[2][:99]
    )  # killed while it was written
    calls()
    before = Path("studies/mine/tables.md").read_text()
    assert go(TWO) == before and not calls()
    kept = Path("studies/mine/cells.jsonl").read_text().splitlines()
    assert len(kept) == 5 and sum(json.loads(line) is not None for line in kept if line[-1] == "}") == 4


def test_a_dry_run_runs_and_writes_nothing(here, capsys):
    go(TWO, "--only=Popular")
    calls()
    before = sorted(path.name for path in here.rglob("*"))
    capsys.readouterr()
    assert main(["study", "mine.yaml", *QUIET, "--dry_run", "--only=seed 1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["done", "to do", "done", "left out"]
    assert lines[1].endswith(
        "Neighbours, toy, seed 1: recbole-cdr run --model=ItemKNN --dataset=toy --seed=1 --k=5 --task=next_item"
    )
    assert lines[-1].startswith("4 runs, 1 to do.")
    assert not calls() and sorted(path.name for path in here.rglob("*")) == before


def test_a_quick_look_leaves_the_study_alone(here):
    go(TWO)
    before = Path("studies/mine/tables.md").read_text()
    assert main(["study", "mine.yaml", *QUIET, "--epochs=3"]) == 0
    assert Path("studies/mine/tables.md").read_text() == before
    look = Path("studies/mine-epochs=3/tables.md").read_text()
    assert "mine.yaml --epochs=3`" in look and "--seed=1 --k=5 --task=next_item --epochs=3\n" in look


def test_two_calls_at_once(here, capsys):
    Path("studies/mine").mkdir(parents=True)
    with locked(Path("studies/mine"), "study"):
        assert main(["study", written(here, TWO), *QUIET]) == 2
    assert "Another study is at work in studies/mine" in capsys.readouterr().err and not calls()


def test_from_python(here):
    found = study(
        written(here, TWO), {"seeds": [1], "show_progress": False, "data_path": str(ROOT / "dataset_atomic")}
    )
    assert found["done"] == 2 and not found["missing"] and not found["failed"]
    (group,) = found["groups"]
    assert {label: [run.seed for run in runs] for label, runs in group.members.items()} == {
        "Popular": [1],
        "Neighbours": [1],
    }


# -- tables ----------------------------------------------------------------------------------------------------------


def by_model(tables) -> dict:
    """What tables say, by domain, model, group and metric."""
    names = {"Popular": "Pop", "Neighbours": "ItemKNN"}
    return {
        (block.domain, names.get(row.label, row.label), *column): (cell.text, cell.place, cell.mark)
        for block in tables[0].blocks
        for row in block.rows
        for column, cell in row.cells.items()
    }


@pytest.mark.parametrize("text", [TWO, RATED.replace("split_seed: seed", "split_seed: 5")])
def test_tables_of_what_is_kept_are_those_of_the_runs(here, text):
    go(text)
    (group,) = collect(None, "saved").groups
    baseline = "Pop" if text == TWO else None
    expected = by_model(tables_of(group, baseline))
    shutil.rmtree("saved")
    ((_, tables),) = tables_by_group(state(text))
    assert by_model(tables) == expected
    assert any(mark for _, _, mark in expected.values())


def test_where_data_are_not_prepared_what_is_kept_counts(here):
    before = go(TWO).splitlines()[3:]
    calls()
    shutil.rmtree("saved")
    assert main(["study", "mine.yaml", "--data_path=nowhere", "--show_progress=False"]) == 0
    assert Path("studies/mine/tables.md").read_text().splitlines()[3:] == before and not calls()


def test_splits_by_seed_are_tested_together(here):
    table = go(RATED)
    assert "Each seed has a split of its own" in table and "**\\*\\*" in table.replace("** |", "")
    ((group, (one,)),) = tables_by_group(state(RATED))
    assert set(one.comparisons["n"]) == {240}  # 120 ratings in each of two splits
    assert len(group.instances_of("SCDR")) == 1
    # A split that not all rows were run on can't be compared on.
    Path("moods/SCDR").write_text("refuse")
    go(RATED, "--seeds=0,1,2", status=1)
    ((_, (one,)),) = tables_by_group(state(RATED.replace("[0, 1]", "[0, 1, 2]")))
    assert set(one.comparisons["n"]) == {240}


def test_what_is_varied_stands_side_by_side(here):
    table = go(VARIED)
    pairs = tables_by_group(state(VARIED))
    assert [group.title for group, _ in pairs] == ["toy, density=0.5", "toy, density=1.0"]
    for _, (
        one,
    ) in pairs:  # tests are of what is shown: two domains, two groups, one metric, one pair of rows
        assert len(one.comparisons) == 4 and set(one.comparisons["group"]) == {"cold", "all"}
    ((_, made),) = matrices(state(VARIED), pairs)
    assert [one.title for one in made] == ["toy, by density: cold", "toy, by density: all"]
    for one, group in zip(made, ("cold", "all"), strict=True):
        for number, block in enumerate(one.blocks):
            assert block.columns == [("0.5", "hit@10"), ("1.0", "hit@10")]
            for row, label in zip(block.rows, ("Popular", "Neighbours"), strict=True):
                for (_, (single,)), value in zip(pairs, ("0.5", "1.0"), strict=True):
                    expected = next(r for r in single.blocks[number].rows if r.label == label).cells[
                        group, "hit@10"
                    ]
                    cell = row.cells[value, "hit@10"]
                    assert (cell.text, cell.place, cell.mark) == (expected.text, expected.place, "")
            assert 1 in {cell.place for row in block.rows for cell in row.cells.values()}
    assert (
        table.index("by density: cold")
        < table.index("![figure](<figure.png>)")
        < table.index("toy, density=0.5")
    )
    assert "NDCG" not in table and "tailed" not in table
    assert table.count("recbole-cdr run --model=Pop --dataset=toy --seed=1") == 2 and "--seed=2" not in table
    folder = Path("studies/mine")
    assert (folder / "figure.png").stat().st_size > 10_000
    html = (folder / "report.html").read_text()
    assert "data:image/png;base64," in html and "toy, by density: all" in html
    assert (folder / "tables.tex").read_text().count(r"\begin{table*}") == 4


def test_a_line_is_small_and_instances_are_kept_once(here):
    go(TWO)
    lines = Path("studies/mine/cells.jsonl").read_text().splitlines()
    assert all(len(line) < 6000 and '"history"' not in line for line in lines)
    kept = [path.name for path in Path("studies/mine/instances").iterdir()]
    assert len([name for name in kept if name.startswith("set-")]) == 1 and len(kept) == 5


def test_ranks_of_fifteen_thousand_instances_take_little(tmp_path):
    rng, n = np.random.default_rng(0), 15_000
    frame = pd.DataFrame(
        {"part": "test", "user": [f"u{i}" for i in range(n)], "domain": "books", "target": "i"}
    )
    frame = frame.assign(all=True, candidates=1000, rank=rng.integers(1, 1001, n), fallback=False)
    write_instances(frame, tmp_path)
    cell = cells(tmp_path, TWO)[0]
    result = {"model": "Pop", "dataset": "toy", "split": "user", "seed": 1, "run_id": "x", "settings": {}}
    result["test"] = {"books": {"all": {"n": n, "ndcg@10": 0.5}}}
    store = Store(tmp_path / "out")
    line = store.add(cell, "data", Run(tmp_path, result))
    (path,) = (tmp_path / "out" / "instances").glob("run-*.npz")
    assert path.stat().st_size < 25_000
    again = Store(tmp_path / "out").run(cell, line).instances
    assert (again["rank"] == frame["rank"]).all() and (again["user"] == frame["user"]).all()
    assert again["hit@10"].sum() == (frame["rank"] <= 10).sum()
    path.unlink()
    with pytest.raises(CDRError, match="can't be read"):
        _ = Store(tmp_path / "out").run(cell, line).instances


ANALYSED = f"{RATED}analyses:\n  fgsm: {{epsilons: [0, 1]}}\n  sensitivity: {{rhos: [1, 5]}}\n"


def test_analyses_are_made_of_the_first_seeds_runs_and_once(here):
    table = go(ANALYSED)
    found = calls()
    fgsm, *others = sorted(words for words in found if words.startswith("analyse"))
    runs = [path.name for path in sorted(Path("saved").iterdir(), key=lambda p: p.stat().st_mtime)]
    assert len(found) == 4 + 3 and "--epsilons=0,1" in fgsm
    told = dict(word[2:].partition("=")[::2] for word in fgsm.split()[2:])
    assert {Path(run).name for run in told["runs"].split(",")} <= set(runs)
    for run, model in zip(told["runs"].split(","), ("EMCDR", "SCDR"), strict=True):
        assert json.loads(Path(run, "result.json").read_text())["model"] == model
        assert json.loads(Path(run, "result.json").read_text())["seed"] == 0
    for words, model in zip(others, ("EMCDR", "SCDR"), strict=True):
        assert (
            words.startswith("analyse sensitivity --rhos=1,5")
            and f"--model={model} --dataset=toy --seed=0" in words
        )
    assert "![fgsm, books → films](<analyses/fgsm/fgsm.png>)" in table and "| EMCDR | 0.25 |" in table
    go(ANALYSED)
    assert not calls()
    shutil.rmtree("saved")  # what is kept is enough
    go(ANALYSED)
    assert not calls()
    go(ANALYSED.replace("[0, 1]}", "[0, 2]}"))  # which takes weights, and so the first seed's runs
    found = calls()
    assert len([words for words in found if "--seed=0" in words and words.startswith("run")]) == 2
    assert len(found) == 3 and "--epsilons=0,2" in found[-1]


def test_an_analysis_that_fails_is_said(here, capsys):
    Path("moods/fgsm").write_text("raise")
    go(ANALYSED, status=1)
    assert re.search(r"Failed: fgsm, books → films: ValueError: bad luck", capsys.readouterr().out)
    calls()
    Path("moods/fgsm").unlink()
    Path("moods/SCDR").write_text("refuse")
    assert "Failed" not in go(ANALYSED)
    (words,) = calls()
    assert words.startswith("analyse fgsm")
    shutil.rmtree("studies")
    shutil.rmtree("saved")
    assert "there is no run of SCDR, books → films, seed 0" in go(ANALYSED, status=1)


# -- processes -------------------------------------------------------------------------------------------------------

# As in child.py: pytest in a script's background ignores this signal, and so would what it starts.
SLEEP = [
    sys.executable, "-S", "-c",
    "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); open('begun', 'a').write('x'); "
    "time.sleep(60)",
]  # fmt: skip


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_end_with_the_iteration(here, monkeypatch):
    started = []
    real = subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1]
    )
    quick = Job("quick", lambda: [sys.executable, "-S", "-c", "print('done')"])
    slow = Job("slow", lambda: SLEEP)
    with closing(run_all([slow, quick], 2, 1)) as ends:
        first = next(ends)
        assert (first.job.name, first.status, first.output) == ("quick", 0, "done\n")
        wait_for(Path("begun").exists)
        assert alive(started[0].pid)
    assert not alive(started[0].pid) and started[0].returncode == -signal.SIGINT


def test_a_folder_is_worked_in_by_one(here):
    mark = "import sys, time; f = open('log', 'a'); f.write('('); f.flush(); time.sleep(0.3); f.write(')')"
    jobs = [Job(str(i), lambda: [sys.executable, "-S", "-c", mark], here / "run") for i in range(3)]
    assert [one.status for one in run_all(jobs, 3, 1)] == [0, 0, 0]
    assert (here / "log").read_text() == "()()()"


def test_no_more_at_once_than_asked_for(here):
    mark = "import time; f = open('log', 'a'); f.write('('); f.flush(); time.sleep(0.2); f.write(')')"
    jobs = [Job(str(i), lambda: [sys.executable, "-S", "-c", mark]) for i in range(4)]
    list(run_all(jobs, 1, 1))
    assert (here / "log").read_text() == "()()()()"


def test_sigterm_is_an_interrupt():
    before = signal.getsignal(signal.SIGTERM)

    def terminated():
        with ends_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        terminated()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such call")
def test_a_child_follows_a_parent_that_was_killed(tmp_path):
    child = "import os, sys, time; from recbole_cdr_ext.studies.child import follow_parent; "
    child += "follow_parent(int(sys.argv[1])); open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    parent = (
        "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent, child], cwd=tmp_path, env=environment)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(pid))


def test_an_interrupted_study_says_how_to_go_on(here, monkeypatch, capsys):
    Path("moods/ItemKNN").write_text("wait")
    real = drive._take

    def take(*given):
        said = real(*given)
        if len(calls_so_far()) >= 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        return said

    def calls_so_far():
        return Path("calls.txt").read_text().splitlines()

    monkeypatch.setattr(drive, "_take", take)
    assert main(["study", written(here, TWO), *QUIET]) == 130
    assert re.search(
        r"interrupted with \d of 4 runs to do; the same command goes on", capsys.readouterr().err
    )
    assert "| Popular (" in Path("studies/mine/tables.md").read_text()
    time.sleep(0.1)
    assert not subprocess.run(["pgrep", "-f", f"{CHILD} run"], capture_output=True).stdout
    Path("moods/ItemKNN").unlink()
    monkeypatch.setattr(drive, "_take", real)
    calls()
    assert "| Neighbours (2) |" in go(TWO)
    assert sum("--resume=" in words for words in calls()) == 1


# -- in earnest ------------------------------------------------------------------------------------------------------

REAL = """
task: next_item
datasets: [toy]
seeds: [3]
rows:
  Popular: {model: Pop}
  Impossible: {model: SAVAE, domains: [books]}
"""


def test_a_run_in_earnest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["study", written(tmp_path, REAL), *QUIET, "--only=Popular"]) == 0
    (folder,) = Path("saved").glob("study-Pop-toy-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["settings"]["torch_threads"] == 1 and result["seed"] == 3
    table = Path("studies/mine/tables.md").read_text()
    assert f"{100 * result['test']['books']['all']['ndcg@10']:.2f}" in table
    assert "| Impossible (0) |" in table
    (line,) = Path("studies/mine/cells.jsonl").read_text().splitlines()
    assert json.loads(line)["key"].startswith(folder.name[-12:])
    # Its command is one that `run` takes, to the same settings.
    again = CDRConfig(argv=json.loads(line)["command"].split()[2:]).to_dict()
    decides = set(again) - RUNTIME_KEYS
    assert {key: again[key] for key in decides} == {key: result["settings"][key] for key in decides}


@pytest.mark.slow
def test_a_failure_in_earnest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["study", written(tmp_path, REAL), *QUIET, "--only=Impossible"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"Failed: Impossible, toy, seed 3: SAVAE takes two domain", shown), shown


LONG = """
task: next_item
datasets: [toy]
seeds: [3]
settings: {epochs: 120, stopping_step: 1000, train_targets: last}
rows: {Short: {model: BPR, embedding_size: 8}, Long: {model: BPR, embedding_size: 16}}
"""


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_running_and_goes_on(tmp_path):
    words = ["study", written(tmp_path, LONG), DATA, "--jobs=2", "--show_progress=False"]
    command = [sys.executable, "-m", "recbole_cdr_ext", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(command, cwd=tmp_path, env=environment)
    logs = lambda: list((tmp_path / "saved").glob("study-BPR-*/run.log"))  # noqa: E731
    wait_for(lambda: len(logs()) == 2 and all(" epoch 5 " in log.read_text() for log in logs()), 120)
    children = subprocess.run(["pgrep", "-P", str(driver.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(alive(int(pid)) for pid in children))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for log in logs():
        text = log.read_text()
        assert text.count("Resume training") == 1 and text.count("training [") <= 121
    assert "| Long† (1) |" in (tmp_path / "studies/mine/tables.md").read_text()
