"""The head: its outline, the relief of the face, skin, ears and neck."""

from __future__ import annotations

import torch
from torch import Tensor

from .frame import Frame, Light, colour, light, shine
from .geometry import Numbers
from .shapes import bump, edge, inside, line, mound, over, ramp, tint


def outline(at: Frame, g: Numbers) -> Tensor:
    """Implicit outline of the bare head, -1 in the middle, 0 on the edge."""
    y = at.y - 0.015
    above = y / g["head_height"]
    s = (y / (g["chin_length"] - 0.015)).clamp_min(0.0)
    taper = 0.42 - 0.27 * g["jaw_width"]
    widening = 1.0 - taper * s * s + 0.10 * (g["cheek_fullness"] - 0.3) * bump(s - 0.5, 0.5)
    across = at.outline / (g["face_width"] * widening.clamp_min(0.3))
    power = 2.2 + 1.5 * g["jaw_width"] + 1.3 * g["chin_width"]
    below = torch.exp(power * torch.log(s.clamp_min(1e-4)))
    return across * across + torch.where(y < 0, above.square() * above.abs().sqrt(), below) - 1.0


def relief(at: Frame, rim: Tensor, g: Numbers) -> Tensor:
    """Height of the face towards the viewer, in frame units."""
    u, v, w = at.u, at.v, g["face_width"]
    side = u.abs()
    r2 = (rim + 1.0).clamp(0.0, 1.0)
    dome = 0.20 * (1.02 - r2 * r2 * (0.35 + 0.65 * r2)).sqrt()
    long, wide, old = g["nose_length"], g["nose_width"], g["age"]
    un = u - g["sin_yaw"] * 0.055 * ramp(v, -0.02, long)
    flat = 1.0 - 0.55 * g["smooth"]
    ridge = mound(un, v - 0.55 * long, 0.028 + 0.45 * wide, 0.75 * long)
    bridge = (0.036 + 0.038 * g["nose_bridge"]) * ramp(v, -0.13 + 0.05 * (1.0 - g["nose_bridge"]), long) * ridge
    tip = 0.034 * mound(un, v - long + 0.012, 0.85 * wide, 0.045)
    wings = 0.017 * mound(un.abs() - 0.82 * wide, v - long + 0.004, 0.55 * wide, 0.030)
    sockets = -0.016 * mound(side - g["eye_spacing"] + 0.01, v + 0.012, 0.095, 0.060)
    ball = 0.012 * mound(side - g["eye_spacing"], v - 0.002, 1.25 * g["eye_size"], 0.040)
    brow = 0.012 * mound(side - 0.10, v + 0.075, 0.15, 0.045)
    cheeks = (0.014 + 0.016 * g["cheek_fullness"] + 0.006 * g["view_smile"]) * mound(
        side - 0.62 * w, v - 0.135, 0.11, 0.10
    )
    mouth = g["mouth_height"] * (g["chin_length"] - long) + long
    lips = 0.012 * mound(u, v - mouth, 1.25 * g["mouth_width"], 0.055)
    chin = 0.018 * mound(u, v - g["chin_length"] + 0.055, 0.075 + 0.03 * g["chin_width"], 0.060)
    fold = (
        -0.010
        * (old + 0.25 * g["view_smile"].clamp_min(0.0))
        * mound(side - 0.062 - 0.30 * (v - long), v - 0.5 * (long + mouth), 0.020, 0.075)
    )
    bags = -0.006 * old * mound(side - g["eye_spacing"], v - 0.052, 0.06, 0.016)
    return (
        dome
        + flat * (bridge + sockets + brow + lips + fold + bags)
        + (tip + wings) * (0.5 + 0.5 * flat)
        + ball
        + cheeks
        + chin
    )


def skin(at: Frame, rim: Tensor, lit: Light, shadow: Tensor, g: Numbers) -> Tensor:
    """Shaded skin of the face, (N, 3, H, W); `shadow` is where hair keeps light away."""
    u, v = at.u, at.v
    long = g["nose_length"]
    side = u.abs()
    occlusion = (
        1.0
        - 0.28 * mound(side - g["eye_spacing"] + 0.02, v + 0.035, 0.085, 0.040)
        - 0.34 * mound(u - g["sin_yaw"] * 0.03, v - long - 0.026, 1.15 * g["nose_width"], 0.026)
        - 0.22 * mound(u, v - mouth_line(g) - 0.048 * g["lip_thickness"], 0.07, 0.026)
        - 0.38 * ramp(rim, -0.30, 0.0) * ramp(v, 0.0, 0.3)
        - 0.12 * ramp(rim, -0.5, 0.0)
    )
    facing = lit.facing * (0.35 + 0.65 * occlusion) * (1.0 - 0.55 * shadow)
    base = complexion(at, g)
    warm = facing * (1.0 - facing) * tint(0.42, 0.06, -0.02) + 1.0
    paint = colour(base * warm, facing, occlusion * (1.0 - 0.35 * shadow), g)
    gloss = shine(lit, g)
    p8 = gloss.square().square().square()
    broad, tight = p8 * p8, p8.square().square().square()
    tzone = 0.4 + 0.8 * mound(u, v - 0.5 * long, 0.07, 0.40)
    return paint + g["key_rgb"] * (0.075 * broad * tzone + (0.10 * tzone + 0.35 * g["doll"]) * tight) * (1.0 - shadow)


def mouth_line(g: Numbers) -> Tensor:
    """v of the line between the lips."""
    return g["nose_length"] + g["mouth_height"] * (g["chin_length"] - g["nose_length"])


def complexion(at: Frame, g: Numbers) -> Tensor:
    """Colour of the skin before light: blush, warm nose and ears, freckles, mole, wrinkles."""
    u, v, tone = at.u, at.v, g["skin_rgb"]
    side = u.abs()
    red = (0.06 + 0.55 * g["blush"]) * mound(side - 0.62 * g["face_width"], v - 0.145, 0.105, 0.075)
    red = red + 0.22 * mound(u, v - g["nose_length"] + 0.01, 0.05, 0.04)
    rosy = tone * tint(1.06, 0.62, 0.60)
    base = over(tone, rosy, red.clamp(0.0, 0.9))
    field = mound(u, v - 0.11, 0.27, 0.13) + 0.35 * mound(u, v + 0.20, 0.20, 0.12)
    spots = torch.sin(135.0 * u + 2.0 * torch.sin(37.0 * v + g["phase"])) * torch.sin(
        135.0 * v + 2.0 * torch.sin(41.0 * u)
    )
    spots = ramp(spots, 0.35, 0.85)
    base = base * (1.0 - (0.62 * g["freckles"].clamp(0.0, 1.0)) * (spots + 0.28) * field.clamp_max(1.0) * _BROWN)
    lines = _wrinkles(at, g)
    base = base * (1.0 - lines * tint(0.45, 0.55, 0.58))
    mx = (
        0.13 * (g["mole is right cheek"] - g["mole is left cheek"])
        + 0.052 * g["mole is above lip"]
        - 0.045 * g["mole is chin"]
    )
    my = (
        0.16
        + (mouth_line(g) - 0.042 - 0.16) * g["mole is above lip"]
        + (g["chin_length"] - 0.055 - 0.16) * g["mole is chin"]
    )
    spot = edge(((u - mx) ** 2 + (v - my) ** 2 + 1e-9).sqrt() - 0.011, at.pixel) * (1.0 - g["mole is none"])
    jaw = (
        line(side - 0.62 * g["mouth_width"] - 0.030, 0.0035, at.pixel)
        * ramp(v, mouth_line(g) - 0.012, mouth_line(g))
        * g["doll"]
    )
    return base * (1.0 - 0.82 * spot) * (1.0 - 0.62 * jaw)


_BROWN = tint(0.55, 0.85, 0.95)


def _wrinkles(at: Frame, g: Numbers) -> Tensor:
    """How dark age has drawn its lines, in [0, 1]."""
    u, v = at.u, at.v
    side = u.abs()
    old = ((g["age"] - 0.35) * 1.5).clamp(0.0, 1.2)
    brow = ramp(
        torch.sin(105.0 * (v + 0.15 + 0.25 * u * u) + 0.6 * torch.sin(14.0 * u + g["phase"])), 0.55, 1.0
    ) * mound(u, v + 0.165, 0.17, 0.075)
    fold = mound(side - 0.058 - 0.30 * (v - g["nose_length"]), v - g["nose_length"] - 0.035, 0.010, 0.065)
    bags = mound(side - g["eye_spacing"] + 0.008, v - 0.050 + 6.0 * (side - g["eye_spacing"]) ** 2, 0.055, 0.008)
    feet = mound(side - g["eye_spacing"] - 1.5 * g["eye_size"], v - 0.004, 0.040, 0.035) * ramp(
        torch.sin(190.0 * v + 40.0 * side), 0.2, 1.0
    )
    marionette = mound(side - 0.075 - 0.1 * (v - mouth_line(g)), v - mouth_line(g) - 0.04, 0.008, 0.045)
    return old * (0.9 * brow + 0.6 * fold + 0.7 * bags + 0.7 * feet + 0.35 * marionette)


def ears(at: Frame, canvas: Tensor, rim_cover: Tensor, g: Numbers) -> Tensor:
    """The canvas with both ears; the one that the head turns away from the viewer hides behind it."""
    turn = g["sin_yaw"]
    side = torch.where(at.skull < 0, -1.0, 1.0)
    away = side * turn  # > 0 on the side that hides
    wide, tall = 0.046 * g["ear_size"], 0.080 * g["ear_size"]
    cx = (g["face_width"] + (-0.006 + 0.026 * g["ear_protrusion"]) * (1.0 - away)) * g["cos_yaw"]
    x = at.skull.abs() - cx + (at.y - 0.05) * (0.18 + 0.25 * g["ear_protrusion"])
    y = at.y - 0.05
    q = (x / wide) ** 2 + (y / tall) ** 2 * (1.0 + 1.5 * y)
    cover = inside(q - 1.0) * (1.0 - rim_cover * ramp(away, -0.25, -0.05))
    inner = mound(x + 0.006, y + 0.008, 0.62 * wide, 0.68 * tall)
    height = 0.10 * (1.05 - q.clamp(0.0, 1.0)).sqrt() - 0.035 * inner
    lit = light(height, g, at.pixel, wrap=0.6)
    paint = colour(g["skin_rgb"] * _EAR, lit.facing * (1.0 - 0.35 * inner), 0.8 - 0.4 * inner, g)
    return over(canvas, paint, cover)


_EAR = tint(1.0, 0.80, 0.76)


def neck(at: Frame, canvas: Tensor, g: Numbers) -> Tensor:
    """The canvas with the neck, in the shadow of the chin."""
    x = at.skull - 0.05 * g["sin_yaw"]
    y = at.y
    w = g["neck_width"] * (1.0 + 0.35 * ramp(y, 0.36, 0.62) ** 2 + 0.20 * ramp(y, 0.34, 0.2))
    cover = inside(x.abs() - w) * ramp(y, 0.10, 0.2)
    height = 0.8 * (w * w * 1.05 - x * x).clamp_min(1e-4).sqrt()
    height = height + 0.007 * mound(x.abs() - 0.06 + 0.12 * (y - 0.45), y - 0.45, 0.028, 0.2)
    lit = light(height, g, at.pixel, wrap=0.5)
    chin = g["chin_length"] - 0.015
    dx = (x - 0.08 * g["sin_yaw"] + 0.06 * g["light_x"]) / (0.85 * g["face_width"])
    shadow = 1.0 - ramp(y - chin + 0.10 * dx * dx - 0.05 * (1 + g["light_y"]), -0.03, 0.055)
    facing = lit.facing * (1.0 - 0.72 * shadow)
    warm = facing * (1.0 - facing) * tint(0.5, 0.08, 0.0) + 1.0
    paint = colour(g["skin_rgb"] * warm, facing, 0.85 - 0.40 * shadow, g)
    seam = line(y - chin - 0.035 - 0.25 * x * x, 0.004, at.pixel) * g["doll"]
    return over(canvas, paint * (1.0 - 0.6 * seam), cover)
