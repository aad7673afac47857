"""Scores of embeddings and scenes: pure functions, each share with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from hyperdreambooth.portraits.captions import Scene

Z95 = 1.959964  # of the normal distribution's 95 % interval


@dataclass(frozen=True)
class Rate:
    """A share of `hits` among `trials`, and Wilson's 95 % interval of what it estimates."""

    hits: int
    trials: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.hits / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval: holds at 0 and at 1 too. Trials count as independent."""
        n, p, z2 = self.trials, self.share, Z95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} ({low:.1%} to {high:.1%}, n = {self.trials})"


def nearest(gallery: Tensor, probes: Tensor) -> Tensor:
    """For each probe (M, E) the row of the gallery (P, E) whose direction is nearest: (M,) int64."""
    return (F.normalize(probes, dim=1) @ F.normalize(gallery, dim=1).T).argmax(dim=1)  # (M, P) -> (M,)


def identified(gallery: Tensor, probes: Tensor, labels: Tensor) -> Tensor:
    """(M,) bool: whether each probe's nearest of the gallery is the right one.

    Args:
        gallery: embeddings (P, E), one per person.
        probes: embeddings (M, E).
        labels: (M,) int64, the gallery's row of each probe's person.
    """
    return nearest(gallery, probes) == labels


def identification_rate(gallery: Tensor, probes: Tensor, labels: Tensor) -> Rate:
    """How often the right one of P people is the nearest; chance is 1 / P. Arguments as `identified`."""
    hits = identified(gallery, probes, labels)
    return Rate(int(hits.sum()), len(hits))


def spread(embeddings: Tensor) -> float:
    """Mean squared distance of embeddings (N, E) from their mean: 0 where all pictures are one."""
    return float((embeddings - embeddings.mean(dim=0)).square().sum(dim=1).mean())


def spread_ratio(generated: Tensor, true: Tensor) -> float:
    """Spread of generated embeddings (N, E) in units of that of true ones (M, E): well below 1 is collapse."""
    return spread(generated) / spread(true)


def scene_recognised(read: Sequence[Scene], prompted: Sequence[Scene]) -> Rate:
    """How often everything that was prompted (style, domain, context, edit) is what the classifier reads.

    What was not prompted is free, but for the style: plain is a style too.
    """
    hits = [
        seen.style == asked.style
        and all(getattr(asked, field) in (None, getattr(seen, field)) for field in ("domain", "context", "edit"))
        for seen, asked in zip(read, prompted, strict=True)
    ]
    return Rate(sum(hits), len(hits))
