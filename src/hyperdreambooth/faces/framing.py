"""The face of a picture, chosen and cut out in FFHQ framing, the framing of every training picture.

In FFHQ-framed photographs the detector's box lies at one place, with little spread; any other picture is cut so that
its box comes to lie there too, turned where the eyes are known and far from level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from hyperdreambooth.errors import UserError
from hyperdreambooth.faces.boxes import FFHQ_CENTRE, FFHQ_SIDE, FaceBox, check_inside, is_framed
from hyperdreambooth.faces.cutting import level_square, turned_square
from hyperdreambooth.faces.eyes import find_eyes
from hyperdreambooth.faces.finding import Detector, check_shape, find_faces

NO_FACE = "no face was found: the centre of the picture is used; --box LEFT,TOP,SIDE names a face's place"
MANY_FACES = "{} faces were found: the largest and most central is used; --face N takes another"


@dataclass(frozen=True)
class FaceCrop:
    """A face in FFHQ framing, and how it was come by."""

    picture: Tensor
    """(3, size, size) float32 in [0, 1]."""
    box: FaceBox | None
    """The chosen face in the whole picture; None: no face was found."""
    found: int
    """How many faces were found."""
    note: str | None
    """What a person should know: no face, or several; None: exactly one, or one that was asked for."""

    @classmethod
    def framed(cls, picture: Tensor) -> FaceCrop:
        """A picture (3, S, S) that is a face in this framing already, so that nothing is sought in it."""
        return cls(picture, None, 1, None)


@dataclass(frozen=True)
class LocatedFace:
    """A picture whose face is chosen, and which can be cut at any size.

    Attributes:
        picture: (3, H, W) float32 in [0, 1].
        box: the chosen face; None: there is none, and the centre square is taken.
        faces: all that were found, in the order in which they are numbered, 1 being taken by default.
        note: what a person should know, as in `FaceCrop`.
        whole: the picture is framed already and stays whole.
    """

    picture: Tensor
    box: FaceBox | None
    faces: tuple[FaceBox, ...]
    note: str | None
    whole: bool

    def crop(self, size: int) -> FaceCrop:
        """The face as (3, size, size), anti-aliased; beyond the borders the picture's reflection goes on, blurred."""
        return FaceCrop(self._cut(size), self.box, len(self.faces), self.note)

    def take(self, number: int) -> LocatedFace:
        """The same picture with the face of this number chosen, from 1. Raises UserError where there is none."""
        if not 1 <= number <= len(self.faces):
            shown = "face was found" if len(self.faces) == 1 else "faces were found"
            raise UserError(
                f"got face {number} where {len(self.faces) or 'no'} {shown}, expected the number of one: "
                "choose another, or name its place with --box LEFT,TOP,SIDE"
            )
        chosen = self.faces[number - 1]
        if is_framed(chosen, *_size(self.picture)):
            return replace(self, box=chosen, note=None, whole=True)
        return replace(self, box=_with_eyes(self.picture, chosen), note=None, whole=False)

    def _cut(self, size: int) -> Tensor:
        height, width = self.picture.shape[1:]
        if self.box is None or self.whole:
            side = min(width, height)
            return level_square(self.picture, (width - side) // 2, (height - side) // 2, side, size)
        (x, y), side, tilt = self.box.centre, round(self.box.side / FFHQ_SIDE), self.box.tilt
        if not tilt:
            return level_square(
                self.picture, round(x - FFHQ_CENTRE[0] * side), round(y - FFHQ_CENTRE[1] * side), side, size
            )
        right, down = ((0.5 - share) * side for share in FFHQ_CENTRE)  # from the box's middle to the frame's
        cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        centre = x + cos * right - sin * down, y + sin * right + cos * down
        return turned_square(self.picture, centre, side, tilt, size)


def locate_face(picture: Tensor, *, box: FaceBox | None = None, detector: Detector | None = None) -> LocatedFace:
    """Find the faces of a picture, the largest and most central being chosen.

    Args:
        picture: (3, H, W) float32 in [0, 1].
        box: the face's place by hand, a square from the brows to the chin: nothing is sought.
        detector: what finds faces; None is OpenCV's cascades.

    Raises:
        BadPicture: not (3, H, W). UserError: a box outside the picture.
        WorkError: the installed OpenCV has no cascades.
    """
    if box is not None:
        check_shape(picture)
        check_inside(box, *_size(picture))
        return LocatedFace(picture, _with_eyes(picture, box), (box,), None, whole=False)
    faces = tuple(find_faces(picture, detector))
    if not faces:
        return LocatedFace(picture, None, (), NO_FACE, whole=False)
    first = LocatedFace(picture, None, faces, None, whole=False).take(1)
    return first if len(faces) == 1 else replace(first, note=MANY_FACES.format(len(faces)))


def crop_face(picture: Tensor, size: int = 64, detector: Detector | None = None) -> FaceCrop:
    """Cut the largest and most central face out of a picture, in FFHQ framing.

    A picture that is framed so already stays whole. Without a face, the centre square is taken.

    Args:
        picture: (3, H, W) float32 in [0, 1].
        size: side of the result in pixels.
        detector: what finds faces; None is OpenCV's cascades.

    Returns:
        FaceCrop with a picture (3, size, size), anti-aliased.

    Raises:
        BadPicture, WorkError: as `locate_face`.
    """
    return locate_face(picture, detector=detector).crop(size)


def _with_eyes(picture: Tensor, box: FaceBox) -> FaceBox:
    """The same box with its eyes, where a detector has not told them and they are found."""
    return box if box.eyes is not None else replace(box, eyes=find_eyes(picture, box))


def _size(picture: Tensor) -> tuple[int, int]:
    """Width and height."""
    return picture.shape[2], picture.shape[1]
