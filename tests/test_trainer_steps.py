"""The trainer's steps: sharpness-aware ones against closed forms, what is not finite, full disks, wrong checkpoints."""

from __future__ import annotations

import errno
import json
import math
import resource
import signal

import pytest
import torch
from torch import nn
from toy_models import Batches, Settings, Slope, by_loss, scripted, settings, trainer_of

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import Phase
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.sharpness import PGD, SAM, Plain, Step, make, project
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


SETTINGS = {
    "sharpness": "pgd",
    "rho": 0.1,
    "rho_scope": "row",
    "rho_relative": False,
    "pgd_steps": 5,
    "pgd_step_size": None,
}


def step_of(loss, parameters, rows=None) -> Step:
    def clear():
        for parameter in parameters:
            parameter.grad = None

    return Step(lambda moved: {"": loss(moved)}, check=lambda terms: None, clear=clear, rows=rows)


# -- the ball ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["row", "batch"])
def test_projection_never_leaves_the_ball_and_leaves_interior_points_alone(scope):
    torch.manual_seed(0)
    delta = torch.randn(50, 7) * torch.logspace(-3, 3, 50).unsqueeze(1)
    projected = project(delta, 0.5, scope)
    length = projected.norm(dim=1) if scope == "row" else projected.norm().unsqueeze(0)
    assert (length <= 0.5 * (1 + 1e-6)).all()
    if scope == "row":
        inside = delta.norm(dim=1) <= 0.5
        assert inside.any() and (~inside).any()
        assert torch.equal(projected[inside], delta[inside])
        # What is outside keeps its direction, and comes to the surface.
        outside = projected[~inside]
        assert torch.allclose(outside.norm(dim=1), torch.tensor(0.5))
        assert torch.allclose(nn.functional.cosine_similarity(outside, delta[~inside]), torch.tensor(1.0))
    else:
        small = delta * (0.4 / delta.norm())
        assert torch.equal(project(small, 0.5, scope), small)


def test_projection_of_zero_and_onto_a_point():
    assert torch.equal(project(torch.zeros(2, 3), 0.5), torch.zeros(2, 3))
    assert torch.equal(project(torch.ones(2, 3), 0.0), torch.zeros(2, 3))
    radius = torch.tensor([[1.0], [2.0]])
    assert torch.allclose(project(torch.full((2, 4), 5.0), radius).norm(dim=1), radius.squeeze(1))


# -- projected gradient ascent ---------------------------------------------------------------------------------------


def test_pgd_finds_no_less_than_it_started_from_on_a_convex_loss():
    torch.manual_seed(0)
    rows, items, rating = torch.randn(40, 6), torch.randn(40, 6), torch.randn(40)

    def loss(moved):
        return ((rating - (moved * items).sum(1)).square()).sum()

    for steps in (1, 2, 5):
        delta = PGD(0.3, steps).worst(rows, loss)
        before = (rating - (rows * items).sum(1)).square()
        after = (rating - ((rows + delta) * items).sum(1)).square()
        assert (after >= before - 1e-6).all()
        assert after.sum() > before.sum() + 1
        assert (delta.norm(dim=1) <= 0.3 * (1 + 1e-6)).all()


def test_one_large_step_on_one_rating_is_the_closed_form():
    """δ* = -sign(e) sign(v) ρ/√d, worst loss (|e| + ρ‖v‖₁/√d)²; the L2 maximiser's (|e| + ρ‖v‖)² bounds it."""
    user, item = torch.tensor([[0.3, -0.2, 0.5]]), torch.tensor([[1.0, -2.0, 0.5]])
    rating, rho, d = torch.tensor([2.0]), 0.4, 3

    def loss(moved):
        return (rating - (moved * item).sum(1)).square().sum()

    error = float(rating - (user * item).sum())
    for steps in (1, 5):
        delta = PGD(rho, steps, 100.0).worst(user, loss)
        assert torch.allclose(delta, -math.copysign(1, error) * item.sign() * rho / math.sqrt(d), atol=1e-6)
        worst = (abs(error) + rho * float(item.abs().sum()) / math.sqrt(d)) ** 2
        assert float(loss(user + delta)) == pytest.approx(worst, rel=1e-5)
        assert worst < (abs(error) + rho * float(item.norm())) ** 2


def test_one_step_on_a_linear_map_is_the_closed_form():
    torch.manual_seed(1)
    matrix, rows, items, rating = torch.randn(4, 4), torch.randn(9, 4), torch.randn(9, 4), torch.randn(9)
    delta = PGD(10.0, 1, 0.05).worst(rows, lambda m: (rating - ((m @ matrix) * items).sum(1)).square().mean())
    error = rating - ((rows @ matrix) * items).sum(1)
    gradient = -2 * error.unsqueeze(1) * (items @ matrix.T)
    assert torch.allclose(delta, 0.05 * gradient.sign())


def test_default_steps_reach_the_surface_and_a_batch_is_one_ball():
    rows = torch.zeros(6, 8)
    direction = torch.ones(6, 8)
    delta = PGD(0.7, 5).worst(rows, lambda m: (m * direction).sum())
    assert torch.allclose(delta.norm(dim=1), torch.full((6,), 0.7))
    delta = PGD(0.7, 5, scope="batch").worst(rows, lambda m: (m * direction).sum())
    assert float(delta.norm()) == pytest.approx(0.7)
    rows = torch.tensor([[3.0, 4.0], [0.6, 0.8]])
    delta = PGD(0.1, 5, relative=True).worst(rows, lambda m: m.sum())
    assert torch.allclose(delta.norm(dim=1), torch.tensor([0.5, 0.1]))


def test_the_gradient_at_the_worst_point_holds_delta_fixed():
    """v's gradient is -2 e (u + δ*), u's is -2 e v: no second-order term."""
    users, items = nn.Parameter(torch.tensor([[0.3, -0.2]])), nn.Parameter(torch.tensor([[1.0, -2.0]]))
    rating, rho = 2.0, 0.4

    def loss(moved):
        return (rating - ((users if moved is None else moved) * items).sum()).square()

    PGD(rho, 3, 100.0).backward(step_of(loss, [users, items], rows=lambda: users * 1))
    # The error is positive (r = 2, ⟨u, v⟩ = 0.7), so the worst point is against the item's signs.
    moved = users.detach() - items.detach().sign() * rho / math.sqrt(2)
    error = rating - float((moved * items.detach()).sum())
    assert torch.allclose(items.grad, -2 * error * moved)
    assert torch.allclose(users.grad, -2 * error * items.detach())


def test_gradient_at_moved_rows_passes_gradcheck():
    torch.manual_seed(0)
    mapping = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    items, rating = torch.randn(4, 3).double(), torch.randn(4).double()
    rows = torch.randn(4, 3).double()
    delta = PGD(0.2, 3).worst(rows, lambda m: (rating - (mapping(m) * items).sum(1)).square().sum())

    def at(rows, weight):
        hidden = torch.tanh((rows + delta) @ weight.T + mapping[0].bias)
        return (rating - (mapping[2](hidden) * items).sum(1)).square().mean()

    weight = mapping[0].weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(at, (rows.requires_grad_(), weight))


# -- weights ---------------------------------------------------------------------------------------------------------


def quadratic(start=(1.0, -2.0, 0.5)):
    scale = torch.tensor([1.0, 3.0, 0.1])
    weight = nn.Parameter(torch.tensor(start))
    return weight, scale, lambda _: 0.5 * (scale * weight.square()).sum()


def test_sam_on_a_quadratic_is_the_closed_form():
    weight, scale, loss = quadratic()
    before = weight.detach().clone()
    terms = SAM([weight], 0.3).backward(step_of(loss, [weight]))
    gradient = scale * before
    assert torch.allclose(weight.grad, scale * (before + 0.3 * gradient / gradient.norm()))
    assert torch.equal(weight.detach(), before)
    assert terms[""].item() == pytest.approx(float(0.5 * (scale * before**2).sum()))


def test_asam_on_a_quadratic_is_the_closed_form():
    weight, scale, loss = quadratic()
    before = weight.detach().clone()
    SAM([weight], 0.3, adaptive=True).backward(step_of(loss, [weight]))
    gradient = scale * before
    moved = before + 0.3 * before**2 * gradient / (before.abs() * gradient).norm()
    assert torch.allclose(weight.grad, scale * moved)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_with_sparse_gradients_equals_dense_ones_and_touches_no_other_row(adaptive):
    grads = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(10, 3, sparse=sparse)
        index, before = torch.tensor([2, 5, 2]), table.weight.detach().clone()

        def loss(_, table=table, index=index):
            return (table(index).sum(1) - torch.tensor([1.0, 2.0, 3.0])).square().sum()

        SAM([table.weight], 0.2, adaptive=adaptive).backward(step_of(loss, [table.weight]))
        assert torch.equal(table.weight.detach(), before)
        assert table.weight.grad.is_sparse == sparse
        grads.append(table.weight.grad.to_dense())
    assert torch.allclose(*grads)
    assert torch.equal(grads[1][[0, 1, 3, 4, 6, 7, 8, 9]], torch.zeros(8, 3))


def test_sam_at_a_flat_point_stays_there():
    weight = nn.Parameter(torch.zeros(3))
    SAM([weight], 0.3).backward(step_of(lambda _: (weight * 0).sum(), [weight]))
    assert torch.equal(weight.grad, torch.zeros(3))


# -- what settings make of it ----------------------------------------------------------------------------------------


def test_nothing_to_look_at_is_a_plain_step():
    for changed in ({"sharpness": "none"}, {"rho": 0}, {"pgd_steps": 0}, {"sharpness": "sam", "rho": 0.0}):
        assert type(make({**SETTINGS, **changed}, [], names_rows=True)) is Plain
    assert type(make(SETTINGS, [], names_rows=True)) is PGD
    assert type(make({**SETTINGS, "sharpness": "sam", "rho": None}, [], names_rows=False)) is SAM
    assert make({**SETTINGS, "sharpness": "asam", "rho": None}, [], names_rows=False).rho == 0.05


def test_pgd_without_rows_is_an_error():
    with pytest.raises(CDRError, match=r"this one names none\. Use sharpness=sam or asam"):
        make(SETTINGS, [], names_rows=False)
