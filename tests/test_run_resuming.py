"""Resuming an interrupted run, and what stands in its way."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import run_toys
import torch
from run_toys import WHAT_IT_COMPUTES, go
from toy_models import ToyMLP

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import locked
from recbole_cdr_ext.runs import run as runs
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.trainer import checkpoint

settings = run_toys.settings


class Interrupting(ToyMLP):
    """Presses Ctrl-C at the loss of a certain number."""

    at = 10**9
    calls = 0

    def calculate_loss(self, interaction):
        """Returns the loss, or does not."""
        type(self).calls += 1
        if type(self).calls == type(self).at:
            raise KeyboardInterrupt
        return super().calculate_loss(interaction)


@pytest.fixture
def interrupting():
    Interrupting.calls, Interrupting.at = 0, 10**9
    return Interrupting


# -- resuming ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_interrupted_run_resumes_to_the_result_of_an_unbroken_one(settings, tmp_path, interrupting, epoch):
    settings = {**settings, "epochs": 3, "split": "leave_one_out"}
    whole = go(settings, interrupting, run_id="whole")
    per_epoch = interrupting.calls // 3
    assert per_epoch > 2

    interrupting.calls, interrupting.at = 0, epoch * per_epoch + 2  # in the middle of an epoch
    with pytest.raises(KeyboardInterrupt, match=r"--resume=.*saved/broken"):
        go(settings, interrupting, run_id="broken")
    folder = tmp_path / "saved" / "broken"
    assert (folder / "last.pth").exists() == (epoch > 0) and not (folder / "result.json").exists()

    interrupting.at = 10**9
    where = {"checkpoint_dir": settings["checkpoint_dir"], "resume": "broken"}
    resumed = run_recbole_cdr(interrupting, config_dict=where)
    assert [resumed[key] for key in WHAT_IT_COMPUTES] == [whole[key] for key in WHAT_IT_COMPUTES]
    states = [
        checkpoint.load(tmp_path / "saved" / name / "model.pth")[1]["model"] for name in ("whole", "broken")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    frames = [
        pd.read_parquet(tmp_path / "saved" / name / "instances.parquet") for name in ("whole", "broken")
    ]
    pd.testing.assert_frame_equal(*frames)


def test_finished_run_gives_its_result_again(settings, tmp_path, capsys, monkeypatch):
    result = go(settings, run_id="done", epochs=1)
    capsys.readouterr()
    monkeypatch.setattr(runs, "load_data", lambda *a: pytest.fail("nothing is to be computed"))
    for resume in ("done", str(tmp_path / "saved" / "done")):
        words = [f"--resume={resume}", f"--checkpoint_dir={settings['checkpoint_dir']}"]
        assert run_recbole_cdr(ToyMLP, argv=words) == result
        assert "Pop NDCG@10" in capsys.readouterr().out


def test_a_folder_that_a_run_is_at_work_in_is_not_for_another(settings, interrupting):
    interrupting.at = 2
    with pytest.raises(KeyboardInterrupt):
        go(settings, interrupting, run_id="held")
    folder = Path(settings["checkpoint_dir"]) / "held"
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    where = {"checkpoint_dir": settings["checkpoint_dir"], "resume": "held"}
    with locked(folder, "run"):
        with pytest.raises(CDRError, match=r"Another run is at work in .*held"):
            run_recbole_cdr(interrupting, config_dict=where)
        after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    del after[".lock"]
    assert sorted(after.items()) == before


def test_a_filter_of_a_column_that_is_not_there(settings):
    with pytest.raises(
        CDRError, match=r"val_interval: .*books.inter has no column 'ratng'.*Did you mean 'rating'"
    ):
        go(settings, val_interval={"ratng": "[3,inf)"})


def test_settings_that_contradict_the_resumed_run(settings, interrupting):
    interrupting.at = 1
    with pytest.raises(KeyboardInterrupt):
        go(settings, interrupting, run_id="begun")
    where = {"checkpoint_dir": settings["checkpoint_dir"], "resume": "begun"}
    with pytest.raises(CDRError, match=r"epochs=5 contradicts the run .*epochs=2"):
        run_recbole_cdr(interrupting, config_dict=where, argv=["--epochs=5"])
    with pytest.raises(CDRError, match=r"learning_rate=0\.5 contradicts"):
        run_recbole_cdr(interrupting, config_dict={**where, "learning_rate": 0.5})
    Path("more.yaml").write_text("seed: 3\n")
    with pytest.raises(CDRError, match="seed=3 contradicts"):
        run_recbole_cdr(interrupting, config_file_list=["more.yaml"], config_dict=where)
    with pytest.raises(CDRError, match="model=Pop contradicts"):
        run_recbole_cdr("Pop", config_dict={**where})
    # What only says how to run may change, and what agrees may be repeated.
    interrupting.at = 10**9
    result = run_recbole_cdr(interrupting, "toy", config_dict={**where, "torch_threads": 1, "epochs": 2})
    assert result["run_id"] == "begun" and result["epochs_run"] == 2


def test_run_to_resume_that_is_not_there(settings, tmp_path):
    go(settings, "Pop", run_id="monday")
    with pytest.raises(CDRError, match=r"There is no run 'mondai'.*Did you mean 'monday'"):
        run_recbole_cdr(config_dict={"checkpoint_dir": settings["checkpoint_dir"], "resume": "mondai"})
    (tmp_path / "saved" / "monday" / "config.yaml").write_text("- a\n")
    with pytest.raises(CDRError, match="damaged"):
        run_recbole_cdr(config_dict={"checkpoint_dir": settings["checkpoint_dir"], "resume": "monday"})


@pytest.mark.parametrize("text", ["[]", '{"model": "Pop"}', '{"mod'])
def test_a_damaged_result_says_how_to_go_on_and_then_it_does(settings, tmp_path, text):
    expected = go(settings, "Pop", run_id="monday")
    path = tmp_path / "saved" / "monday" / "result.json"
    path.write_text(text)
    where = {"checkpoint_dir": settings["checkpoint_dir"], "resume": "monday"}
    with pytest.raises(CDRError, match=r"result.json is damaged .*Delete it, and --resume=monday"):
        run_recbole_cdr(config_dict=where)
    path.unlink()
    assert run_recbole_cdr(config_dict=where)["test"] == expected["test"]


def test_run_ids_do_not_collide(settings, interrupting):
    go(settings, "Pop", run_id="mine")
    with pytest.raises(CDRError, match="run 'mine' is finished"):
        go(settings, "Pop", run_id="mine")
    interrupting.at = 1
    with pytest.raises(KeyboardInterrupt):
        go(settings, interrupting, run_id="open")
    with pytest.raises(CDRError, match="go on with --resume=open"):
        go(settings, interrupting, run_id="open")
    with pytest.raises(CDRError, match="names a folder"):
        go(settings, "Pop", run_id="../elsewhere")
