"""The eyes of a face whose box is known, by four cascades that vote."""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

from torch import Tensor

from hyperdreambooth.faces.boxes import Eyes, FaceBox
from hyperdreambooth.faces.cascades import detect, grey_copy
from hyperdreambooth.faces.cutting import level_square

SIDE = 112
"""Side, in pixels, at which a face is searched for eyes."""

_CASCADES = {  # how far the eye lies below the middle of what the cascade marks, as a share of the face's box
    "eye_tree_eyeglasses": 0.01,
    "eye": 0.014,
    "lefteye_2splits": 0.05,  # these mark the brow too
    "righteye_2splits": 0.05,
}
_SMALLEST, _LARGEST = 0.14, 0.42  # side of an eye's square, as shares of the face's box
_LOWEST = 0.68  # eyes lie above this
_NEAR = 0.07  # marks this near to each other are of one eye
_APART, _MIDDLE = 0.385, (0.5, 0.40)  # of the eyes, in FFHQ's photographs
_STEEPEST = 40.0  # degrees
_FEWEST = 3  # marks that a pair of eyes must have, of eight
_FAR = 0.20  # how far a pair may be from FFHQ's in distance and place together


class EyeMark(NamedTuple):
    """The middle of what a cascade takes for an eye, as shares of the face's box."""

    x: float
    y: float


def find_eyes(picture: Tensor, box: FaceBox) -> Eyes | None:
    """The eyes within a face's box, where they are to be trusted: several cascades see a pair of a likely shape.

    Args:
        picture: (3, H, W) float32 in [0, 1].
        box: of the face, in pixels of `picture`.

    Returns:
        The eyes in pixels of `picture`; None where they are hidden, or only guessed at.
    """
    pair = eyes_of(eye_marks(picture, box))
    if pair is None:
        return None
    left, right = ((round(box.left) + round(box.side) * x, round(box.top) + round(box.side) * y) for x, y in pair)
    return Eyes(left, right)


def eye_marks(picture: Tensor, box: FaceBox) -> list[EyeMark]:
    """What the cascades take for eyes in a face's box of a picture (3, H, W), each of them up to once for an eye."""
    face = level_square(picture, round(box.left), round(box.top), max(1, round(box.side)), SIDE)
    grey = grey_copy(face, SIDE, SIDE)[: round(_LOWEST * SIDE)]
    marks: list[EyeMark] = []
    for cascade, below in _CASCADES.items():
        for seen in detect(cascade, grey, round(_SMALLEST * SIDE), round(_LARGEST * SIDE), step=1.08):
            marks.append(EyeMark((seen.left + seen.side / 2) / SIDE, (seen.top + seen.side / 2) / SIDE + below))
    return marks


def eyes_of(marks: list[EyeMark]) -> tuple[EyeMark, EyeMark] | None:
    """The pair of eyes that has the most marks, the likelier in shape of two that have as many."""
    best: tuple[float, tuple[EyeMark, EyeMark]] | None = None
    for left, right in product(marks, repeat=2):
        ones, others = _near(left, marks), _near(right, marks)
        unlikely = _unlikeliness(left, right)
        if unlikely > _FAR or len(ones) + len(others) < _FEWEST:
            continue
        worth = len(ones) + len(others) - 10.0 * unlikely
        if best is None or worth > best[0]:
            best = worth, (_middle(ones), _middle(others))
    return None if best is None else best[1]


def _unlikeliness(left: EyeMark, right: EyeMark) -> float:
    """How far a pair is from FFHQ's, in shares of the box; infinite for one that is none."""
    across, down = right.x - left.x, right.y - left.y
    if across <= 0 or math.degrees(math.atan2(abs(down), across)) > _STEEPEST:
        return math.inf
    x, y = (left.x + right.x) / 2 - _MIDDLE[0], (left.y + right.y) / 2 - _MIDDLE[1]
    return abs(math.hypot(across, down) - _APART) + math.hypot(x, y)


def _near(mark: EyeMark, marks: list[EyeMark]) -> list[EyeMark]:
    return [other for other in marks if math.dist(mark, other) <= _NEAR]


def _middle(marks: list[EyeMark]) -> EyeMark:
    return EyeMark(sum(x for x, _ in marks) / len(marks), sum(y for _, y in marks) / len(marks))
