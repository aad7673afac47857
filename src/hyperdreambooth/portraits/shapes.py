"""Soft shapes: anti-aliased coverage, mounds and smooth noise over fields of a batch of pictures.

A field is (N, 1, H, W), a number of each picture (N, 1, 1, 1), a colour (N, 3, 1, 1) or (N, 3, H, W). Shapes are
implicit functions, negative inside.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def slopes(f: Tensor) -> tuple[Tensor, Tensor]:
    """Change of a field from one pixel to the next, to the right and downwards: two (N, 1, H, W)."""
    across = pad((f[..., 2:] - f[..., :-2]) * 0.5, (1, 1, 0, 0), mode="replicate")
    down = pad((f[..., 2:, :] - f[..., :-2, :]) * 0.5, (0, 0, 1, 1), mode="replicate")
    return across, down


def inside(f: Tensor) -> Tensor:
    """Coverage in [0, 1] of any implicit shape: its edge is one pixel wide wherever and however steep it is."""
    across, down = slopes(f)
    return (0.5 - f / torch.sqrt(across * across + down * down + 1e-10)).clamp(0.0, 1.0)


def edge(distance: Tensor, pixel: Tensor) -> Tensor:
    """Coverage of a shape whose implicit function is a distance in the units of `pixel` (N, 1, 1, 1)."""
    return (0.5 - distance / pixel).clamp(0.0, 1.0)


def line(distance: Tensor, half_width: Tensor | float, pixel: Tensor) -> Tensor:
    """Coverage of a stroke around distance 0; thinner than a pixel it fades instead of breaking up."""
    return ((half_width - distance.abs()) / pixel + 0.5).clamp(0.0, 1.0).minimum(2.0 * half_width / pixel)


def ramp(x: Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
    """0 before `start`, 1 after `stop`, smooth between."""
    t = ((x - start) / (stop - start)).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def mound(x: Tensor, y: Tensor, width: float | Tensor, height: float | Tensor) -> Tensor:
    """A smooth hill of height 1 at the origin, exactly 0 outside the ellipse of these half-axes."""
    q = (1.0 - (x / width) ** 2 - (y / height) ** 2).clamp_min(0.0)
    return q * q * q


def bump(x: Tensor, width: float | Tensor) -> Tensor:
    """A smooth hill of height 1 at 0, exactly 0 beyond `width` on either side: a ridge across the picture."""
    q = (1.0 - (x / width) ** 2).clamp_min(0.0)
    return q * q * q


def tint(red: float, green: float, blue: float) -> Tensor:
    """A linear colour, or factors for the channels of one, (1, 3, 1, 1)."""
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1)


def over(below: Tensor, colour: Tensor | float, coverage: Tensor | float) -> Tensor:
    """`colour` painted on `below` where `coverage` says."""
    return below + coverage * (colour - below)


def smooth_min(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """The smaller of two fields with the crease between them rounded."""
    h = (radius - (a - b).abs()).clamp_min(0.0)
    return torch.minimum(a, b) - h * h / (4.0 * radius)


def strands(s: Tensor, t: Tensor, phase: Tensor) -> Tensor:
    """Smooth streaks in about [-1, 1]: fine across `s`, drifting slowly along `t`."""
    bend = torch.sin(5.0 * t + phase)
    return (
        0.5 * torch.sin(31.0 * s + 1.2 * bend + phase)
        + 0.3 * torch.sin(67.0 * s - 2.0 * bend + 3.0 * phase)
        + 0.2 * torch.sin(131.0 * s + 7.0 * t + 5.0 * phase)
    )


def curls(x: Tensor, y: Tensor, phase: Tensor, scale: float | Tensor) -> Tensor:
    """Smooth clumps in about [-1, 1] with `scale` radians a unit."""
    a, b = x * scale, y * scale
    return torch.sin(a + 1.3 * torch.sin(0.8 * b + phase)) * torch.sin(b + 1.3 * torch.sin(0.9 * a + 2.0 * phase))
