"""Find the faces in a picture: several looks at it by OpenCV's cascades, and what they agree on.

One look alone sees faces in collars and necklaces, and misses one in three that are not quite upright or not quite
inside the picture. So looks vote, and where they find nothing, the picture is padded, turned, and looked at again; what
then is doubtful is looked at in small steps and several sizes. Only then small faces are sought, in a large picture.
What a small network doubts is no face unless its eyes are seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import cv2
import numpy as np
from torch import Tensor

from hyperdreambooth.errors import BadPicture
from hyperdreambooth.faces.boxes import FaceBox, by_choice, is_cropped, is_framed, is_square
from hyperdreambooth.faces.cascades import Seen, detect, grey_copy
from hyperdreambooth.faces.eyes import eye_marks, eyes_of
from hyperdreambooth.faces.verifier import is_doubted

Detector: TypeAlias = Callable[[Tensor], list[FaceBox]]
"""Finds the faces in a picture (3, H, W) in [0, 1], the one to take first."""

DETECTION_SIDE = 256
"""Longer side, in pixels, of the copy that the detectors look at; larger pictures keep up to twice that."""

_FRONTAL = ("frontalface_alt2", "frontalface_default")  # exact first, then lenient
_PROFILE = "profileface"  # knows one side: the other is found in the mirror
WEIGHTS = {"frontalface_alt2": 1.5, "frontalface_default": 1.0, "profileface": 2.0}  # of a vote
_TURNED_WEIGHT = 0.5  # of a vote in a turned copy
SAME = 0.35  # overlap from which two boxes are of one face

# Chosen on the 200 labelled photographs of `benchmarks.faces`, as are weights and looks: true finds have 5 to 600
# votes, and of 262 false ones, one has eyes, 15 have two marks of eyes.
_VOTES = {"eyes": 3, "marks": 12, "nothing": 25}  # that make a face, by what is seen of its eyes
_FEWEST = 3  # that one look must have to count
_FRAMED_VOTES = 5  # of one look, that make a picture framed
_CLEAR = 60  # votes by which nobody needs to look for eyes, where there is no doubt
_AGAINST_BEST = 0.3  # of the votes of the best face, another one needs
_EYE_BAND = (0.25, 0.55)  # of a face's box, from its top

_MARGIN, _WIDE_MARGIN = 0.3, 0.7  # around faces that fill the picture, as shares of its longer side
_SMALL = 180  # longer side, in pixels, of the copy that is turned
_TURNS = (0.0, -15.0, 15.0)  # degrees

# The closer look, 48 of them: slow, so only for pictures in which nothing, or next to nothing, was found.
_CLOSER_SIDES = (180, 256, 400, 512)  # longer sides of the copies, in pixels
_CLOSER_SCALE = 2  # by which a copy may be larger than the picture, if it is not the smallest
_CLOSER_WEIGHTS = {"frontalface_alt2": 1.5, "frontalface_default": 1.0, "frontalface_alt": 1.5, _PROFILE: 1.0}
_CLOSER_STEP = 1.05
_SMALLEST_SHARE = 6  # faces are sought from this part of the shorter side up
_DOUBTFUL = 30  # votes below which a find is looked at again
_CLOSER_VOTES, _CLOSER_LOOKS = 60, 10  # that make a face: true ones have 62 to 258 votes in 11 looks or more

# The last look, at large pictures in which nothing was found.
_FAR_SIDE = 800  # shorter side of the copy, in pixels
_FAR_SHARE = 25  # faces are sought from this part of the shorter side up


@dataclass
class _Candidate:
    """A place where looks saw a face."""

    box: FaceBox
    """Of the first, the most exact, look whose votes are half of the most that one look has."""
    most: float
    """Votes of one look."""
    votes: float
    """Of all looks, weighted."""
    looks: int = 1
    """How many saw it."""
    doubted: bool | None = None
    """Whether the verifier doubts it; None: nobody has asked."""
    needs: float | None = None
    """Votes that make it a face, if any do; None: nobody has looked for its eyes."""


def find_faces(picture: Tensor, detector: Detector | None = None) -> list[FaceBox]:
    """The faces of a picture, the largest and most central first.

    A square picture may be framed already: there a find elsewhere is believed only when no look sees a face in FFHQ's
    place.

    Args:
        picture: (3, H, W) float32 in [0, 1].
        detector: what finds them; None is OpenCV's cascades.

    Returns:
        Boxes in pixels of `picture`, perhaps none.

    Raises:
        BadPicture: the picture is not (3, H, W).
        WorkError: the installed OpenCV has no cascades.
    """
    check_shape(picture)
    return _by_cascades(picture) if detector is None else detector(picture)


def find_face(picture: Tensor) -> tuple[FaceBox | None, int]:
    """The largest and most central face of a picture, None where there is none, and how many there are."""
    faces = find_faces(picture)
    return (faces[0] if faces else None), len(faces)


def check_shape(picture: Tensor) -> None:
    """Raise BadPicture for anything but (3, H, W)."""
    if picture.ndim != 3 or picture.shape[0] != 3:
        raise BadPicture(f"got a picture of shape {tuple(picture.shape)}, expected (3, H, W): pass one RGB picture")


def _by_cascades(picture: Tensor) -> list[FaceBox]:
    height, width = picture.shape[1:]
    scale = min(max(height, width, DETECTION_SIDE), 2 * DETECTION_SIDE) / max(height, width)
    grey = copy_at(picture, scale)
    candidates: list[_Candidate] = []
    for weight, seen in _upright(grey):
        largest = sorted(
            (box for box, votes in scaled(seen, scale) if votes >= _FRAMED_VOTES), key=lambda box: -box.side
        )
        if largest and is_framed(largest[0], width, height):
            return largest
        _count(candidates, scaled(seen, scale, weight))
        if not is_square(width, height) and (faces := _faces(candidates, picture)):
            return faces
    faces = _faces(candidates, picture)
    if is_cropped(width, height):  # it is not sought through
        return faces
    small = _SMALL / max(height, width)
    for size, margin, turns in ((scale, _MARGIN, (0.0,)), (small, _WIDE_MARGIN, _TURNS)):
        if faces:
            break
        for weight, seen in _padded(copy_at(picture, size), margin, turns):
            _count(candidates, scaled(seen, size, weight))
        faces = _faces(candidates, picture)
    doubtful = max((one.votes for one in candidates if one.box in faces), default=0) < _DOUBTFUL
    if doubtful:
        faces = _seen_closer(picture, faces)
    return faces or _far_away(picture)


def _seen_closer(picture: Tensor, faces: list[FaceBox]) -> list[FaceBox]:
    """The faces found, unless a closer look sees one elsewhere and hardly anything in their place: then that one."""
    candidates: list[_Candidate] = []
    for size, weight, seen in _closer(picture):
        _count(candidates, scaled(seen, size, weight))
    likely = [one for one in candidates if one.votes >= _CLOSER_VOTES and one.looks >= _CLOSER_LOOKS]
    best = max((one for one in likely if not is_doubted(picture, one.box)), key=lambda one: one.votes, default=None)
    if best is None:
        return faces
    confirmed = (one.votes >= best.votes / 2 and one.box.overlap(box) >= SAME for one in candidates for box in faces)
    return faces if any(confirmed) else [best.box]


def _far_away(picture: Tensor) -> list[FaceBox]:
    """The small faces of a large picture, whose eyes are seen: what else looks see at this size is mostly none."""
    if max(picture.shape[1:]) <= 2 * DETECTION_SIDE:
        return []
    scale = min(1.0, _FAR_SIDE / min(picture.shape[1:]))
    grey = copy_at(picture, scale)
    candidates: list[_Candidate] = []
    for light in (grey, cv2.equalizeHist(grey)):
        for name in _FRONTAL:
            seen = look(name, light, _FAR_SHARE)
            _count(candidates, scaled(seen, scale, WEIGHTS[name]))
    return _best([one for one in candidates if eyes_of(eye_marks(picture, one.box))], picture)


def copy_at(picture: Tensor, scale: float) -> np.ndarray:
    """A picture as the cascades look at it: grey, at this scale."""
    return grey_copy(picture, *(max(1, round(side * scale)) for side in picture.shape[1:]))


def scaled(seen: list[Seen], scale: float, weight: float = 1.0) -> list[tuple[FaceBox, float]]:
    """What was seen in a copy as boxes of the picture, with their votes."""
    return [(FaceBox(one.left / scale, one.top / scale, one.side / scale), weight * one.votes) for one in seen]


def _count(candidates: list[_Candidate], boxes: list[tuple[FaceBox, float]]) -> None:
    """Add what one more look saw."""
    known = list(candidates)
    for box, votes in boxes:
        for candidate in known:
            if candidate.box.overlap(box) >= SAME:
                candidate.votes += votes
                candidate.looks += 1
                if votes > 2 * candidate.most:
                    candidate.box, candidate.most, candidate.doubted, candidate.needs = box, votes, None, None
                break
        else:
            candidates.append(_Candidate(box, votes, votes))


def _faces(candidates: list[_Candidate], picture: Tensor) -> list[FaceBox]:
    """The candidates that are faces, by what is seen of their eyes, how many votes they have, and the verifier."""
    return _best([one for one in candidates if _is_face(one, picture)], picture)


def _best(faces: list[_Candidate], picture: Tensor) -> list[FaceBox]:
    """Of some faces those with enough votes beside the one that has most, in order."""
    best = max((one.votes for one in faces), default=0)
    boxes = [one.box for one in faces if one.votes >= _AGAINST_BEST * best]
    return by_choice(boxes, picture.shape[2], picture.shape[1])


def _is_face(candidate: _Candidate, picture: Tensor) -> bool:
    if candidate.doubted is None:
        candidate.doubted = is_doubted(picture, candidate.box)
    if candidate.votes >= _CLEAR and not candidate.doubted:
        return True
    if candidate.needs is None:
        marks = eye_marks(picture, candidate.box)
        some = sum(_EYE_BAND[0] < mark.y < _EYE_BAND[1] for mark in marks)
        seen = "eyes" if eyes_of(marks) else "marks" if some > 1 else "nothing"
        candidate.needs = math.inf if candidate.doubted and seen != "eyes" else _VOTES[seen]
    return candidate.votes >= candidate.needs


def _upright(grey: np.ndarray) -> Iterator[tuple[float, list[Seen]]]:
    """What is seen in a grey picture as it is, with the weight of a vote: a list per look, the most exact first.

    A levelled histogram brings out faces in bad light and drowns those before a wide even wall: both are tried.
    """
    levelled = cv2.equalizeHist(grey)
    for name in _FRONTAL:
        yield WEIGHTS[name], look(name, grey)
        yield WEIGHTS[name], look(name, levelled)
    profiles = look(_PROFILE, grey), _mirrored(look(_PROFILE, cv2.flip(grey, 1)), grey)
    yield WEIGHTS[_PROFILE], max(profiles, key=len)  # one person's two sides are one face


def _closer(picture: Tensor) -> Iterator[tuple[float, float, list[Seen]]]:
    """What is seen in copies of several sizes, in small steps: each copy's scale, the weight of a vote, and a list."""
    longer = max(picture.shape[1:])
    for side in (side for side in _CLOSER_SIDES if side <= max(_CLOSER_SIDES[0], _CLOSER_SCALE * longer)):
        scale = side / longer
        grey = copy_at(picture, scale)
        seek = partial(detect, smallest=min(grey.shape) // _SMALLEST_SHARE, step=_CLOSER_STEP, fewest=_FEWEST)
        for light in _lights(grey):
            for name, weight in _CLOSER_WEIGHTS.items():
                seen = seek(name, light)
                if name == _PROFILE:
                    seen += _mirrored(seek(name, cv2.flip(light, 1)), light)
                yield scale, weight, seen


def _mirrored(seen: list[Seen], grey: np.ndarray) -> list[Seen]:
    """What was seen in the mirror, where it is."""
    return [one._replace(left=grey.shape[1] - one.left - one.side) for one in seen]


def _padded(grey: np.ndarray, margin: float, turns: tuple[float, ...]) -> Iterator[tuple[float, list[Seen]]]:
    """What is seen with a margin around the picture, turned by some degrees."""
    wide = round(margin * max(grey.shape))
    padded = cv2.copyMakeBorder(grey, *(wide,) * 4, cv2.BORDER_REPLICATE)
    height, width = padded.shape
    lights = _lights(padded)
    for degrees in turns:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
        back = cv2.invertAffineTransform(turn)
        for light in lights:
            shown = cv2.warpAffine(light, turn, (width, height), borderMode=cv2.BORDER_REPLICATE) if degrees else light
            for name in _FRONTAL:
                seen = look(name, shown)
                middles = [back @ (one.left + one.side / 2, one.top + one.side / 2, 1.0) - wide for one in seen]
                placed = [
                    one._replace(left=float(x) - one.side / 2, top=float(y) - one.side / 2)
                    for one, (x, y) in zip(seen, middles, strict=True)
                ]
                yield WEIGHTS[name] * (_TURNED_WEIGHT if degrees else 1.0), placed


def _lights(grey: np.ndarray) -> tuple[np.ndarray, ...]:
    """A grey picture as it is, levelled, and levelled place by place."""
    return grey, cv2.equalizeHist(grey), cv2.createCLAHE(3.0, (8, 8)).apply(grey)


def look(cascade: str, grey: np.ndarray, share: int = 10, fewest: int = _FEWEST) -> list[Seen]:
    """What a cascade sees, from that part of the shorter side up, with so many votes or more."""
    return detect(cascade, grey, max(24, min(grey.shape) // share), fewest=fewest)
