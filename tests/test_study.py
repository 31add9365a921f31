"""``recbole-cdr study``: what is run and what is not run again, and what the tables say."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from study_toys import ANALYSED, QUIET, RATED, ROOT, TWO, VARIED, calls, go, state, study_file

import recbole_cdr_ext as cdr
from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import locked
from recbole_cdr_ext.reports.groups import collect
from recbole_cdr_ext.reports.tables import tables_of
from recbole_cdr_ext.studies import study
from recbole_cdr_ext.studies.definition import read_study
from recbole_cdr_ext.studies.instance_store import InstanceStore
from recbole_cdr_ext.studies.study_tables import matrices, tables_by_group

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


def test_some_seeds_of_a_study_are_a_part_of_it_and_others_have_a_folder_of_their_own(here, capsys):
    part = go(TWO, "--seeds=2")
    assert len(calls()) == 2 and "2 of 4 runs" in part
    assert "2 of 4 runs are missing and were not asked for" in capsys.readouterr().out
    whole = go(TWO)
    assert len(calls()) == 2 and "4 of 4 runs" in whole
    assert go(TWO, "--seeds=1") == whole  # whose tables keep the other seed
    path = str(study_file(here, TWO))
    assert main(["study", path, "--seeds=2,3", "--dry_run"]) == 0
    assert "seeds=2_3" in capsys.readouterr().out


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
    elsewhere = read_study(study_file(here, text)).on(["ml100k_genres"])  # where they do not hold
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
    shutil.rmtree("results")
    expected = go(TWO, "--adopt", "--seeds=1,2")
    assert not calls() and "4 of 4 runs" in expected
    shutil.rmtree("results")
    go(TWO.replace("k: 5", "k: 6"), "--adopt")
    assert len(found := calls()) == 2 and all("--k=6" in words for words in found)


def test_settings_that_a_kept_run_is_older_than_count_as_their_defaults(here):
    go(TWO)
    assert len(calls()) == 4
    shutil.rmtree("saved")
    path = Path("results/mine/cells.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["settings"]["density"]
        line["key"] = line["identity"] = line["key"][::-1]
    with closing(sqlite3.connect("results/mine/instances.sqlite")) as file, file:
        for line in lines:
            file.execute("UPDATE runs SET key = ? WHERE key = ?", (line["key"], line["key"][::-1]))
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
    assert InstanceStore(Path("results/third")).keys() == InstanceStore(Path("results/mine")).keys()


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
    table = (here / "results/mine/tables.md").read_text()
    assert len(calls()) == 2 and "4 runs" in table and "2 of 4 runs" in table
    assert "There is no run yet of: Popular (seeds 2); Neighbours (seeds 2)." in table
    assert study("mine.yaml", {"dry_run": True, "data_path": str(ROOT / "dataset_atomic")})["done"] == 2


def test_a_run_that_ended_unseen_counts(here):
    go(TWO)
    lines = Path("results/mine/cells.jsonl").read_text().splitlines(keepends=True)
    Path("results/mine/cells.jsonl").write_text(
        "".join(lines[:2]) + lines[2][:99]
    )  # killed while it was written
    calls()
    before = Path("results/mine/tables.md").read_text()
    assert go(TWO) == before and not calls()
    kept = Path("results/mine/cells.jsonl").read_text().splitlines()
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
    before = Path("results/mine/tables.md").read_text()
    assert main(["study", "mine.yaml", *QUIET, "--epochs=3"]) == 0
    assert Path("results/mine/tables.md").read_text() == before
    look = Path("results/mine-epochs=3/tables.md").read_text()
    assert "mine.yaml --epochs=3`" in look and "--seed=1 --k=5 --task=next_item --epochs=3\n" in look


def test_a_study_that_lies_in_the_former_place_goes_on_there(here, capsys):
    before = go(TWO)
    calls()
    shutil.rmtree("saved")
    Path("results").rename("studies")
    assert main(["study", "mine.yaml", *QUIET]) == 0 and not calls() and not Path("results").exists()
    assert "Goes on in studies/mine" in capsys.readouterr().out
    assert Path("studies/mine/tables.md").read_text().splitlines()[3:] == before.splitlines()[3:]
    Path("results/mine").mkdir(parents=True)
    assert main(["study", "mine.yaml", *QUIET, "--dry_run"]) == 0  # which means what lies in the new place
    assert "4 runs, 4 to do. Folder: results/mine" in capsys.readouterr().out


def test_two_calls_at_once(here, capsys):
    Path("results/mine").mkdir(parents=True)
    with locked(Path("results/mine"), "study"):
        assert main(["study", study_file(here, TWO), *QUIET]) == 2
    assert "Another study is at work in results/mine" in capsys.readouterr().err and not calls()


def test_from_python(here):
    found = study(
        study_file(here, TWO),
        {"seeds": [3], "show_progress": False, "data_path": str(ROOT / "dataset_atomic")},
    )
    assert found["done"] == 2 and not found["missing"] and not found["failed"]
    (group,) = found["groups"]
    assert {label: [run.seed for run in runs] for label, runs in group.members.items()} == {
        "Popular": [3],
        "Neighbours": [3],
    }


def test_from_python_with_keywords(here):
    options = {"show_progress": False, "data_path": str(ROOT / "dataset_atomic"), "jobs": 2}
    path = study_file(here, TWO)
    outcome = cdr.study(path, options, seeds=3, only="Popular")
    assert outcome["done"] == 1 and outcome["folder"] == Path("results/mine-seeds=3")
    outcome = cdr.study(Path(path), seeds=["1", 2], out=here / "there", **options)
    assert outcome["done"] == 4 and outcome["folder"] == here / "there"
    with pytest.raises(CDRError, match=r"jobs='many' .* should be of type"):
        cdr.study(path, jobs="many")
    with pytest.raises(CDRError, match="Did you mean 'epochs'"):
        cdr.study(path, epoch=3)


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
    assert Path("results/mine/tables.md").read_text().splitlines()[3:] == before and not calls()


def test_splits_by_seed_are_tested_together(here):
    table = go(RATED)
    assert "Each seed has a split of its own" in table and "**\\*\\*" in table.replace("** |", "")
    ((group, (one,)),) = tables_by_group(state(RATED))
    (frame,) = group.instances_of("SCDR")
    asked = frame[frame["part"] == "test"]
    assert asked["ratings"].sum() == 240  # 120 ratings in each of two splits, some of them by users of both
    assert set(one.comparisons["n"]) == {asked["user"].nunique()} and asked["user"].nunique() < len(asked)
    # A split that not all rows were run on can't be compared on.
    Path("moods/SCDR").write_text("refuse")
    go(RATED, "--seeds=0,1,2", status=1)
    ((_, (one,)),) = tables_by_group(state(RATED.replace("[0, 1]", "[0, 1, 2]")))
    assert set(one.comparisons["n"]) == {asked["user"].nunique()}


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
    folder = Path("results/mine")
    assert (folder / "figure.png").stat().st_size > 10_000
    html = (folder / "report.html").read_text()
    assert "data:image/png;base64," in html and "toy, by density: all" in html
    assert (folder / "tables.tex").read_text().count(r"\begin{table*}") == 4


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
    shutil.rmtree("results")
    shutil.rmtree("saved")
    assert "there is no run of SCDR, books → films, seed 0" in go(ANALYSED, status=1)
