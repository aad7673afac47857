"""How well faces are found in photographs: recall, false finds, how far the eyes are off, milliseconds.

    python -m benchmarks.faces ../shared/photos

FOLDER holds `sfhq/`, framed as FFHQ's so that faces and eyes are where FFHQ puts them, and `sfhq-t2i/`, of which 200
are labelled by hand in `faces-labels.txt`. A find is right where its middle is within a third of the true box's side of
the true middle, and its side between half and twice the true one; any other is false, and neither counts as recall.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import cv2
import torch
import typer
from rich.console import Console

from hyperdreambooth.faces import Detector, FaceBox, find_eyes, find_faces, read_picture
from hyperdreambooth.faces.boxes import FFHQ_CENTRE, FFHQ_EYES, FFHQ_SIDE

LABELS = Path(__file__).with_name("faces-labels.txt")
NEAR, SIDES = 1 / 3, (0.5, 2.0)


@dataclass(frozen=True)
class Truth:
    """Where the face of a photograph is, and what of it can be seen.

    Attributes:
        seen: "yes", both eyes; "part", fewer; "no" face.
        place: middle x, middle y and side of the box, as shares of the frame; without meaning where there is none.
    """

    file: Path
    seen: str
    place: tuple[float, float, float]


@dataclass
class Found:
    """What was found in the photographs of one kind.

    Attributes:
        right: faces that were found where they are.
        false: finds elsewhere.
        off: of each pair of eyes, how far they are from FFHQ's place, in distances between the eyes.
        seconds: of finding, and of finding with eyes.
    """

    photographs: int = 0
    right: int = 0
    false: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    off: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def framed(folder: Path) -> list[Truth]:
    """All photographs of a folder that is framed as FFHQ's."""
    place = (*FFHQ_CENTRE, FFHQ_SIDE)
    return [Truth(file, "yes", place) for file in sorted(folder.glob("*.jpg"))]


def labelled(folder: Path, lines: Iterable[str]) -> list[Truth]:
    """The photographs of a folder that lines "name seen x y side" speak of; those with # are words."""
    truths = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            name, seen, *place = line.split()
            x, y, side = map(float, place or ("0", "0", "0"))
            truths.append(Truth(folder / name, seen, (x, y, side)))
    return truths


def is_right(box: FaceBox, truth: Truth, width: int, height: int) -> bool:
    """Is this box on the true face?"""
    x, y, side = truth.place[0] * width, truth.place[1] * height, truth.place[2] * width
    away = max(abs(box.centre[0] - x), abs(box.centre[1] - y))
    return truth.seen != "no" and away <= NEAR * side and SIDES[0] * side <= box.side <= SIDES[1] * side


def measure(truths: Sequence[Truth], detector: Detector | None = None) -> Iterator[tuple[Truth, Found]]:
    """Find the face of each photograph: each truth with what was found in it alone."""
    for truth in truths:
        picture, found = read_picture(truth.file), Found(1)
        height, width = picture.shape[1:]
        began = time.perf_counter()
        faces = find_faces(picture, detector)
        found.seconds.append(time.perf_counter() - began)
        if not faces:
            found.missed.append(truth.file.name)
        elif is_right(faces[0], truth, width, height):
            found.right = 1
            if (eyes := faces[0].eyes or find_eyes(picture, faces[0])) is not None:
                true = [(x * width, y * height) for x, y in FFHQ_EYES]
                off = (math.dist(eyes.left, true[0]) + math.dist(eyes.right, true[1])) / 2
                found.off.append(off / math.dist(*true))
        else:
            found.false.append(truth.file.name)
        yield truth, found


def together(found: Iterable[Found]) -> Found:
    """Sums and lists of all."""
    total = Found()
    for one in found:
        total.photographs += one.photographs
        total.right += one.right
        for name in ("false", "missed", "off", "seconds"):
            getattr(total, name).extend(getattr(one, name))
    return total


def summary(found: Found, eyes: bool) -> str:
    """One line for people."""
    finds = found.right + len(found.false)
    line = (
        f"{found.right} of {found.photographs} found ({found.right / max(found.photographs, 1):.1%}), "
        f"{len(found.false)} of {finds} finds false ({len(found.false) / max(finds, 1):.1%}), "
        f"{1000 * sum(found.seconds) / max(len(found.seconds), 1):.0f} ms a picture"
    )
    if eyes and found.off:
        ordered = sorted(found.off)
        line += (
            f"; both eyes in {len(ordered)}, off by {sum(ordered) / len(ordered):.3f} of their distance in the mean, "
            f"{ordered[int(0.95 * len(ordered))]:.3f} at the 95th percentile"
        )
    return line


def main(
    folder: Annotated[Path, typer.Argument(help="That holds sfhq/ and sfhq-t2i/.")],
    detector: Annotated[Path | None, typer.Option(help="A YuNet model; else OpenCV's cascades.")] = None,
) -> None:
    """Print a line for each kind of photograph."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    finder: Detector | None = None
    if detector is not None:
        from hyperdreambooth.faces.yunet import YuNet

        finder = YuNet(detector)
    console = Console(soft_wrap=True, highlight=False)
    console.print("sfhq:", summary(together(one for _, one in measure(framed(folder / "sfhq"), finder)), eyes=True))
    found = list(measure(labelled(folder / "sfhq-t2i", LABELS.read_text().splitlines()), finder))
    for seen, words in (("yes", "both eyes to be seen"), ("part", "fewer"), ("no", "no face")):
        total = together(one for truth, one in found if truth.seen == seen)
        console.print(f"sfhq-t2i, {words}:", summary(total, eyes=False))
        console.print(f"  missed: {', '.join(total.missed) or 'none'}; false: {', '.join(total.false) or 'none'}")
    console.print("sfhq-t2i, all:", summary(together(one for _, one in found), eyes=False))


if __name__ == "__main__":
    typer.run(main)
