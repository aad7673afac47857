"""Scores of features: pure functions, a number per picture, per person and prompt, or per person."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    apart = 1 - features @ features.T  # (N, N)
    pairs = (people[:, None] == people) & ~torch.eye(len(people), dtype=torch.bool)
    rows, columns = pairs.nonzero(as_tuple=True)
    return per_person(apart[rows, columns], people[rows], count)


@dataclass(frozen=True)
class Mean:
    """A mean over people and its 95 % interval, by the bootstrap over people."""

    value: float
    low: float
    high: float


def bootstrap(values: Tensor, draws: int = 2000, seed: int = 0) -> Mean:
    """The mean over people of values (P,); NaN, where a person has none, is left out.

    Of a difference of two methods, person by person, it is the paired bootstrap. The same people are drawn for
    everything of as many people, whatever is asked.
    """
    values = values[~values.isnan()].double()
    if not len(values):
        return Mean(float("nan"), float("nan"), float("nan"))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = values[drawn].mean(dim=1)  # (draws,)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Mean(float(values.mean()), low, high)


def prompt_text(prompt: str) -> str:
    """What a prompt says when nobody is named, for CLIP-T: "a doll of a [V] face" -> "a doll of a face"."""
    return " ".join(prompt.replace("[V]", "").split())
