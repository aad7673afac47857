"""Hair and beard: outlines, strands and shine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .frame import Frame, colour, light, shine
from .geometry import Numbers
from .head import mouth_line
from .shapes import bump, curls, inside, mound, over, ramp, smooth_min, strands


@dataclass(frozen=True)
class Hair:
    """Implicit shapes of one head of hair, negative inside: all of it, and the opening for the face."""

    outer: Tensor
    opening: Tensor
    texture: Tensor  # strands or curls in about [-1, 1]


def shape(at: Frame, g: Numbers) -> Hair:
    """Where the hair is."""
    centre = -0.06
    y = at.y - centre
    tall = g["head_height"] + centre + g["hair_top"]
    wide = g["face_width"] + g["hair_side"]
    s = (y / (g["hair_fall"] - centre)).clamp_min(0.0)
    x = at.skull + 0.02 * g["hair_wave"] * torch.sin(26.0 * at.y + g["phase"] + 1.5 * torch.sign(at.skull)) * ramp(
        at.y, -0.1, 0.2
    )
    across = x / (wide * (1.0 + g["hair_flare"] * s * s))
    below = torch.exp(g["hair_blunt"] * torch.log(s.clamp_min(1e-4)))
    clumps = curls(at.skull, at.y, g["phase"], 40.0)
    outer = across * across + torch.where(y < 0, (y / tall).square() * (y / tall).abs().sqrt(), below) - 1.0
    outer = outer + (0.16 * g["hair_curl"]) * clumps
    lines = strands(_across_flow(at, g), at.y, g["phase"])
    texture = over(
        lines, 0.9 * curls(at.skull, at.y, g["phase"] + 1.0, 62.0) + 0.25 * lines, g["hair_curl"].clamp_max(1.0)
    )
    return Hair(outer, _opening(at, lines, g), texture)


def _across_flow(at: Frame, g: Numbers) -> Tensor:
    """A coordinate that is constant along each strand: from the parting on top, straight down at the sides."""
    top = -g["head_height"] - 0.05
    fan = (at.skull - 0.10 * g["hair_side_sign"] * 0.8) / (0.22 + (at.y - top).clamp(0.0, 0.34))
    return 0.55 * fan


def _opening(at: Frame, lines: Tensor, g: Numbers) -> Tensor:
    """Negative where the face shows."""
    w = g["face_width"]
    x = at.outline - 0.06 * g["sin_yaw"]
    t = x / w
    swept = t * g["hair_side_sign"]
    lowered = g["hair_sweep"] * (ramp(swept, -0.55, 0.9) - 0.25 * bump(swept + 0.5, 0.4))
    hairline = -g["hair_line"] + g["hair_droop"] * t * t * (0.4 + 0.6 * t * t) + lowered
    above = hairline - at.y + 0.007 * lines
    limit = w * g["hair_inner"] + g["hair_open"] * (at.y - 0.05).clamp_min(0.0) * 0.9
    beside = x.abs() - limit
    return -smooth_min(-above, -beside, 0.10)


def painted(at: Frame, hair: Hair, g: Numbers) -> Tensor:
    """Linear colour of the hair wherever it is, (N, 3, H, W)."""
    r2 = (hair.outer + 1.0).clamp(0.0, 1.0)
    dome = 0.22 * (1.03 - r2 * r2).sqrt() + (0.0045 + 0.006 * g["hair_curl"]) * hair.texture
    lit = light(dome, g, at.pixel, wrap=0.5)
    tone = 0.80 + 0.26 * hair.texture
    band = (
        at.y + 0.62 * g["head_height"] + 0.25 * at.skull * at.skull - 0.10 * at.skull * torch.sign(g["light_x"])
    ) / 0.085
    band = band + 0.35 * hair.texture
    gloss = 1.0 / (1.0 + band.square() * band.square()) * lit.facing.square() * (1.0 - 0.6 * g["hair_curl"])
    glow = shine(lit, g).square().square()
    sheen = (0.55 * g["hair_rgb"] + 0.030) * (gloss * (0.9 + 0.5 * hair.texture) + 0.25 * glow)
    shade = 0.40 + 0.60 * ramp(hair.opening, 0.0, 0.07)
    return (
        colour(g["hair_rgb"] * tone, lit.facing, 0.75, g) + g["key_rgb"] * sheen * (1.0 + 0.8 * g["smooth"])
    ) * shade


def covered(at: Frame, hair: Hair, g: Numbers) -> Tensor:
    """Coverage of all the hair on a head, behind the face and around it."""
    return inside(hair.outer) * g["hairy"] * _below_hat(at, g)


def behind(canvas: Tensor, paint: Tensor, cover: Tensor, g: Numbers) -> Tensor:
    """The canvas with the hair behind head and neck."""
    return over(canvas, 0.62 * paint, cover * (1.0 - g["hair is buzz"] - g["hair is mohawk"]))


def knot(at: Frame, canvas: Tensor, g: Numbers) -> Tensor:
    """The canvas with a bun, two buns or a ponytail."""
    bun, tail, twins = g["hair is top bun"], g["hair is ponytail"], g["hair is twin buns"]
    size = 0.85 + 0.35 * g["hair_volume"]
    x = twins * at.skull.abs() + (1.0 - twins) * at.skull * g["hair_side_sign"]
    cx = twins * 0.215 + tail * (0.20 + 0.12 * ramp(at.y, -0.1, 0.4)) + bun * 0.0
    cy = -(bun * (g["head_height"] + 0.015)) - twins * (0.80 * g["head_height"]) + tail * 0.17
    rx = (bun * 0.098 + twins * 0.098 + tail * 0.095) * size + 1e-3
    ry = (bun * 0.080 + twins * 0.095) * size + tail * (0.25 + 0.08 * g["hair_length"]) + 1e-3
    q = ((x - cx) / rx) ** 2 + ((at.y - cy) / ry) ** 2
    angle = torch.where(tail > 0, (x - cx) / rx * 0.25, (q + 1e-6).sqrt() * 0.35 + 0.05 * (x - cx) / rx)
    texture = strands(angle, at.y, g["phase"])
    height = 0.5 * rx * (1.05 - q.clamp(0.0, 1.0)).sqrt() + 0.004 * texture
    lit = light(height, g, at.pixel, wrap=0.5)
    paint = colour(g["hair_rgb"] * (0.8 + 0.26 * texture), lit.facing, 0.7, g)
    paint = paint + g["key_rgb"] * (0.5 * g["hair_rgb"] + 0.02) * shine(lit, g).square().square().square() * (
        0.7 + 0.4 * texture
    )
    return over(canvas, paint, inside(q - 1.0) * (bun + tail + twins) * _below_hat(at, g))


def front(canvas: Tensor, paint: Tensor, cover: Tensor, hair: Hair, g: Numbers) -> Tensor:
    """The canvas with the hair around the face; a shaved skull shows through."""
    thin = g["hair is buzz"] + g["hair is mohawk"]
    fuzzy = ramp(hair.opening, -0.004, 0.030) * (0.62 - 0.22 * g["hair is mohawk"])
    return over(canvas, paint, cover * torch.where(thin > 0, fuzzy, 1.0 - inside(hair.opening)))


def mohawk(at: Frame, canvas: Tensor, g: Numbers) -> Tensor:
    """The canvas with a crest on top of the skull."""
    tall = 0.150 + 0.05 * g["hair_volume"]
    wide = 0.085 + 0.035 * g["hair_volume"]
    x = at.skull - 0.03 * g["sin_yaw"]
    y = at.y + 0.93 * g["head_height"]
    spikes = 0.20 * torch.sin(95.0 * x + g["phase"]) * ramp(-y, 0.0, tall)
    q = (x / (wide * (1.0 - 1.1 * y))).square() + (y / tall).square().square() + spikes
    texture = strands(x * 1.6 / (1.0 + 2.0 * (y + 0.2).abs()), y, g["phase"])
    lit = light(0.08 * (1.05 - q.clamp(0.0, 1.0)).sqrt() + 0.005 * texture, g, at.pixel, wrap=0.5)
    paint = (
        colour(g["hair_rgb"] * (0.8 + 0.3 * texture), lit.facing, 0.7, g)
        + g["key_rgb"] * 0.3 * g["hair_rgb"] * shine(lit, g).square().square()
    )
    return over(canvas, paint, inside(q - 1.0) * g["hair is mohawk"] * _below_hat(at, g))


def _below_hat(at: Frame, g: Numbers) -> Tensor:
    """0 where a hat covers the hair, else 1."""
    return 1.0 - g["hat"] * ramp(-at.y, 0.18, 0.20)


def shadow(opening: Tensor, g: Numbers) -> Tensor:
    """Where the fringe keeps light from the forehead, in [0, 1]."""
    near = ramp(opening, -0.055, 0.0)
    return near * g["hairy"] * (1.0 - 0.7 * (g["hair is buzz"] + g["hair is mohawk"]))


def beard(at: Frame, canvas: Tensor, rim: Tensor, facing: Tensor, g: Numbers) -> Tensor:
    """The canvas with the beard; a long one hangs over the jaw."""
    u, v = at.u, at.v
    side = u.abs()
    w, chin, mouth = g["face_width"], g["chin_length"], mouth_line(g)
    long = g["beard is long full"]
    full = g["beard is full"] + long
    texture = strands(1.1 * u / (0.5 + at.y.abs()), at.y, g["phase"])
    cheek_line = mouth - 0.055 - 0.62 * (side - 0.085).clamp_min(0.0) * 1.0
    on_cheeks = ramp(v - cheek_line, -0.022, 0.022)
    lip_hole = 1.0 - mound(u, v - mouth - 0.006, 0.085, 0.050).clamp(0.0, 1.0).sqrt()
    whole = on_cheeks * lip_hole
    lip = mouth - 0.034
    moustache_y = v - lip - 0.012 * (side / 0.075) ** 2 + 0.004
    moustache = (1.0 - ramp(moustache_y.abs() - 0.021 * (1.08 - side / 0.105).clamp_min(0.0), -0.004, 0.006)) * ramp(
        side, 0.105, 0.092
    )
    goatee = (1.0 - ramp(((u / 0.072) ** 2 + ((v - chin + 0.030) / 0.072) ** 2), 0.75, 1.1)) * lip_hole
    strap = ramp(rim, -0.33, -0.20) * ramp(v, -0.02, 0.06)
    cover = (
        full * torch.maximum(whole, moustache)
        + g["beard is stubble"] * 0.48 * torch.maximum(whole, 0.8 * moustache)
        + g["beard is moustache"] * moustache
        + g["beard is goatee"] * torch.maximum(goatee, moustache)
        + g["beard is chin strap"] * torch.maximum(strap, goatee * ramp(v, mouth, chin))
    )
    extent = 0.030 * full * ramp(v, 0.10, chin) + long * 0.055 * ramp(v, 0.2, chin)
    y_low = chin + 0.025 + 0.12 * long
    hang = ((at.y - 0.12) / (y_low - 0.12)).clamp(0.0, 1.2)
    tail = (at.outline / (w * (0.92 - 0.34 * hang))) ** 2 + hang.square().square() - 1.0
    bounds = torch.where(
        full > 0, torch.minimum(rim - extent, torch.where(at.y > 0.15, tail + 0.10 * texture, rim)), rim
    )
    tone = g["beard_rgb"] * (0.74 + 0.28 * texture)
    under = 1.0 - 0.45 * mound(u, v - mouth - 0.048, 0.07, 0.03)
    paint = (
        colour(tone, facing * under, 0.65 * under, g)
        + g["key_rgb"] * g["beard_rgb"] * 0.25 * ramp(texture, 0.2, 1.0) * facing
    )
    return over(canvas, paint, (cover * inside(bounds)).clamp(0.0, 0.97))
