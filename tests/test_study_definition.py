"""``recbole-cdr study``: what is refused before any run, and the runs that a definition asks for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from study_toys import QUIET, RATED, ROOT, TWO, VARIED, calls, cells, study_file

from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.studies.cells import make_cells
from recbole_cdr_ext.studies.definition import read_study, shipped_studies

# -- what is refused -------------------------------------------------------------------------------------------------


def changed(**lines: str) -> str:
    """TWO with other lines: text in place of a key's own, None without it."""
    kept = re.split(r"\n(?=\w)", TWO.strip())
    blocks = {block.split(":")[0]: block for block in kept} | {k: f"{k}: {v}" for k, v in lines.items()}
    left_out = {key for key, value in lines.items() if value is None} | (
        {"baseline"} if "rows" in lines else set()
    )
    return "\n".join(block for key, block in blocks.items() if key not in left_out) + "\n"


WRONG = [
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
    (
        changed(quoted="{Theirs: {toy: {books: {all: {ndgc@10: 0.1}}}}}", metrics="[ndcg@10]"),
        "no metric 'ndgc@10'.*Did you mean 'ndcg@10'",
    ),
    (
        changed(quoted="{Theirs: {toy: {books: {cool: {ndcg@10: 0.1}}}}}", groups="[all, cold]"),
        "no user group 'cool'.*Did you mean 'cold'",
    ),
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
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_in_a_study_is_one_error_before_any_run(here, capsys, text, message):
    assert main(["study", study_file(here, text), *QUIET]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "mine.yaml" in error and "(command line)" not in error and len(error.splitlines()) == 1
    assert not calls() and not Path("results").exists()


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
    assert main(["study", study_file(here, VARIED), *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not calls()


def test_a_study_that_is_none(capsys):
    assert main(["study", "i2vae_groops"]) == 2
    assert "Did you mean 'i2vae_groups'?" in capsys.readouterr().err
    assert main(["study", "--epochs=3"]) == 2
    assert "Which study?" in capsys.readouterr().err


# -- cells -----------------------------------------------------------------------------------------------------------

COUNTS = {
    "i2vae_groups": (3 * 3 + 2) * 20, "i2vae_ablation": 4 * 6, "i2vae_published": 4,
    "i2vae_density": 4 * 4 * 6, "i2vae_overlap": 4 * 4 * 6,
    "i2vae_sensitivity": 25 * 5, "scdr_results": 4 * 17 * 3 * 3, "scdr_robustness": 2 * 5, "scdr_backbones": 6 * 3 * 3,
    "scdr_ablation": 4 * 6 * 3 * 3, "scdr_sensitivity": 2, "i2vae_tuned": 6 * 5,
    "i2vae_user": 6 * 5, "i2vae_tuned_ablation": 6 * 3, "zoo_trials": 12 * 3, "rating_trials": 19 * 3,
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
    assert "density in 0.25, 0.5, 0.75, 1.0" in shown and "96 runs" in shown and "--dry_run" in shown


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
    found = read_study(study_file(tmp_path, text)).on(["toy", "ml100k_genres"])
    assert list(found.scenes) == ["toy", "ml100k_genres"]
    found = read_study("scdr_robustness").on(["toy"])
    assert found.scenes == {
        "toy, biases=False": {"dataset": "toy", "biases": False},
        "toy, biases=True": {"dataset": "toy", "biases": True},
    }
    assert read_study("scdr_results").on(["toy"]).n_runs == 17 * 3 * 3  # four directions are one
    assert read_study(study_file(tmp_path, TWO)).with_seeds(["7"]).seeds == (7,)


SOME = TWO.replace(
    "datasets: [toy]",
    "scenes:\n  many: {dataset: toy}\n  one: {dataset: toy, split: leave_one_out, seeds: 2}",
)


def test_a_scene_may_have_seeds_of_its_own(tmp_path):
    found, made = read_study(study_file(tmp_path, SOME)), cells(tmp_path, SOME)
    assert found.n_runs == len(made) == 6
    assert {(cell.scene, cell.seed) for cell in made} == {("many", 1), ("many", 2), ("one", 2)}
    assert found.seeds_in_words == "1, 2 (one: 2)"
    assert found.with_seeds([7, 8]).n_runs == 8
    bad = SOME.replace("seeds: 2}", "seeds: [2, 2]}")
    with pytest.raises(CDRError, match="scenes, 'one', seeds: 2 stands there twice"):
        read_study(study_file(tmp_path, bad))


def test_the_zoo_has_the_best_step_size_of_its_trials():
    lines = (ROOT / "results/zoo_trials/cells.jsonl").read_text().splitlines()
    trials = [json.loads(line) for line in lines]
    assert {trial["part"] for trial in trials} == {"valid"} and len(trials) == 36
    best = {}
    for trial in sorted(trials, key=lambda trial: trial["result"]["best_valid_score"]):
        best[trial["settings"]["model"]] = trial["settings"]["learning_rate"]
    taken = {
        cell.row: cell.settings["learning_rate"]
        for cell in make_cells(read_study("i2vae_groups"))
        if cell.row in best
    }
    assert len(best) == 12
    assert taken == pytest.approx(best, rel=1e-2)


def test_a_study_of_the_validation_part_never_evaluates_the_test_part(tmp_path):
    told = cells(tmp_path, TWO.replace("seeds:", "part: valid\nseeds:"))
    tested = cells(tmp_path, TWO)
    for one, other in zip(told, tested, strict=True):
        assert "--evaluate_test=False" in one.words and one.settings["evaluate_test"] is False
        assert "--evaluate_test=False" not in other.words and other.settings["evaluate_test"] is True
        # Trained alike, and yet not the same run: neither may stand for the other.
        assert one.identity == other.identity and one.key("data") != other.key("data")
    with pytest.raises(CDRError, match="part: train should be one of test, valid"):
        read_study(study_file(tmp_path, TWO.replace("seeds:", "part: train\nseeds:")))
    with pytest.raises(CDRError, match="'part: valid' leaves it alone"):
        read_study(study_file(tmp_path, TWO.replace("seeds:", "part: valid\nanalyses: {fgsm: {}}\nseeds:")))
    with pytest.raises(CDRError, match="'evaluate_test' is set by the study"):
        cells(tmp_path, TWO, evaluate_test=False)
