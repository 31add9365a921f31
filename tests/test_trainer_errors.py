"""The trainer: what is not finite, disks that are full, and wrong checkpoints."""

from __future__ import annotations

import errno
import json
import math
import resource
import signal

import pytest
import torch
from torch import nn
from trainer_toys import Batches, Settings, Slope, by_loss, scripted, settings, trainer_of

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.phase import Phase
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

# -- what is not finite --------------------------------------------------------------------------------------


def test_nan_loss_stops_with_the_facts_and_keeps_the_checkpoint(tmp_path):
    class Exploding(Slope):
        def calculate_loss(self, interaction):
            self.calls = getattr(self, "calls", 0) + 1
            loss = super().calculate_loss(interaction)
            return (loss, loss * math.nan) if self.calls == 7 else (loss, loss)

    model = Exploding()
    trainer = trainer_of(model, tmp_path / "run")
    with pytest.raises(CDRError) as error:
        trainer.fit(None, Batches(), scripted(0.1, 0.2))
    text = str(error.value)
    for fact in (
        "phase 'train', epoch 1, batch 2", "domain: cloth", "rows: 16", "learning rate: 0.05",
        "gradient norm of the batch before: ", "loss2 nan", "last.pth (phase 'train', epoch 0)",
    ):  # fmt: skip
        assert fact in text
    meta, _ = checkpoint.load(tmp_path / "run" / "last.pth")
    assert meta["epoch"] == 0


def test_weights_that_blew_up_in_the_last_batch_are_not_saved(tmp_path):
    class Poisoned(Slope):
        def start_epoch(self, phase, epoch):
            if epoch == 1:
                self.second.weight.register_hook(lambda grad: grad * math.inf)

    with pytest.raises(CDRError, match="not finite"):
        trainer_of(Poisoned(), tmp_path / "run").fit(None, Batches(), scripted(0.1, 0.2))
    meta, states = checkpoint.load(tmp_path / "run" / "last.pth")
    assert meta["epoch"] == 0 and all(torch.isfinite(t).all() for t in states["model"].values())


def test_nan_validation_score_is_an_error(tmp_path):
    with pytest.raises(CDRError, match="validation score is not a number"):
        trainer_of(Slope(), tmp_path / "run").fit(None, Batches(), scripted(math.nan))


def test_no_batch_is_an_error(tmp_path):
    model = Slope()
    model.phases = lambda: [Phase(batches=model.none)]
    model.none = lambda rng: []
    with pytest.raises(CDRError, match="no batch to train on"):
        trainer_of(model, tmp_path / "run").fit(None)


# -- checkpoints ---------------------------------------------------------------------------------------------


def test_disk_full_is_one_error_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model = Slope()
    trainer = trainer_of(model, tmp_path / "run")
    save = torch.save

    def full(content, file, **more):
        if json.loads(content["meta"])["epoch"] == 2:
            file.write(b"half of i")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file, **more)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CDRError, match=r"cannot write .*last\.pth: No space left on device"):
        trainer.fit(None, Batches(), by_loss(model))
    meta, _ = checkpoint.load(tmp_path / "run" / "last.pth")
    assert meta["epoch"] == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.pth"]


def test_a_real_write_error_is_understood(tmp_path):
    """torch wraps the system's error in one that does not name it."""
    path = tmp_path / "x.pth"
    checkpoint.save(path, {"model": "Slope"}, model={"w": torch.ones(2)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CDRError, match=r"cannot write .*x\.pth: File too large"):
            checkpoint.save(path, {"model": "Slope"}, model={"w": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoint.load(path)[1]["model"]["w"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_missing_folder_is_one_error(tmp_path):
    with pytest.raises(CDRError, match="cannot write"):
        checkpoint.save(tmp_path / "nowhere" / "x.pth", {}, model={"w": torch.ones(2)})


@pytest.fixture
def saved(tmp_path):
    model = Slope()
    trainer_of(model, tmp_path / "run", epochs=1).fit(None, Batches(), scripted(0.1))
    return tmp_path / "run"


def test_wrong_checkpoints_are_one_error_each(saved, tmp_path):
    trainer = trainer_of(Slope(), saved)
    cases = {
        "not a checkpoint": b"user_id:token\titem_id:token\n",
        "truncated": (saved / "last.pth").read_bytes()[:-500],
        "not a checkpoint ": b"",
    }
    for text, content in cases.items():
        path = tmp_path / "bad.pth"
        path.write_bytes(content)
        with pytest.raises(CDRError, match=text.strip()):
            trainer.resume_checkpoint(path)
    with pytest.raises(CDRError, match="cannot read checkpoint"):
        trainer.resume_checkpoint(tmp_path / "none.pth")
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "foreign.pth")
    with pytest.raises(CDRError, match="not written by this library"):
        trainer.resume_checkpoint(tmp_path / "foreign.pth")
    with pytest.raises(CDRError, match=r"training resumes from last\.pth only"):
        trainer.resume_checkpoint(saved / "model.pth")
    with pytest.raises(CDRError, match="of model 'Slope', not of 'BPR'"):
        CrossDomainTrainer(settings(model="BPR"), Slope(), saved, data="d1").resume_checkpoint(
            saved / "last.pth"
        )
    with pytest.raises(CDRError, match="other data or another split"):
        CrossDomainTrainer(settings(), Slope(), saved, data="d2").resume_checkpoint(saved / "last.pth")


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({"meta": "{}", "model": {"w": Settings}}, tmp_path / "code.pth")
    with pytest.raises(CDRError, match="holds more than tensors"):
        checkpoint.load(tmp_path / "code.pth")


def test_state_of_another_shape_is_one_error_and_buffers_take_theirs(saved):
    class Wider(Slope):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(1, 9)

    _, states = checkpoint.load(saved / "model.pth")
    with pytest.raises(CDRError, match="does not fit the model"):
        checkpoint.restore(Wider(), states["model"])

    class ClosedForm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("similarity", None)

    learnt, fresh = ClosedForm(), ClosedForm()
    learnt.similarity = torch.eye(3)
    checkpoint.restore(fresh, learnt.state_dict())
    assert torch.equal(fresh.similarity, torch.eye(3))
