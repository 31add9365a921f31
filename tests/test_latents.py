"""Whether latents carry anything: the meter of an epoch, and the analysis of saved runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_cdr_ext.analysis.latents import (
    dimension_table,
    latent_table,
    latents,
    open_latent_runs,
    recall_table,
    recalled_targets,
)
from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.parts.latent_meter import LatentMeter
from recbole_cdr_ext.model.parts.layers import kl
from recbole_cdr_ext.pages.figures import require
from recbole_cdr_ext.runs.folder import finished_result
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.serving.recommendation import load_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
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


def test_a_run_keeps_what_its_epochs_measured(saved):
    history = finished_result(saved / "latent")["history"]
    assert [entry["epoch"] for entry in history] == [0, 1]
    for entry in history:
        assert set(entry["facts"]) == {
            f"{what} {name}" for what in ("kl", "active") for name in ("z", "z_t", "z_a")
        }
        assert all(value >= 0 for value in entry["facts"].values())
    assert "facts" not in finished_result(saved / "plain")["history"][0]


def test_tables_say_what_the_posteriors_are(saved):
    experiment = load_model(saved / "latent")
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
        expected = kl(posteriors.own, experiment.model.own_prior[x]())[posteriors.has_own].numpy()
    mine = next(one for one in found if one.domain == experiment.dataset.domains[x] and one.name == "z^x")
    np.testing.assert_allclose(mine.kl.sum(1)[: len(expected)], expected, rtol=1e-4, atol=1e-5)
    table, dimensions = latent_table(found), dimension_table(found)
    assert table["kl"].to_numpy() == pytest.approx([one.kl.sum(1).mean() for one in found])
    for _, own in dimensions.groupby(["domain", "latent"]):
        assert own["kl"].is_monotonic_decreasing and len(own) == 8


def test_recall_by_depth(saved):
    experiment = load_model(saved / "latent")
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
    report = finished_result(saved / "latent")["report"]["targets recalled in train / valid / test (%)"]
    assert report == [round(100 * float(table[(table.part == p) & (table.depth == 5)].rate.iloc[0]), 2)
                      for p in ("train", "valid", "test")]  # fmt: skip


def test_the_command_writes_tables_and_figures(saved, tmp_path, capsys):
    words = ["analyse", "latents", "--runs=latent", f"--checkpoint_dir={saved}", "--show_progress=False"]
    assert main([*words, "--labels=one,two", f"--out={tmp_path}"]) == 2
    assert "--labels=one,two should name each of the 1 runs" in capsys.readouterr().err
    assert main([*words, "--labels=the first", f"--out={tmp_path}"]) == 0
    assert "active" in capsys.readouterr().out
    assert set(pd.read_csv(tmp_path / "latents.csv")["model"]) == {"the first"}
    made = {path.name for path in tmp_path.iterdir()}
    tables = {f"latents{name}.csv" for name in ("", "_dimensions", "_epochs", "_recall")}
    assert made == {*tables, "latents.png", "latents.html"}
    epochs = pd.read_csv(tmp_path / "latents_epochs.csv")
    stored = json.loads((saved / "latent" / "result.json").read_text())["history"][1]["facts"]["kl z"]
    assert epochs[(epochs.epoch == 1) & (epochs.fact == "kl z")]["value"].iloc[0] == pytest.approx(stored)


@pytest.mark.parametrize(
    ("name", "message"),
    [("pop", "no latents"), ("plain", "variational=False"), ("latant", "Did you mean 'latent'")],
)
def test_runs_without_latents_are_refused(saved, name, message):
    with pytest.raises(CDRError, match=message):
        open_latent_runs([name], saved, None, {})


def test_an_unknown_part_is_refused(saved, capsys):
    assert main(["analyse", "latents", "--runs=latent", f"--checkpoint_dir={saved}", "--part=tests"]) != 0
    assert "part=tests should be one of train, valid, test" in capsys.readouterr().err
