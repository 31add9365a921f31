"""``recbole-cdr analyse``: which runs it takes, what it writes; and the latents of I2VAE."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import study_toys
import torch
import yaml
from study_toys import analyse, check_figures

import recbole_cdr_ext as cdr
from recbole_cdr_ext.analysis import bridge_analyses
from recbole_cdr_ext.analysis import sensitivity as grids
from recbole_cdr_ext.analysis.bridges import check_trained, find_run, labels, open_runs
from recbole_cdr_ext.analysis.latents import (
    dimension_table,
    latent_table,
    latents,
    open_latent_runs,
    recall_table,
    recalled_targets,
)
from recbole_cdr_ext.analysis.robustness import fgsm, landscape, lipschitz
from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.layers import LatentMeter, kl
from recbole_cdr_ext.pages.figures import require
from recbole_cdr_ext.runs.folder import finished_result, stored_settings
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.serving.recommendation import load_model
from recbole_cdr_ext.trainer.sharpness import PGD

saved = study_toys.saved
linear = study_toys.linear


# -- runs -------------------------------------------------------------------------------------------------------------


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

    monkeypatch.setattr("recbole_cdr_ext.analysis.bridges.load_model", work)
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
    monkeypatch.setattr("recbole_cdr_ext.analysis.bridges.load_model", lambda folder: loaded[folder.name])
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


# -- the command ------------------------------------------------------------------------------------------------------


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


def test_from_python(saved, tmp_path, capsys):
    out = cdr.analyse(
        "fgsm", ["sharp", saved / "linear"], checkpoint_dir=saved, epsilons=[0, 0.5], out=tmp_path / "lists",
        show_progress=False,
    )  # fmt: skip
    assert analyse("fgsm", saved, tmp_path / "words", "--runs=sharp,linear", "--epsilons=0,0.5") == 0
    assert out == tmp_path / "lists"
    assert (out / "fgsm.csv").read_bytes() == (tmp_path / "words" / "fgsm.csv").read_bytes()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("fgms", {}, "Unknown analysis 'fgms'. Did you mean 'fgsm'?"),
        (
            "fgsm",
            {"runs": "sharp", "epsilon": 0.5},
            "Unknown option 'epsilon' of analyse fgsm. Did you mean 'epsilons'?",
        ),
        ("landscape", {"runs": "sharp", "points": [21]}, "should be of type int"),
        ("lipschitz", {"runs": ["a,b"]}, "'a,b' has a comma in it"),
        ("sensitivity", {"runs": "sharp"}, "Unknown option 'runs' of analyse sensitivity"),
    ],
)
def test_misuse_from_python_is_one_clear_error(kind, options, message):
    with pytest.raises(CDRError, match=re.escape(message)):
        cdr.analyse(kind, **options)


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
    assert grids.grid_points("SCDR", "toy", **given)[0].config["pretrain_sharpness"] == "none"
    with pytest.raises(CDRError, match="'pretrain_sharpness' is set for each cell"):
        grids.grid_points("SCDR", "toy", **given, both_stages=True)


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
    monkeypatch.setattr("recbole_cdr_ext.pages.curves.Curves.write", lambda *_: None)
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
    monkeypatch.setattr(bridge_analyses, "open_runs", lambda *_, **__: runs)
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


# -- latents ----------------------------------------------------------------------------------------------------------


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def latent_runs(tmp_path_factory) -> Path:
    """Folder of runs on toy: I2VAE with latents and without, and a model that has none."""
    require()
    folder = tmp_path_factory.mktemp("latents")
    shared = {
        "task": "next_item", "show_progress": False, "tensorboard": False, "use_gpu": False, "epochs": 2, "seed": 1,
        "state": "ERROR", "data_path": str(ROOT / "dataset_atomic"), "checkpoint_dir": str(folder / "saved"),
        "cache_dir": str(folder / "cache"),
    }  # fmt: skip
    small = {
        "embedding_size": 8,
        "inner_size": 8,
        "n_cross_heads": 2,
        "psg": "random",
        "random_recall_size": 5,
    }
    plain = {**small, "psg": "none", "variational": False}
    own = {"latent": ("I2VAE", small), "plain": ("I2VAE", plain), "pop": ("Pop", {})}
    for name, (model, settings) in own.items():
        run_recbole_cdr(model, "toy", config_dict={**shared, **settings, "run_id": name})
    return folder / "saved"


def test_the_meter_counts_dimensions_that_vary():
    meter = LatentMeter()
    rng = np.random.default_rng(0)
    mean = torch.from_numpy(np.stack([rng.normal(0, 1, 500), rng.normal(3, 0.05, 500), np.full(500, 2.0)], 1))
    for part in mean.split(120):
        meter.add("z", 0, part, torch.full((len(part),), 0.5))
    meter.add("z", 1, mean[:, :1].expand(-1, 3), torch.tensor(1000.0))  # a sum, of 500 instances
    facts = meter.facts()
    assert facts["kl z"] == pytest.approx((0.5 + 2.0) / 2)
    assert facts["active z"] == pytest.approx((1 + 3) / 2)  # deviation 0.05 is a variance of 0.0025
    meter.reset()
    assert meter.facts() == {}


def test_a_run_keeps_what_its_epochs_measured(latent_runs):
    history = finished_result(latent_runs / "latent")["history"]
    assert [entry["epoch"] for entry in history] == [0, 1]
    for entry in history:
        assert set(entry["facts"]) == {
            f"{what} {name}" for what in ("kl", "active") for name in ("z", "z_t", "z_a")
        }
        assert all(value >= 0 for value in entry["facts"].values())
    assert "facts" not in finished_result(latent_runs / "plain")["history"][0]


def test_tables_say_what_the_posteriors_are(latent_runs):
    experiment = load_model(latent_runs / "latent")
    found = latents(experiment, "test")
    assert [(one.domain, one.name) for one in found] == [
        (domain, name) for domain in experiment.dataset.domains for name in ("z^x", "z_t^y", "z_a^x")
    ]
    instances = experiment.split.test
    counts = instances.lengths
    for one in found:
        x = experiment.dataset.domain_index(one.domain)
        here = counts[instances.domain == x]
        has = here[:, x] > 0
        assert len(one.mean) == (has & (here[:, 1 - x] > 0)).sum() if one.name == "z_t^y" else has.sum()
    batch = next(iter(experiment.loader("test")))
    with torch.no_grad():
        posteriors = experiment.model.posteriors(batch)
        x = batch.target_domain
        expected = kl(posteriors.interest, experiment.model.own_prior[x]())[posteriors.has_own].numpy()
    mine = next(one for one in found if one.domain == experiment.dataset.domains[x] and one.name == "z^x")
    np.testing.assert_allclose(mine.kl.sum(1)[: len(expected)], expected, rtol=1e-4, atol=1e-5)
    table, dimensions = latent_table(found), dimension_table(found)
    assert table["kl"].to_numpy() == pytest.approx([one.kl.sum(1).mean() for one in found])
    for _, own in dimensions.groupby(["domain", "latent"]):
        assert own["kl"].is_monotonic_decreasing and len(own) == 8


def test_recall_by_depth(latent_runs):
    experiment = load_model(latent_runs / "latent")
    table = recall_table(experiment)
    for part in ("train", "valid", "test"):
        own = table[table["part"] == part]
        instances = experiment.split.part(part)
        if part == "train":
            latest = {sequence: row for row, sequence in enumerate(instances.sequence)}
            instances = instances.take(np.array(sorted(latest.values())))
        hit = recalled_targets(instances)
        assert own["depth"].tolist() == [1, 2, 3, 4, 5]
        assert own["rate"].iloc[-1] == pytest.approx(hit.any(1).mean())
        assert own["rate"].is_monotonic_increasing
    report = finished_result(latent_runs / "latent")["report"]["targets recalled in train / valid / test (%)"]
    assert report == [round(100 * float(table[(table.part == p) & (table.depth == 5)].rate.iloc[0]), 2)
                      for p in ("train", "valid", "test")]  # fmt: skip


def test_the_command_writes_tables_and_figures(latent_runs, tmp_path, capsys):
    words = [
        "analyse",
        "latents",
        "--runs=latent",
        f"--checkpoint_dir={latent_runs}",
        "--show_progress=False",
    ]
    assert main([*words, "--labels=one,two", f"--out={tmp_path}"]) == 2
    assert "--labels=one,two should name each of the 1 runs" in capsys.readouterr().err
    assert main([*words, "--labels=the first", f"--out={tmp_path}"]) == 0
    assert "active" in capsys.readouterr().out
    assert set(pd.read_csv(tmp_path / "latents.csv")["model"]) == {"the first"}
    made = {path.name for path in tmp_path.iterdir()}
    tables = {f"latents{name}.csv" for name in ("", "_dimensions", "_epochs", "_recall")}
    assert made == {*tables, "latents.png", "latents.html"}
    epochs = pd.read_csv(tmp_path / "latents_epochs.csv")
    stored = json.loads((latent_runs / "latent" / "result.json").read_text())["history"][1]["facts"]["kl z"]
    assert epochs[(epochs.epoch == 1) & (epochs.fact == "kl z")]["value"].iloc[0] == pytest.approx(stored)


@pytest.mark.parametrize(
    ("name", "message"),
    [("pop", "no latents"), ("plain", "variational=False"), ("latant", "Did you mean 'latent'")],
)
def test_runs_without_latents_are_refused(latent_runs, name, message):
    with pytest.raises(CDRError, match=message):
        open_latent_runs([name], latent_runs, None, {})


def test_an_unknown_part_is_refused(latent_runs, capsys):
    assert (
        main(["analyse", "latents", "--runs=latent", f"--checkpoint_dir={latent_runs}", "--part=tests"]) != 0
    )
    assert "part=tests should be one of train, valid, test" in capsys.readouterr().err
