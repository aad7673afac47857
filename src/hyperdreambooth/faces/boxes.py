"""Where a face is in a picture: its box, its eyes, and whether the picture is framed around it already."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hyperdreambooth.errors import UserError

FFHQ_CENTRE = (0.503, 0.537)
"""Middle of the detector's box in FFHQ-framed photographs, (x, y) as shares of the frame (median of 470)."""

FFHQ_SIDE = 0.65
"""Side of the detector's box in FFHQ-framed photographs, as a share of the frame's (median of 470)."""

FFHQ_EYES = ((0.375, 0.472), (0.625, 0.472))
"""Where FFHQ's alignment puts the eyes of a frontal face, (x, y) as shares of the frame."""

FRAMED_CENTRE, FRAMED_SIDE = 0.08, (0.50, 0.82)
"""A square picture whose box lies this near to FFHQ's place, with a side in this range, is framed already."""

LEVEL = 8.0
"""Degrees up to which eyes count as level: those of FFHQ's photographs, which are, are found at up to 4."""

CROPPED = 128
"""A square picture of so few pixels a side is a crop already."""

SMALLEST = 8
"""Side, in pixels, of the smallest box that may be given by hand."""


@dataclass(frozen=True)
class Eyes:
    """The middles of both eyes, (x, y) in pixels of the picture; left and right as one looks at it."""

    left: tuple[float, float]
    right: tuple[float, float]

    @property
    def tilt(self) -> float:
        """Degrees by which the line through the eyes falls to the right; a turn by as much levels it."""
        return math.degrees(math.atan2(self.right[1] - self.left[1], self.right[0] - self.left[0]))


@dataclass(frozen=True)
class FaceBox:
    """A detector's square around brows, cheeks and chin, in pixels of the picture it was found in.

    `eyes` is None where nobody looked for them, or where they are not to be trusted.
    """

    left: float
    top: float
    side: float
    eyes: Eyes | None = None

    @property
    def centre(self) -> tuple[float, float]:
        return self.left + self.side / 2, self.top + self.side / 2

    @property
    def tilt(self) -> float:
        """Degrees by which the face is to be turned to stand upright: 0 where the eyes are unknown or about level."""
        return 0.0 if self.eyes is None or abs(self.eyes.tilt) <= LEVEL else self.eyes.tilt

    def overlap(self, other: FaceBox) -> float:
        """What two boxes share, as a share of what they cover together: 0 apart, 1 the same."""
        across = min(self.left + self.side, other.left + other.side) - max(self.left, other.left)
        down = min(self.top + self.side, other.top + other.side) - max(self.top, other.top)
        shared = max(across, 0.0) * max(down, 0.0)
        return shared / (self.side**2 + other.side**2 - shared)


def by_choice(boxes: Sequence[FaceBox], width: int, height: int) -> list[FaceBox]:
    """Boxes in the order in which one takes them: the largest and most central first.

    A face at the border counts half of its side, one in the middle all of it.
    """

    def worth(box: FaceBox) -> float:
        x, y = box.centre
        away = max(abs(x / width - 0.5), abs(y / height - 0.5))  # 0 in the middle, 0.5 at the border
        return box.side * (1.0 - min(away, 0.5))

    return sorted(boxes, key=worth, reverse=True)


def is_framed(box: FaceBox, width: int, height: int) -> bool:
    """Is a picture that holds this face framed as FFHQ's are?"""
    x, y = box.centre[0] / width, box.centre[1] / height
    near = max(abs(x - FFHQ_CENTRE[0]), abs(y - FFHQ_CENTRE[1])) <= FRAMED_CENTRE
    return is_square(width, height) and near and FRAMED_SIDE[0] <= box.side / width <= FRAMED_SIDE[1]


def is_cropped(width: int, height: int) -> bool:
    """Is a picture so small and square that somebody cut it out: is a face in it believed, though nobody finds it?"""
    return is_square(width, height) and width <= CROPPED


def is_square(width: int, height: int) -> bool:
    """Are both sides of a picture about the same?"""
    return abs(width - height) <= 0.02 * max(width, height)


def check_inside(box: FaceBox, width: int, height: int) -> None:
    """Raise UserError for a box that cannot be the place of a face in a picture of this size."""
    x, y = box.centre
    within = 0 <= x <= width and 0 <= y <= height and box.side <= 2 * max(width, height)
    if not (box.side >= SMALLEST and within):  # what is no number is neither
        raise UserError(
            f"got the box {box.left:g},{box.top:g},{box.side:g} in a picture of {width} x {height} pixels, expected "
            f"LEFT,TOP,SIDE with its middle inside and a side of {SMALLEST} or more: measure it again"
        )
