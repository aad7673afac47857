"""The photographs that a command is given: read, their faces found and chosen, before anything slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hyperdreambooth.cli.console import Job
from hyperdreambooth.errors import UserError

if TYPE_CHECKING:
    from hyperdreambooth.faces import FaceBox, LocatedFace
    from hyperdreambooth.faces.finding import Detector
    from hyperdreambooth.faces.yunet import YuNet


def read_photos(
    job: Job,
    photos: Sequence[Path],
    sheets: Sequence[Path],
    numbers: Sequence[int] = (),
    boxes: Sequence[str] = (),
    detector: str | None = None,
) -> list[LocatedFace]:
    """The face of each photograph of one person; a bad one is found at once.

    Args:
        photos: picture files.
        sheets: for each, where the picture with its faces numbered is written, if there are several to choose from.
        numbers: of the face in each photograph; none takes the largest and most central.
        boxes: "LEFT,TOP,SIDE" of the face in each photograph, in pixels of the file; none seeks it.
        detector: YuNet's file, or an id of the hub; None is OpenCV's cascades.

    Raises:
        UserError: a photograph, a number or a box is none. BadFile: the detector is none.
    """
    _check_counts(len(photos), numbers, boxes)
    places: Sequence[FaceBox | None] = [_parse(box) for box in boxes] or [None] * len(photos)
    chosen: Sequence[int | None] = numbers or [None] * len(photos)
    with job.phase("read face"):
        finder = finder_of(detector)
        located = []
        for photo, sheet, number, place in zip(photos, sheets, chosen, places, strict=True):
            located.append(_locate(job, photo, sheet, number, place, finder))
    return located


def sheets_beside(output: Path, photos: int) -> list[Path]:
    """Where the faces of each photograph are numbered: beside the output, under its name."""
    ends = ["-faces.png"] if photos == 1 else [f"-faces-{number}.png" for number in range(1, photos + 1)]
    return [output.with_name(output.stem + end) for end in ends]


def _locate(
    job: Job, photo: Path, sheet: Path, number: int | None, place: FaceBox | None, detector: Detector | None
) -> LocatedFace:
    from hyperdreambooth.faces import locate_face, number_faces, read_picture
    from hyperdreambooth.sheet import save_png

    picture = read_picture(photo)
    try:
        box = None if place is None else _scaled(place, photo, picture.shape[2])
        face = locate_face(picture, box=box, detector=detector)
        many, unknown = len(face.faces) > 1, number is not None and number > len(face.faces)
        if many and (number is None or unknown):
            save_png(sheet, number_faces(picture, face.faces))
        if number is not None:
            return face.take(number)
    except UserError as error:
        where = f" (they are numbered in {sheet})" if number is not None and many else ""
        raise type(error)(f"{photo}: {error}{where}") from error
    if face.note is not None:
        job.note(f"{photo}: {face.note}" + (f", as they are numbered in {sheet}" if many else ""))
    return replace(face, note=None)  # it is said


def _scaled(place: FaceBox, photo: Path, width: int) -> FaceBox:
    """A box in pixels of a file as one of the picture that was read from it, which is this wide."""
    from hyperdreambooth.faces import FaceBox, picture_size
    from hyperdreambooth.faces.boxes import check_inside

    size = picture_size(photo)
    check_inside(place, *size)
    scale = width / size[0]
    return FaceBox(place.left * scale, place.top * scale, place.side * scale)


def _check_counts(photos: int, numbers: Sequence[int], boxes: Sequence[str]) -> None:
    if numbers and boxes:
        raise UserError("got --face and --box, expected one of them: leave the other out")
    for option, given in (("--face", len(numbers)), ("--box", len(boxes))):
        if given not in (0, photos):
            raise UserError(
                f"got {option} {given} times for {photos} photographs, expected one for each, in their order, or none"
            )


def _parse(box: str) -> FaceBox:
    from hyperdreambooth.faces import FaceBox

    try:
        left, top, side = map(float, box.split(","))
    except ValueError as error:
        raise UserError(f'got --box "{box}", expected LEFT,TOP,SIDE in pixels, as 120,80,200') from error
    return FaceBox(left, top, side)


def finder_of(detector: str | None) -> YuNet | None:
    """What finds faces, by the option's value; None is OpenCV's cascades. Raises BadFile: it is none."""
    if detector is None:
        return None
    from hyperdreambooth.faces.yunet import YuNet

    return YuNet(detector)
