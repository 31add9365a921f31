"""Parts that models share: KL, encoders, dropout, the softmax over items or shared negatives, sequences read anew."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from support import here, load, random_domains, write_domains
from torch.distributions import Independent, Normal, kl_divergence

from recbole_cdr_ext.data.dataset import Events
from recbole_cdr_ext.data.sequences import new_order, reorders
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.c2dsr import C2DSR
from recbole_cdr_ext.model.next_item.pinet import PiNet
from recbole_cdr_ext.model.next_item.svae import SVAE
from recbole_cdr_ext.model.parts.layers import Dropout, Gaussian, SequenceEncoder, kl, masked_mean
from recbole_cdr_ext.model.parts.whole_sequences import _without_known
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.settings.config import CDRConfig


def gaussians(*shape):
    return Gaussian(torch.randn(*shape), torch.randn(*shape))


def as_distribution(g):
    return Independent(Normal(g.mean, (0.5 * g.logvar).exp()), 1)


def test_kl_is_torchs():
    torch.manual_seed(0)
    q, p = gaussians(5, 7), gaussians(5, 7)
    standard = Gaussian(torch.zeros(5, 7), torch.zeros(5, 7))
    torch.testing.assert_close(kl(q, p), kl_divergence(as_distribution(q), as_distribution(p)))
    torch.testing.assert_close(kl(q), kl_divergence(as_distribution(q), as_distribution(standard)))
    assert kl(q, q).abs().max() < 1e-6


def test_kl_stays_finite_for_absurd_variances():
    q = Gaussian(torch.zeros(1, 2), torch.tensor([[1e4, -1e4]]))
    assert torch.isfinite(kl(q)).all() and torch.isfinite(kl(q, gaussians(1, 2))).all()


# -- building blocks ----------------------------------------------------------------------------------------------


def encoder(dropout=0.0):
    torch.manual_seed(0)
    made = SequenceEncoder(d=8, n_layers=2, n_heads=2, max_length=12, inner=8, dropout=dropout).eval()
    return made, torch.nn.Embedding(20, 8, padding_idx=0)


def test_encoder_is_causal_and_blind_to_padding():
    model, table = encoder()
    items = torch.tensor([[0, 0, 3, 4, 5], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]])
    states = model(items, table)
    assert not states[2].any() and not states[0, :2].any()
    torch.testing.assert_close(model(items[:1, 2:], table), states[:1, 2:])
    later = items.clone()
    later[:, -1] = 7
    torch.testing.assert_close(model(later, table)[:2, 2:4], states[:2, 2:4])
    assert not torch.allclose(model(later, table)[:2, 4], states[:2, 4])


def test_encoder_equals_a_plain_padded_one():
    """The packed computation against the same weights applied the straightforward way to every position."""
    model, table = encoder()
    items = torch.tensor([[0, 0, 3, 4, 5], [1, 2, 3, 4, 5]])
    valid = items != 0
    length = items.shape[1]
    x = table(items) * model.scale + model.position(torch.arange(length - 1, -1, -1))
    mask = (torch.ones(length, length).tril().bool() & valid[:, None]) | torch.eye(length).bool()
    for block in model.blocks:
        q, k, v = block.qkv(block.norm_attention(x)).chunk(3, -1)
        q, k, v = (t.view(2, length, 2, 4).transpose(1, 2) for t in (q, k, v))
        weight = (q @ k.transpose(-1, -2) / 2.0).masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        x = x + block.out((weight @ v).transpose(1, 2).reshape(2, length, 8))
        x = x + block.inner(block.norm_inner(x))
    expected = model.norm(x) * valid.unsqueeze(2)
    torch.testing.assert_close(model(items, table), expected)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(p):
    torch.manual_seed(0)
    layer, x = Dropout(p), torch.ones(1001, 999, requires_grad=True)
    out = layer(x)
    rate = round(256 * p) / 256
    assert (out == 0).float().mean().item() == pytest.approx(
        rate, abs=4 * (rate * (1 - rate) / x.numel()) ** 0.5
    )
    assert out.mean().item() == pytest.approx(1, abs=5e-3)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    torch.manual_seed(0)
    assert torch.equal(layer(x), out), "the mask follows from torch's seed"
    assert not torch.equal(layer(x), out)
    assert torch.equal(layer.eval()(x), x)


def test_masked_mean():
    x = torch.tensor([[[1.0], [2.0], [6.0]], [[1.0], [1.0], [1.0]]])
    mask = torch.tensor([[True, False, True], [False, False, False]])
    torch.testing.assert_close(masked_mean(x, mask), torch.tensor([[(1 + 6) / 2], [0.0]]))


MODELS = [C2DSR, PiNet, SVAE]
SETTINGS = {"split": "leave_one_out", "train_targets": "all"}


def build_small(tmp_path, cls, **settings):
    loaded = load(tmp_path, random_domains(), cls.__name__, **{**SETTINGS, **settings})
    torch.manual_seed(0)
    return cls(loaded.config, loaded.data).eval()


@pytest.mark.parametrize("cls", MODELS)
def test_with_so_many_negatives_that_each_item_is_drawn_alike_the_softmax_is_over_their_shares(tmp_path, cls):
    n = 200_000
    model = build_small(tmp_path, cls, softmax_negatives=n)
    for x in range(2):
        items = model.item_vectors(x).detach()
        vectors = torch.randn(4, items.shape[1])
        local = torch.tensor([[0, 1], [1, -1], [2, 3], [3, -1]])
        targets = torch.where(local >= 0, local + model.item_offsets[x], 0)
        expected = []
        for vector, row in zip(vectors, local.tolist(), strict=True):
            row = [i for i in row if i >= 0]
            weight = (items @ vector).exp()
            others = (weight.sum() - weight[row].sum()) * n / len(items)
            expected.append(torch.stack([-(weight[i] / (weight[i] + others)).log() for i in row]).mean())
        found = model.softmax_loss_in(x, vectors, targets)
        torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("cls", MODELS)
def test_training_draws_the_negatives_that_are_asked_for(tmp_path, cls, monkeypatch):
    asked = []

    def counted(vectors, items, targets, n):
        asked.append(n)
        return (vectors.sum() + items.sum()) * 0

    monkeypatch.setattr("recbole_cdr_ext.model.recommender.sampled_softmax_loss_of_several", counted)
    for n in (0, 7):
        model = build_small(tmp_path / str(n), cls, softmax_negatives=n)
        model.sequence_loss(next(iter(model.training_sequences.batches(np.random.default_rng(0)))))
    assert asked
    assert set(asked) == {7}


@pytest.mark.parametrize("cls", MODELS)
def test_a_negative_number_of_them_is_one_clear_error(tmp_path, cls):
    with pytest.raises(CDRError, match="softmax_negatives=-1 should be"):
        build_small(tmp_path, cls, softmax_negatives=-1)


REORDERED = {
    "I2VAE": {},
    "I2VAE, recalled items": {"psg": "random", "random_recall_size": 3},
    "SASRec": {},
    "SASRec, merged": {"baseline_scope": "all"},
    "PiNet": {},
    "SVAE": {"input": "own"},
    "SVAE, merged": {"input": "merged", "next_k": 2},
    "C2DSR": {},
}


def model_of(tmp_path, name: str, **settings):
    if not (tmp_path / "mini").exists():
        write_domains(tmp_path / "mini", random_domains(n_users=20))
    given = {**here(tmp_path), "domains": ["books", "films"], "order": "none", **REORDERED[name], **settings}
    return build(CDRConfig(model=name.split(",")[0], dataset="mini", config_dict=given)).model


def read(model, seed: int) -> list[tuple[int, ...]]:
    """The sequences that an epoch reads, each with its last target."""
    found = []
    for batch in model.training_sequences.batches(np.random.default_rng(seed)):
        for items, targets in zip(batch.items.tolist(), batch.targets.tolist(), strict=True):
            held = [item for item in items if item]
            found.append((batch.tag, *held, [t for t in targets if t][-1]))
    return sorted(found)


@pytest.mark.parametrize("name", REORDERED)
def test_each_epoch_has_an_order_of_its_own(tmp_path, name):
    model = model_of(tmp_path, name)
    first, second = read(model, 1), read(model, 2)
    assert first != second and read(model, 1) == first
    fixed = model_of(tmp_path, name, reorder=False)
    assert read(fixed, 1) == read(fixed, 2)
    # Of the same users' events: sequences here are shorter than what is read at most.
    whole = Counter(frozenset(row) for row in read(fixed, 1))
    assert Counter(map(frozenset, first)) == whole == Counter(map(frozenset, second))


@pytest.mark.parametrize("name", REORDERED)
def test_where_there_is_an_order_it_stays(tmp_path, name):
    model = model_of(tmp_path, name, order="clock")
    assert read(model, 1) == read(model, 2)


def test_what_was_recalled_follows_its_event(tmp_path):
    model = model_of(tmp_path, "I2VAE, recalled items")
    sequences, expected = model.training_sequences, defaultdict(set)
    for item, items in zip(sequences.events.item.tolist(), sequences.recalled.tolist(), strict=True):
        expected[item].add(frozenset(items))
    assert len(expected) > 20
    for batch in sequences.batches(np.random.default_rng(3)):
        row, place = (batch["event"] >= 0).nonzero(as_tuple=True)
        recalled = sequences.recalled_at(batch, row, place)
        assert recalled.any()
        for target, items in zip(batch.targets[row, place].tolist(), recalled.tolist(), strict=True):
            # What has become history is 0.
            assert any(set(items) - {0} <= before for before in expected[target])


def test_what_has_become_history_is_no_recalled_item():
    items = torch.tensor([[5, 7, 9, 0], [5, 7, 9, 0]])
    recalled = torch.tensor([[9, 7, 3, 0], [9, 7, 3, 0]])
    left = _without_known(recalled, items, torch.tensor([1, 2]))
    assert left.tolist() == [[9, 0, 3, 0], [0, 0, 3, 0]]


def test_training_reads_no_recalled_item_that_is_history(tmp_path, monkeypatch):
    model = model_of(tmp_path, "I2VAE, recalled items")
    seen, views = [], model.positions.views

    def spy(states, x, row, place, recalled):
        seen.append((row, place, recalled))
        return views(states, x, row, place, recalled)

    monkeypatch.setattr(model.positions, "views", spy)
    for batch in model.training_sequences.batches(np.random.default_rng(3)):
        seen.clear()
        model.sequence_loss(batch)
        for rows, places, recalled in seen:
            for row, place, found in zip(rows.tolist(), places.tolist(), recalled.tolist(), strict=True):
                assert not set(batch.items[row, : place + 1].tolist()) & set(found) - {0}


def test_the_next_items_are_those_of_the_new_order(tmp_path):
    model = model_of(tmp_path, "SVAE, merged")
    for batch in model.training_sequences.batches(np.random.default_rng(3)):
        for items, following in zip(batch.items.tolist(), batch["next_seq"].tolist(), strict=True):
            for place, coming in enumerate(following):
                assert not set(items[: place + 1]) & {item for item in coming if item}


def test_sequences_keep_their_events():
    sequence = np.repeat(np.arange(3), [4, 1, 5])
    n = len(sequence)
    events = Events(sequence, np.arange(n), np.zeros(n, int), np.zeros(n), np.zeros(n), sequence)
    orders = {tuple(new_order(events, np.random.default_rng(seed)).tolist()) for seed in range(20)}
    assert len(orders) > 10
    assert all(
        [sorted(order[:4]), order[4], sorted(order[5:])] == [[0, 1, 2, 3], 4, [5, 6, 7, 8, 9]]
        for order in orders
    )


@pytest.mark.parametrize(
    ("settings", "whether"),
    [
        ({"order": "none", "split": "user"}, True),
        ({"order": "none", "split": "published"}, False),
        ({"order": "merged", "split": "user"}, False),
        ({"order": "none", "split": "user", "reorder": False}, False),
    ],
)
def test_when_sequences_are_reordered(settings, whether):
    assert reorders({"reorder": True, **settings}) is whether
