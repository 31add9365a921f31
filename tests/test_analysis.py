"""How robust bridges are: measured against closed forms; and the grid of k and rho."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import study_toys
import torch
from study_toys import ROOT, analyse, check_figures, in_numpy

from recbole_cdr_ext.analysis import robustness
from recbole_cdr_ext.analysis import sensitivity as grids
from recbole_cdr_ext.analysis.bridges import ratings_of
from recbole_cdr_ext.analysis.robustness import (
    directions,
    errors_at,
    fgsm,
    landscape,
    lipschitz,
    sample,
    signs,
)
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.pages.curves import Curves
from recbole_cdr_ext.runs.folder import finished_result
from recbole_cdr_ext.serving.recommendation import load_model
from recbole_cdr_ext.trainer.sharpness import PGD

saved = study_toys.saved
sharp = study_toys.sharp
linear = study_toys.linear


# -- FGSM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sharp", "linear"])
def test_fgsm_without_a_step_gives_the_runs_own_test_error(saved, name):
    stored = finished_result(saved / name)["test"]["films"]["cold"]
    found = fgsm(load_model(saved / name), [0.0, 1.0])
    assert found["mae"][0] == pytest.approx(stored["mae"], abs=2e-6)
    assert found["rmse"][0] == pytest.approx(stored["rmse"], abs=2e-6)
    assert found["n"][0] == stored["n"]
    assert found["rise"][0] == 0
    assert found["mae"][1] > found["mae"][0]


@pytest.mark.parametrize("relative", [False, True])
def test_fgsm_on_a_linear_bridge_is_the_closed_form(linear, relative):
    # r̂ = ⟨u, g⟩, so a step ε sign moves every error away from zero by ε ‖g‖₁.
    user, g, rating, known = in_numpy(linear)
    assert known.any() and not known.all()
    length = np.linalg.norm(user, axis=1) / math.sqrt(user.shape[1]) if relative else 1.0
    error = np.abs(rating - (user * g).sum(1)) + 0.5 * length * np.abs(g).sum(1)
    fallback = np.abs(rating - float(linear.model.target_mean))
    expected = np.where(known, error, fallback).mean()
    assert fgsm(linear, [0.5], relative=relative)["mae"][0] == pytest.approx(expected, rel=1e-5)


def test_fgsm_says_how_long_the_vectors_are(linear):
    user, _, _, _ = in_numpy(linear)
    batch = ratings_of(linear, "test")
    _, first = np.unique(batch.user.numpy(), return_index=True)
    norm = np.median(np.linalg.norm(user[first], axis=1))
    line = fgsm(linear, [0.5]).iloc[0]
    assert line["median_norm"] == pytest.approx(norm, rel=1e-6)
    assert line["epsilon_over_norm"] == pytest.approx(0.5 / norm, rel=1e-6)
    assert line["length_over_norm"] == pytest.approx(0.5 * math.sqrt(10) / norm, rel=1e-6)
    relative = fgsm(linear, [0.5], relative=True).iloc[0]
    assert (relative["epsilon_over_norm"], relative["length_over_norm"]) == (0.5, 0.5)


def test_an_attack_moves_no_bias(sharp):
    sharp.model.target_items.zero_()
    found = fgsm(sharp, [0.0, 1.0])
    assert sharp.model.has_biases
    assert found["mae"][0] == found["mae"][1]


def test_clipping_hides_no_gradient(linear):
    batch = ratings_of(linear, "test")
    _, before = signs(linear.model, batch)
    linear.model.clipped, linear.model.rating_range = True, (3.0, 3.0)  # every prediction is the same now
    _, after = signs(linear.model, batch)
    assert before.any()
    assert torch.equal(before, after)


def test_chunks_change_nothing(sharp, monkeypatch):
    whole = fgsm(sharp, [0.5])["mae"][0]
    monkeypatch.setattr(
        "recbole_cdr_ext.analysis.robustness.chunks",
        lambda batch: (batch.take([i]) for i in range(len(batch))),
    )
    assert fgsm(sharp, [0.5])["mae"][0] == pytest.approx(whole, rel=1e-6)


# -- landscape --------------------------------------------------------------------------------------------------------


def test_the_centre_of_a_landscape_is_the_natural_error_of_the_sample(sharp):
    found = landscape(sharp, points=3, samples=50, seed=4)
    batch = sample(ratings_of(sharp, "test"), 50, 4)
    with torch.no_grad():
        natural = float((sharp.model.predict(batch) - batch.rating).abs().double().mean())
    assert found.n == len(batch) == 50
    assert found.centre == pytest.approx(natural, rel=1e-6)
    assert found.mae[1, 1] == pytest.approx(natural, rel=1e-6)


def test_a_landscape_is_measured_at_each_users_own_scale(linear):
    user, g, rating, known = in_numpy(linear)
    offset = directions(10, 1, 3)
    moved = user + np.linalg.norm(user, axis=1, keepdims=True) * offset.double().numpy()
    rated = np.where(known, (moved * g).sum(1), float(linear.model.target_mean))
    found = errors_at(linear.model, ratings_of(linear, "test"), offset)
    assert found[0] == pytest.approx(np.abs(rated - rating).mean(), rel=1e-5)


def test_axes_of_a_landscape(linear, monkeypatch):
    monkeypatch.setattr(robustness, "ROWS", 200)  # several forward passes, the last one smaller
    found = landscape(linear, points=5, extent=2.0, samples=60, seed=3)
    first, second = directions(10, 2, 3)
    batch = sample(ratings_of(linear, "test"), 60, 3)
    assert found.axis.tolist() == [-2, -1, 0, 1, 2]
    expected = errors_at(linear.model, batch, (2 * first - 1 * second)[None])[0]
    assert found.mae[4, 1] == pytest.approx(expected, rel=1e-5)
    assert found.mae[1, 4] != pytest.approx(expected, rel=1e-3)


def test_rises_of_a_landscape(linear):
    with torch.no_grad():
        linear.model.mapping.weight.mul_(100)  # so that errors change their sign, and their mean is no plane
    found = landscape(linear, points=3, samples=40, seed=3)
    batch, around = sample(ratings_of(linear, "test"), 40, 3), directions(10, 128, 3)
    pairs = [errors_at(linear.model, batch, 0.5 * sign * around) for sign in (1, -1)]
    mean = np.mean(pairs, axis=0)
    assert found.rises[0.5] == pytest.approx(mean.mean() - found.centre, rel=1e-5)
    assert found.errors[0.5] == pytest.approx(mean.std(ddof=1) / math.sqrt(128), rel=1e-5)
    assert 0 < found.rises[0.5] < found.rises[1.0]


def test_directions_are_those_of_the_seed():
    found = directions(10, 64, 5)
    assert torch.equal(found, directions(10, 64, 5))
    assert torch.equal(found[:2], directions(10, 2, 5))
    assert not torch.equal(found, directions(10, 64, 6))
    assert torch.allclose(found.norm(dim=1), torch.ones(64))


def test_a_sample_is_the_seeds_and_never_larger_than_the_data(linear):
    batch = ratings_of(linear, "test")
    assert torch.equal(sample(batch, 20, 1).item, sample(batch, 20, 1).item)
    assert not torch.equal(sample(batch, 20, 1).item, sample(batch, 20, 2).item)
    assert len(sample(batch, 10**6, 1)) == len(batch)


# -- Lipschitz --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["train", "test"])
def test_lipschitz_of_a_multiple_of_the_identity(linear, part):
    with torch.no_grad():
        linear.model.mapping.weight.copy_(3 * torch.eye(10))
    found = lipschitz(linear, PGD(0.1, 5), part=part)
    assert found["lipschitz"] == pytest.approx(3, rel=1e-4)
    assert found["lipschitz_max"] == pytest.approx(3, rel=1e-3)
    assert found["delta"] == pytest.approx(0.1, rel=1e-5)
    assert found["mae_at_delta"] > found["mae"]


def test_lipschitz_of_a_matrix_is_the_closed_form(linear):
    # The error grows along ± sign(g), g = Wᵀ v, in every step: δ* = ± ρ sign(g) / √d.
    weight = linear.model.mapping.weight.detach().double().numpy()
    _, g, _, known = in_numpy(linear)
    slope = np.linalg.norm(np.sign(g[known]) @ weight.T, axis=1) / math.sqrt(10)
    found = lipschitz(linear, PGD(0.1, 2), part="test")
    assert found["n"] == known.sum()
    assert found["lipschitz"] == pytest.approx(slope.mean(), rel=1e-3)
    assert found["lipschitz_max"] <= np.linalg.norm(weight, 2) * (1 + 1e-3)
    ratings = np.abs(g[known]).sum(1) / math.sqrt(10)
    assert found["rating_slope"] == pytest.approx(ratings.mean(), rel=1e-3)


def test_lipschitz_of_what_nothing_moves(linear):
    linear.model.target_items.zero_()
    found = lipschitz(linear, PGD(0.1, 2))
    assert found["n"] == 0
    assert math.isnan(found["lipschitz"])


# -- sensitivity ------------------------------------------------------------------------------------------------------


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
    assert seen[0]["resume"] is None and Path(seen[1]["checkpoint_dir"], seen[1]["resume"]) == cell.folder
    assert "run_id" not in seen[1]
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
