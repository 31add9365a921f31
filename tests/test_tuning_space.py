"""Search spaces and how to get one wrong, and sweeps of them by Ray."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import support
from support import QUICK, Troubled, score_of_run, space_file
from toy_models import ToyMLP

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.reading import properties_dir
from recbole_cdr_ext.tuning.records import CUT, FAILED, FINISHED, ended
from recbole_cdr_ext.tuning.space import Parameter, find_space, read_space
from recbole_cdr_ext.tuning.sweep import DEFAULTS, prepare
from recbole_cdr_ext.tuning.tune import tune

# -- search spaces -------------------------------------------------------------------------------------------------


YAML = """
# a comment
learning_rate: {loguniform: [1e-4, 1e-2]}
dropout: {uniform: [0.0, 0.6]}
n_layers: {int: [1, 3]}
train_neg_num: {choice: [512, 2048], if: {loss_type: [sampled, BCE]}}
loss_type: {choice: [CE, sampled, BCE]}
temperature: {quniform: [0.25, 1.1, 0.25]}
"""
RECBOLE = """
# RecBole's own form
learning_rate loguniform -8,0
dropout uniform -8,0
n_layers choice [1, 2,3]
hidden choice ['[64,32]', "[128]"]
ratio quniform 0.0, 0.5, 0.1
"""


@pytest.fixture
def written(tmp_path):
    def write(text, name="space.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_typed_yaml_by_hand(written):
    space = read_space(written(YAML))
    found = {p.key: (p.kind, p.values, dict(p.condition)) for p in space.parameters}
    assert found == {
        "learning_rate": ("loguniform", (1e-4, 1e-2), {}),
        "dropout": ("uniform", (0.0, 0.6), {}),
        "n_layers": ("int", (1, 3), {}),
        "loss_type": ("choice", ("CE", "sampled", "BCE"), {}),
        "train_neg_num": ("choice", (512, 2048), {"loss_type": ("sampled", "BCE")}),
        "temperature": ("quniform", (0.25, 1.1, 0.25), {}),
    }
    # A condition's setting comes first, whatever the order of the lines.
    assert space.keys.index("loss_type") < space.keys.index("train_neg_num")


def test_recboles_syntax_by_hand(written):
    space = read_space(written(RECBOLE, "sasrec.test"))
    found = {p.key: (p.kind, p.values) for p in space.parameters}
    assert found.pop("learning_rate") == (
        "loguniform",
        (pytest.approx(math.exp(-8)), 1.0),
    )  # logarithms, as hyperopt
    assert found == {
        "dropout": ("uniform", (-8, 0)),
        "n_layers": ("choice", (1, 2, 3)),
        "hidden": ("choice", ("[64,32]", "[128]")),
        "ratio": ("quniform", (0.0, 0.5, 0.1)),
    }


@pytest.mark.parametrize(
    ("kind", "values", "listed", "extremes"),
    [
        ("choice", ("b", "a"), ["b", "a"], ["b", "a"]),
        ("int", (1, 3), [1, 2, 3], [1, 3]),
        ("quniform", (0.0, 0.5, 0.1), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [0.0, 0.5]),
        ("quniform", (16, 64, 16), [16, 32, 48, 64], [16, 64]),
        ("quniform", (0.25, 1.1, 0.25), [0.25, 0.5, 0.75, 1.0], [0.25, 1.0]),
        ("uniform", (0, 2), None, [0.0, 2.0]),
        ("loguniform", (1.0, 1.0), None, [1.0]),
    ],
)
def test_values_of_a_kind(kind, values, listed, extremes):
    parameter = Parameter("x", kind, values)
    assert parameter.listed() == listed and parameter.extremes() == extremes
    assert [type(v) for v in parameter.extremes()] == [type(v) for v in extremes]


def test_drawn_values_are_in_range_and_conditions_hold(written):
    space = read_space(written(YAML))
    drawn = space.sample(400, 3, {})
    assert len(drawn) == 400 and space.sample(400, 3, {}) == drawn != space.sample(400, 4, {})
    for settings in drawn:
        assert 1e-4 <= settings["learning_rate"] <= 1e-2 and 0 <= settings["dropout"] <= 0.6
        assert settings["n_layers"] in (1, 2, 3) and isinstance(settings["n_layers"], int)
        assert settings["temperature"] in (0.25, 0.5, 0.75, 1.0)
        assert ("train_neg_num" in settings) == (settings["loss_type"] != "CE")
    assert {s["n_layers"] for s in drawn} == {1, 2, 3} and {s["loss_type"] for s in drawn} == {
        "CE",
        "sampled",
        "BCE",
    }
    # Uniform in the logarithm: half of the draws are below the geometric mean, 1e-3 (binomial, five sigma).
    assert abs(np.mean([s["learning_rate"] < 1e-3 for s in drawn]) - 0.5) < 5 * 0.5 / 20


def test_a_small_space_is_drawn_without_repetition(written):
    space = read_space(written("a: {choice: [1, 2]}\nb: {int: [0, 2], if: {a: 1}}\n"))
    drawn = space.sample(100, 0, {})
    assert sorted(map(str, drawn)) == sorted(map(str, space.grid({})))
    assert len(drawn) == 4  # a=1 with three b, and a=2 without


def test_conditions_on_settings_that_are_not_searched(written):
    space = read_space(written("a: {choice: [1]}\nb: {choice: [2], if: {mode: [x, z]}}\n"))
    assert space.grid({"mode": "x"}) == [{"a": 1, "b": 2}]
    assert space.grid({"mode": "y"}) == [{"a": 1}]
    with pytest.raises(CDRError, match="condition of 'b' never holds: mode = x or z"):
        space.probes({"mode": "y"})


def test_a_chain_of_conditions(written):
    text = "c: {choice: [9], if: {b: 2}}\nb: {choice: [1, 2], if: {a: true}}\na: {choice: [true, false]}\n"
    space = read_space(written(text))
    assert space.grid({}) == [{"a": True, "b": 1}, {"a": True, "b": 2, "c": 9}, {"a": False}]
    assert {"a": True, "b": 2, "c": 9} in space.probes({})


def test_a_truth_value_is_no_number(written):
    space = read_space(written("a: {choice: [1, 0]}\nb: {choice: [5], if: {a: 1}}\n"))
    assert space.grid({}) == [{"a": 1, "b": 5}, {"a": 0}]
    with pytest.raises(CDRError, match="never holds: a = True"):
        read_space(written("a: {choice: [1, 0]}\nb: {choice: [5], if: {a: true}}\n"))


def test_every_extreme_is_probed(written):
    space = read_space(written(YAML))
    probes = space.probes({})
    for parameter in space.parameters:
        assert {repr(p[parameter.key]) for p in probes if parameter.key in p} >= set(
            map(repr, parameter.extremes())
        )


def test_clipping():
    assert Parameter("x", "uniform", (0.0, 1.0)).clip(1.2) == 1.0
    assert Parameter("x", "int", (1, 3)).clip(3.6) == 3
    assert Parameter("x", "quniform", (0.0, 1.0, 0.25)).clip(0.6) == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("a: {uniform: [1, 0]}", "a: the lowest value 1 of uniform is above the highest, 0"),
        ("a: {int: [3, 1]}", "above the highest"),
        ("a: {loguniform: [0, 1]}", "loguniform has to begin above 0"),
        ("a: {loguniform: [-1, 1]}", "loguniform has to begin above 0"),
        ("a: {int: [0.5, 2]}", "int takes whole numbers"),
        ("a: {int: [true, 2]}", "int takes 2 numbers"),
        ("a: {uniform: [0, .inf]}", "uniform takes 2 numbers"),
        ("a: {uniform: [0]}", "uniform takes 2 numbers"),
        ("a: {quniform: [0, 1, 0]}", "step of quniform has to be above 0"),
        ("a: {quniform: [0.1, 0.2, 0.5]}", "no multiple of 0.5"),
        ("a: {choice: []}", "choice has no value"),
        ("a: {choice: [1, 1]}", "stands there twice"),
        ("a: {choice: 3}", "choice takes a list"),
        ("a: 3", "expected one of choice"),
        ("a: {loguniforn: [1, 2]}", "Did you mean 'loguniform'"),
        ("a: {choice: [1], uniform: [0, 1]}", "expected one of"),
        ("a: {choice: [1], if: 3}", "'if' takes settings"),
        ("a: {choice: [1], if: {a: 1}}", "names the setting itself"),
        ("a: {choice: [1]}\na: {choice: [2]}", "second time"),
        ("a: {choice: [1], if: {b: 1}}\nb: {choice: [1], if: {a: 1}}", "wait for one another"),
        ("a: {choice: [1], if: {b: 3}}\nb: {choice: [1, 2]}", "never holds: b = 3"),
        ("a: {choice: [1], if: {b: 1}}\nb: {uniform: [0, 2]}", "a condition can name a choice only"),
    ],
)
def test_bad_yaml(written, text, message):
    with pytest.raises(CDRError, match=message):
        read_space(written(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr choice", "line 1: expected 'setting kind values'"),
        ("\nlr normal 0,1", "line 2: expected"),
        ("lr uniform 1,0", "above the highest"),
        ("lr loguniform 0,800", "natural logarithms"),
        ("lr choice 3", "choice takes a list"),
        ("lr choice __import__('os').getcwd()", "choice takes a list"),
        ("lr uniform a,b", "uniform takes 2 numbers"),
        ("lr choice [1]\nlr choice [2]", "second time"),
    ],
)
def test_bad_recbole_files(written, text, message):
    with pytest.raises(CDRError, match=message):
        read_space(written(text, "x.hyper"))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(
        CDRError, match=r"exists neither here nor in properties/hyper.*Did you mean 'I2VAE.yaml'"
    ):
        find_space("I2VAE.yam", "I2VAE")
    with pytest.raises(CDRError, match="BPR has no file in properties/hyper"):
        find_space(None, "BPR")
    with pytest.raises(CDRError, match="can't be read"):
        read_space(tmp_path / "none.test")


# -- against a model's settings --------------------------------------------------------------------------------------


def prepared(space, tmp_path, model="SASRec", given=None, **options):
    given = {"data_path": str(tmp_path), **(given or {})}
    return prepare(
        model, "toy", {**DEFAULTS, "space": str(space), "out": str(tmp_path / "out"), **options}, None, given
    )


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (
            "learning_rat: {uniform: [0.1, 1]}",
            {},
            "Unknown setting 'learning_rat'.*Did you mean 'learning_rate'",
        ),
        ("n_layers: {uniform: [0.5, 1.5]}", {}, "n_layers=0.5.*should be of type int"),
        ("learning_rate: {uniform: [-1, 1]}", {}, "learning_rate=-1.0.*should be above 0"),
        ("learning_rate: {uniform: [0.1, 1]}", {"learning_rate": 0.5}, "leave out one of the two"),
        ("split_seed: {int: [1, 5]}", {}, "'split_seed' can't be searched"),
        ("topk: {choice: [5, 10]}", {}, "'topk' can't be searched"),
        ("cache_dir: {choice: [a, b]}", {}, "'cache_dir' can't be searched"),
        ("n_layers: {choice: [1], if: {los_type: CE}}", {}, "unknown setting 'los_type'.*'loss_type'"),
        ("n_layers: {choice: [1], if: {loss_type: BPR}}", {}, "never holds: loss_type = BPR"),
        ("n_layers: {choice: [1, 2]}", {"run_id": "x"}, "run_id is a setting of a single run"),
        ("n_layers: {choice: [1, 2]}", {"valid_metric": "GAUC"}, "valid_metric=GAUC is not among metrics"),
        ("n_layers: {choice: [1, 2]}", {"metrics": "MAE", "valid_metric": "MAE"}, "MAE"),
    ],
)
def test_spaces_that_do_not_fit_the_model(written, tmp_path, text, given, message):
    with pytest.raises(CDRError, match=message):
        prepared(written(text), tmp_path, given=given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "opt"}, "search=opt should be one of random, grid, optuna. Did you mean 'optuna'"),
        ({"scheduler": "ash"}, "Did you mean 'asha'"),
        ({"trials": 0}, "trials=0 should be at least 1"),
        ({"jobs": 0}, "jobs=0"),
        ({"cpus_per_trial": 0.0}, "cpus_per_trial=0.0 should be above 0"),
        ({"gpus_per_trial": 1.5}, "whole above 1"),
        ({"scheduler": "pbt", "search": "grid"}, "search=grid has no say"),
        ({"search": "grid"}, "search=grid needs listed values, and dropout_prob is uniform"),
    ],
)
def test_options_that_contradict(written, tmp_path, options, message):
    with pytest.raises(CDRError, match=message):
        prepared(written("dropout_prob: {uniform: [0, 0.5]}"), tmp_path, model="GRU4Rec", **options)


def test_a_grid_larger_than_asked(written, tmp_path):
    space = written("n_layers: {int: [1, 3]}\nhidden_size: {choice: [32, 64]}\n")
    assert len(prepared(space, tmp_path, search="grid").plan) == 6
    with pytest.raises(CDRError, match="has 6 points, more than --trials=5"):
        prepared(space, tmp_path, search="grid", trials=5)


def test_text_that_means_a_list_becomes_one(written, tmp_path):
    space = written("mlp_hidden_size choice ['[64,32]', '[128]']", "a.test")
    sweep = prepared(space, tmp_path, model="NeuMF")
    assert sweep.space.parameters[0].values == ([64, 32], [128])


@pytest.mark.parametrize(
    "path", sorted((properties_dir() / "hyper").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_packages_own_spaces_fit_their_models(path, tmp_path):
    given = {"task": "rating"} if path.stem == "SCDR" else {}
    sweep = prepared(path, tmp_path, model=path.stem, given=given, trials=12)
    assert len(sweep.plan) == 12 and sweep.staged


quick = support.quick


class KilledOnce(ToyMLP):
    """Kills its process once, in its third epoch."""

    def start_epoch(self, phase, epoch):
        """Does it where no mark says that it was done."""
        mark = Path(self.config["cache_dir"]).parent / "killed"
        if epoch == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


# -- sweeps by Ray ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_here():
    """One Ray for all tests of this file."""
    from recbole_cdr_ext.tuning import ray_tune

    with ray_tune._connected({**DEFAULTS, "jobs": 2}, use_gpu=False):
        yield ray_tune.ray


def test_a_sweep_from_space_to_run(ray_here, quick, tmp_path, capsys):
    space = "trouble: {choice: [none, raises, nan, memory]}\n"
    space += "learning_rate: {choice: [0.01, 0.003], if: {trouble: none}}\n"
    options = {
        "space": space_file(tmp_path, space),
        "search": "grid",
        "grace_epochs": 2,
        "out": str(tmp_path / "sweep"),
    }
    found = tune(Troubled, "toy", config_dict=quick, **options)
    records = {record.trial: record for record in found["trials"]}
    assert len(records) == 5 and [r.status for r in found["trials"][2:]] == [FAILED] * 3
    assert {r.settings["trouble"]: r.reason.split(":")[0] for r in found["trials"][2:]} == {
        "raises": "ValueError",
        "memory": "out of memory",
        "nan": next(r.reason.split(":")[0] for r in found["trials"] if r.settings["trouble"] == "nan"),
    }
    assert "not finite" in next(r.reason for r in found["trials"] if r.settings["trouble"] == "nan")
    assert len((found["folder"] / "trials.jsonl").read_text().splitlines()) == 5
    assert all((found["folder"] / name).exists() for name in found["files"])
    out = capsys.readouterr().out
    assert "failed: ValueError: this one raises" in out and found["command"] in out
    assert found["best"].score == score_of_run(found["folder"], Troubled)

    # The same command again does nothing but say so.
    again = tune(Troubled, "toy", config_dict=quick, **options)
    assert again["best"] == found["best"] and "is finished" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("search", "scheduler"), [("optuna", "asha"), ("random", "pbt")])
def test_other_ways_to_search(ray_here, quick, tmp_path, search, scheduler):
    space = "learning_rate: {loguniform: [1e-4, 1e-2]}\nweight_decay: {choice: [0.0, 0.01]}\n"
    found = tune(
        "BPR", "toy", config_dict={**quick, "epochs": 6}, space=space_file(tmp_path, space), search=search,
        scheduler=scheduler, trials=4, grace_epochs=2, out=str(tmp_path / "sweep"),
    )  # fmt: skip
    assert len(found["trials"]) == 4 and all(r.status in (FINISHED, CUT) for r in found["trials"])
    for record in found["trials"]:
        assert 1e-4 <= record.settings["learning_rate"] <= 1e-2 and record.settings["weight_decay"] in (
            0.0,
            0.01,
        )
    if scheduler == "pbt":
        assert all(record.epochs == 6 for record in found["trials"])
        assert any(len(record.schedule) > 1 for record in found["trials"])


def command(tmp_path, *more):
    words = [f"--{key}={value}" for key, value in QUICK.items() if key not in ("eval_args", "epochs")]
    return [
        sys.executable, "-m", "recbole_cdr_ext", "tune", "--model=BPR", "--dataset=toy", f"--out={tmp_path / 'sweep'}",
        f"--space={space_file(tmp_path, 'learning_rate: {loguniform: [1e-4, 1e-2]}')}", "--trials=6", "--jobs=1",
        "--grace_epochs=20", "--epochs=60", "--stopping_step=100", *words, *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("again", [[], ["--resume"]])
def test_a_killed_driver_goes_on_and_repeats_nothing(tmp_path, again):
    folder = tmp_path / "sweep"
    process = subprocess.Popen(command(tmp_path), cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(ended(folder)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {record.trial: record for record in ended(folder)}
    logs = {name: (folder / "trials" / name / "run.log").read_bytes() for name in before}
    assert 2 <= len(before) < 6

    words = command(tmp_path)
    words = [*words[:4], f"--out={folder}", "--resume"] if again else words
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "was begun before and goes on" in done.stdout
    after = {record.trial: record for record in ended(folder)}
    assert sorted(after) == [f"{i:04d}" for i in range(6)]
    for name, record in before.items():
        assert after[name] == record and (folder / "trials" / name / "run.log").read_bytes() == logs[name]
    for name in set(after) - set(before):
        epochs = [
            line
            for line in (folder / "trials" / name / "run.log").read_text().splitlines()
            if " epoch " in line
        ]
        numbers = [
            int(line.split(" epoch ")[1].split()[0].rstrip(",")) for line in epochs if "training [" in line
        ]
        assert len(numbers) <= after[name].epochs + 1  # a running trial loses its current epoch at most


@pytest.mark.slow
def test_a_killed_worker_goes_on_after_its_last_epoch(ray_here, quick, tmp_path):
    found = tune(
        KilledOnce, "toy", config_dict=quick, space=space_file(tmp_path), search="grid", out=str(tmp_path / "sweep"),
        jobs=1, scheduler="none",
    )  # fmt: skip
    assert (tmp_path / "killed").exists() and [r.status for r in found["trials"]] == [FINISHED] * 2
    logs = [(found["folder"] / "trials" / name / "run.log").read_text() for name in ("0000", "0001")]
    assert sum("Resume training" in log for log in logs) == 1
    assert all(log.count("training [") == 4 for log in logs)
    assert json.loads((found["folder"] / "sweep.json").read_text())["finished"]
