"""The building blocks of models: KL, the sequence encoder, dropout and means."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from recbole_cdr_ext.model.parts.layers import Dropout, Gaussian, SequenceEncoder, kl, masked_mean


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
