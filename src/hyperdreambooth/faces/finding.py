"""Find the face in a picture and frame it as FFHQ does, the framing of every training picture.

The detectors are OpenCV 4's cascades, which ship inside its wheel. In FFHQ-framed photographs their box lies at one
place, with little spread; any other picture is cut so that its box comes to lie there too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hyperdreambooth.errors import BadPicture, WorkError

FFHQ_CENTRE = (0.503, 0.537)
"""Middle of the detector's box in FFHQ-framed photographs, (x, y) as shares of the frame (median of 470)."""

FFHQ_SIDE = 0.65
"""Side of the detector's box in FFHQ-framed photographs, as a share of the frame's (median of 470)."""

FRAMED_CENTRE, FRAMED_SIDE = 0.08, (0.50, 0.82)
"""A square picture whose box lies this near to FFHQ's place, with a side in this range, is framed already."""

DETECTION_SIDE = 256
"""Longer side, in pixels, of the copy that the detectors look at; larger pictures keep up to twice that."""

_FRONTAL = ("haarcascade_frontalface_alt2.xml", "haarcascade_frontalface_default.xml")  # exact first, then lenient
_PROFILE = "haarcascade_profileface.xml"  # knows one side: the other is found in the mirror


@dataclass(frozen=True)
class FaceBox:
    """A detector's square around brows, cheeks and chin, in pixels of the picture it was found in."""

    left: float
    top: float
    side: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.left + self.side / 2, self.top + self.side / 2


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
    """What a person should know: no face, or several; None: exactly one."""

    @classmethod
    def framed(cls, picture: Tensor) -> FaceCrop:
        """A picture (3, S, S) that is a face in this framing already, so that nothing is sought in it."""
        return cls(picture, None, 1, None)


def find_face(picture: Tensor) -> tuple[FaceBox | None, int]:
    """The largest face of a picture, and how many there are.

    Frontal detectors are asked first, a profile detector only where they find nothing. A square picture may be framed
    already: there a find elsewhere is believed only when no detector sees a face in FFHQ's place.

    Args:
        picture: (3, H, W) float32 in [0, 1].

    Returns:
        The box of the largest face in pixels of `picture`, None where there is no face; the number of faces found.

    Raises:
        BadPicture: the picture is not (3, H, W).
        WorkError: the installed OpenCV has no cascades.
    """
    if picture.ndim != 3 or picture.shape[0] != 3:
        raise BadPicture(f"got a picture of shape {tuple(picture.shape)}, expected (3, H, W): pass one RGB picture")
    height, width = picture.shape[1:]
    grey, scale = _detection_copy(picture)
    first: tuple[FaceBox | None, int] = (None, 0)
    for boxes in _detections(grey):
        if boxes:
            left, top, side = (length / scale for length in max(boxes, key=lambda box: box[2]))
            face = FaceBox(left, top, side)
            if not _is_square(width, height) or _is_framed(face, width, height):
                return face, len(boxes)
            first = first if first[0] else (face, len(boxes))
    return first


def crop_face(picture: Tensor, size: int = 64) -> FaceCrop:
    """Cut the largest face out of a picture, in FFHQ framing.

    A picture that is framed so already stays whole. Beyond the picture's borders its reflection goes on, blurred.
    Without a face, the centre square is taken.

    Args:
        picture: (3, H, W) float32 in [0, 1].
        size: side of the result in pixels.

    Returns:
        FaceCrop with a picture (3, size, size), anti-aliased.

    Raises:
        BadPicture, WorkError: as `find_face`.
    """
    box, found = find_face(picture)
    height, width = picture.shape[1:]
    if box is None or _is_framed(box, width, height):
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
    else:
        side = round(box.side / FFHQ_SIDE)
        left = round(box.centre[0] - FFHQ_CENTRE[0] * side)
        top = round(box.centre[1] - FFHQ_CENTRE[1] * side)
    return FaceCrop(_cut_square(picture, left, top, side, size), box, found, _note(found))


def _note(found: int) -> str | None:
    if found == 0:
        return "no face was found: the centre of the picture is used"
    return None if found == 1 else f"{found} faces were found: the largest is used"


def _is_framed(box: FaceBox, width: int, height: int) -> bool:
    x, y = box.centre[0] / width, box.centre[1] / height
    near = max(abs(x - FFHQ_CENTRE[0]), abs(y - FFHQ_CENTRE[1])) <= FRAMED_CENTRE
    return _is_square(width, height) and near and FRAMED_SIDE[0] <= box.side / width <= FRAMED_SIDE[1]


def _is_square(width: int, height: int) -> bool:
    return abs(width - height) <= 0.02 * max(width, height)


# ------------------------------------------------------------------------------------------------------- detection


def _detection_copy(picture: Tensor) -> tuple[np.ndarray, float]:
    """A grey copy (h, w) uint8 of a size that the detectors like, and its scale."""
    longer = max(picture.shape[1:])
    scale = min(max(longer, DETECTION_SIDE), 2 * DETECTION_SIDE) / longer
    height, width = (max(1, round(side * scale)) for side in picture.shape[1:])
    small = functional.interpolate(
        picture.detach().float().cpu().unsqueeze(0), (height, width), mode="bicubic", antialias=True
    )[0]
    grey = 0.299 * small[0] + 0.587 * small[1] + 0.114 * small[2]  # (h, w)
    return (grey.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy(), scale


def _detections(grey: np.ndarray) -> Iterator[list[tuple[float, float, float]]]:
    """Boxes (left, top, side) in pixels of `grey`, one list per attempt, the most exact detector first.

    A levelled histogram brings out faces in bad light and drowns those before a wide even wall: both are tried.
    """
    levelled = cv2.equalizeHist(grey)
    for name in _FRONTAL:
        yield _detect(name, grey)
        yield _detect(name, levelled)
    width = grey.shape[1]
    mirrored = [(width - left - side, top, side) for left, top, side in _detect(_PROFILE, cv2.flip(grey, 1))]
    yield max(_detect(_PROFILE, grey), mirrored, key=len)  # one person's two sides are one face


def _detect(cascade: str, grey: np.ndarray) -> list[tuple[float, float, float]]:
    """One cascade's boxes. It is loaded anew each time (20 to 40 ms): an instance may not be shared by threads."""
    detector = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / cascade))
    if detector.empty():
        raise WorkError(f"got an OpenCV without {cascade}, expected version 4: pip install 'opencv-python-headless<5'")
    smallest = max(24, min(grey.shape) // 10)
    boxes = detector.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=4, minSize=(smallest, smallest))
    return [(float(x), float(y), float(w)) for x, y, w, _ in boxes]


# --------------------------------------------------------------------------------------------------------- cutting


def _cut_square(picture: Tensor, left: int, top: int, side: int, size: int) -> Tensor:
    """A square of the picture, which may reach beyond its borders, as (3, size, size)."""
    height, width = picture.shape[1:]
    rows, columns = torch.arange(top, top + side), torch.arange(left, left + side)
    square = picture[:, _reflected(rows, height)][:, :, _reflected(columns, width)]  # (3, side, side)
    outside = torch.maximum(_beyond(rows, height).view(-1, 1), _beyond(columns, width).view(1, -1)) / side
    both = torch.cat([square, outside.to(square).unsqueeze(0)]).unsqueeze(0)  # (1, 4, side, side)
    if side != size:
        both = functional.interpolate(both, (size, size), mode="bicubic", antialias=True)
    square, outside = both[0, :3].clamp(0.0, 1.0), both[0, 3:]
    if int(outside.count_nonzero()) == 0:
        return square
    share = (outside / 0.08).clamp(0.0, 1.0)  # wholly blurred from 8 % of the frame beyond the border
    return square + share * (_blurred(square, max(1, round(0.06 * size))) - square)


def _reflected(indices: Tensor, length: int) -> Tensor:
    """Any whole numbers folded into [0, length) as between two mirrors."""
    folded = indices % (2 * length)
    return torch.minimum(folded, 2 * length - 1 - folded)


def _beyond(indices: Tensor, length: int) -> Tensor:
    """How far each index lies outside [0, length)."""
    return torch.maximum(-indices, indices - (length - 1)).clamp(min=0)


def _blurred(square: Tensor, radius: int) -> Tensor:
    """Two box blurs of the given radius in pixels, borders repeated: (3, S, S) to (3, S, S)."""
    for _ in range(2):
        padded = functional.pad(square.unsqueeze(0), (radius,) * 4, mode="replicate")
        square = functional.avg_pool2d(padded, 2 * radius + 1, stride=1)[0]
    return square
