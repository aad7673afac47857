"""Shoulders and collars, glasses, earrings and hats."""

from __future__ import annotations

import torch
from torch import Tensor

from .frame import Frame, colour, light
from .geometry import Numbers
from .shapes import edge, inside, line, mound, over, ramp, tint


def clothes(at: Frame, canvas: Tensor, g: Numbers) -> Tensor:
    """The canvas with shoulders and collar over the neck."""
    x = at.x + 0.08 * g["sin_yaw"]
    side, y = x.abs(), at.y
    wide = 0.40 + 0.14 * g["shoulder_width"]
    neck = g["neck_width"]
    slope = 0.390 + 0.55 * ((side - neck).clamp_min(0.0)) ** 1.5 + 1.2 * ((side - wide).clamp_min(0.0)) ** 2 * 4.0
    v_neck = g["view_collar is v-neck"] + g["view_collar is jacket"] + 0.55 * g["view_collar is shirt"]
    dip = 0.050 + 0.13 * v_neck - 0.055 * g["view_collar is turtleneck"]
    inner = (1.0 - side / (1.06 * neck)).clamp_min(0.0)
    round_ = dip * torch.where(v_neck > 0, inner, inner * (2.0 - inner))
    hem = slope + round_ * 1.25
    body = y - hem
    height = (
        -0.55 * side * side - 0.25 * (y - 0.40) ** 2 + 0.012 * torch.sin(16.0 * side - 22.0 * y) * ramp(side, 0.1, 0.3)
    )
    lit = light(height, g, at.pixel, wrap=0.5)
    cloth = g["view_clothes_colour"]
    under = 1.0 - 0.45 * (1.0 - ramp(body, 0.0, 0.05)) * ramp(side, 1.6 * neck, 0.8 * neck)
    canvas = over(canvas, colour(cloth, lit.facing * under, 0.8 * under, g), inside(-body))
    return _collar(at, canvas, body, side, lit.facing, g)


def _collar(at: Frame, canvas: Tensor, body: Tensor, side: Tensor, facing: Tensor, g: Numbers) -> Tensor:
    px, cloth, y, neck = at.pixel, g["view_clothes_colour"], at.y, g["neck_width"]
    knit = (
        (g["view_collar is crew neck"] + g["view_collar is v-neck"])
        * edge((body - 0.013).abs() - 0.012, px)
        * ramp(side, 1.12 * neck, 1.0 * neck)
    )
    canvas = over(canvas, colour(cloth * 0.72, facing, 0.7, g), knit)
    roll = (
        edge(torch.maximum(side - 1.10 * neck, (y - 0.455).abs() - 0.055 + 0.6 * side * side), px)
        * g["view_collar is turtleneck"]
    )
    ribs = 0.88 + 0.12 * torch.sin(130.0 * at.x)
    canvas = over(
        canvas, colour(cloth * 1.06 * ribs, facing * (1.0 - 0.5 * ramp(side, 0.3 * neck, 1.2 * neck)), 0.8, g), roll
    )
    flap = (
        torch.maximum((body - 0.02).abs() - 0.034, side - 1.25 * neck) + 0.10 * (side - 0.6 * neck).clamp_min(0.0) ** 2
    )
    shirt = edge(flap, px) * g["view_collar is shirt"]
    canvas = over(canvas, colour(cloth * 0.4 + 0.5, facing, 0.8, g), shirt)
    canvas = canvas * (1.0 - 0.4 * line(flap, 0.004, px) * g["view_collar is shirt"])
    lapel = edge(torch.maximum(-(body - 0.004), side - 0.05 - 0.75 * (0.62 - y)).abs() - 0.016, px) * ramp(
        body, -0.01, 0.0
    )
    canvas = over(canvas, colour(cloth * 0.45, facing, 0.7, g), lapel * g["view_collar is jacket"])
    thick = 0.044 * ramp(side, 2.7 * neck, 1.0 * neck) * ramp(side, 0.30 * neck, 0.85 * neck) - 0.004
    hood = edge((body + 0.010 - 0.10 * (side - neck)).abs() - thick, px)
    return over(canvas, colour(cloth * 0.80, facing, 0.7, g), hood * g["view_collar is hoodie"])


def glasses(at: Frame, canvas: Tensor, opening: Tensor, g: Numbers) -> Tensor:
    """The canvas with glasses, dark ones where the scene says so; their arms end at the hair, where `opening` > 0."""
    px, dark = at.pixel, g["sunglasses"]
    worn = (1.0 - g["glasses is none"]).maximum(dark)
    cat, square = g["glasses is cat-eye"], g["glasses is square"]
    flat, pilot = g["glasses is rectangular"], torch.maximum(g["glasses is aviator"], dark * g["glasses is none"])
    u = at.u - 0.03 * g["sin_yaw"]
    x = u.abs() - g["eye_spacing"] - 0.003
    w = 0.086 + 0.004 * square - 0.004 * cat + 0.004 * pilot
    h = (
        0.080 * g["glasses is round"]
        + 0.066 * square
        + 0.060 * cat
        + 0.042 * flat
        + 0.072 * pilot
        + 0.05 * g["glasses is none"] * (1 - dark)
    )
    y = at.v - 0.010 + cat * (0.25 * x + 2.2 * x.clamp_min(0.0).square()) + pilot * (0.10 * x - 0.012)
    fat = torch.where(square + flat > 0, 5.0, 2.2) + 0.5 * cat
    q = ((x / w).abs().clamp_min(1e-4)) ** fat + ((y / h).abs().clamp_min(1e-4)) ** fat
    q = q ** (1.0 / fat)
    d = (q - 1.0) * torch.minimum(w, h)
    thick = 0.0075 + 0.0045 * square + 0.003 * cat - 0.003 * pilot
    lens = edge(d, px) * worn
    glare = ramp(torch.sin(34.0 * (x + 0.7 * y) + 0.6), 0.75, 1.0) * lens
    canvas = over(canvas, g["frame_rgb"] * 0.05 + 0.006 + 0.035 * ramp(y, -h, h), lens * 0.94 * dark)
    canvas = canvas + g["key_rgb"] * glare * (0.05 + 0.10 * dark)
    frame_ = line(d, thick, px)
    bridge = line(at.v + 0.018 - 1.2 * u * u, 0.006, px) * edge(u.abs() - g["eye_spacing"] + w, px)
    temple = (
        line(at.v + 0.020 - 0.04 * (x - w), 0.006, px)
        * ramp(x, w, w + px)
        * edge(at.outline.abs() - g["face_width"], px)
        * edge(opening, 2.0 * px)
    )
    cover = torch.maximum(torch.maximum(frame_, bridge), temple) * worn
    shadow = line(d - 0.010, thick * 1.5, 3.0 * px) * worn
    canvas = canvas * (1.0 - 0.22 * shadow)
    bright = 0.75 + 0.5 * ramp(-y, -0.02, h)
    return over(canvas, colour(g["frame_rgb"], bright, 0.6, g) + 0.02, cover)


def earrings(at: Frame, canvas: Tensor, g: Numbers) -> Tensor:
    """The canvas with earrings, gold."""
    side = torch.where(at.skull < 0, -1.0, 1.0)
    seen = ramp(-side * g["sin_yaw"], -0.25, -0.10)
    cx = (g["face_width"] + 0.012 * g["ear_protrusion"]) * g["cos_yaw"] - 0.004
    low = 0.05 + 0.085 * g["ear_size"]
    x = at.skull.abs() - cx
    stud = ((x * x + (at.y - low) ** 2 + 1e-9).sqrt() - 0.015) * g["earrings is stud"] + (1.0 - g["earrings is stud"])
    ring = ((x * x + (at.y - low - 0.045) ** 2 + 1e-9).sqrt() - 0.042).abs() - 0.008
    ring = ring * g["earrings is hoop"] + (1.0 - g["earrings is hoop"])
    cover = edge(torch.minimum(stud, ring), at.pixel) * seen
    gold = tint(0.80, 0.56, 0.16) * (0.75 + 0.5 * ramp(x, 0.03, -0.03))
    return over(canvas, g["key_rgb"] * gold, cover)


def hat(at: Frame, canvas: Tensor, g: Numbers) -> Tensor:
    """The canvas with a brimmed hat where the scene says so."""
    felt = tint(0.26, 0.15, 0.09)
    x = at.skull - 0.05 * g["sin_yaw"]
    w = g["face_width"] + 0.045
    y = at.y + 0.185
    crown_q = (x / w) ** 4 + ((y + 0.02) / 0.25) ** 4
    crown = torch.maximum(crown_q - 1.0, y * 8.0)
    lit = light(0.22 * (1.05 - (x / w).clamp(-1.0, 1.0) ** 2).sqrt(), g, at.pixel, wrap=0.5)
    band = edge((y + 0.05).abs() - 0.030, at.pixel)
    tone = over(felt, felt * 0.18, band) * (1.0 - 0.35 * mound(x, y + 0.27, 0.10, 0.16))
    canvas = over(canvas, colour(tone, lit.facing, 0.7, g), inside(crown) * g["hat"])
    brim_q = (x / (w + 0.15)) ** 2 + ((y + 0.35 * x * x) / 0.052) ** 2
    brim = colour(felt * (0.75 + 0.5 * ramp(-y, -0.04, 0.04)), lit.facing, 0.7, g)
    shade = mound(x, y - 0.05, w, 0.10) * g["hat"]
    canvas = canvas * (1.0 - 0.5 * shade * (1.0 - inside(brim_q - 1.0)))
    return over(canvas, brim, inside(brim_q - 1.0) * g["hat"])
