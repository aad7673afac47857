"""What stands behind a person: the backgrounds of a view and the contexts of a scene."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .captions import Scene
from .geometry import Numbers
from .shapes import curls, over, ramp, tint
from .view import BACKGROUNDS


def scenery(g: Numbers, scenes: Sequence[Scene], size: int) -> Tensor:
    """Linear background colours, (N, 3, size, size); rows with the same kind of background are drawn together."""
    names = [
        s.context or BACKGROUNDS[int(b)] for s, b in zip(scenes, g["view_background"].flatten().tolist(), strict=True)
    ]
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    x, y = axis.view(1, 1, 1, size), axis.view(1, 1, size, 1)
    out = torch.empty(len(names), 3, size, size)
    for name in dict.fromkeys(names):
        rows = torch.tensor([i for i, n in enumerate(names) if n == name])
        colour, phase = g["view_background_colour"][rows], g["view_background_phase"][rows]
        out[rows] = _PAINTERS[name](
            x.expand(len(rows), 1, size, size), y.expand(len(rows), 1, size, size), colour, phase, 1.0 / size
        )
    return out


def _rgb(red: float, green: float, blue: float) -> Tensor:
    """A linear colour from sRGB."""
    return tint(red, green, blue).square()


def _vignette(x: Tensor, y: Tensor) -> Tensor:
    return 1.06 - 0.55 * ((x - 0.5) ** 2 + (y - 0.45) ** 2)


def _plain(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    return colour * (_vignette(x, y) + 0.22 * ramp((x - 0.5) ** 2 + (y - 0.4) ** 2, 0.35, 0.0))


def _gradient(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    along = x * torch.cos(3.1 * phase) + y
    return over(colour * 1.30, colour.flip(1) * 0.45, ramp(along, 0.0, 1.5))


def _bokeh(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    out = colour * 0.35 * _vignette(x, y)
    for i in range(9):
        cx = 0.5 + 0.55 * torch.sin(2.4 * i + 6.28 * phase + 0.7 * i * i)
        cy = 0.36 + 0.36 * torch.sin(1.7 * i * i + 4.0 * phase + 0.5)
        r = 0.05 + 0.025 * (i % 4)
        d = ((x - cx) ** 2 + (y - cy) ** 2 + 1e-6).sqrt()
        warm = over(colour * 1.6, _rgb(1.0, 0.85, 0.6), 0.25 * (i % 3))
        out = over(out, warm, 0.50 * ramp(d, r, r - 0.025) + 0.12 * ramp((d - r).abs(), 0.02, 0.0))
    return out


def _wall(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    row = (y * 9.0 + phase).floor()
    bx = (x * 4.5 + 0.5 * (row % 2.0) + phase) % 1.0
    by = (y * 9.0 + phase) % 1.0
    joint = ramp(torch.minimum(torch.minimum(bx, 1 - bx) * 2.0, torch.minimum(by, 1 - by)), 0.02, 0.10 + 6 * px)
    tint = 0.88 + 0.12 * torch.sin(7.1 * row + 4.3 * (x * 4.5 + 0.5 * (row % 2.0) + phase).floor())
    return colour * _vignette(x, y) * (0.62 + 0.38 * joint) * tint


def _foliage(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    leaves = 0.6 * curls(x, y, 6.28 * phase, 16.0) + 0.4 * curls(y, x, 6.28 * phase + 1.0, 35.0)
    green = over(_rgb(0.16, 0.27, 0.17), _rgb(0.52, 0.62, 0.32), ramp(leaves, -0.7, 0.9))
    return over(green, colour, 0.12) * (1.15 - 0.5 * y)


def _room(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    out = colour * _vignette(x, y)
    left = (0.08 + 0.5 * ramp(phase, 0.45, 0.55)) * torch.ones_like(x)
    pane = ramp(torch.maximum((x - left - 0.15).abs() - 0.15, (y - 0.30).abs() - 0.26), 0.02, -0.02)
    bars = ramp(torch.minimum((x - left - 0.15).abs(), (y - 0.30).abs()), 0.006, 0.02)
    out = over(out, _rgb(0.86, 0.92, 0.95) * (1.1 - 0.3 * y) * (0.55 + 0.45 * bars), pane)
    shelf = ramp((y - 0.66).abs(), 0.035, 0.015) * (1.0 - pane)
    return over(out, colour * 0.35, 0.85 * shelf)


def _sky(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    blue = over(_rgb(0.44, 0.60, 0.78), _rgb(0.80, 0.87, 0.90), y)
    clouds = curls(x * 0.6 + phase, y * 1.6, 6.28 * phase, 9.0) + 0.4 * curls(x, y * 1.6, phase, 27.0)
    return over(over(blue, _rgb(0.96, 0.96, 0.96), ramp(clouds, 0.05, 0.95)), colour, 0.12)


def _stripes(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    wave = torch.sin(6.2832 * (6.0 * x + 1.2 * (phase - 0.5) * y * 4.0 + phase))
    return colour * _vignette(x, y) * (0.80 + 0.20 * ramp(wave, -0.35, 0.35))


def _beach(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    out = over(_rgb(0.36, 0.66, 0.90), _rgb(0.83, 0.93, 0.96), ramp(y, 0.0, 0.45))
    sun = ((x - 0.15 - 0.7 * phase) ** 2 + (y - 0.13) ** 2 + 1e-6).sqrt()
    out = over(out, _rgb(1.0, 0.95, 0.75), ramp(sun, 0.085, 0.07) + 0.35 * ramp(sun, 0.22, 0.05) * (sun > 0.085))
    waves = torch.sin(60.0 * y / (0.3 + y) * 3.0 + 2.0 * torch.sin(9.0 * x + 6.28 * phase))
    sea = over(_rgb(0.08, 0.46, 0.62), _rgb(0.28, 0.72, 0.76), ramp(y, 0.44, 0.66)) * (1.0 + 0.14 * waves)
    out = over(out, sea, ramp(y, 0.44 - px, 0.44 + px))
    shore = 0.665 + 0.014 * torch.sin(11.0 * x + 6.28 * phase)
    sand = over(_rgb(0.90, 0.80, 0.60), _rgb(0.78, 0.64, 0.44), ramp(y, 0.67, 1.0)) * (
        1.0 + 0.05 * curls(x, y, phase, 90.0)
    )
    out = over(out, sand, ramp(y, shore, shore + 0.01 + px))
    return over(out, _rgb(0.97, 0.99, 0.99), ramp((y - shore).abs(), 0.018, 0.006))


def _snow(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    out = over(_rgb(0.62, 0.70, 0.80), _rgb(0.88, 0.91, 0.94), ramp(y, 0.0, 0.5))
    for i, (base, tone) in enumerate(((0.40, 0.62), (0.50, 0.40))):
        tooth = (((x * (5 + 2 * i) + phase * 3) % 1.0) - 0.5).abs() * 2.0  # 0 at a trunk, 1 between trees
        tree = base - (0.26 - 0.05 * i) * (1.0 - tooth) * (
            0.75 + 0.25 * torch.sin(2.1 * (x * (5 + 2 * i) + phase * 3).floor())
        )
        out = over(out, _rgb(0.20, 0.34, 0.36) * tone * 1.8 + 0.06, ramp(y, tree, tree + 0.02))
    hill = 0.56 + 0.04 * torch.sin(5.0 * x + 6.28 * phase)
    return over(
        out,
        over(_rgb(0.95, 0.97, 1.0), _rgb(0.76, 0.83, 0.93), ramp(y, 0.6, 1.0)),
        ramp(y, hill - px, hill + 0.015 + px),
    )


def flakes(size: int, phase: Tensor) -> Tensor:
    """Falling snow in front of everything, coverage (N, 1, size, size)."""
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    x, y = axis.view(1, 1, 1, size), axis.view(1, 1, size, 1)
    out = torch.zeros(1)
    for i, (cells, radius) in enumerate(((10.0, 0.14), (6.5, 0.14))):
        column = (x * cells + phase * (3 + i)).floor()
        gx = (x * cells + phase * (3 + i)) % 1.0
        gy = (y * cells + 0.5 * torch.sin(12.3 * column + i) + 5.0 * phase) % 1.0
        row = (y * cells + 0.5 * torch.sin(12.3 * column + i) + 5.0 * phase).floor()
        ox, oy = 0.5 + 0.25 * torch.sin(3.3 * column + 5.1 * row), 0.5 + 0.25 * torch.sin(7.7 * column + 2.9 * row)
        d = ((gx - ox) ** 2 + (gy - oy) ** 2 + 1e-6).sqrt()
        out = torch.maximum(out, 0.9 * ramp(d, radius, 0.4 * radius) * (torch.sin(4.1 * column + 6.3 * row) > -0.15))
    return out


def _city(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    out = over(_rgb(0.05, 0.06, 0.18), _rgb(0.30, 0.18, 0.38), ramp(y, 0.0, 0.8))
    for i, (cells, low, tone) in enumerate(((6.0, 0.18, 0.16), (4.0, 0.34, 0.09))):
        b = (x * cells + phase * 4 + 0.37 * i).floor()
        roof = low + 0.16 * torch.sin(3.7 * b + 6.28 * phase + i)
        wall = ramp(y, roof - px, roof + px)
        out = over(out, _rgb(tone, tone, tone * 1.7), wall)
        n = cells * 4.0
        wx, wy = (x * n + phase * 16 + 1.48 * i) % 1.0, (y * 22.0) % 1.0
        lit = torch.sin(5.3 * (x * n + phase * 16 + 1.48 * i).floor() + 9.1 * (y * 22.0).floor() + 3.0 * b) > 0.10
        window = ramp((wx - 0.5).abs(), 0.38, 0.26) * ramp((wy - 0.5).abs(), 0.38, 0.24) * lit
        glass = over(_rgb(1.0, 0.80, 0.42), _rgb(0.55, 0.85, 1.0), (torch.sin(2.9 * b) > 0.5).float())
        out = over(out, glass, 0.9 * window * ramp(y, roof + 0.01, roof + 0.03))
    return out


def _space(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    fog = curls(x + phase, y, 6.28 * phase, 5.0)
    out = over(_rgb(0.03, 0.03, 0.10), _rgb(0.32, 0.12, 0.42), 0.75 * ramp(fog, 0.0, 1.0))
    out = over(out, _rgb(0.10, 0.28, 0.46), 0.7 * ramp(-fog, 0.1, 1.0))
    stars = flakes_like(x, y, phase, 11.0, 0.16) + flakes_like(x, y, phase + 0.4, 7.0, 0.14)
    out = over(out, _rgb(1.0, 1.0, 0.95), stars.clamp(0.0, 1.0))
    cx, cy = 0.14 + 0.72 * (phase > 0.5), 0.20 + 0.1 * phase
    dx, dy = x - cx, y - cy
    d = (dx * dx + dy * dy + 1e-6).sqrt()
    bands = 0.8 + 0.2 * torch.sin(55.0 * (dy + 0.3 * dx))
    planet = over(_rgb(0.90, 0.58, 0.30), _rgb(0.75, 0.35, 0.30), ramp(bands, 0.7, 0.9)) * (
        1.0 - 0.85 * ramp(dx + dy, -0.02, 0.16)
    )
    out = over(out, planet, ramp(d, 0.125 + px, 0.125 - px))
    ring = (dx * 0.94 + dy * 0.34) / 0.21, (dy * 0.94 - dx * 0.34) / 0.045
    r = (ring[0] ** 2 + ring[1] ** 2 + 1e-6).sqrt()
    return over(out, _rgb(0.93, 0.85, 0.68), 0.8 * ramp((r - 0.88).abs(), 0.14, 0.06) * ((d > 0.125) | (ring[1] > 0)))


def flakes_like(x: Tensor, y: Tensor, phase: Tensor, cells: float, radius: float) -> Tensor:
    """Scattered dots, one in most cells of a grid."""
    gx, gy = x * cells + phase, y * cells + 2.0 * phase
    a, b = gx.floor(), gy.floor()
    ox, oy = 0.5 + 0.3 * torch.sin(3.3 * a + 5.1 * b), 0.5 + 0.3 * torch.sin(7.7 * a + 2.9 * b)
    d = ((gx % 1.0 - ox) ** 2 + (gy % 1.0 - oy) ** 2 + 1e-6).sqrt()
    return ramp(d, radius, 0.3 * radius) * (torch.sin(4.1 * a + 6.3 * b) > -0.3)


def _forest(x: Tensor, y: Tensor, colour: Tensor, phase: Tensor, px: float) -> Tensor:
    out = over(_rgb(0.72, 0.83, 0.60), _rgb(0.28, 0.44, 0.27), ramp(y + 0.25 * (x - 0.5).abs(), 0.0, 0.75))
    for i, (cells, tone, wide) in enumerate(((7.0, 0.62, 0.20), (4.0, 0.30, 0.24))):
        k = x * cells + 3.0 * phase + 0.3 * i
        trunk = ramp(((k % 1.0) - 0.5 - 0.18 * torch.sin(5.0 * k.floor())).abs(), wide * 0.62, wide * 0.45)
        out = over(out, _rgb(0.42, 0.30, 0.20) * tone * (1.0 + 0.2 * torch.sin(60.0 * x + 5.0 * y)), trunk)
    leaves = 0.6 * curls(x, y, 6.28 * phase, 14.0) + 0.5 * curls(y, x, phase, 31.0)
    crown = ramp(leaves + 1.6 * (0.26 - y), -0.1, 0.35)
    out = over(out, over(_rgb(0.10, 0.26, 0.11), _rgb(0.38, 0.60, 0.22), ramp(leaves, -0.5, 0.9)), crown)
    ground = ramp(y + 0.03 * leaves, 0.72, 0.80)
    return over(out, _rgb(0.20, 0.30, 0.14) * (1.0 + 0.35 * leaves), ground)


_PAINTERS = {
    "plain": _plain, "gradient": _gradient, "bokeh": _bokeh, "wall": _wall, "foliage": _foliage, "room": _room,
    "sky": _sky, "stripes": _stripes, "at the beach": _beach, "in the snow": _snow, "in a city at night": _city,
    "in space": _space, "in a forest": _forest,
}  # fmt: skip
