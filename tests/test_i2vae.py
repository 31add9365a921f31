"""I2VAE against its equations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import here, load, random_domains

from recbole_cdr_ext.data.instances import Batch, random_recall
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.i2vae import I2VAE, Latents
from recbole_cdr_ext.model.parts.layers import Gaussian
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.splits.split import TrainingData

ROOT = Path(__file__).resolve().parent.parent

SMALL = {
    "embedding_size": 16,
    "inner_size": 16,
    "n_cross_heads": 2,
    "psg": "random",
    "random_recall_size": 4,
    "dropout": 0.0,
}
# The paper's encoders with a softmax.
FORM = {
    "one_pass": False,
    "cross_encoder": "attention",
    "pooling": "mean_last",
    "decoder": "mlp",
    "residual_posteriors": False,
    "loss_type": "CE",
    "max_history_length": 20,
}


def build(tmp_path, domains=None, seed=0, form=FORM, **settings):
    loaded = load(tmp_path, domains or random_domains(), **{**SMALL, **form, **settings})
    split = I2VAE.prepare_data(loaded.config, loaded.dataset, loaded.split)
    torch.manual_seed(seed)
    model = I2VAE(loaded.config, TrainingData.of(loaded.dataset, split)).eval()
    return loaded, split, model


def batches(loaded, split, model, part="test"):
    return list(CrossDomainLoader(loaded.config, split.part(part), model))


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return build(tmp_path_factory.mktemp("i2vae"))


def test_adaptive_denoising_weight(ready):
    _, _, model = ready
    weight = model.denoise_weight(torch.tensor([0, 10, 20]))
    expected = [math.exp(0.8 * length / 20) - 0.8 for length in (0, 10, 20)]  # T = 20, a = b = 0.8
    torch.testing.assert_close(weight, torch.tensor(expected))


def test_objective_by_hand(tmp_path):
    """Three instances, one latent dimension: overlapping, X only, cold start in X."""
    _, _, model = build(tmp_path, kl_weight=0.5, lambda_a=0.1, lambda_c=0.01)
    for prior in (model.own_prior[0], model.augmented_prior[0]):
        prior.mean, prior.logvar = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    latents = Latents(
        interest=Gaussian(torch.tensor([[1.0], [2.0], [9.0]]), torch.zeros(3, 1)),
        augmented=Gaussian(torch.tensor([[0.0], [1.0], [9.0]]), torch.zeros(3, 1)),
        transfer=Gaussian(torch.tensor([[3.0]]), torch.zeros(1, 1)),
        auxiliary=Gaussian(
            torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
        ),  # rows 0 and 2 have a history in Y
        has_own=torch.tensor([True, True, False]),
        other=torch.tensor([True, False, True]),
        both=torch.tensor([True, False, False]),
        length=torch.tensor([20, 10, 0]),
    )
    recon, to_priors, denoise, cross = model.objective(0, latents, torch.tensor([1.0, 2.0, 3.0]))
    # With unit variances KL(N(a, 1) ‖ N(b, 1)) = (a − b)²/2; row 2's z^x and z_a^x do not count.
    assert recon == pytest.approx(6 / 3)
    kl_own, kl_augmented = 1 / 2 + 4 / 2, 0 + 1 / 2
    kl_transfer = 9 / 2 + 4 / 2  # q(z_t) of row 0, r(z_t) of row 2
    assert to_priors.item() == pytest.approx(0.5 * (kl_own + kl_augmented + kl_transfer) / 3)
    weights = math.exp(0.8) - 0.8, math.exp(0.4) - 0.8
    assert denoise.item() == pytest.approx(0.1 * (weights[0] * 1 / 2 + weights[1] * 1 / 2) / 3)
    kl_cross = (3 - 1) ** 2 / 2
    assert cross.item() == pytest.approx(0.01 * (6 + kl_own + kl_cross) / 3)


def test_binary_and_softmax_reconstruction(tmp_path):
    _, _, model = build(tmp_path, loss_type="BCE")
    table = model.item_embedding.weight.detach()
    interest = torch.randn(1, 16)
    batch = Batch(
        {"item_id": torch.tensor([3]), "neg_item_id": torch.tensor([[5, 7]])}, target_domain=0, n_domains=2
    )
    scores = [float(interest[0] @ table[i]) for i in (3, 5, 7)]
    expected = -math.log(1 / (1 + math.exp(-scores[0]))) - sum(
        math.log(1 - 1 / (1 + math.exp(-s))) for s in scores[1:]
    )
    assert model._reconstruction(batch, interest).item() == pytest.approx(expected, rel=1e-4)
    model.loss_type = "CE"
    logits = interest @ table[model.item_slice(0)].T
    expected = -torch.log_softmax(logits, 1)[0, 3 - 1].item()
    assert model._reconstruction(batch, interest).item() == pytest.approx(expected, rel=1e-4)


def test_without_a_history_its_latents_do_not_matter(ready):
    loaded, split, model = ready
    for batch in batches(loaded, split, model):
        own, other = batch.target_domain, 1 - batch.target_domain
        nothing = torch.zeros_like(batch.own_history)
        model.zero_grad()
        model.encode(batch.with_fields(**{f"history_{own}": nothing})).square().sum().backward()
        silent = [*model.own_head[own].parameters(), *model.augmented_head[own].parameters()]
        silent += [*model.encoder[own].parameters(), *model.transfer_head[own].parameters()]
        assert all(p.grad is None or not p.grad.any() for p in silent)
        assert any(p.grad.any() for p in model.auxiliary_head[own].parameters())
        model.zero_grad()
        without = {f"history_{other}": torch.zeros_like(batch.history(other))}
        model.encode(batch.with_fields(**without)).square().sum().backward()
        silent = [*model.encoder[other].parameters(), *model.transfer_head[own].parameters()]
        silent += [*model.auxiliary_head[own].parameters()]
        assert all(p.grad is None or not p.grad.any() for p in silent)
        assert any(p.grad.any() for p in model.own_head[own].parameters())


def test_without_the_regulariser_cold_users_get_the_prior_mean(tmp_path):
    loaded, split, model = build(tmp_path, cross_regularizer=False)
    batch = batches(loaded, split, model)[0]
    cold = batch.with_fields(**{f"history_{batch.target_domain}": torch.zeros_like(batch.own_history)})
    vectors = model.encode(cold)
    assert (vectors == vectors[0]).all()


def test_swapping_the_domains_swaps_the_scores(tmp_path):
    rows = random_domains()
    first = build(tmp_path / "a", rows)
    second = build(tmp_path / "b", dict(reversed(rows.items())))
    (one, split, model), (two, _, twin) = first, second
    permutation = torch.zeros(
        model.n_items, dtype=torch.long
    )  # id in the twin's space of each of the model's items
    for k, name in enumerate(one.dataset.domains):
        ids = np.arange(*one.dataset.item_offset[k : k + 2])
        permutation[ids] = torch.from_numpy(two.dataset.item_ids(1 - k, list(one.dataset.item_token(ids))))
        assert name == two.dataset.domains[1 - k]
    state = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if name == "item_embedding.weight":
            value = value[torch.argsort(permutation)]
        else:
            parts[1] = str(1 - int(parts[1]))
        state[".".join(parts)] = value
    twin.load_state_dict(state)
    for batch in batches(one, split, model):
        fields = dict(batch.interaction.items())
        for k in (0, 1):
            fields[f"history_{1 - k}"] = permutation[batch.history(k)]
        fields["pseudo"] = permutation[batch.pseudo]
        swapped = Batch(fields, 1 - batch.target_domain, 2)
        torch.testing.assert_close(model.encode(batch), twin.encode(swapped))
        torch.testing.assert_close(model.score(batch), twin.score(swapped))


def test_more_padding_changes_nothing_and_rows_are_independent(ready):
    loaded, split, model = ready
    for batch in batches(loaded, split, model):
        padded = {
            name: torch.nn.functional.pad(batch[name], (3, 0))
            for name in ("history_0", "history_1", "pseudo")
        }
        whole = model.encode(batch)
        torch.testing.assert_close(model.encode(batch.with_fields(**padded)), whole)
        alone = torch.cat([model.encode(batch.rows(torch.tensor([i]))) for i in range(len(batch))])
        torch.testing.assert_close(alone, whole)


def test_the_target_is_not_looked_at(ready):
    loaded, split, model = ready
    batch = batches(loaded, split, model)[0]
    other = batch.with_fields(item_id=torch.full_like(batch.targets, 1))
    assert torch.equal(model.encode(batch), model.encode(other))


def test_later_items_change_no_earlier_score(tmp_path):
    """Every position a target: an instance knows nothing of what comes after it, in either domain."""
    rows = {
        "books": [("solo", f"b{i}", t) for i, t in enumerate((1, 3, 5, 7, 9))],
        "films": [("solo", f"f{i}", t) for i, t in enumerate((2, 4, 6, 8, 10))],
    }
    filler = random_domains(n_users=30, n_items=10)
    rows = {name: rows[name] + filler[name] for name in rows}
    changed = {
        "books": [(u, "b9" if (u, i) == ("solo", "b4") else i, t) for u, i, t in rows["books"]],
        "films": [(u, "f9" if (u, i) == ("solo", "f3") else i, t) for u, i, t in rows["films"]],
    }

    def scores(domains, place):
        loaded, split, model = build(
            tmp_path / place, domains, split="leave_one_out", train_targets="all", seed=3, psg_seed=1
        )
        mine = split.train.take(split.train.user == loaded.user("solo"))
        mine = replace(mine, recalled=np.zeros((len(mine), 1), np.int32))
        found = {}
        for batch in CrossDomainLoader(loaded.config, mine, model):
            for row, score in zip(batch["index"], model.score(batch), strict=True):
                found[mine.time[row]] = score
        return found

    before, after = scores(rows, "a"), scores(changed, "b")
    assert set(before) == {2, 3, 4, 5, 6, 7, 8}
    for time in (2, 3, 4, 5, 6, 7, 8):
        torch.testing.assert_close(before[time], after[time])


def test_three_domains(tmp_path):
    loaded, split, model = build(tmp_path, random_domains(names=("books", "films", "games")))
    sampler = CrossDomainSampler(split)
    seen = set()
    for batch in CrossDomainLoader(loaded.config, split.train, model, sampler=sampler, training=True):
        assert all(torch.isfinite(term) for term in model.train().calculate_loss(batch))
        seen.add(batch.target_domain)
        model.eval()
        third = next(k for k in range(3) if k != batch.target_domain and batch.history(k).any())
        changed = batch.with_fields(**{f"history_{third}": torch.zeros_like(batch.history(third))})
        assert not torch.equal(model.encode(batch), model.encode(changed))
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("settings", [{}, {"loss_type": "BCE", "train_neg_num": 4}, {"cross_encoder": "mlp"}])
def test_it_learns_its_training_targets_by_heart(tmp_path, settings):
    loaded, split, model = build(
        tmp_path,
        random_domains(n_users=32, n_items=40),
        split="leave_one_out",
        train_targets="last",
        train_batch_size=64,
        kl_weight=0.0,
        cold_start_mask_prob=0.0,
        **{"embedding_size": 32, "inner_size": 32, **settings},
    )
    loader = CrossDomainLoader(
        loaded.config, split.train, model, sampler=CrossDomainSampler(split), training=True
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    for epoch in range(100):  # a batch per domain: 200 steps
        loader.set_epoch(0, epoch)
        for batch in loader:
            optimizer.zero_grad()
            sum(model.calculate_loss(batch)).backward()
            optimizer.step()
    model.eval()
    hits = total = 0
    for batch in CrossDomainLoader(loaded.config, split.train, model):
        local = batch.targets - model.item_offsets[batch.target_domain]
        best = model.score(batch).topk(10).indices
        hits += int((best == local.unsqueeze(1)).any(1).sum())
        total += len(batch)
    assert hits / total > 0.95


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "MSE"},
        {"psg": "none"},
        {"pooling": "max"},
        {"kl_weight": -1.0},
        {"n_cross_heads": 3},
        {"dropout": 1.0},
    ],
)
def test_settings_that_cannot_be_are_one_clear_error(tmp_path, settings):
    with pytest.raises(CDRError, match=next(iter(settings))):
        load(tmp_path, random_domains(n_users=10), **{**SMALL, **FORM, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"psg": "lightgcn", "psg_settings": {"recall_size": 10, "recall_rounds": 4}},
        {"psg": "random", "random_recall_size": 40},
    ],
)
def test_recalled_items_leave_room_for_real_ones(tmp_path, settings):
    given = {**here(tmp_path), "domains": ["books", "films"], "pseudo_length": 40, **settings}
    assert (
        CDRConfig("I2VAE", "mini", config_dict=given)["psg"] == settings["psg"]
    )  # in one pass it plays no part
    given["config_files"] = "I2VAE_paper.yaml"
    given |= settings
    with pytest.raises(CDRError, match="leaves no room for real items beside 40 recalled ones"):
        CDRConfig("I2VAE", "mini", config_dict=given)


def test_heads_that_play_no_part_forbid_nothing(tmp_path):
    given = {**here(tmp_path), "domains": ["books", "films"], "embedding_size": 50}
    assert CDRConfig("I2VAE", "mini", config_dict=given)["n_cross_heads"] == 4
    with pytest.raises(CDRError, match="n_cross_heads"):
        CDRConfig("I2VAE", "mini", config_dict={**given, "cross_encoder": "attention"})


def test_the_papers_text_depends_on_no_default_of_ours():
    ours, paper = (
        yaml.safe_load((ROOT / "properties" / "model" / f"{name}.yaml").read_text())
        for name in ("I2VAE", "I2VAE_paper")
    )
    assert set(ours) <= set(paper)


def test_loss_sequence_is_pinned(tmp_path):
    """The paper's form on fixed weights and data: a change of these numbers is a change of the model."""
    loaded, split, model = build(
        tmp_path,
        form={},
        config_files="I2VAE_paper.yaml",
        psg="random",
        train_batch_size=32,
        split="leave_one_out",
    )
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            values = torch.arange(parameter.numel(), dtype=torch.float32)
            parameter.copy_((torch.sin(values * 0.37 + i) * 0.1).view_as(parameter))
        model.item_embedding.weight[0].zero_()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = CrossDomainLoader(
        loaded.config, split.train, model, sampler=CrossDomainSampler(split), training=True
    )
    losses = []
    for batch in loader:  # in evaluation mode the latents are at their means: nothing random is left
        optimizer.zero_grad()
        loss = sum(model.calculate_loss(batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(PINNED, rel=1e-4)


PINNED = [1.79507, 1.83264, 1.79275, 1.79024]


def test_random_recall_avoids_the_history_only(tmp_path):
    loaded = load(tmp_path, random_domains(n_users=100, n_items=12), **SMALL)
    part, offset = loaded.split.test, loaded.split.item_offset
    drawn = random_recall(part, offset, 8, np.random.default_rng(0))
    for row in range(len(part)):
        domain = int(part.domain[row])
        items = drawn[row][drawn[row] > 0]
        assert len(set(items)) == len(items) >= min(8, 12 - len(part.history(row, domain)))
        assert not set(items) & set(part.history(row, domain))
        assert ((items >= offset[domain]) & (items < offset[domain + 1])).all()
    assert (drawn == part.target[:, None]).any(), "held-out targets must stay recallable"
