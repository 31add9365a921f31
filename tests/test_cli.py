"""The front doors: the command line, as a user meets it, and ``import recbole_cdr_ext as cdr``."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import recbole_cdr_ext
import recbole_cdr_ext as cdr
from recbole_cdr_ext.cli.main import COMMANDS, main
from recbole_cdr_ext.errors import CDRError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def fake_run(monkeypatch):
    """Takes the place of training; returns the calls it got. Set ``.answer`` to an exception to raise."""
    fake = types.ModuleType("recbole_cdr_ext.runs.run")
    fake.calls, fake.answer = [], None

    def run(model, dataset, config_file_list=None, config_dict=None, argv=None):
        fake.calls.append((model, dataset, argv))
        if fake.answer is not None:
            raise fake.answer

    fake.run = run
    monkeypatch.setitem(sys.modules, "recbole_cdr_ext.runs.run", fake)
    return fake


def test_run_hands_over_the_words(fake_run):
    words = ["--model=I2VAE", "--dataset=toy", "--epochs=1", "--download"]
    assert main(["run", *words]) == 0
    assert fake_run.calls == [("I2VAE", "toy", words)]


def test_an_error_of_the_users_is_one_line_and_status_2(fake_run, capsys):
    fake_run.answer = CDRError("Something\nis wrong.")
    assert main(["run", "--model=I2VAE", "--dataset=toy"]) == 2
    assert capsys.readouterr().err == "recbole-cdr: Something is wrong.\n"


def test_an_error_of_ours_is_not_hidden(fake_run):
    fake_run.answer = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        main(["run", "--model=I2VAE", "--dataset=toy"])


def test_an_interrupt_says_how_to_go_on_and_is_status_130(fake_run, capsys):
    fake_run.answer = KeyboardInterrupt("go on with --resume=abc")
    assert main(["run", "--model=I2VAE", "--dataset=toy"]) == 130
    assert "go on with --resume=abc" in capsys.readouterr().err


def test_an_interrupt_without_a_hint(fake_run, capsys):
    fake_run.answer = KeyboardInterrupt()
    assert main(["run", "--model=I2VAE", "--dataset=toy"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runn"], "Unknown command 'runn'. Did you mean 'run'?"),
        (["models", "--jsn"], "Unknown setting 'jsn' of `recbole-cdr models`. Did you mean 'json'?"),
        (["datasets", "json"], "'json' is not of the form --key=value."),
        (["datasets", "--json=perhaps"], "json='perhaps' (command line) should be of type bool."),
        (["prepare"], "Which dataset?"),
        (["prepare", "toyy"], "Did you mean 'toy'?"),
        (["prepare", "toy", "--epochs=3"], "Unknown setting 'epochs' of `recbole-cdr prepare`."),
        (["run", "model=I2VAE"], "'model=I2VAE' is not of the form --key=value."),
    ],
)
def test_bad_words(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_version_says_what_is_installed(capsys):
    assert main(["--version"]) == 0
    shown = dict(line.split(" ") for line in capsys.readouterr().out.splitlines())
    assert shown["recbole_cdr_ext"] == recbole_cdr_ext.__version__
    assert torch.__version__.startswith(shown["torch"])


def test_help_lists_the_commands_there_are(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in out
        assert (command.__doc__ or "").split("\n")[0] in out
    assert main([]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"Usage: recbole-cdr {name}" in capsys.readouterr().out


def test_help_of_run_explains_keys_and_those_of_a_model(capsys):
    main(["run", "--help"])
    general = capsys.readouterr().out
    assert "--split=user" in general
    assert "leave_one_out or published" in general
    assert "--kl_weight" not in general
    main(["run", "--help", "--model=I2VAE"])
    assert "--kl_weight" in capsys.readouterr().out
    main(["run", "--help", "--model=GRU4Rec"])  # RecBole's own file
    assert "--dropout_prob" in capsys.readouterr().out


def test_help_of_run_shows_the_settings_for_each_task_of_a_name(capsys):
    main(["run", "--help", "--model=EMCDR"])
    shown = capsys.readouterr().out
    next_item, rating = shown.split("Settings of EMCDR, task next_item:")[1].split("Settings of EMCDR:")
    assert "--map_users=cold" in next_item and "--map_users=cold" not in rating
    assert "--mapping=mlp" in next_item and "--mapping=mlp" in rating


def test_models_as_table_and_as_json(capsys):
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["I2VAE"]["cold_start"] is True
    assert {"name", "task", "domains", "cold_start", "needs_overlap", "paper", "origin"} == set(
        entries["I2VAE"]
    )
    assert all(name in table for name in entries)


def test_prepare_and_datasets(tmp_path, capsys):
    where = f"--data_path={tmp_path}"
    main(["datasets", "--json", where])
    before = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert before["toy"]["prepared"] is False
    assert main(["prepare", "toy", where, "--show_progress=False"]) == 0
    out = capsys.readouterr().out
    assert "books" in out
    assert "interactions" in out
    main(["datasets", "--json", where])
    assert {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}["toy"]["prepared"] is True
    assert main(["prepare", "toy", where]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["prepare", "toy", where, "--overwrite"]) == 0
    main(["datasets", where])
    assert "books, films" in capsys.readouterr().out


def test_prepare_a_dataset_of_ones_own(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    for domain in ("tea", "cups"):
        lines = [f"u{user},{domain}{user % 3},{user}" for user in range(6)]
        (raw / f"{domain}.csv").write_text("\n".join(["who,what,when", *lines]), encoding="utf-8")
    described = tmp_path / "mine.yaml"
    described.write_text(
        "domains: [tea, cups]\norder: clock\nsource:\n  kind: table\n  files: {tea: tea.csv, cups: cups.csv}\n"
        '  separator: ","\n  header: true\n  columns: {user_id: who, item_id: what, timestamp: when}\n',
        encoding="utf-8",
    )
    words = [
        "prepare",
        "mine",
        f"--config_files={described}",
        f"--raw={raw}",
        f"--data_path={tmp_path / 'data'}",
    ]
    assert main(words) == 0, capsys.readouterr().err
    assert (tmp_path / "data" / "mine" / "tea.inter").is_file()


def test_help_and_mistakes_import_nothing_heavy():
    code = (
        "import sys; from recbole_cdr_ext.cli.main import main; main(['--help']);"
        "main(['run', '--help', '--model=I2VAE']);"
        "main(['runn']); heavy = {'torch', 'ray', 'pandas', 'numpy', 'recbole'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, timeout=60)


@pytest.mark.parametrize("start", [["-m", "recbole_cdr_ext", "run"], ["run_recbole_cdr.py"]])
def test_the_other_ways_to_start_it(start):
    done = subprocess.run(
        [sys.executable, *start, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "Usage: recbole-cdr run" in done.stdout


def test_a_reader_that_left_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "recbole_cdr_ext", "run", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_of_run_shows_the_settings_of_a_task(capsys):
    assert main(["run", "--help", "--model=SCDR"]) == 0
    shown = capsys.readouterr().out
    for key in ("--beta=0.5", "--biases=True", "--bias_map=ratings", "--sharpness=pgd", "--rho_pretrain=0.1"):
        assert key in shown


# -- import recbole_cdr_ext as cdr ---------------------------------------------------------------------------------


def test_every_name_is_there_and_is_what_the_type_checker_is_told():
    tree = ast.parse(inspect.getsource(cdr))
    imports = {
        alias.asname: f"{node.module}:{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert imports == {name: f"recbole_cdr_ext.{home}" for name, home in cdr._HOMES.items()}
    for name in cdr.__all__:
        assert getattr(cdr, name) is not None
    assert set(cdr.__all__) <= set(dir(cdr))


def test_what_is_not_there_says_so():
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        _ = cdr.runn


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; import recbole_cdr_ext;"
        "heavy = {'torch', 'recbole', 'numpy', 'pandas', 'yaml', 'ray', 'pydantic'} & set(sys.modules);"
        "assert not heavy, heavy; assert not [m for m in sys.modules if m.startswith('recbole_cdr_ext.data')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_names_of_before_are_handed_on_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"recbole_cdr_ext\.run_recbole_cdr now"):
        from recbole_cdr_ext.run import run_recbole_cdr
    with pytest.warns(DeprecationWarning, match="load_model now"):
        from recbole_cdr_ext.serve import load_model
    with pytest.warns(DeprecationWarning, match="Recommender now"):
        from recbole_cdr_ext.model.abstract import CrossDomainRecommender
    assert run_recbole_cdr is cdr.run and load_model is cdr.load_model
    assert CrossDomainRecommender is cdr.Recommender
    assert callable(cdr.run)  # and no module took its place
