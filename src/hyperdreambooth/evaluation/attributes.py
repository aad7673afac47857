"""The exact measure for portraits: the attributes read back from a picture against those of the true person."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperdreambooth.portraits.person import ATTRIBUTES


def attribute_errors(read: Tensor, truth: Tensor) -> dict[str, float]:
    """The error of each attribute by name, in [0, 1]: the mean distance of a number, the share of wrong choices.

    Args:
        read: (N, T), as `AttributeReader.read` gives it.
        truth: (N, T), as `portraits.truth_matrix` gives it.
    """
    return {name: float(errors.mean()) for name, errors in _errors(read, truth).items()}


def attribute_error(read: Tensor, truth: Tensor, everybody: Tensor | None = None) -> float:
    """The mean error over attributes and people relative to guessing: 0 all right, 1 no better than a guess.

    The guess is the best constant answer: the median of a number, the commonest choice. So people of one kind do not
    make the error look small. Attributes that are the same for all are left out.

    Args:
        read, truth: (N, T), see `attribute_errors`.
        everybody: (M, T), the truth of those for whom the guess is made, where they are more than these N: methods
            that drew few people and many are then measured against the same guess.
    """
    known = truth if everybody is None else everybody
    errors = attribute_errors(read, truth)
    guesses = attribute_errors(_guess(known).expand_as(known), known)
    varied = [name for name, guess in guesses.items() if guess > 0]
    return sum(errors[name] / guesses[name] for name in varied) / len(varied)


def _errors(read: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """(N,) of each attribute by name."""
    widths = [attribute.width for attribute in ATTRIBUTES]
    parts = zip(ATTRIBUTES, read.split(widths, dim=1), truth.split(widths, dim=1), strict=True)
    return {
        attribute.name: (seen.argmax(dim=1) != true.argmax(dim=1)).float()
        if attribute.choices
        else (seen - true).abs().squeeze(1)
        for attribute, seen, true in parts
    }


def _guess(truth: Tensor) -> Tensor:
    """(1, T): the median of each number, the share of each choice (the largest is the commonest)."""
    parts = truth.split([attribute.width for attribute in ATTRIBUTES], dim=1)
    guesses = [
        part.mean(dim=0, keepdim=True) if attribute.choices else part.median(dim=0, keepdim=True).values
        for part, attribute in zip(parts, ATTRIBUTES, strict=True)
    ]
    return torch.cat(guesses, dim=1)
