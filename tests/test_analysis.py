"""Robustness analyses of saved runs."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from recbole_cdr_ext.analysis import commands, figures
from recbole_cdr_ext.analysis import landscape as landscapes
from recbole_cdr_ext.analysis import sensitivity as grids
from recbole_cdr_ext.analysis.attack import fgsm, signs
from recbole_cdr_ext.analysis.figures import Curves
from recbole_cdr_ext.analysis.landscape import directions, errors_at, landscape, sample
from recbole_cdr_ext.analysis.lipschitz import lipschitz
from recbole_cdr_ext.analysis.runs import check_trained, find_run, labels, open_runs, ratings_of
from recbole_cdr_ext.cli import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.run import run_recbole_cdr
from recbole_cdr_ext.run_folder import finished_result, stored_settings
from recbole_cdr_ext.serve import load_model
from recbole_cdr_ext.trainer.sharpness import PGD

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folder of runs on toy: SCDR; EMCDR, a matrix without biases; TGT; and SCDR on another split."""
    figures.require()  # imported once, in no test's time
    folder = tmp_path_factory.mktemp("analysis")
    shared = {
        "task": "rating", "show_progress": False, "tensorboard": False, "use_gpu": False, "epochs": 2,
        "pretrain_epochs": 2, "seed": 1, "state": "ERROR", "data_path": str(ROOT / "dataset_atomic"),
        "checkpoint_dir": str(folder / "saved"), "cache_dir": str(folder / "cache"),
    }  # fmt: skip
    own = {
        "sharp": ("SCDR", {}),
        "linear": ("EMCDR", {"mapping": "linear", "biases": False}),
        "cold": ("TGT", {}),
        "split": ("SCDR", {"split_seed": 7}),
    }
    for name, (model, settings) in own.items():
        run_recbole_cdr(model, "toy", config_dict={**shared, **settings, "run_id": name})
    return folder / "saved"


@pytest.fixture
def sharp(saved):
    return load_model(saved / "sharp")


@pytest.fixture
def linear(saved):
    """An experiment whose ratings are ⟨W u, v⟩, and of every third item the mean."""
    experiment = load_model(saved / "linear")
    experiment.model.known_items[::3] = False
    return experiment


def in_numpy(experiment):
    """Returns u (B, d), g = Wᵀ v (B, d), ratings (B,), and which items are known, of a linear run's test ratings."""
    model, batch = experiment.model, ratings_of(experiment, "test")
    weight = model.mapping.weight.detach().double().numpy()
    user = model.source_users.weight.detach().double().numpy()[batch.user]
    item = model.target_items.double().numpy()[batch.item]
    return user, item @ weight, batch.rating.double().numpy(), model.known_items.numpy()[batch.item]


# -- FGSM -----------------------------------------------------------------------------------------------------------


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
        "recbole_cdr_ext.analysis.attack.chunks", lambda batch: (batch.take([i]) for i in range(len(batch)))
    )
    assert fgsm(sharp, [0.5])["mae"][0] == pytest.approx(whole, rel=1e-6)


# -- landscape ------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(landscapes, "ROWS", 200)  # several forward passes, the last one smaller
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


# -- Lipschitz ------------------------------------------------------------------------------------------------------


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


# -- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sharp", "cold"], r"run 'cold' \(TGT\) can't be analysed: it maps no source vector"),
        (["sharp", "lineer"], r"There is no run 'lineer'.*Did you mean 'linear'\?"),
        (["sharp", "split"], r"'split' and 'sharp' have different splits \(split_seed=7 and split_seed="),
        (["sharp", "sharp"], r"'sharp' stands in --runs twice"),
        ([], r"Which runs\? Say --runs"),
    ],
)
def test_runs_that_cannot_be_analysed(saved, names, message, monkeypatch):
    def work(*_, **__):
        raise AssertionError("data were read before the runs were checked")

    monkeypatch.setattr("recbole_cdr_ext.analysis.runs.load_model", work)
    with pytest.raises(CDRError, match=message):
        open_runs(names, saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "I2VAE"}, "predicts next items"),
        ({"model": "BPR"}, "predicts next items"),
        ({"model": "ItemMean"}, "maps no source vector"),
        ({"model": "BiasOnly"}, r"has no vectors \(d = 0\)"),
        ({"embedding_size": 0}, r"has no vectors \(d = 0\)"),
    ],
)
def test_models_that_cannot_be_analysed(saved, change, message):
    settings = {**stored_settings(saved / "sharp"), **change}
    with pytest.raises(CDRError, match=f"'sharp' .*{message}"):
        check_trained(saved / "sharp", settings)


def test_a_run_that_is_not_trained_yet(saved, tmp_path):
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(stored_settings(saved / "sharp")), encoding="utf-8")
    with pytest.raises(CDRError, match=r"'begun' \(SCDR\) .*training has not ended\. Go on with --resume="):
        open_runs([str(folder)])


def test_runs_of_other_data_do_not_stand_side_by_side(saved, monkeypatch):
    loaded = {name: load_model(saved / name) for name in ("sharp", "linear")}
    object.__setattr__(loaded["linear"].split, "fingerprint", "other")
    monkeypatch.setattr("recbole_cdr_ext.analysis.runs.load_model", lambda folder: loaded[folder.name])
    with pytest.raises(CDRError, match="'linear' and 'sharp' have different splits"):
        open_runs(["sharp", "linear"], saved)


def test_runs_of_one_name_are_told_apart_by_their_paths(saved, tmp_path):
    shutil.copytree(saved / "sharp", tmp_path / "sharp")
    found = open_runs(["sharp", str(tmp_path / "sharp")], saved)
    assert [run.name for run in found] == [str(saved / "sharp"), str(tmp_path / "sharp")]
    assert len({run.label for run in found}) == 2


def test_runs_are_found_by_name_and_by_path(saved):
    assert find_run("sharp", saved) == find_run(str(saved / "sharp"), "elsewhere") == saved / "sharp"


def test_labels_tell_runs_apart():
    a = {"model": "SCDR", "seed": 1, "biases": True, "run_id": "a"}
    b = {**a, "biases": False, "run_id": "b"}
    c = {"model": "EMCDR", "seed": 1, "biases": True, "run_id": "c"}
    assert labels([a, c], ["a", "c"]) == ["SCDR", "EMCDR"]
    assert labels([a, b, c], ["a", "b", "c"]) == ["SCDR (biases=True)", "SCDR (biases=False)", "EMCDR"]
    assert labels([a, dict(a)], ["a", "d"]) == ["SCDR (a)", "SCDR (d)"]


# -- the command ----------------------------------------------------------------------------------------------------


def analyse(kind: str, saved: Path, out: Path, *words: str) -> int:
    return main(
        ["analyse", kind, f"--checkpoint_dir={saved}", f"--out={out}", "--show_progress=False", *words]
    )


def check_figures(out: Path, kind: str, *texts: str) -> None:
    """Checks that the image is one, not blank, and that the page names what it shows."""
    from matplotlib.image import imread

    image = imread(out / f"{kind}.png")
    assert min(image.shape[:2]) > 300
    assert image[..., :3].std() > 0.02
    page = (out / f"{kind}.html").read_text(encoding="utf-8")
    for text in texts:
        assert json.dumps(text)[1:-1] in page  # as plotly writes it
    assert not list(out.glob(".*"))


def test_fgsm_command(saved, tmp_path, capsys):
    assert analyse("fgsm", saved, tmp_path, "--runs=sharp,linear", "--epsilons=0,0.5") == 0
    check_figures(tmp_path, "fgsm", "SCDR", "EMCDR")
    table = pd.read_csv(tmp_path / "fgsm.csv").set_index(["model", "epsilon"])
    assert len(table) == 4
    for label, name in (("SCDR", "sharp"), ("EMCDR", "linear")):
        expected = fgsm(load_model(saved / name), [0.0, 0.5])
        assert table.loc[label, "mae"].to_numpy() == pytest.approx(expected["mae"].to_numpy(), rel=1e-9)
        assert table.loc[label, "median_norm"].iloc[0] == pytest.approx(expected["median_norm"][0])
        assert f"{expected['mae'][1]:.4f}" in capsys.readouterr().out or name == "linear"


def test_landscape_command(saved, tmp_path):
    words = ("--runs=sharp,linear", "--points=5", "--samples=40", "--seed=2")
    assert analyse("landscape", saved, tmp_path, *words) == 0
    check_figures(tmp_path, "landscape", "SCDR", "EMCDR")
    table = pd.read_csv(tmp_path / "landscape.csv").set_index("model")
    grid = pd.read_csv(tmp_path / "landscape_grid.csv").set_index(["model", "zeta", "gamma"])["mae"]
    expected = landscape(load_model(saved / "linear"), points=5, samples=40, seed=2)
    assert len(grid) == 50
    assert table.loc["EMCDR", "mae_centre"] == pytest.approx(expected.centre)
    assert table.loc["EMCDR", ["rise_0.5", "rise_1"]].tolist() == pytest.approx(list(expected.rises.values()))
    assert grid["EMCDR", 0.5, -1.0] == pytest.approx(expected.mae[3, 0])


def test_a_ball_that_a_batch_shares_is_as_large_as_its_batches(linear):
    ball = PGD(1.0, 3, 10.0, scope="batch")
    small, large = (lipschitz(linear, ball, chunk=size)["delta"] for size in (4, 64))
    assert small > 2 * large  # one radius for 4 rows, and for 64


@pytest.mark.parametrize("size", [0, -0.3])
def test_a_search_that_would_not_climb_is_refused(saved, size, capsys):
    assert (
        main(
            [
                "analyse",
                "lipschitz",
                "--runs=sharp",
                f"--checkpoint_dir={saved}",
                f"--pgd_step_size={size}",
            ]
        )
        == 2
    )
    assert f"pgd_step_size={size} should be above 0, or None" in capsys.readouterr().err


def test_both_stages_set_what_the_first_one_does():
    given = {
        "steps": [2],
        "rhos": [3.0],
        "step_size": None,
        "words": ["--task=rating", "--pretrain_sharpness=none"],
    }
    assert grids.cells("SCDR", "toy", **given)[0].config["pretrain_sharpness"] == "none"
    with pytest.raises(CDRError, match="'pretrain_sharpness' is set for each cell"):
        grids.cells("SCDR", "toy", **given, both_stages=True)


def test_lipschitz_command(saved, tmp_path):
    words = ("--runs=sharp,linear", "--rho=0.1", "--pgd_steps=2", "--part=test")
    assert analyse("lipschitz", saved, tmp_path, *words) == 0
    check_figures(tmp_path, "lipschitz", "SCDR", "EMCDR")
    table = pd.read_csv(tmp_path / "lipschitz.csv").set_index("model")
    expected = lipschitz(load_model(saved / "linear"), PGD(0.1, 2), part="test")
    for key, value in expected.items():
        assert table.loc["EMCDR", key] == pytest.approx(value)


def test_the_default_folder_is_that_of_the_analysis(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recbole_cdr_ext.analysis.figures.Curves.write", lambda *_: None)
    for words in (["--runs=sharp"], ["--runs=sharp"], ["--runs=sharp", "--relative=True"]):
        assert main(["analyse", "fgsm", f"--checkpoint_dir={saved}", "--show_progress=False", *words]) == 0
    folders = sorted(path.name for path in (tmp_path / "analyses").iterdir())
    assert len(folders) == 2
    assert all(name.startswith("fgsm-toy-beta0.5-") for name in folders)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Which analysis?"),
        (["--runs=sharp"], "Which analysis?"),
        (["fgms"], "Unknown analysis 'fgms'. Did you mean 'fgsm'?"),
        (["fgsm"], "Which runs?"),
        (["fgsm", "--run=a"], "Unknown setting 'run' of `recbole-cdr analyse fgsm`. Did you mean 'runs'?"),
        (["fgsm", "--runs=a", "--epsilons=0,x"], "epsilons=0,x should be different numbers of at least 0"),
        (["fgsm", "--runs=a", "--epsilons=nan"], "epsilons=nan should be"),
        (["landscape", "--runs=a", "--points=4"], "points=4 should be odd"),
        (["landscape", "--runs=a", "--samples=0"], "samples=0 should be at least 1"),
        (["landscape", "--runs=a", "--extent=0"], "extent=0 should be above 0"),
        (["lipschitz", "--runs=a", "--part=all"], "part=all should be one of"),
        (["lipschitz", "--runs=a", "--rho=0"], "should be above 0"),
        (["sensitivity"], "No dataset is given"),
        (
            ["sensitivity", "--dataset=toy", "--pgd_steps=1.5"],
            "pgd_steps=1.5 should be different whole numbers",
        ),
        (["sensitivity", "--dataset=toy", "--task=rating", "--rho=3"], "'rho' is set for each cell"),
        (["sensitivity", "--dataset=toy", "--task=rating", "--epoch=3"], "Did you mean 'epochs'?"),
        (["sensitivity", "--dataset=toy", "--task=rating", "--model=TGT"], "TGT can't be analysed"),
        (["sensitivity", "--dataset=toy", "--task=rating", "--stages=all"], "stages=all should be one of"),
    ],
)
def test_bad_words(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["analyse", *words]) == 2
    assert message in capsys.readouterr().err


def test_vectors_of_different_size_have_no_common_directions(saved, tmp_path, capsys, monkeypatch):
    runs = open_runs(["sharp", "linear"], saved)
    runs[1].model.size = 30
    monkeypatch.setattr(commands, "open_runs", lambda *_, **__: runs)
    assert analyse("landscape", saved, tmp_path, "--runs=sharp,linear") == 2
    assert "source vectors of different size (sharp: 10, linear: 30)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["matplotlib", "plotly"])
def test_a_missing_library_is_said_before_any_work(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["analyse", "fgsm", "--runs=nothing"]) == 2
    assert f"Figures need {name}, which is not installed: pip install 'recbole_cdr_ext[plots]'" in (
        " ".join(capsys.readouterr().err.split())
    )


@pytest.mark.parametrize("kind", ["fgsm", "landscape", "lipschitz", "sensitivity"])
def test_help_of_an_analysis_lists_its_own_options(kind, capsys):
    assert main(["analyse", kind, "--help"]) == 0
    out = capsys.readouterr().out
    assert ("--points=21" in out) == (kind == "landscape")
    assert ("--rhos=1,5" in out) == (kind == "sensitivity")
    assert ("\n  --runs=" in out) == (kind != "sensitivity")
    assert "--out=" in out


# -- sensitivity ----------------------------------------------------------------------------------------------------


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
        grids.cells("SCDR", "toy", **{**settings, **other}, words=["--task=rating", *words])[0].folder.name
        for other in ({}, {"steps": [2]}, {"rhos": [2.0]}, {"step_size": None})
        for words in ([], ["--beta=0.4"], ["--seed=7"], ["--biases=False"], ["--rho_relative=True"])
    }
    assert len(names) == 20
    found = grids.cells("SCDR", "toy", [1, 5], [2.0, 3.0], step_size=None, words=["--task=rating"])
    assert [(cell.rho, cell.steps) for cell in found] == [(2, 1), (2, 5), (3, 1), (3, 5)]
    same = grids.cells("SCDR", "toy", **settings, words=["--task=rating", "--checkpoint_dir=elsewhere"])[0]
    assert same.folder.name in names


def test_a_begun_cell_goes_on(tmp_path, monkeypatch):
    cell = grids.cells(
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
    mapping = grids.cells("SCDR", "toy", [2], [3.0], **settings)[0].config
    both = grids.cells("SCDR", "toy", [2], [3.0], both_stages=True, **settings)[0].config
    assert (mapping["rho_pretrain"], mapping["pretrain_pgd_steps"]) == (0.1, 5)
    assert (both["rho_pretrain"], both["pretrain_pgd_steps"]) == (3.0, 2)


def test_a_cell_that_diverges_is_a_gap_and_not_the_end(monkeypatch):
    cells = grids.cells("SCDR", "toy", [1], [1.0, 5.0], step_size=0.3, words=["--task=rating"])

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
    cells = grids.cells("SCDR", "toy", [1], [1.0], step_size=0.3, words=["--task=rating"])

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
    assert curves.panels[0]["range"][1] < 2
    assert "note. Beyond the axis: far." in (tmp_path / "lines.html").read_text(encoding="utf-8")


def test_no_two_of_twenty_lines_look_alike():
    curves = Curves("title")
    curves.panel("one", "x", "y")
    for number in range(20):
        curves.line(str(number), [0, 1], [0, number])
    curves._ranges()
    drawn = [one.lines[0] for one in curves._matplotlib().axes[0].containers]
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 20
