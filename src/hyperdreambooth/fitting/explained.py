"""How much of fitted numbers is the person: a hypernetwork can learn that share of them and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Repeatability:
    """How well the numbers fitted under one noise sequence foretell those of the same people under another.

    `correlation` is Pearson's over all numbers, -1 to 1. `r2` is the share, 1 at most, of the second fit's spread
    between people that the first, taken as it is, accounts for; negative where it is worse than the mean person.
    """

    correlation: float
    r2: float


def repeatability(first: Tensor, second: Tensor) -> Repeatability:
    """Compare two fits of the same N >= 2 people, (N, ...) each, under two noise sequences.

    What is common to all people is taken out of each fit: it repeats by itself and tells nothing of anybody.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"got fits of {tuple(first.shape)} and {tuple(second.shape)}, expected the same people, 2 or more"
        )
    x, y = _centred(first), _centred(second)  # (N, P)
    correlation = (x * y).sum() / (x.norm() * y.norm())
    r2 = 1.0 - (y - x).square().sum() / y.square().sum()
    return Repeatability(correlation.item(), r2.item())


def explained_share(numbers: Tensor, truth: Tensor, folds: int = 5, ridges: Sequence[float] = RIDGES) -> float:
    """Held-out R2 of the ridge regression of fitted numbers on what is true of the people: 1 all, 0 nothing.

    Each fold of people is predicted by a regression on the others; the strongest shrinkage that serves all folds best
    is taken. R2 is pooled over numbers, so those that differ most between people count most.

    Args:
        numbers: (N, ...) fitted, of N people in random order.
        truth: (N, A) attributes, such as `portraits.truth_matrix` gives; scaled here.
        ridges: shrinkages to try, in units of the number of training people (attributes have unit variance).
    """
    if len(numbers) != len(truth) or not 2 <= folds <= len(truth):
        raise ValueError(
            f"got {len(numbers)} people, {len(truth)} truths, {folds} folds: expected N, N and 2 to N folds"
        )
    y, x = numbers.double().flatten(1), truth.double()  # (N, P), (N, A)
    x = _centred(x) / x.std(dim=0).clamp(min=1e-6)
    fold = torch.arange(len(x)) % folds  # (N,)
    missed, spread = torch.zeros(len(ridges), dtype=torch.float64), 0.0
    for held in range(folds):
        train, test = fold != held, fold == held
        predicted = _ridge(x[train], y[train], x[test], ridges)  # (len(ridges), n, P)
        missed += (predicted - y[test]).square().sum(dim=(1, 2)).cpu()
        spread += (y[test] - y[train].mean(dim=0)).square().sum().item()
    return 1.0 - float(missed.min()) / spread


def _ridge(x: Tensor, y: Tensor, x_new: Tensor, ridges: Sequence[float]) -> Tensor:
    """Predictions (len(ridges), n, P) at x_new (n, A) of the regressions of y (N, P) on x (N, A), with an intercept."""
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    gram = (x - x_mean).T @ (x - x_mean)  # (A, A)
    cross = (x - x_mean).T @ (y - y_mean)  # (A, P)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved = [torch.linalg.solve(gram + ridge * len(x) * eye, cross) for ridge in ridges]
    return torch.stack([(x_new - x_mean) @ coefficients + y_mean for coefficients in solved])


def _centred(values: Tensor) -> Tensor:
    """(N, ...) -> (N, P) float64 without the mean over people."""
    flat = values.double().flatten(1)
    return flat - flat.mean(dim=0)
