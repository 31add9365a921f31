"""What an epoch says of Gaussian latents: whether they carry anything, or have collapsed onto their priors."""

from __future__ import annotations

from collections import defaultdict

import torch

# A dimension is active if its posterior mean varies by more than this over the instances: Burda, Grosse and
# Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, section 5.2.
ACTIVE_VARIANCE = 0.01


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
