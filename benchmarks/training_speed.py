"""I2VAE's training speed against a straightforward padded implementation of the same objective, in one run.

    python benchmarks/training_speed.py [--dataset=cloth_sport] [--seconds=60]

Both train the paper's form of I2VAE (BCE, one negative, T 20, T' 40, d 128, batch 512) on the same instances, in turns,
so that whatever else the machine does touches both. The padded one is what one would write first: every sequence
padded to its longest allowed length, rows collated one by one, all of them through every encoder, attention written
out, torch's dropout and Adam. Prints rows per second, the ratio, where the time goes, and the share of the negative
sampling. The random pseudo-sequences of the ablation stand in for LightGCN's: they are as long and cost the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from tqdm import tqdm

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.next_item.i2vae import I2VAE, Latents
from recbole_cdr_ext.model.parts.layers import Dropout, masked_mean
from recbole_cdr_ext.runs.experiment import load_data
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.splits.split import TrainingData

MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")


class Contender(Protocol):
    """One way of training, of several side by side, so that a machine's noise falls on all.

    ``step`` trains on a batch and adds to ``rows`` and ``seconds``.
    """

    name: str
    rows: int
    seconds: float

    def step(self) -> None:
        """Trains on the next batch."""


def in_turns(contenders: Sequence[Contender], seconds: float) -> None:
    """Lets each train for so long, the slower one first; the first step of each, which allocates, does not count."""
    for contender in contenders:
        contender.step()
        contender.rows, contender.seconds = 0, 0.0
    with tqdm(total=int(len(contenders) * seconds), ncols=100, unit="s") as bar:
        while any(c.seconds < seconds for c in contenders):
            behind = min(contenders, key=lambda c: c.seconds)
            before = behind.seconds
            behind.step()
            bar.update(behind.seconds - before)


def print_speeds(contenders: Sequence[Contender], what: str) -> None:
    """Prints each one's speed, and its ratio to the first one's."""
    base = contenders[0].rows / contenders[0].seconds
    for contender in contenders:
        speed = contender.rows / contender.seconds
        print(f"{contender.name:20s} {speed:8.0f} {what}/s  x{speed / base:.2f}")


class PaddedI2VAE(I2VAE):
    """The same parameters and the same objective, computed on full rectangles."""

    def _states(self, items: torch.Tensor, domain: int) -> torch.Tensor:
        encoder = self.encoder[domain]
        batch, length = items.shape
        valid = items != 0
        x = self.item_embedding(items) * encoder.scale + encoder.position(torch.arange(length - 1, -1, -1))
        x = encoder.dropout(x)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = (causal & valid[:, None]) | torch.eye(length, dtype=torch.bool)
        for block in encoder.blocks:
            heads = (batch, length, block.n_heads, -1)
            q, k, v = (t.view(heads).transpose(1, 2) for t in block.qkv(block.norm_attention(x)).chunk(3, -1))
            weight = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            weight = weight.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
            x = x + block.dropout(block.out((weight @ v).transpose(1, 2).reshape(batch, length, -1)))
            x = x + block.dropout(block.inner(block.norm_inner(x)))
        return encoder.norm(x) * valid.unsqueeze(2)

    def posteriors(self, batch: Batch, hide: bool = False) -> Latents:
        """As I2VAE's, for every row, whether it has the histories or not."""
        x, y = batch.target_domain, 1 - batch.target_domain
        own, other = batch.own_history, batch.history(y)
        states, memory = self._states(own, x), self._states(other, y)
        pooled, pooled_other = masked_mean(states, own != 0), masked_mean(memory, other != 0)
        augmented = masked_mean(self._states(batch.pseudo, x), batch.pseudo != 0)
        has_own, has_other = (own != 0).any(1), (other != 0).any(1)
        both = has_own & has_other
        keys = (other != 0) | ~has_other.unsqueeze(1)  # a row without any would give 0/0
        transfer = self.transfer_head[x](self.cross_attention[x](states, own != 0, memory, keys))
        return Latents(
            own=self.own_head[x](pooled),
            augmented=self.augmented_head[x](augmented),
            transfer=transfer[both],
            auxiliary=self.auxiliary_head[x](pooled_other)[has_other],
            has_own=has_own,
            other=has_other,
            both=both,
            length=(own != 0).sum(1),
        )


def with_torchs_dropout(module: nn.Module) -> nn.Module:
    """Puts torch's dropout in place of ours."""
    for name, child in module.named_children():
        if isinstance(child, Dropout):
            setattr(module, name, nn.Dropout(child.p))
        else:
            with_torchs_dropout(child)
    return module


def padded_batches(config, split, sampler: CrossDomainSampler) -> Iterator[Batch]:
    """Batches as a Dataset and a collate function give them: row by row, at full width."""
    train, length, width = split.train, int(config["max_history_length"]), int(config["pseudo_length"])
    rng = np.random.default_rng(0)

    def row(index: int) -> dict[str, torch.Tensor]:
        domain = int(train.domain[index])
        pseudo = [*train.history(index, domain)[-(width - train.recalled.shape[1]) :], *train.recalled[index]]
        fields = {"pseudo": _left_padded(pseudo, width)}
        for k in (0, 1):
            fields[f"history_{k}"] = _left_padded(train.history(index, k)[-length:], length)
        fields["user_id"], fields["item_id"] = (
            torch.tensor(train.user[index]),
            torch.tensor(train.target[index]),
        )
        negative = sampler.negatives(train.user[[index]], domain, 1, rng)[0]
        return {**fields, "neg_item_id": torch.from_numpy(negative)}

    while True:
        for domain in rng.permutation(2):
            rows = np.flatnonzero(train.domain == domain).tolist()
            batch_size = int(config["train_batch_size"])
            for columns in DataLoader(
                rows, batch_size, shuffle=True, collate_fn=lambda ids: [row(i) for i in ids]
            ):
                yield Batch({n: torch.stack([c[n] for c in columns]) for n in columns[0]}, int(domain), 2)


def _left_padded(items, width: int) -> torch.Tensor:
    out = torch.zeros(width, dtype=torch.long)
    if len(items):
        out[-len(items) :] = torch.as_tensor(np.asarray(items, dtype=np.int64))
    return out


def trimmed_batches(config, split, model, sampler) -> Iterator[Batch]:
    """The library's own batches, epoch after epoch."""
    loader = CrossDomainLoader(config, split.train, model, sampler=sampler, training=True)
    for epoch in range(10**6):
        loader.set_epoch(0, epoch)
        yield from loader


class Training:
    """One of the two, stepped in slices of time."""

    def __init__(self, name: str, model: I2VAE, batches: Iterator[Batch], optimizer: torch.optim.Optimizer):
        self.name, self.model, self.batches, self.optimizer = name, model.train(), batches, optimizer
        self.rows, self.seconds = 0, 0.0

    def step(self) -> None:
        """One batch."""
        started = time.perf_counter()
        batch = next(self.batches)
        self.optimizer.zero_grad()
        sum(self.model.calculate_loss(batch)).backward()
        self.optimizer.step()
        self.rows += len(batch)
        self.seconds += time.perf_counter() - started


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cloth_sport")
    parser.add_argument("--data-path", default="dataset_atomic")
    parser.add_argument("--seconds", type=float, default=60, help="of training, for each of the two")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = {"data_path": options.data_path, "psg": "random", "use_gpu": False}
    config = CDRConfig("I2VAE", options.dataset, ["I2VAE_paper.yaml"], settings)
    dataset, split = load_data(config)
    split = I2VAE.prepare_data(config, dataset, split)
    sampler = CrossDomainSampler(split)
    torch.manual_seed(0)
    data = TrainingData.of(dataset, split)
    ours, plain = I2VAE(config, data), PaddedI2VAE(config, data)
    plain.load_state_dict(ours.state_dict())
    check_equal(config, split, sampler, ours, plain)
    with_torchs_dropout(plain)
    rate = float(config["learning_rate"])
    contenders = [
        Training(
            "padded",
            plain,
            padded_batches(config, split, sampler),
            torch.optim.Adam(plain.parameters(), rate),
        ),
        Training(
            "recbole_cdr_ext",
            ours,
            trimmed_batches(config, split, ours, sampler),
            torch.optim.Adam(ours.parameters(), rate, fused=True),
        ),
    ]
    in_turns(contenders, options.seconds)
    print(f"\n{options.dataset}: {len(split.train):,} training rows, {torch.get_num_threads()} threads")
    print_speeds(contenders, "rows")
    report_shares(contenders[1], sampler, split)


def check_equal(config, split, sampler, ours: I2VAE, plain: I2VAE) -> None:
    """Both give the same loss on the same rows, dropout and sampling off."""
    ours.eval(), plain.eval()
    batch = next(padded_batches(config, split, sampler))
    one, two = (torch.stack(m.calculate_loss(batch)) for m in (ours, plain))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def report_shares(training: Training, sampler: CrossDomainSampler, split) -> None:
    """Prints the share of time outside matrix products, and that of the negative sampling."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(10):
            training.step()
    times = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    products = sum(t for key, t in times.items() if key.removeprefix("aten::").startswith(MATRIX_PRODUCTS))
    print(f"outside matrix products: {1 - products / sum(times.values()):.0%} of a step's time")
    started = time.perf_counter()
    rng = np.random.default_rng(0)
    for k in (0, 1):
        sampler.negatives(split.train.user[split.train.domain == k], k, 1, rng)
    drawing = time.perf_counter() - started
    epoch = len(split.train) * training.seconds / training.rows
    print(f"negative sampling: {drawing * 1000:.0f} ms of an epoch's {epoch:.1f} s ({drawing / epoch:.2%})")


if __name__ == "__main__":
    main()
