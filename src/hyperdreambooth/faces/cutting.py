"""Squares cut out of a picture, level or turned, that may reach beyond its borders."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_BLUR_FROM = 0.08  # of the square beyond the border, everything is wholly blurred


def level_square(picture: Tensor, left: int, top: int, side: int, size: int) -> Tensor:
    """A square of a picture, anti-aliased; beyond the picture's borders its reflection goes on, blurred.

    Args:
        picture: (3, H, W) float32 in [0, 1].
        left, top: of the square, in pixels of the picture; may lie outside.
        side: of the square, in pixels of the picture.
        size: side of the result, in pixels.

    Returns:
        (3, size, size) float32 in [0, 1].
    """
    height, width = picture.shape[1:]
    rows, columns = torch.arange(top, top + side), torch.arange(left, left + side)
    square = picture[:, reflected(rows, height)][:, :, reflected(columns, width)]  # (3, side, side)
    outside = torch.maximum(_beyond(rows, height).view(-1, 1), _beyond(columns, width).view(1, -1))
    return _finished(square, outside, size)


def turned_square(picture: Tensor, centre: tuple[float, float], side: int, tilt: float, size: int) -> Tensor:
    """A square as `level_square`'s, turned about its own centre (x, y), in pixels of the picture.

    What falls to the right by `tilt` degrees in the picture is level in the square.
    """
    height, width = picture.shape[1:]
    along = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    down, right = along.view(-1, 1), along.view(1, -1)
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    x = centre[0] - 0.5 + cos * right - sin * down  # (side, side), 0 being the middle of the first pixel
    y = centre[1] - 0.5 + sin * right + cos * down
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)  # (side, side, 2) in [-1, 1]
    square = functional.grid_sample(
        picture.unsqueeze(0), grid.unsqueeze(0).to(picture), padding_mode="reflection", align_corners=False
    )[0]
    return _finished(square, torch.maximum(_beyond(x, width), _beyond(y, height)), size)


def _finished(square: Tensor, outside: Tensor, size: int) -> Tensor:
    """A square (3, S, S) at the asked size, blurred by how many pixels (S, S) it lies outside the picture."""
    side = square.shape[-1]
    both = torch.cat([square, (outside / side).to(square).unsqueeze(0)]).unsqueeze(0)  # (1, 4, S, S)
    if side != size:
        both = functional.interpolate(both, (size, size), mode="bicubic", antialias=True)
    square, outside = both[0, :3].clamp(0.0, 1.0), both[0, 3:]
    if int(outside.count_nonzero()) == 0:
        return square
    share = (outside / _BLUR_FROM).clamp(0.0, 1.0)
    return square + share * (_blurred(square, max(1, round(0.06 * size))) - square)


def reflected(indices: Tensor, length: int) -> Tensor:
    """Any whole numbers folded into [0, length) as between two mirrors."""
    folded = indices % (2 * length)
    return torch.minimum(folded, 2 * length - 1 - folded)


def _beyond(indices: Tensor, length: int) -> Tensor:
    """How far each index lies outside [0, length)."""
    return torch.maximum(-indices, indices - (length - 1)).clamp(min=0)


def _blurred(square: Tensor, radius: int) -> Tensor:
    """Two box blurs of the given radius in pixels, borders repeated: (3, S, S) to (3, S, S)."""
    for _ in range(2):
        padded = functional.pad(square.unsqueeze(0), (radius,) * 4, mode="replicate")
        square = functional.avg_pool2d(padded, 2 * radius + 1, stride=1)[0]
    return square
