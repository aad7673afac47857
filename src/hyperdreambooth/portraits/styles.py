"""Styles as filters from picture to picture, so that one style serves portraits and photographs alike.

Every filter is deterministic, works on whole batches and at any size: lengths are measured in *units* of 1/64 of the
shorter side, so a picture of 256 gets the same strokes as one of 64, four times as fine in pixels. Textures (paper,
hatching, dots) are fixed to the frame, the same for every picture.

Pictures are float32 in [0, 1], shape (N, 3, H, W). Inside, a *tone* is a luminance (N, 1, H, W) stretched so that each
picture uses the whole range, and `_ramp` turns a tone into colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hyperdreambooth.errors import UserError
from hyperdreambooth.portraits.captions import STYLES

__all__ = ["STYLES", "stylize"]

Colour = tuple[float, float, float]


def stylize(pictures: Tensor, style: str) -> Tensor:
    """Draw pictures in a style of `STYLES`.

    Args:
        pictures: (N, 3, H, W) float32 in [0, 1], any H and W, on any device.
        style: a name of `STYLES`; "plain" gives the pictures back unchanged.

    Returns:
        (N, 3, H, W) float32 in [0, 1]: every picture filtered by itself, whatever else the batch holds.

    Raises:
        UserError: the style has no such name, or the pictures are not (N, 3, H, W).
    """
    if style not in _FILTERS:
        raise UserError(f'got the style "{style}", expected one of {", ".join(STYLES)}: choose one of these')
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise UserError(f"got pictures of shape {tuple(pictures.shape)}, expected (N, 3, H, W): stack RGB pictures")
    return _FILTERS[style](pictures).clamp(0.0, 1.0)


# ---------------------------------------------------------------------------------------------------- the styles


def _plain(pictures: Tensor) -> Tensor:
    return pictures


def _pencil_sketch(pictures: Tensor) -> Tensor:
    """Graphite on grey paper: three layers of hatching that join in as it gets darker, and contours."""
    tone = _tone(pictures)  # (N, 1, H, W)
    u = _unit(tone)
    shade = 1.0 - _blur(tone, 0.5 * u)
    graphite = 0.26 * shade
    for angle, start, period in ((45.0, 0.25, 4.2), (-40.0, 0.50, 4.2), (80.0, 0.72, 3.6)):
        coverage = ((shade - start) / 0.35).clamp(0.0, 1.0)
        graphite = graphite + 0.17 * coverage * (0.35 + _soft_step(coverage - _stripes(tone, angle, period), 0.8))
    contour = 0.40 * _ink(tone, 0.75 * u, 0.06) + (_slope(_blur(tone, 0.5 * u)) * u - 0.03).clamp(0.0, 0.35)
    graphite = graphite + contour
    tooth = 1.0 + 0.08 * _grain(tone, 2.0)
    paper = 0.90 + 0.015 * _grain(tone, 2.0)
    return (paper - (graphite * tooth).clamp(0.0, 0.76)) * _colour((1.0, 0.99, 0.965), tone)


def _watercolor(pictures: Tensor) -> Tensor:
    """Flat light washes with pigment gathered at their edges, on rough paper left white around the picture."""
    u = _unit(pictures)
    stretched = _stretch(pictures)
    washes = _kuwahara(_kuwahara(stretched, 1.4 * u), 1.2 * u)
    washes = _saturate(0.7 * washes + 0.3 * stretched, 1.6)
    light = _luminance(washes)
    pigment = 0.90 * (1.0 - washes)  # what the paint takes away from white
    rim = _slope(_blur(light, 0.5 * u)) * u
    pools = 1.0 + 0.12 * _grain(pictures, 7.0) + 0.05 * _grain(pictures, 2.0)
    pigment = pigment * pools * (0.80 + 2.6 * rim.clamp(0.0, 0.35)) + 0.35 * _ink(light, 0.7 * u, 0.06) * pigment
    paper = _colour((0.99, 0.98, 0.95), pictures) + 0.012 * _grain(pictures, 1.6)
    wet = _soft_step(_border(pictures) - 1.6 - 1.5 * _grain(pictures, 5.0), 2.5)
    return paper * (1.0 - pigment * wet)


def _bronze_statue(pictures: Tensor) -> Tensor:
    """A relief cast in bronze: luminance taken as height, one lamp, a polish on the ridges, patina in the hollows."""
    tone = _tone(pictures)
    u = _unit(tone)
    broad = _blur(tone, 4.0 * u)
    height = _blur(tone, 0.8 * u) + 0.8 * _blur(tone, 1.8 * u)
    dx, dy = _gradient(height * 3.5 * u)
    facing = ((0.50 * dx + 0.55 * dy + 0.67) / (1.0 + dx.square() + dy.square()).sqrt()).clamp(0.0, 1.0)
    body = 0.50 * _soft_step(tone - 0.5, 1.1) + 0.95 * (facing - 0.40) + 0.25 * (tone - broad)
    gloss = facing.pow(16.0) * _soft_step(tone - 0.35, 0.5)
    metal = _ramp(body, _BRONZE)
    patina = (2.2 * (broad - tone)).clamp(0.0, 0.55) * (0.8 + 0.2 * _grain(tone, 4.0))
    metal = metal + patina * (_ramp(body + 0.25, _VERDIGRIS) - metal)
    lamp = 1.05 - 0.45 * _across(tone)
    return metal * lamp + 0.55 * gloss * _colour((1.0, 0.86, 0.60), tone)


def _pixel_art(pictures: Tensor) -> Tensor:
    """About 32 cells across, each one of a few dozen colours, in-between colours by ordered dithering."""
    height, width = pictures.shape[-2:]
    cell = min(height, width) / 32.0
    rows, columns = max(1, round(height / cell)), max(1, round(width / cell))
    cells = functional.adaptive_avg_pool2d(_saturate(_stretch(pictures), 1.35), (rows, columns))
    cells = cells + 0.7 * (cells - _blur(cells, 1.0))
    dither = cells.new_tensor(((-0.5, 0.25), (0.5, -0.25)))
    cells = cells + 0.035 * dither.repeat(rows // 2 + 1, columns // 2 + 1)[:rows, :columns]
    return functional.interpolate(_nearest_colour(cells, _GAME_PALETTE), size=(height, width), mode="nearest")


def _neon(pictures: Tensor) -> Tensor:
    """A dark room lit by two signs, magenta on the left and cyan on the right; what stands out is rimmed by light."""
    tone = _tone(pictures)
    u = _unit(tone)
    light = (tone + 0.6 * (tone - _blur(tone, 3.0 * u))).clamp(0.0, 1.0)
    relief, _ = _gradient(_blur(tone, 1.2 * u))
    lamp = _ramp(0.5 + 1.4 * (_across(tone) - 0.5) + 0.8 * relief * u, _SIGNS)
    edges = _slope(_blur(tone, 0.5 * u)) * u
    bright_side = _soft_step(tone - _blur(tone, 1.2 * u) - 0.02, 0.08)
    rims = _soft_step(edges - 0.10, 0.16) * bright_side
    glow = 0.5 * _blur(rims, 1.2 * u) + 0.5 * _blur(rims, 3.5 * u)
    gloss = 0.5 * rims.square() + 0.25 * _soft_step(light - 0.85, 0.3)
    return _ramp(0.25 * tone, _NIGHT) + lamp * (0.9 * light.pow(1.4) + 0.7 * rims + glow) + gloss


def _pop_art(pictures: Tensor) -> Tensor:
    """A silk screen: four flat tones, hot ones where the picture is warm, cold ones elsewhere, and printed dots."""
    smooth = _kuwahara(_stretch(pictures), 1.2 * _unit(pictures))
    tone = _tone(smooth)
    u = _unit(tone)
    redness = _blur((pictures[:, :1] - pictures[:, 2:]) / (_luminance(pictures) + 0.1), 0.8 * u)
    warm = _soft_step(redness - 0.08, 0.08)
    printed = tone + 0.16 * (_dots(tone, 4.0) - 0.5) * _soft_step(tone - 0.25, 0.1)
    hot, cold = _ramp(printed, _HOT, 0.06), _ramp(printed, _COLD, 0.06)
    colours = cold + warm * (hot - cold)
    return colours * (1.0 - 0.9 * _ink(tone, 0.8 * u, 0.06))


def _comic(pictures: Tensor) -> Tensor:
    """Cel colours in four steps of light, dots in the shadows, black ink around everything."""
    u = _unit(pictures)
    smooth = _kuwahara(_kuwahara(_stretch(pictures), 1.1 * u), 1.1 * u)
    light = _luminance(smooth)
    steps = 0.12 + 0.88 * _posterize(light, 4, 0.2)
    cels = _saturate(smooth * ((steps + 0.06) / (light + 0.06)), 1.7)
    shadow = _soft_step(0.50 - light, 0.15) * _dots(light, 3.5)
    cels = cels * (1.0 - 0.25 * shadow)
    return cels * (1.0 - 0.95 * _ink(_tone(pictures), 0.8 * u, 0.07))


# Stops of the ramps, dark to light.
_BRONZE: Sequence[Colour] = (
    (0.06, 0.035, 0.025), (0.22, 0.115, 0.055), (0.45, 0.25, 0.10),
    (0.70, 0.43, 0.18), (0.88, 0.64, 0.32), (1.0, 0.88, 0.62),
)  # fmt: skip
_VERDIGRIS: Sequence[Colour] = ((0.03, 0.06, 0.055), (0.10, 0.24, 0.21), (0.25, 0.46, 0.40), (0.50, 0.70, 0.60))
_SIGNS: Sequence[Colour] = ((1.0, 0.10, 0.62), (0.72, 0.25, 1.0), (0.22, 0.50, 1.0), (0.05, 0.95, 0.95))
_NIGHT: Sequence[Colour] = ((0.03, 0.01, 0.08), (0.16, 0.06, 0.34), (0.34, 0.16, 0.60))
_HOT: Sequence[Colour] = (
    (0.13, 0.05, 0.30), (0.85, 0.07, 0.38), (1.0, 0.45, 0.42), (1.0, 0.84, 0.24), (1.0, 0.96, 0.70),
)  # fmt: skip
_COLD: Sequence[Colour] = (
    (0.10, 0.06, 0.32), (0.16, 0.24, 0.72), (0.02, 0.62, 0.78), (0.22, 0.84, 0.76), (0.80, 0.97, 0.90),
)  # fmt: skip

_GAME_PALETTE: Sequence[Colour] = (
    (0.05, 0.04, 0.09), (0.17, 0.15, 0.22), (0.33, 0.32, 0.38), (0.53, 0.53, 0.57), (0.75, 0.76, 0.78),  # greys
    (0.97, 0.97, 0.95), (0.22, 0.10, 0.10), (0.40, 0.20, 0.14), (0.58, 0.33, 0.21), (0.76, 0.47, 0.31),  # to skin
    (0.90, 0.63, 0.46), (0.98, 0.79, 0.64), (1.00, 0.91, 0.80), (0.45, 0.31, 0.12), (0.72, 0.52, 0.20),  # to gold
    (0.93, 0.75, 0.33), (0.99, 0.92, 0.60), (0.46, 0.07, 0.14), (0.78, 0.18, 0.20), (0.93, 0.42, 0.42),  # to red
    (0.97, 0.66, 0.68), (0.88, 0.45, 0.12), (0.10, 0.14, 0.32), (0.17, 0.31, 0.62), (0.30, 0.56, 0.86),  # to blue
    (0.62, 0.83, 0.96), (0.09, 0.24, 0.19), (0.18, 0.45, 0.26), (0.45, 0.68, 0.30), (0.74, 0.87, 0.53),  # to green
    (0.28, 0.15, 0.38), (0.52, 0.30, 0.60), (0.78, 0.60, 0.82),  # purples
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- light and tone


def _luminance(pictures: Tensor) -> Tensor:
    red, green, blue = pictures.unbind(dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)  # (N, 1, H, W)


def _bounds(light: Tensor) -> tuple[Tensor, Tensor]:
    """The 2nd and the 98th percentile of each picture's luminance, both (N, 1, 1, 1), at least 0.2 apart."""
    ordered = functional.adaptive_avg_pool2d(light, 32).flatten(1).sort(dim=1).values  # (N, 1024)
    low, high = ordered[:, 20], ordered[:, 1003]
    middle, half = (low + high) / 2, ((high - low) / 2).clamp(min=0.1)
    return (middle - half).view(-1, 1, 1, 1), (middle + half).view(-1, 1, 1, 1)


def _stretch(pictures: Tensor) -> Tensor:
    """Pictures whose luminance fills the range, colours kept, dark regions lifted and faint detail deepened: a dim
    photograph or a dark face before a bright sky is drawn as readily as any other."""
    low, high = _bounds(_luminance(pictures))
    full = (0.03 + 0.97 * (pictures - low) / (high - low)).clamp(0.0, 1.0)
    u = _unit(full)
    light = _luminance(full)
    gain = (0.42 / (_blur(light, 7.0 * u) + 0.08)).clamp(0.85, 2.0)
    detail = light - _blur(light, 3.0 * u)
    faint = 1.0 - (_blur(detail.square(), 3.0 * u).sqrt() / 0.14).clamp(max=1.0)
    return (gain * (full + 1.6 * faint * detail)).clamp(0.0, 1.0)


def _tone(pictures: Tensor) -> Tensor:
    """The luminance of `_stretch`, so that shading alone tells light from dark."""
    return _luminance(_stretch(pictures))  # (N, 1, H, W)


def _saturate(pictures: Tensor, strength: float) -> Tensor:
    light = _luminance(pictures)
    return (light + strength * (pictures - light)).clamp(0.0, 1.0)


def _posterize(tone: Tensor, levels: int, softness: float) -> Tensor:
    """A tone in [0, 1] cut to `levels` flat values, each step `softness` of a level wide so that edges stay smooth."""
    scaled = tone * levels - 0.5
    floor = scaled.floor()
    return ((floor + _soft_step(scaled - floor - 0.5, softness)) / (levels - 1)).clamp(0.0, 1.0)


def _soft_step(values: Tensor, width: float) -> Tensor:
    """0 below -width/2, 1 above width/2, smooth between."""
    t = (values / width + 0.5).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _ramp(tone: Tensor, stops: Sequence[Colour], softness: float = 1.0) -> Tensor:
    """(N, 1, H, W) in [0, 1] to colours (N, 3, H, W); `softness` 1 blends between the stops, near 0 gives flat ones."""
    last = len(stops) - 1
    position = tone.clamp(0.0, 1.0) * last
    colours = _colour(stops[0], tone)
    for k in range(last):
        share = _soft_step(position - (k + 0.5), softness) if softness < 1.0 else (position - k).clamp(0.0, 1.0)
        step = _colour(stops[k + 1], tone) - _colour(stops[k], tone)
        colours = colours + share * step
    return colours  # (N, 3, H, W)


def _colour(colour: Colour, like: Tensor) -> Tensor:
    return like.new_tensor(colour).view(1, 3, 1, 1)


def _nearest_colour(pictures: Tensor, palette: Sequence[Colour]) -> Tensor:
    """Every pixel replaced by the palette's nearest colour, hue counting more than brightness."""
    colours = pictures.new_tensor(palette)  # (K, 3)
    to_opponent = pictures.new_tensor(((0.299, 0.587, 0.114), (0.9, -0.9, 0.0), (0.4, 0.4, -0.8)))
    pixels = pictures.permute(0, 2, 3, 1)  # (N, H, W, 3)
    distance = torch.cdist((pixels @ to_opponent.T).flatten(0, 2), colours @ to_opponent.T)  # (N * H * W, K)
    return colours[distance.argmin(dim=1)].view_as(pixels).permute(0, 3, 1, 2)  # (N, 3, H, W)


# ------------------------------------------------------------------------------------------------ strokes and edges


def _unit(pictures: Tensor) -> float:
    """One unit in pixels: 1/64 of the shorter side."""
    height, width = pictures.shape[-2:]
    return float(min(height, width)) / 64.0


def _blur(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (N, C, H, W), sigma in pixels; the window is cut, not padded, at the borders."""
    rows, columns = (_window(side, sigma, 0).to(pictures) for side in pictures.shape[-2:])
    return rows @ pictures @ columns.T


@lru_cache(maxsize=256)
def _window(side: int, sigma: float, half: int) -> Tensor:
    """(side, side) matrix that averages a line of pixels under a Gaussian window, or its left (-1) or right (1) half.

    At the sizes of this project a product with a dense matrix is several times faster than a convolution.
    """
    offsets = np.arange(side)[None, :] - np.arange(side)[:, None]
    weights = np.exp(-0.5 * np.square(offsets / max(sigma, 1e-3))) * (offsets * half >= 0)
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).to(torch.float32)


def _gradient(tone: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences to the right and downwards, per pixel, both of the tone's shape."""
    padded = functional.pad(tone, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return dx, dy


def _slope(tone: Tensor) -> Tensor:
    dx, dy = _gradient(tone)
    return (dx.square() + dy.square() + 1e-8).sqrt()


def _ink(tone: Tensor, sigma: float, threshold: float) -> Tensor:
    """Dark lines in [0, 1]: where the tone lies more than `threshold` below its surroundings (two Gaussians)."""
    difference = _blur(tone, 1.9 * sigma) - _blur(tone, sigma)
    return _soft_step(difference - threshold, 1.3 * threshold)


def _kuwahara(pictures: Tensor, sigma: float) -> Tensor:
    """Edge-preserving smoothing: each pixel takes the mean of the calmest of the four quadrants that meet in it."""
    moments = torch.cat([pictures, _luminance(pictures).square()], dim=1)  # (N, 4, H, W)
    height, width = pictures.shape[-2:]
    total, weights = torch.zeros_like(pictures), torch.zeros_like(pictures[:, :1])
    for across in (-1, 1):
        sides = moments @ _window(width, sigma, across).to(pictures).T
        for down in (-1, 1):
            means = _window(height, sigma, down).to(pictures) @ sides
            colours, squares = means[:, :3], means[:, 3:]
            unrest = (squares - _luminance(colours).square()).clamp(min=0.0).sqrt()  # (N, 1, H, W), at most 0.5
            weight = torch.exp(-60.0 * unrest)
            total, weights = total + weight * colours, weights + weight
    return total / weights


# ----------------------------------------------------------------------------------------------- textures of a frame


def _axes(like: Tensor) -> tuple[Tensor, Tensor]:
    """x (1, 1, 1, W) and y (1, 1, H, 1) of the pixel centres, in units."""
    u = _unit(like)
    h, w = like.shape[-2:]
    x = (torch.arange(w, dtype=like.dtype, device=like.device) + 0.5) / u
    y = (torch.arange(h, dtype=like.dtype, device=like.device) + 0.5) / u
    return x.view(1, 1, 1, w), y.view(1, 1, h, 1)


def _across(like: Tensor) -> Tensor:
    """From 0 at the top left to 1 at the bottom right."""
    x, y = _axes(like)
    return 0.7 * x / x.max() + 0.3 * y / y.max()  # (1, 1, H, W)


def _border(like: Tensor) -> Tensor:
    """Distance to the nearest edge of the picture, in units, rounded at the corners."""
    x, y = _axes(like)
    u = _unit(like)
    h, w = like.shape[-2:]
    near_x, near_y = torch.minimum(x, w / u - x), torch.minimum(y, h / u - y)
    return -2.0 * torch.logaddexp(-near_x / 2.0, -near_y / 2.0)


def _stripes(like: Tensor, angle: float, period: float) -> Tensor:
    """Parallel lines at `angle` degrees, `period` units apart: 0 in the middle of a line, 1 half-way to the next."""
    x, y = _axes(like)
    radians = math.radians(angle)
    phase = (x * math.sin(radians) + y * math.cos(radians)) / period
    return 0.5 - 0.5 * torch.cos(2.0 * math.pi * phase)


def _dots(like: Tensor, pitch: float) -> Tensor:
    """Printer's dots on a grid turned by 45 degrees: 1 in the middle of a dot, 0 between four of them."""
    x, y = _axes(like)
    frequency = 2.0 * math.pi / (pitch * math.sqrt(2.0))
    return 0.5 + 0.25 * (torch.cos(frequency * (x + y)) + torch.cos(frequency * (x - y)))


def _grain(like: Tensor, scale: float) -> Tensor:
    """Smooth random texture (1, 1, H, W), mean 0, deviation 1, blotches of about `scale` units, always the same."""
    texture = _texture(scale).to(like)
    x, y = _axes(like)
    side = texture.shape[-1]
    grid = torch.stack(torch.broadcast_tensors(x * 2.0 / side - 1.0, y * 2.0 / side - 1.0), dim=-1)[0]  # (1, H, W, 2)
    return functional.grid_sample(texture, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@lru_cache(maxsize=16)
def _texture(scale: float) -> Tensor:
    """(1, 1, 64, 64) float32, one value per unit."""
    noise = np.random.RandomState(round(100 * scale)).standard_normal((1, 1, 64, 64)).astype(np.float32)
    smooth = _blur(torch.from_numpy(noise), scale / 2.5)
    return (smooth - smooth.mean()) / smooth.std()


_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": _plain,
    "pencil sketch": _pencil_sketch,
    "watercolor": _watercolor,
    "bronze statue": _bronze_statue,
    "pixel art": _pixel_art,
    "neon": _neon,
    "pop art": _pop_art,
    "comic": _comic,
}
