"""Scores of features: pure functions, a number per picture, per person and prompt, or per person."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 5  # people; of fewer there is no interval, and so no verdict
_WINDOW, _SIGMA, _C1, _C2 = 11, 1.5, 0.01**2, 0.03**2  # of SSIM, as published


def likeness(features: Tensor, others: Tensor) -> Tensor:
    """Cosines (N,) of unit features (N, E) with others (N, E), row by row: Face Rec., DINO, CLIP-I and CLIP-T."""
    return (features * others).sum(dim=1)


def per_person(values: Tensor, people: Tensor, count: int) -> Tensor:
    """Each person's mean, (P,), of values (N,) that belong to people (N,) int64, 0 to P - 1; NaN for those of none."""
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, people, values.double())
    trials = torch.zeros(count, dtype=torch.float64).index_add_(0, people, torch.ones(len(people), dtype=torch.float64))
    return sums / trials


def per_cell(values: Tensor, people: Tensor, prompts: Tensor, shape: tuple[int, int]) -> Tensor:
    """Each person's mean in each prompt, (P, Q) = `shape`, of values (N,); NaN where there are none.

    Args:
        values: (N,), of one picture each; a NaN among them makes its cell NaN.
        people, prompts: (N,) int64, 0 to P - 1 and 0 to Q - 1.
        shape: P and Q.
    """
    return per_person(values, people * shape[1] + prompts, shape[0] * shape[1]).view(shape)


def over_prompts(cells: Tensor) -> Tensor:
    """Each person's mean (..., P) over the prompts that they have, of cells (..., P, Q); NaN for whoever has none.

    After `per_cell`, prompts weigh alike, however many pictures there are for each.
    """
    return cells.nanmean(dim=-1)


def ranked_first(pictures: Tensor, texts: Tensor, own: Tensor) -> Tensor:
    """(N,) 1 where a picture's own text is nearer to it than all others, else 0: unit features (N, E) and (Q, E).

    Args:
        pictures, texts: features in one space.
        own: (N,) int64, the row of each picture's text.
    """
    return ((pictures @ texts.T).argmax(dim=1) == own).float()  # (N, Q) -> (N,)


def diversity(features: Tensor, people: Tensor, count: int) -> Tensor:
    """How much pictures of one person differ, (P,): the mean of 1 - cosine over pairs of unit features (N, E).

    A method that copies its photograph draws the same picture from every noise: near 0.
    """
    rows, columns = _pairs(people)
    return per_person(1 - likeness(features[rows], features[columns]), people[rows], count)


def framing(grey: Tensor, people: Tensor, count: int) -> Tensor:
    """How much pictures of one person (N, H, W) in [0, 1] differ in pose and framing, (P,): 1 - `ssim`, over pairs."""
    rows, columns = _pairs(people)
    return per_person(1 - ssim(grey[rows], grey[columns]), people[rows], count)


def _pairs(people: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of all pairs of different pictures of one person."""
    rows, columns = ((people[:, None] == people) & ~torch.eye(len(people), dtype=torch.bool)).nonzero(as_tuple=True)
    return rows, columns


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity (N,) of grey pictures (N, H, W) in [0, 1], pair by pair: 1 for the same picture.

    Whatever is drawn elsewhere in the frame counts, whoever it shows (Wang et al., 2004; a Gaussian window, the
    pictures' borders repeated beyond them).
    """
    if not len(one):
        return torch.empty(0, dtype=torch.float64)
    places = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    bell = (-(places**2) / (2 * _SIGMA**2)).exp()
    kernel = torch.outer(bell, bell) / bell.sum() ** 2

    def mean(pictures: Tensor) -> Tensor:
        padded = F.pad(pictures.unsqueeze(1), [_WINDOW // 2] * 4, mode="replicate")
        return F.conv2d(padded, kernel[None, None]).squeeze(1)  # (N, H, W)

    a, b = one.double(), other.double()
    mean_a, mean_b = mean(a), mean(b)
    apart_a, apart_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    together = mean(a * b) - mean_a * mean_b
    bright = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return (bright * (2 * together + _C2) / (apart_a + apart_b + _C2)).mean(dim=(1, 2))


@dataclass(frozen=True)
class Mean:
    """A mean over people and its 95 % interval, by the bootstrap over people; NaN of fewer than `FEWEST` people."""

    value: float
    low: float
    high: float

    @property
    def unsure(self) -> bool:
        """Whether there are people, but too few of them for an interval."""
        return math.isnan(self.low) and not math.isnan(self.value)


def bootstrap(values: Tensor, draws: int = 2000, seed: int = 0) -> Mean:
    """The mean over people of values (P,); NaN, where a person has none, is left out.

    Of a difference of two methods, person by person, it is the paired bootstrap. The same people are drawn for
    everything of as many people, whatever is asked. The interval is the expanded percentile interval, see `_tail`.
    """
    values = values[~values.isnan()].double()
    if len(values) < FEWEST:
        return Mean(float(values.mean()), math.nan, math.nan)  # of none, NaN too
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = values[drawn].mean(dim=1)  # (draws,)
    tail = _tail(len(values))
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Mean(float(values.mean()), low, high)


def _tail(people: int) -> float:
    """The share of bootstrapped means below a 95 % interval, and above: 2.5 % of many people, less of few.

    Of n people the bootstrap spreads sqrt((n - 1) / n) as far as it should, and as a normal distribution where
    Student's is meant: both are made good by Phi(-sqrt(n / (n - 1)) t) in the place of 2.5 % (Hesterberg, arXiv
    1411.5279, the expanded percentile interval).
    """
    return NormalDist().cdf(-math.sqrt(people / (people - 1)) * student(people - 1))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, of 4 degrees of freedom or more, to 0.001 (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(freedom) ** power for power, term in enumerate(terms))


def prompt_text(prompt: str) -> str:
    """What a prompt says when nobody is named, for CLIP-T: "a doll of a [V] face" -> "a doll of a face"."""
    return " ".join(prompt.replace("[V]", "").split())
