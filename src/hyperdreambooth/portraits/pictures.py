"""True pictures: portraits of people by their seeds, in any view and scene, and any picture in any style."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperdreambooth.portraits.captions import Scene
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.styles import stylize
from hyperdreambooth.portraits.view import View


def draw(seeds: Sequence[int], views: Sequence[View], scenes: Sequence[Scene], size: int, batch: int = 50) -> Tensor:
    """The portraits of these people in these views and scenes, styles included: (N, 3, size, size) in [0, 1]."""
    parts = []
    for begin in range(0, len(seeds), batch):
        some = slice(begin, begin + batch)
        parts.append(render([Person(seed) for seed in seeds[some]], views[some], size, scenes=scenes[some]))
    return in_styles(torch.cat(parts), [scene.style for scene in scenes])


def in_styles(pictures: Tensor, styles: Sequence[str]) -> Tensor:
    """Each picture under the filter of its own style."""
    styled = pictures.clone()
    for style in sorted(set(styles) - {"plain"}):
        rows = [row for row, name in enumerate(styles) if name == style]
        styled[rows] = stylize(pictures[rows], style)
    return styled
