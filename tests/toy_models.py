"""Models and data that keep the interfaces honest: one that is no dot product, and any number of domains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from recbole_cdr_ext.model.recommender import CrossDomainRecommender

DOMAINS = ("books", "films", "songs")


class ToyMLP(CrossDomainRecommender):
    """Scores σ(MLP([mean of all histories; item])): it overrides ``score``, and has neither user nor item vectors."""

    cold_start = True
    needs_negatives = True
    paper = "none"

    def __init__(self, config, dataset, size: int = 16):
        super().__init__(config, dataset)
        self.items = nn.Embedding(self.n_items, size, padding_idx=0)
        self.mlp = nn.Sequential(nn.Linear(2 * size, 32), nn.ReLU(), nn.Linear(32, 1))

    def calculate_loss(self, interaction):
        """Returns the binary cross-entropy of targets and negatives."""
        candidates = torch.cat([interaction.targets.unsqueeze(1), interaction.negatives], 1)
        label = torch.zeros(candidates.shape, device=candidates.device)
        label[:, 0] = 1.0
        return nn.functional.binary_cross_entropy_with_logits(self.score(interaction, candidates), label)

    def score(self, batch, candidates=None):
        """Returns (B, C) scores; the history is read once per instance."""
        history = torch.cat([batch.history(k) for k in range(self.n_domains)], 1)  # (B, L)
        total = self.items(history).sum(1)
        user = total / (history != 0).sum(1, keepdim=True).clamp(min=1)  # (B, d)
        if candidates is None:
            items = self.item_slice(batch.target_domain)
            candidates = torch.arange(items.start, items.stop, device=user.device).expand(len(user), -1)
        pair = torch.cat([user.unsqueeze(1).expand(-1, candidates.shape[1], -1), self.items(candidates)], 2)
        return self.mlp(pair).squeeze(2)


def write_toy_domains(folder: Path, n_domains: int, n_users: int = 90, seed: int = 0) -> None:
    """Writes ``DOMAIN.inter`` files in which a user keeps to one of three topics, the same in every domain.

    Domain k has 30 + 6k items of three topics (the item's number modulo 3); one user in five misses a domain.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows: dict[str, list[str]] = {name: [] for name in DOMAINS[:n_domains]}
    for user in range(n_users):
        missing = int(rng.integers(n_domains)) if rng.random() < 0.2 else -1
        for k in range(n_domains):
            if k == missing:
                continue
            topical = np.arange(user % 3, 30 + 6 * k, 3)
            chosen = rng.choice(topical, size=int(rng.integers(4, 9)), replace=False)
            times = np.sort(rng.integers(0, 10_000, len(chosen)))
            rows[DOMAINS[k]] += [
                f"u{user}\t{DOMAINS[k]}-{item}\t{time}" for item, time in zip(chosen, times, strict=True)
            ]
    for name, lines in rows.items():
        text = "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines])
        (folder / f"{name}.inter").write_text(text + "\n", encoding="utf-8")
