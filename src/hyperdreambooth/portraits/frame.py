"""Where each pixel lies, on the picture, on the skull and on the face, in any pose; and how light falls there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import Numbers
from .shapes import slopes

EYE_LINE = 0.48  # height of the eyes in a reference picture, from the top
_RADIUS = 0.33  # of the ball that carries the features when the head turns


@dataclass(frozen=True)
class Part:
    """Some of the pictures of a batch, and the same rectangle of each: what a painter has to look at.

    Attributes:
        pictures: their indices (K,), or `None` for all.
        rows, columns: the rectangle.
    """

    pictures: Tensor | None
    rows: slice
    columns: slice

    @classmethod
    def around(cls, where: Tensor) -> Part | None:
        """The smallest part that holds every place marked in (N, 1, H, W); `None` if there is none."""
        rows, columns = where.any(dim=3), where.any(dim=2)  # (N, 1, H), (N, 1, W)
        marked = rows.any(dim=2).flatten()  # (N,)
        if not marked.any():
            return None
        pictures = None if marked.all() else marked.nonzero().flatten()
        return cls(pictures, _span(rows.any(dim=0).flatten()), _span(columns.any(dim=0).flatten()))

    def of(self, field: Tensor) -> Tensor:
        """That part of a field (N, C, H, W): (K, C, h, w)."""
        here = field[..., self.rows, self.columns]
        return here if self.pictures is None else here[self.pictures]

    def put(self, field: Tensor, values: Tensor) -> None:
        """Writes `values` (K, C, h, w) there."""
        if self.pictures is None:
            field[..., self.rows, self.columns] = values
        else:
            field[self.pictures, :, self.rows, self.columns] = values


@dataclass(frozen=True)
class Frame:
    """Coordinates of the pixels of N pictures, in heights of a reference picture, the origin between the eyes, y down.

    Attributes:
        x, y: on the picture, its framing undone (N, 1, H, W).
        skull: x from the middle of the skull, which stays behind when the face turns.
        outline: x from the middle line of the face's outline.
        u, v: on the face, as it looks from the front.
        pixel: size of a pixel (N, 1, 1, 1).
    """

    x: Tensor
    y: Tensor
    skull: Tensor
    outline: Tensor
    u: Tensor
    v: Tensor
    pixel: Tensor

    def cut(self, part: Part) -> Frame:
        """The same frame for a part of the pictures."""
        x, y, skull, outline, u, v = (part.of(f) for f in (self.x, self.y, self.skull, self.outline, self.u, self.v))
        pixel = self.pixel if part.pictures is None else self.pixel[part.pictures]
        return Frame(x, y, skull, outline, u, v, pixel)


def _span(marked: Tensor) -> slice:
    """From the first marked place (1,) to the last, and one more on either side for the slopes."""
    places = marked.nonzero().flatten()
    return slice(max(0, int(places[0]) - 1), int(places[-1]) + 2) if len(places) else slice(0, 0)


def frame(g: Numbers, size: int) -> Frame:
    """The frame of square pictures of `size` pixels."""
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    px = axis.view(1, 1, 1, size) - 0.5 - g["view_dx"]
    py = axis.view(1, 1, size, 1) - EYE_LINE - g["view_dy"]
    x = (px * g["cos_roll"] + py * g["sin_roll"]) / g["view_zoom"]  # (N, 1, H, W)
    y = (py * g["cos_roll"] - px * g["sin_roll"]) / g["view_zoom"]
    turn, nod = g["sin_yaw"], g["sin_pitch"]
    skull = x + 0.14 * turn  # the picture is centred between skull and face
    low = ((y + 0.05) / 0.40).clamp(0.0, 1.0)
    outline = skull - turn * (0.05 + 0.10 * low * low * (3.0 - 2.0 * low))
    depth = (_RADIUS**2 - skull * skull - 0.5 * (y - 0.05) ** 2).clamp_min(0.015).sqrt()
    u = skull * g["cos_yaw"] - depth * turn
    v = y - nod * (0.9 * depth - 0.20)
    return Frame(x, y, skull, outline, u, v, 1.0 / (size * g["view_zoom"]))


@dataclass(frozen=True)
class Light:
    """How a surface meets the light.

    Attributes:
        facing: 0 in shadow to 1 towards the light (N, 1, H, W).
        normal: unit normal: right, down, towards the viewer.
    """

    facing: Tensor
    normal: tuple[Tensor, Tensor, Tensor]


def light(height: Tensor, g: Numbers, pixel: Tensor, wrap: float) -> Light:
    """How the light of a view falls on a height field (towards the viewer, in frame units)."""
    across, down = slopes(height)
    nx, ny = -across / pixel, -down / pixel
    nz = (1.0 + nx * nx + ny * ny).rsqrt()
    nx, ny = nx * nz, ny * nz
    facing = nx * g["light_x"] + ny * g["light_y"] + nz * g["light_z"]
    return Light(((facing + wrap) / (1.0 + wrap)).clamp(0.0, 1.0), (nx, ny, nz))


def shine(lit: Light, g: Numbers) -> Tensor:
    """Cosine between normal and the half-way vector, (N, 1, H, W) in [0, 1]: raise it to a power for a highlight."""
    hx, hy, hz = g["light_x"], g["light_y"], g["light_z"] + 1.0
    norm = (hx * hx + hy * hy + hz * hz).rsqrt()
    nx, ny, nz = lit.normal
    return ((nx * hx + ny * hy + nz * hz) * norm).clamp_min(0.0)


def colour(albedo: Tensor, facing: Tensor, shade: Tensor | float, g: Numbers) -> Tensor:
    """Linear colour of a matte surface under the light of the view; `shade` dims the ambient light."""
    return albedo * (g["key_rgb"] * facing + g["ambient_rgb"] * shade)
