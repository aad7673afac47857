"""Eyes, brows, nostrils and mouth, painted on the face."""

from __future__ import annotations

import torch
from torch import Tensor

from .frame import Frame, colour
from .geometry import Numbers
from .head import mouth_line
from .shapes import bump, edge, line, mound, over, ramp, strands, tint


def eyes(at: Frame, canvas: Tensor, facing: Tensor, g: Numbers) -> Tensor:
    """The canvas with both eyes, their lids and lashes; `facing` is the light on the face around them."""
    px = at.pixel
    side = torch.where(at.u < 0, -1.0, 1.0)
    w = g["eye_size"]
    x = at.u.abs() - g["eye_spacing"]  # > 0 outwards
    y = at.v + g["eye_tilt"] * x * 0.9
    t = x / w
    open_ = (g["view_eyelids"] * (1.0 - 0.22 * g["view_smile"].clamp_min(0.0))).clamp_min(0.05)
    arc = (1.0 - t * t).clamp_min(-1.0)
    lean = 1.0 - 0.16 * t
    upper = g["eye_openness"] * w * 1.05 * open_ * arc * lean  # height of the upper lid above y = 0
    lower = g["eye_openness"] * w * 0.62 * (0.55 + 0.45 * open_) * arc * (1.0 + 0.16 * t)
    white = edge(torch.maximum(-y - upper, y - lower) * 0.9, px) * edge(x.abs() - w, px)
    ball = _eyeball(x * side, y, facing, at, g)
    lid = _lid_shadow(x, y, upper, g)
    canvas = canvas * (1.0 - lid * _LID)
    canvas = over(canvas, ball, white)
    near = edge(x.abs() - 1.16 * w, px)
    thick = (0.0048 + 0.0062 * g["lashes"]) * (0.75 + 0.45 * t.clamp(-1.0, 1.2)) * (1.0 + 0.4 * g["smooth"])
    lash = (
        line(-y - upper - 0.35 * thick - 0.10 * w * g["lashes"] * ramp(t, 0.75, 1.2), thick, px)
        * near
        * ramp(t, 1.22, 1.0)
    )
    rim = 0.55 * line(y - lower, 0.0026, px) * near * ramp(t.abs(), 1.05, 0.8)
    crease_at = upper + (0.012 + 0.016 * g["eye_fold"]) * (0.5 + 0.5 * arc.clamp_min(0.0))
    crease = 0.62 * g["eye_fold"].sqrt() * line(-y - crease_at, 0.0024, px) * edge(x.abs() - 1.08 * w, 6.0 * px)
    canvas = canvas * (1.0 - crease * _LID)
    canvas = over(canvas, g["brow_rgb"] * 0.10 + 0.004, (0.95 * lash).clamp(0.0, 1.0))
    return over(canvas, g["skin_rgb"] * 0.22, rim)


_LID = tint(0.62, 0.80, 0.82)


def _lid_shadow(x: Tensor, y: Tensor, upper: Tensor, g: Numbers) -> Tensor:
    """Shade on the lid and, for made-up eyes, colour."""
    w = g["eye_size"]
    return (0.28 + 0.30 * g["lashes"] * g["lip_colour"]) * mound(x + 0.1 * w, y + upper + 0.006, 1.25 * w, 0.026)


def _eyeball(x: Tensor, y: Tensor, facing: Tensor, at: Frame, g: Numbers) -> Tensor:
    """White, iris, pupil and catchlight, as if no lid covered them."""
    w, px = g["eye_size"], at.pixel
    big = 0.47 + 0.03 * g["doll"] + 0.12 * g["cartoon"]
    r = big * w
    ix = x - g["view_gaze_x"] * 0.30 * w - 0.02 * g["sin_yaw"]
    iy = y - g["view_gaze_y"] * 0.14 * w + 0.10 * g["eye_openness"] * w
    d = (ix * ix + iy * iy + 1e-9).sqrt()
    shadow = 0.45 + 0.55 * ramp(y + 0.9 * g["eye_openness"] * w, 0.0, 0.55 * w)
    dome = (1.0 - 0.42 * (x / w) ** 2).clamp_min(0.3)
    tone = (0.55 + 0.45 * facing) * shadow
    eyeball = tint(0.84, 0.80, 0.78) * over(tone * dome, 0.9, 0.5 * g["smooth"])
    glow = 0.55 + 0.85 * ramp(iy, -0.6 * r, 0.9 * r)
    ring = 1.0 - 0.80 * ramp(d / r, 0.68, 1.0)
    fibres = 1.0 + 0.22 * torch.sin(9.0 * torch.atan2(iy, ix + 1e-6)) * ramp(d / r, 0.3, 0.7)
    iris = g["eye_rgb"] * (1.35 + 0.5 * g["smooth"]) * glow * ring * fibres * (0.30 + 0.70 * tone) + 0.004
    eyeball = over(eyeball, iris, edge(d - r, px))
    eyeball = over(eyeball, 0.004, edge(d - 0.44 * r, px))
    cx, cy = ix - 0.34 * r * torch.sign(g["light_x"]), iy + 0.36 * r
    spark = edge((cx * cx + cy * cy + 1e-9).sqrt() - 0.26 * r, px)
    low = edge(((ix + 0.3 * r) ** 2 + (iy - 0.42 * r) ** 2 + 1e-9).sqrt() - 0.16 * r, px)
    return over(over(eyeball, 0.96, 0.95 * spark), 0.7, (0.25 + 0.5 * g["smooth"]) * low)


def brows(at: Frame, canvas: Tensor, facing: Tensor, g: Numbers) -> Tensor:
    """The canvas with both brows."""
    x = (at.u.abs() - g["eye_spacing"] - 0.004) / (
        1.22 * g["eye_size"] / (1.0 + 0.35 * g["smooth"]) + 0.004
    )  # -1 inner end, 1 outer end
    height = g["brow_height"] + 0.022 * g["view_brow_raise"] + 0.004
    arch = (0.006 + 0.022 * g["brow_arch"]) * (1.0 - 0.5 * (x - 0.25) ** 2)
    y = at.v + height + arch + 0.012 * (0.8 * g["brow_tilt"] - 0.5) * x - 0.010
    thick = g["brow_thickness"] * (1.05 - 0.25 * x - 0.35 * x * x).clamp_min(0.12)
    hair = strands(0.8 * at.u.abs() + 1.1 * at.v, at.u, g["phase"])
    cover = edge((y.abs() - thick) * 0.8, 1.4 * at.pixel) * ramp(x.abs(), 1.10, 0.92)
    paint = colour(g["brow_rgb"] * (0.62 + 0.22 * hair), facing, 0.7, g)
    return over(canvas, paint, cover * (0.90 + 0.10 * hair))


def nostrils(at: Frame, canvas: Tensor, facing: Tensor, g: Numbers) -> Tensor:
    """The canvas with nostrils and the line of the wings."""
    w = g["nose_width"]
    x = at.u - g["sin_yaw"] * 0.045
    y = at.v - g["nose_length"]
    hole = mound(x.abs() - 0.46 * w, y - 0.006 + 0.12 * (x.abs() - 0.4 * w), 0.40 * w, 0.0115)
    wing = bump(((x.abs() - 0.72 * w) ** 2 + 1.2 * (y + 0.008) ** 2 + 1e-9).sqrt() - 0.40 * w, 0.010)
    wing = wing * ramp(x.abs(), 0.75 * w, 1.0 * w) * (1.0 - 0.5 * g["smooth"])
    return canvas * (1.0 - (0.86 * hole + 0.34 * wing).clamp_max(0.95) * _LID)


def mouth(at: Frame, canvas: Tensor, facing: Tensor, g: Numbers) -> Tensor:
    """The canvas with lips, and teeth where they part."""
    px, smile = at.pixel, g["view_smile"]
    w = g["mouth_width"] * (1.0 + 0.16 * smile)
    x = at.u - 0.012 * g["sin_yaw"]
    t = (x / w).abs()
    arc = (1.0 - t * t).clamp_min(-0.6)
    y = at.v - mouth_line(g) + 0.041 * (smile + 0.12) * (t * t - 0.35)
    part = 0.030 * g["view_mouth_open"] * arc  # half the opening
    full = 0.021 * g["lip_thickness"] * (1.0 - 0.12 * smile)
    bow = 1.0 - 0.30 * bump(x, 0.018) + 0.10 * bump(x.abs() - 0.024, 0.022)
    top = part * 0.7 + full * 0.88 * arc * bow * (1.0 - 0.25 * t)
    bottom = part * 1.3 + full * 1.18 * arc.clamp_min(-0.6) * (0.72 + 0.28 * arc)
    within = edge(t * w - 1.01 * w, px)
    lips = edge(torch.maximum(-y - top, y - bottom) * 0.92, 1.3 * px) * within
    gap = edge(torch.maximum(-y - 0.7 * part, y - 1.3 * part), px) * within * ramp(part, 0.0015, 0.004)
    upper = ramp(y, 0.25 * full, -0.25 * full)  # 1 on the upper lip
    tone = 1.0 - 0.30 * upper + 0.16 * mound(x, y - part * 1.3 - 0.55 * full, 0.6 * w, 0.7 * full)
    paint = colour(g["lip_rgb"] * tone, facing, 0.85, g)
    paint = (
        paint
        + g["key_rgb"]
        * (0.11 + 0.20 * g["lip_colour"])
        * mound(x + 0.02 * torch.sign(g["light_x"]), y - part * 1.3 - 0.5 * full, 0.5 * w, 0.40 * full)
        * facing
    )
    canvas = over(canvas, paint, lips * (0.62 + 0.38 * g["lip_colour"]))
    teeth = edge(y - 0.25 * part, px) * edge(t - 0.80, 0.1 + px / w)
    dark = over(g["lip_rgb"] * 0.10, tint(0.72, 0.68, 0.63) * (0.45 + 0.55 * facing), teeth * 0.95)
    canvas = over(canvas, dark, gap)
    seam = line(y, 0.0030 * (1.05 - 0.4 * t), px) * edge(t - 1.08, 0.10) * (1.0 - gap)
    corner = 0.30 * mound(t * w - w, y, 0.016, 0.012)
    return canvas * (1.0 - (0.78 * seam + corner) * _LID)
