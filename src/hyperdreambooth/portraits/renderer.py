"""Draws people: person, view and scene in, pictures out, many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import clothes, features, hair, head
from .captions import Scene
from .frame import Frame, Part, frame, light
from .geometry import Numbers, numbers
from .person import Person
from .scenery import flakes, scenery
from .shapes import inside, over
from .view import View

_PIXELS_AT_ONCE = 2**18  # a few fields of this many float32 stay in a core's cache


def render(
    people: Sequence[Person],
    views: Sequence[View],
    size: int = 64,
    scenes: Sequence[Scene] | None = None,
    oversample: int = 1,
) -> Tensor:
    """Pictures of people, each in its own view and scene.

    A scene's style is not drawn here: it is a filter from picture to picture (`styles.stylize`).

    Args:
        people: N people.
        views: N views, one for each.
        size: height and width in pixels.
        scenes: N scenes, or `None` for the view's own background and nothing special.
        oversample: samples per pixel along each axis; edges are anti-aliased at 1 already, 2 is softer at
            a quarter of the speed.

    Returns:
        (N, 3, size, size) float32 sRGB in [0, 1]; a picture does not depend on its neighbours in the batch.

    Raises:
        ValueError: the three sequences differ in length, or `size` or `oversample` is below 1.
    """
    scenes = [Scene()] * len(people) if scenes is None else scenes
    if not len(people) == len(views) == len(scenes):
        raise ValueError(
            f"got {len(people)} people, {len(views)} views, {len(scenes)} scenes: expected as many of each"
        )
    if size < 1 or oversample < 1:
        raise ValueError(f"got size {size} and oversample {oversample}: expected 1 or more")
    at_once = max(1, _PIXELS_AT_ONCE // (size * oversample) ** 2)
    pictures = torch.empty(len(people), 3, size, size)
    for start in range(0, len(people), at_once):
        rows = slice(start, start + at_once)
        large = _draw(numbers(people[rows], views[rows], scenes[rows]), scenes[rows], size * oversample)
        pictures[rows] = torch.nn.functional.avg_pool2d(large, oversample) if oversample > 1 else large
    return pictures.clamp_(0.0, 1.0)


def _draw(g: Numbers, scenes: Sequence[Scene], size: int) -> Tensor:
    """One batch, back to front; (N, 3, size, size) sRGB."""
    at = frame(g, size)
    locks, rim = hair.shape(at, g), head.outline(at, g)
    paint, cover = hair.painted(at, locks, g), hair.covered(at, locks, g)
    covered = inside(rim)
    tied = g["hair is top bun"] + g["hair is ponytail"] + g["hair is twin buns"] > 0
    spectacled = g["glasses is none"] * (1.0 - g["sunglasses"]) == 0
    beside = (at.skull.abs() > 0.12) & (at.skull.abs() < 0.45)
    canvas = scenery(g, scenes, size)
    canvas = hair.behind(canvas, paint, cover, g)
    _paint(hair.knot, canvas, at, g, tied & (at.y < 0.60))
    _paint(head.neck, canvas, at, g, at.y > 0.09)
    _paint(clothes.clothes, canvas, at, g, at.y > 0.28)
    low = g["chin_length"] + 0.06 + 0.16 * g["beard is long full"]
    hanging = (g["beard is full"] + g["beard is long full"] > 0) & (at.y > 0.2) & (at.y < low)
    hanging = hanging & (at.outline.abs() < g["face_width"])
    _paint(_face, canvas, at, g, (rim < 0.15) | hanging, rim, covered, locks.opening)
    _paint(head.ears, canvas, at, g, beside & ((at.y - 0.05).abs() < 0.15), covered)
    _paint(clothes.earrings, canvas, at, g, (g["earrings is none"] == 0) & beside & ((at.y - 0.20).abs() < 0.15))
    canvas = hair.front(canvas, paint, cover, locks, g)
    _paint(hair.mohawk, canvas, at, g, (g["hair is mohawk"] > 0) & (at.y < 0.0) & (at.skull.abs() < 0.25))
    _paint(clothes.glasses, canvas, at, g, spectacled & (at.v.abs() < 0.13), locks.opening)
    _paint(clothes.hat, canvas, at, g, (g["hat"] > 0) & (at.y < 0.05))
    snowy = torch.tensor([s.context == "in the snow" for s in scenes]).view(-1, 1, 1, 1)
    if snowy.any():
        canvas = over(canvas, 0.95, flakes(size, g["view_background_phase"]) * snowy)
    return _develop(_vivid(canvas, 0.16 * g["cartoon"]))


def _face(at: Frame, canvas: Tensor, rim: Tensor, covered: Tensor, opening: Tensor, g: Numbers) -> Tensor:
    """The canvas with skin, features and beard."""
    lit = light(head.relief(at, rim, g), g, at.pixel, wrap=0.45)
    face = head.skin(at, rim, lit, hair.shadow(opening, g), g)
    for paint, middle, wide, tall in (
        (features.nostrils, g["nose_length"], 0.09, 0.05),
        (features.eyes, torch.zeros(1), 0.26, 0.10),
        (features.brows, -g["brow_height"], 0.26, 0.09),
        (features.mouth, head.mouth_line(g), 0.16, 0.11),
    ):
        _paint(paint, face, at, g, (at.u.abs() < wide) & ((at.v - middle).abs() < tall), lit.facing)
    canvas = over(canvas, face, covered)
    _paint(hair.beard, canvas, at, g, (g["beard is none"] == 0) & (at.v > -0.04), rim, lit.facing)
    return canvas


def _paint(paint: Callable[..., Tensor], canvas: Tensor, at: Frame, g: Numbers, where: Tensor, *fields: Tensor) -> None:
    """Paints on the canvas, looking only at the pictures and the rectangle that hold `where` (N, 1, H, W)."""
    part = Part.around(where)
    if part is not None:
        numbers_ = g if part.pictures is None else g.of(part.pictures)
        part.put(canvas, paint(at.cut(part), part.of(canvas), *(part.of(f) for f in fields), numbers_))


def _vivid(linear: Tensor, amount: Tensor) -> Tensor:
    """Colours moved away from grey."""
    grey = linear.mean(dim=1, keepdim=True)
    return grey + (1.0 + amount) * (linear - grey)


def _develop(linear: Tensor) -> Tensor:
    """Linear light to sRGB, with a soft shoulder instead of clipped highlights."""
    x = linear.clamp_min(0.0)
    return (x * (1.0 + 0.10 * x) / (1.0 + 0.24 * x)).sqrt()
