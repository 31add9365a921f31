"""Building blocks shared by the models."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recbole_cdr_ext.model.parts.losses import in_single

# Log-variances outside this range mean a deviation below 0.7 % or above 150 times the prior's; clamped, exp() and
# the KL stay finite in single precision.
LOGVAR_RANGE = (-10.0, 10.0)
# A dimension is active if its posterior mean varies by more than this over the instances: Burda, Grosse and
# Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, section 5.2.
ACTIVE_VARIANCE = 0.01

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Modules(nn.ModuleList, Generic[AnyModule]):
    """A ``ModuleList`` of one class of modules, which the type checker knows."""

    if TYPE_CHECKING:

        def __init__(self, modules: Iterable[AnyModule] = ()) -> None: ...
        def __getitem__(self, index: int) -> AnyModule: ...  # type: ignore[override]
        def __iter__(self) -> Iterator[AnyModule]: ...


class Gaussian:
    """A diagonal Gaussian, in single precision.

    In the eight bits that mixed precision leaves, the KL of a posterior near its prior is all rounding, and negative.

    Args:
        mean, logvar: (..., d); ``logvar`` is clamped to ``LOGVAR_RANGE``.
    """

    def __init__(self, mean: torch.Tensor, logvar: torch.Tensor):
        self.mean = in_single(mean)
        self.logvar = in_single(logvar).clamp(*LOGVAR_RANGE)

    def sample(self, training: bool) -> torch.Tensor:
        """Returns the reparameterised sample in training, the mean otherwise."""
        if not training:
            vectors: torch.Tensor = self.mean
            return vectors
        return torch.addcmul(self.mean, (0.5 * self.logvar).exp(), torch.randn_like(self.mean))

    def __getitem__(self, rows: torch.Tensor) -> Gaussian:
        return Gaussian(self.mean[rows], self.logvar[rows])


def kl(q: Gaussian, p: Gaussian | None = None) -> torch.Tensor:
    """Returns KL(q ‖ p) in closed form, summed over d: (...,); p = None is N(0, I)."""
    if p is None:
        terms = q.mean.square() + q.logvar.exp() - 1 - q.logvar
    else:
        difference = q.logvar - p.logvar
        terms = (q.mean - p.mean).square() * (-p.logvar).exp() + difference.exp() - 1 - difference
    divergence: torch.Tensor = 0.5 * terms.sum(-1)
    return divergence


class LatentMeter:
    """Adds up, batch by batch, the KL to the prior and the spread of the posterior means of each latent."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)

    def reset(self) -> None:
        """Forgets everything."""
        self._sums.clear()

    @torch.no_grad()
    def add(self, name: str, domain: int, mean: torch.Tensor, kl: torch.Tensor) -> None:
        """Takes N instances in.

        Args:
            name: of the latent.
            domain: of the targets; each domain's latents are their own.
            mean: (N, d) posterior means.
            kl: (N,) KL to the prior in nats, or their sum.
        """
        mean = mean.detach().double()
        parts = [mean.new_tensor(len(mean)), kl.detach().double().sum(), mean.sum(0), mean.square().sum(0)]
        sums = self._sums[name, domain]
        self._sums[name, domain] = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts

    def facts(self) -> dict[str, float]:
        """Returns, by latent, the mean KL in nats ("kl NAME") and the number of active dimensions ("active NAME").

        Both are means over the domains that had instances.
        """
        facts: dict[str, list[float]] = defaultdict(list)
        for (name, _), (count, kl, total, square) in self._sums.items():
            if count > 0:
                variance = square / count - (total / count).square()
                facts[f"kl {name}"].append(float(kl / count))
                facts[f"active {name}"].append(float((variance > ACTIVE_VARIANCE).sum()))
        return {name: sum(values) / len(values) for name, values in facts.items()}


class ItemTable(nn.Embedding):
    """An embedding whose lookups of one step share one gradient.

    Each lookup in a dense embedding fills a gradient of the whole table, which took a fifth of a training step where
    a loss looks up histories, targets and negatives. Here they are gathered as (row, vector) pairs, and become one
    dense gradient when all are there, so that any optimiser can use it.
    """

    _hooked = 0

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Ids of any shape → the same shape with a last axis d."""
        if not self.training or not torch.is_grad_enabled() or not self.weight.requires_grad:
            return F.embedding(items, self.weight, self.padding_idx)
        # A copy of the module has a parameter of its own, without the hook, and knows it by its id.
        if self._hooked != id(self.weight):
            self.weight.register_post_accumulate_grad_hook(_densify)
            self._hooked = id(self.weight)
        return F.embedding(items, self.weight, self.padding_idx, sparse=True)


def _densify(parameter: torch.Tensor) -> None:
    if parameter.grad is not None and parameter.grad.is_sparse:
        parameter.grad = parameter.grad.to_dense()


class Dropout(nn.Module):
    """Dropout whose mask costs little on a CPU.

    Torch draws CPU masks one Bernoulli variable at a time, which took a fifth of a training step; here numpy draws
    a byte an element, a fraction of the time, from a generator that torch's own seeds. The rate is rounded to
    1/256. On other devices this is torch's dropout.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = float(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drops elements of a tensor of any shape."""
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p, training=True)
        seed = int(torch.randint(2**62, ()))
        drawn = np.random.SFC64(seed).random_raw((x.numel() + 7) // 8).view(np.uint8)[: x.numel()]
        dropped = min(round(self.p * 256), 255)
        mask = torch.from_numpy(drawn >= dropped).view(x.shape).to(x.dtype)
        return x * mask.mul_(256 / (256 - dropped))

    def extra_repr(self) -> str:
        """Returns the rate, which is shown in the model's print."""
        return f"p={self.p}"


class GaussianHead(nn.Module):
    """Mean and log-variance of a posterior, each by an MLP of its own (I2VAE, D.2): d_in → d → d.

    The two MLPs' first layers are one matrix product.

    Args:
        residual: adds the input, which must be of size d, to the mean.
    """

    def __init__(self, d_in: int, d: int, dropout: float = 0.0, residual: bool = False):
        super().__init__()
        self.residual = residual
        self.hidden = nn.Linear(d_in, 2 * d)
        self.mean, self.logvar = nn.Linear(d, d), nn.Linear(d, d)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor) -> Gaussian:
        """Maps (B, d_in) to a Gaussian over (B, d)."""
        for_mean, for_logvar = self.dropout(F.relu(self.hidden(x))).chunk(2, -1)
        mean = self.mean(for_mean)
        return Gaussian(x + mean if self.residual else mean, self.logvar(for_logvar))


class Prior(nn.Module):
    """A learned diagonal Gaussian, one for all users of a domain."""

    def __init__(self, d: int):
        super().__init__()
        self.mean, self.logvar = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(d))

    def forward(self) -> Gaussian:
        """Returns a Gaussian of shape (d,), broadcast against posteriors."""
        return Gaussian(self.mean, self.logvar)


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean of (B, L, d) over the positions in ``mask`` (B, L); zero where a row has none."""
    weight = mask.to(x.dtype)
    return torch.einsum("bld,bl->bd", x, weight) / weight.sum(1, keepdim=True).clamp(min=1)


def left_aligned(items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moves right-aligned ids (B, L), padded with 0, to the left; returns them and the lengths (B,)."""
    width, length = items.shape[1], (items != 0).sum(1)
    column = torch.arange(width, device=items.device)
    source = (column + (width - length).unsqueeze(1)).clamp(max=width - 1)
    return items.gather(1, source) * (column < length.unsqueeze(1)), length


def stream(items: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes the items in ``mask`` (B, L) out of ids (B, L), in order.

    Returns:
        (B, L') ids, on the left, 0 behind them, and (B, L) how many of them stand up to each position.
    """
    count = mask.cumsum(1)
    row, column = mask.nonzero(as_tuple=True)
    alone = items.new_zeros(len(items), max(1, int(count[:, -1].max())))
    alone[row, count[row, column] - 1] = items[row, column]
    return alone, count


class SequenceEncoder(nn.Module):
    """SASRec's causal self-attention (Kang & McAuley, ICDM 2018), pre-norm, without work on padding.

    Linear layers, norms and dropouts run on the real positions alone; only the attention itself sees the padded
    rectangle. Positions count back from the most recent item or from the first one, so padding changes nothing.

    Args:
        d: width.
        n_layers, n_heads: of the attention.
        max_length: of the longest sequence, for the position table.
        inner: width of the feed-forward layer (SASRec: d).
        dropout: on inputs, attention outputs and feed-forward outputs.
        count_back: positions count back from the most recent item (sequences must be right-aligned), or from the
            first, which leaves all states as they were when items are appended.
    """

    def __init__(
        self,
        *,
        d: int,
        n_layers: int,
        n_heads: int,
        max_length: int,
        inner: int,
        dropout: float,
        count_back: bool = True,
    ):
        super().__init__()
        self.count_back = count_back
        self.position = nn.Embedding(max_length, d)
        self.blocks = nn.ModuleList(_Block(d, n_heads, inner, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d)
        self.dropout = Dropout(dropout)
        self.scale = math.sqrt(d)

    def forward(self, items: torch.Tensor, embedding: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Encodes item ids (B, L), 0 is padding; returns (B, L, d), zero at padding.

        ``embedding``, a module or a function, turns ids (N,) into vectors (N, d).
        """
        batch, length = items.shape
        valid = items != 0
        real = valid.reshape(-1).nonzero().squeeze(1)
        if self.count_back:
            place = torch.arange(length - 1, -1, -1, device=items.device).repeat(batch)
        else:
            place = (valid.cumsum(1) - 1).reshape(-1)
        x = embedding(items.reshape(-1)[real]) * self.scale + self.position(place[real])
        x = self.dropout(x)
        causal = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
        # A padded query must see something, or its softmax is 0/0: it sees itself.
        itself = torch.eye(length, dtype=torch.bool, device=items.device)
        mask = ((causal & valid.unsqueeze(1)) | itself).unsqueeze(1)
        for block in self.blocks:
            x = block(x, real, mask, batch, length)
        out = x.new_zeros(batch * length, x.shape[1]).index_copy(0, real, self.norm(x))
        vectors: torch.Tensor = out.view(batch, length, -1)
        return vectors


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns softmax(q · kᵀ / √d) · v, of single precision on a processor, where the other gradient is slower.

    Args:
        q: (..., L, d).
        k, v: (..., M, d).
        mask: booleans, broadcast to (..., L, M); what is False is not seen.
    """
    if q.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)


class _Block(nn.Module):
    def __init__(self, d: int, n_heads: int, inner: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.norm_attention, self.norm_inner = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.inner = nn.Sequential(nn.Linear(d, inner), nn.ReLU(), Dropout(dropout), nn.Linear(inner, d))
        self.dropout = Dropout(dropout)

    def forward(
        self, x: torch.Tensor, real: torch.Tensor, mask: torch.Tensor, batch: int, length: int
    ) -> torch.Tensor:
        """Applies the block: x (N, d) holds the real positions, ``real`` their places in the (B·L,) rectangle."""
        d = x.shape[1]
        packed = self.qkv(self.norm_attention(x))
        padded = packed.new_zeros(batch * length, 3 * d).index_copy(0, real, packed)
        q, k, v = padded.view(batch, length, 3, self.n_heads, d // self.n_heads).permute(2, 0, 3, 1, 4)
        seen = attend(q, k, v, mask)
        seen = seen.transpose(1, 2).reshape(batch * length, d)[real]
        x = x + self.dropout(self.out(seen))
        vectors: torch.Tensor = x + self.dropout(self.inner(self.norm_inner(x)))
        return vectors


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to others, mean-pooled over the real queries (I2VAE, D.2)."""

    def __init__(self, d: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key_value, self.out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)

    def forward(
        self, query: torch.Tensor, query_mask: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor
    ) -> torch.Tensor:
        """Returns (B, d): query (B, L, d) attends to memory (B, M, d); each row of both masks has a True."""
        batch, length, d = query.shape
        heads = (batch, -1, self.n_heads, d // self.n_heads)
        q = self.query(query).view(heads).transpose(1, 2)
        k, v = (t.reshape(heads).transpose(1, 2) for t in self.key_value(memory).chunk(2, -1))
        seen = attend(q, k, v, memory_mask[:, None, None, :])
        # The output projection is linear, so it may follow the mean.
        vectors: torch.Tensor = self.out(
            masked_mean(seen.transpose(1, 2).reshape(batch, length, d), query_mask)
        )
        return vectors


def mapping(d_in: int, d_out: int, hidden: int | None) -> nn.Module:
    """Returns a map from one domain's vectors to another's: d_in → hidden → d_out with tanh on the hidden layer.

    Weights start Xavier-uniform, biases at zero.

    Args:
        hidden: units of the hidden layer; None: one matrix without bias instead.
    """
    sizes = [(d_in, d_out)] if hidden is None else [(d_in, hidden), (hidden, d_out)]
    layers = [nn.Linear(*size, bias=hidden is not None) for size in sizes]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if hidden is not None:
            nn.init.zeros_(layer.bias)
    return layers[0] if hidden is None else nn.Sequential(layers[0], nn.Tanh(), layers[1])


def mlp(*sizes: int, dropout: float = 0.0) -> nn.Sequential:
    """Returns linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(a, b)]
        if i < len(sizes) - 2:
            layers += [nn.ReLU(), Dropout(dropout)]
    return nn.Sequential(*layers)


class SumDecoder(nn.Module):
    """Σ LayerNorm(z + MLP(z)) over the latents; one that is zero adds nothing."""

    def __init__(self, d: int, dropout: float):
        super().__init__()
        self.parts = nn.ModuleList(mlp(d, d, d, dropout=dropout) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps (B, 3d) to (B, d)."""
        out = latents.new_zeros(len(latents), latents.shape[1] // 3)
        for z, part, norm in zip(latents.chunk(3, 1), self.parts, self.norms, strict=True):
            out = out + norm(z + part(z)) * z.any(1, keepdim=True)
        return out


def initialised_as_sasrec(module: nn.Module) -> None:
    """Starts a module as SASRec does: Xavier for matrices, small normal embeddings, zero biases and padding rows."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
