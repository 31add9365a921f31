"""Sensitivity: grids of runs, and their lines."""

from __future__ import annotations

import math

import analysis_runs
import pandas as pd
import pytest
from analysis_runs import ROOT, analyse, check_figures

from recbole_cdr_ext.analysis import sensitivity as grids
from recbole_cdr_ext.analysis.robustness import fgsm, lipschitz
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.pages.curves import Curves
from recbole_cdr_ext.serving.recommendation import load_model
from recbole_cdr_ext.trainer.sharpness import PGD

saved = analysis_runs.saved


@pytest.fixture
def words(saved, tmp_path):
    return [
        "--dataset=toy", "--task=rating", "--pgd_steps=1", "--rhos=2", "--epochs=1", "--pretrain_epochs=2",
        "--seed=1", "--epsilons=0.5", "--tensorboard=False", "--use_gpu=False", f"--cache_dir={saved.parent / 'cache'}",
        f"--data_path={ROOT / 'dataset_atomic'}",
    ]  # fmt: skip


def test_sensitivity_trains_each_cell_once(saved, tmp_path, words, monkeypatch):
    out = tmp_path / "out"
    assert analyse("sensitivity", tmp_path, out, *words) == 0
    check_figures(out, "sensitivity", "ρ = 2", "k = 1")
    table = pd.read_csv(out / "sensitivity.csv", keep_default_na=False)
    assert table[["k", "rho", "alpha"]].to_numpy().tolist() == [[1, 2, 0.3]]
    for line in table.itertuples():
        experiment = load_model(tmp_path / line.run)
        config = experiment.config
        assert (config["pgd_steps"], config["rho"], config["pgd_step_size"]) == (1, line.rho, 0.3)
        assert line.mae == pytest.approx(fgsm(experiment, [0.0])["mae"][0])
        assert table["mae_eps=0.5"][line.Index] == pytest.approx(fgsm(experiment, [0.5])["mae"][0])
        assert line.lipschitz == pytest.approx(lipschitz(experiment, PGD(1.0, 5))["lipschitz"])
        assert line.lipschitz_own == pytest.approx(lipschitz(experiment, PGD(line.rho, 1, 0.3))["lipschitz"])

    def again(*_, **__):
        raise AssertionError("a finished cell was trained again")

    monkeypatch.setattr(grids, "run_recbole_cdr", again)
    assert analyse("sensitivity", tmp_path, out, *words) == 0
    assert pd.read_csv(out / "sensitivity.csv", keep_default_na=False).equals(table)


def test_cells_of_other_settings_are_other_runs():
    settings = {"steps": [1], "rhos": [1.0], "step_size": 0.3}
    names = {
        grids.grid_points("SCDR", "toy", **{**settings, **other}, words=["--task=rating", *words])[
            0
        ].folder.name
        for other in ({}, {"steps": [2]}, {"rhos": [2.0]}, {"step_size": None})
        for words in ([], ["--beta=0.4"], ["--seed=7"], ["--biases=False"], ["--rho_relative=True"])
    }
    assert len(names) == 20
    found = grids.grid_points("SCDR", "toy", [1, 5], [2.0, 3.0], step_size=None, words=["--task=rating"])
    assert [(cell.rho, cell.steps) for cell in found] == [(2, 1), (2, 5), (3, 1), (3, 5)]
    same = grids.grid_points(
        "SCDR", "toy", **settings, words=["--task=rating", "--checkpoint_dir=elsewhere"]
    )[0]
    assert same.folder.name in names


def test_a_begun_cell_goes_on(tmp_path, monkeypatch):
    cell = grids.grid_points(
        "SCDR", "toy", [2], [1.0], step_size=0.3, words=["--task=rating", f"--checkpoint_dir={tmp_path}"]
    )[0]
    seen = []
    monkeypatch.setattr(grids, "run_recbole_cdr", lambda *_, config_dict: seen.append(config_dict))
    grids.train(cell)
    cell.folder.mkdir()
    (cell.folder / "config.yaml").touch()
    grids.train(cell)
    assert [one["resume"] for one in seen] == [None, str(cell.folder)]
    assert seen[0]["run_id"] == cell.folder.name
    assert (seen[0]["pgd_steps"], seen[0]["rho"]) == (2, 1.0)


def test_stages_decides_whether_pretraining_varies(tmp_path):
    settings = {"words": ["--task=rating"], "step_size": None}
    mapping = grids.grid_points("SCDR", "toy", [2], [3.0], **settings)[0].config
    both = grids.grid_points("SCDR", "toy", [2], [3.0], both_stages=True, **settings)[0].config
    assert (mapping["rho_pretrain"], mapping["pretrain_pgd_steps"]) == (0.1, 5)
    assert (both["rho_pretrain"], both["pretrain_pgd_steps"]) == (3.0, 2)


def test_a_cell_that_diverges_is_a_gap_and_not_the_end(monkeypatch):
    cells = grids.grid_points("SCDR", "toy", [1], [1.0, 5.0], step_size=0.3, words=["--task=rating"])

    def train(cell):
        if cell.rho == 5:
            raise CDRError("The loss is not finite.")

    monkeypatch.setattr(grids, "train", train)
    monkeypatch.setattr(grids, "measure", lambda *_, **__: {"mae": 0.7})
    table = grids.sensitivity(cells, show_progress=False)
    assert table["note"].tolist() == ["", "The loss is not finite."]
    assert table["mae"][0] == 0.7
    assert math.isnan(table["mae"][1])
    with pytest.raises(CDRError, match="not finite"):
        grids.sensitivity(cells[1:], show_progress=False)


def test_an_interrupt_says_how_to_go_on(monkeypatch):
    cells = grids.grid_points("SCDR", "toy", [1], [1.0], step_size=0.3, words=["--task=rating"])

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(grids, "train", stop)
    with pytest.raises(KeyboardInterrupt, match="k=1, rho=1; the same command goes on"):
        grids.sensitivity(cells, show_progress=False)


def test_a_line_far_from_the_others_is_left_outside_and_named(tmp_path):
    curves = Curves("title", "note.")
    curves.panel("one", "x", "y")
    for number in range(9):
        curves.line(f"near {number}", [0, 1], [1 + 0.01 * number, 1.1])
    curves.line("far", [0, 1], [9.0, 9.5])
    curves.write(tmp_path / "lines.png", tmp_path / "lines.html")
    assert curves.panels[0].range[1] < 2
    assert "note. Beyond the axis: far." in (tmp_path / "lines.html").read_text(encoding="utf-8")


def test_no_two_of_twenty_lines_look_alike():
    curves = Curves("title")
    curves.panel("one", "x", "y")
    for number in range(20):
        curves.line(str(number), [0, 1], [0, number])
    curves.find_ranges()
    drawn = [one.lines[0] for one in curves.for_image().axes[0].containers]
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 20
