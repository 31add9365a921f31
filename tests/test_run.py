"""One run from settings to result: what it writes, its stages, bad input, and resuming it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import run_toys
import torch
from run_toys import DATA, WHAT_IT_COMPUTES, Staged, go
from toy_models import ToyMLP, write_toy_domains

from recbole_cdr_ext.data.prepare import Ensured
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.files import locked
from recbole_cdr_ext.runs import run as runs
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.runs.finished import Unusable, read_run
from recbole_cdr_ext.runs.folder import finished_result
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.trainer import checkpoint

settings = run_toys.settings


def test_the_test_part_is_left_alone_where_the_settings_say_so(settings, tmp_path, capsys, monkeypatch):
    whole = go(settings, run_id="whole")
    monkeypatch.setattr(
        CrossDomainSampler, "candidates", refusing_the_test_part(CrossDomainSampler.candidates)
    )
    capsys.readouterr()
    searched = go(settings, run_id="searched", evaluate_test=False)
    assert not {"test", "popularity"} & set(searched) and list(searched["fallback"]) == ["valid"]
    for key in ("valid", "best_valid_score", "epochs_run"):
        assert searched[key] == whole[key]
    assert "ToyMLP on toy, SIMULATED DATA: valid, split=user" in capsys.readouterr().out
    assert finished_result(tmp_path / "saved" / "searched") == searched
    with pytest.raises(Unusable, match="its test part was not evaluated"):
        read_run(tmp_path / "saved" / "searched")
    assert read_run(tmp_path / "saved" / "searched", "valid").seed == 2024


def refusing_the_test_part(draw):
    def candidates(self, instances, *args):
        assert instances is not self.split.test, "the test part is looked at"
        return draw(self, instances, *args)

    return candidates


# -- what a run leaves ---------------------------------------------------------------------------------------


def test_result_files_and_table(settings, tmp_path, capsys):
    before = logging.getLogger().handlers[:], logging.getLogger().level
    result = go(settings, run_id="first", result_file=str(tmp_path / "out" / "r.json"))
    folder = tmp_path / "saved" / "first"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml", "instances.parquet", "model.pth", "result.json", "run.log",
    ]  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == result
    assert json.loads((tmp_path / "out" / "r.json").read_text()) == result
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "saved"]  # no litter beside
    assert (logging.getLogger().handlers, logging.getLogger().level) == before

    assert {
        "model": result["model"], "dataset": result["dataset"], "simulated": result["simulated"],
        "seed": result["seed"], "split": result["split"], "run_id": result["run_id"],
    } == {
        "model": "ToyMLP", "dataset": "toy", "simulated": True,
        "seed": 2024, "split": "user", "run_id": "first",
    }  # fmt: skip
    assert set(result["valid"]) == {"books", "films"} and list(result["test"]["books"]) == [
        "all",
        "tailed",
        "cold",
    ]
    cell = result["test"]["books"]["all"]
    assert list(cell) == ["n", "ndcg@10", "hit@10"] and 0 <= cell["ndcg@10"] <= cell["hit@10"] <= 1
    mean = np.mean([result["valid"][d]["all"]["ndcg@10"] for d in ("books", "films")])
    assert result["best_valid_score"] == pytest.approx(mean)
    assert result["settings"]["epochs"] == 2 and {"torch", "recbole", "numpy"} <= set(result["versions"])
    assert result["seconds"]["total"] > 0 and result["report"]

    log, out = (folder / "run.log").read_text(), capsys.readouterr().out
    for text in (log, out):
        assert "SIMULATED" in text and "Pop NDCG@10" in text
    assert "leak audit: no held-out pair can be reached" in log and "\x1b" not in log

    frame = pd.read_parquet(folder / "instances.parquet")
    for part in ("valid", "test"):
        for domain in ("books", "films"):
            rows = frame[(frame["part"] == part) & (frame["domain"] == domain)]
            assert len(rows) == result[part][domain]["all"]["n"]
            assert rows["ndcg@10"].mean() == pytest.approx(result[part][domain]["all"]["ndcg@10"], abs=1e-6)
            assert rows["cold"].sum() == result[part][domain]["cold"]["n"]


def test_same_seed_same_result_and_another_seed_another(settings):
    first, second, third = go(settings), go(settings), go(settings, seed=1)
    assert first["run_id"] != second["run_id"]
    assert [first[k] for k in WHAT_IT_COMPUTES] == [second[k] for k in WHAT_IT_COMPUTES]
    assert first["test"] != third["test"]
    assert first["popularity"] == third["popularity"]  # paired on the same instances and candidates


def test_popularity_is_its_own_row(settings):
    result = go(settings, model="Pop")
    assert result["test"] == result["popularity"] and result["epochs_run"] == 0


def test_fallback_is_counted(settings):
    result = go(settings, model="BPR", epochs=1)
    cold = {domain: groups["cold"]["n"] for domain, groups in result["test"].items()}
    assert sum(cold.values()) > 0
    for domain, groups in result["fallback"]["test"].items():
        assert groups["cold"] == cold[domain] and groups["all"] >= groups["cold"]


def test_notes_say_what_is_not_comparable(settings):
    result = go(settings, eval_args={"mode": "uni999"}, epochs=1)
    text = " ".join(result["notes"])
    assert "simulated" in text and "('books' has 120 items)" in text and "not comparable" in text


def test_three_domains_and_settings_from_the_command_line(settings, tmp_path):
    write_toy_domains(tmp_path / "own" / "mine", 3)
    words = ["--dataset=mine", f"--data_path={tmp_path / 'own'}", "--cold_start_ratio=0.5", "--topk=[5, 10]"]
    result = run_recbole_cdr(ToyMLP, config_dict={**settings, "save_instances": False}, argv=words)
    assert list(result["test"]) == ["books", "films", "songs"] and not result["simulated"]
    assert list(result["test"]["songs"]["all"]) == ["n", "ndcg@5", "ndcg@10", "hit@5", "hit@10"]
    assert result["settings"]["cold_start_ratio"] == 0.5


def test_stand_in_for_data_that_are_not_there_runs_under_its_own_name(settings, monkeypatch, tmp_path):
    asked = []

    def ensure(name, **options):
        asked.append((name, options["allow_simulated"]))
        return Ensured(DATA / "toy", "toy", True, ["'cloth_sport' was not found."])

    monkeypatch.setattr("recbole_cdr_ext.runs.experiment.ensure_dataset", ensure)
    more = {**settings, "run_id": "stand-in", "epochs": 1}
    result = run_recbole_cdr(ToyMLP, config_dict=more, argv=["--dataset=cloth_sport"])
    assert (result["dataset"], result["simulated"], result["settings"]["dataset"]) == ("toy", True, "toy")
    assert asked == [("cloth_sport", True), ("toy", False)]
    assert "'cloth_sport' was not found." in (tmp_path / "saved" / "stand-in" / "run.log").read_text()


# -- bad input -----------------------------------------------------------------------------------------------


def test_folder_that_cannot_be_written_is_found_before_any_work(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load_data", lambda config: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CDRError, match=r"cannot write .*file"):
        go(settings, checkpoint_dir=str(tmp_path / "file" / "saved"))
    with pytest.raises(CDRError, match=r"cannot write .*file"):
        go(settings, result_file=str(tmp_path / "file" / "result.json"))


def test_run_that_fails_before_training_leaves_no_folder(settings, tmp_path):
    class Needy(ToyMLP):
        needs_overlap = True

    write_toy_domains(tmp_path / "own" / "apart", 2)
    lines = (tmp_path / "own" / "apart" / "films.inter").read_text()
    (tmp_path / "own" / "apart" / "films.inter").write_text(lines.replace("\nu", "\nv"))
    own = {**settings, "data_path": str(tmp_path / "own"), "run_id": "needy"}
    with pytest.raises(CDRError, match="Needy learns from users with interactions in several domains"):
        run_recbole_cdr(Needy, "apart", config_dict=own)
    assert not (tmp_path / "saved" / "needy").exists()


def test_model_for_fewer_domains_is_refused(settings, tmp_path):
    class Pairwise(ToyMLP):
        domains = "two"

    write_toy_domains(tmp_path / "own" / "three", 3)
    with pytest.raises(CDRError, match=r"Pairwise takes two domain\(s\), dataset 'three' has 3"):
        run_recbole_cdr(Pairwise, "three", config_dict={**settings, "data_path": str(tmp_path / "own")})


def test_metric_of_ratings_is_refused_for_next_items_before_the_data(settings, monkeypatch):
    monkeypatch.setattr(runs, "load_data", lambda config: pytest.fail("too late"))
    with pytest.raises(CDRError, match="Ranking metrics and value metrics can not be used at the same time"):
        go(settings, "Pop", metrics=["NDCG", "MAE"])


# -- stages --------------------------------------------------------------------------------------------------


def test_stage_runs_once_and_a_damaged_cache_is_made_again(settings, tmp_path, caplog):
    more = {**settings, "pseudo_length": 12, "epochs": 1}
    config = CDRConfig(Staged, "toy", config_dict=more)
    first = build(config)
    assert (first.split.test.recalled > 0).any()
    cached = next((tmp_path / "cache").glob("LightGCNPSG-toy-*/recalled.pth"))
    written = cached.stat().st_mtime_ns
    second = build(CDRConfig(Staged, "toy", config_dict={**more, "seed": 5}))
    assert cached.stat().st_mtime_ns == written
    assert (second.split.test.recalled == first.split.test.recalled).all()
    cached.write_bytes(cached.read_bytes()[:100])
    with caplog.at_level("WARNING"):
        third = build(config)
    assert "is not used and made again" in caplog.text and cached.stat().st_mtime_ns > written
    assert (third.split.train.recalled == first.split.train.recalled).all()
    # The start of training does not depend on whether the stage came from the cache.
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, third.model.state_dict()[name])
    other = build(CDRConfig(Staged, "toy", config_dict={**more, "psg_seed": 9}))
    assert (other.split.test.recalled != first.split.test.recalled).any()


# -- sharpness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", ["sam", "asam"])
@pytest.mark.parametrize("model", [ToyMLP, "I2VAE", "LightGCNPSG", "BPR", "SASRec", "MultiVAE"])
def test_any_model_can_be_trained_at_the_worst_weights_nearby(settings, model, sharpness):
    more = {"psg": "random"} if model == "I2VAE" else {}
    results = [go(settings, model, epochs=1, sharpness=kind, rho=0.5, **more) for kind in ("none", sharpness)]
    weights = [
        checkpoint.load(Path(settings["checkpoint_dir"]) / r["run_id"] / checkpoint.MODEL)[1]["model"]
        for r in results
    ]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(torch.isfinite(tensor).all() for tensor in weights[1].values() if tensor.is_floating_point())


def test_pgd_needs_a_model_that_names_what_it_moves(settings):
    with pytest.raises(CDRError, match="this one names none"):
        go(settings, sharpness="pgd")


# -- resuming ------------------------------------------------------------------------------------------------------


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
