"""How well faces are found in photographs: recall, false finds, how far the eyes are off, milliseconds.

    python -m benchmarks.faces ../shared/photos --output faces.json

FOLDER holds `sfhq/`, framed as FFHQ's so that faces and eyes are where FFHQ puts them, and `sfhq-t2i/`, of which 200
are labelled by hand in `recipes/splits/photographs-labelled.txt`. A find is right where its middle is within a third of
the true box's side of the true middle, and its side between half and twice the true one; any other is false, and
neither counts as recall.
Each right find is cut out as `hdb` cuts it, and in the cut the eyes are sought again, by cascades in the box of FFHQ's
faces: how far they are from FFHQ's place is how far the cut is off.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import cv2
import torch
import typer
from rich.console import Console

from hyperdreambooth.faces import Detector, Eyes, FaceBox, LocatedFace, find_eyes, find_faces, read_picture
from hyperdreambooth.faces.boxes import FFHQ_CENTRE, FFHQ_EYES, FFHQ_SIDE
from hyperdreambooth.files import write_text
from recipes.photographs import LABELLED, labels

NEAR, SIDES = 1 / 3, (0.5, 2.0)
CUT = 256  # pixels a side of the cuts in which eyes are sought again


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
        cut: the same in our own cut of each right find, of those whose eyes are found there.
        seconds: of finding, and of finding with eyes.
    """

    photographs: int = 0
    right: int = 0
    false: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    off: list[float] = field(default_factory=list)
    cut: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def framed(folder: Path) -> list[Truth]:
    """All photographs of a folder that is framed as FFHQ's."""
    place = (*FFHQ_CENTRE, FFHQ_SIDE)
    return [Truth(file, "yes", place) for file in sorted(folder.glob("*.jpg"))]


def labelled(folder: Path, lines: Iterable[str]) -> list[Truth]:
    """The photographs of a folder that lines "name seen x y side" speak of; those with # are words."""
    truths = []
    for name, seen, *place in labels(lines):
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
                found.off.append(_off(eyes, width, height))
            cut = LocatedFace(picture, None, tuple(faces), None, whole=False).take(1).crop(CUT).picture
            left, top = (CUT * (middle - FFHQ_SIDE / 2) for middle in FFHQ_CENTRE)
            if (eyes := find_eyes(cut, FaceBox(left, top, CUT * FFHQ_SIDE))) is not None:
                found.cut.append(_off(eyes, CUT, CUT))
        else:
            found.false.append(truth.file.name)
        yield truth, found


def _off(eyes: Eyes, width: int, height: int) -> float:
    """How far eyes are from where FFHQ puts them in a frame, in distances between the eyes."""
    left, right = ((x * width, y * height) for x, y in FFHQ_EYES)
    return (math.dist(eyes.left, left) + math.dist(eyes.right, right)) / 2 / math.dist(left, right)


def together(found: Iterable[Found]) -> Found:
    """Sums and lists of all."""
    total = Found()
    for one in found:
        total.photographs += one.photographs
        total.right += one.right
        for name in ("false", "missed", "off", "cut", "seconds"):
            getattr(total, name).extend(getattr(one, name))
    return total


def figures(found: Found, eyes: bool) -> dict[str, Any]:
    """What is told of the photographs of one kind.

    eyes: whether the whole photographs are framed as FFHQ's, so that their own eyes have a place.
    """
    told: dict[str, Any] = {
        "photographs": found.photographs,
        "found": found.right,
        "missed": found.missed,
        "false": found.false,
        "milliseconds": 1000 * sum(found.seconds) / max(len(found.seconds), 1),
    }
    for name, off in (("eyes", found.off if eyes else []), ("eyes_after_the_cut", found.cut)):
        if ordered := sorted(off):
            at_95 = ordered[int(0.95 * len(ordered))]
            told[name] = {"pairs": len(ordered), "mean": sum(ordered) / len(ordered), "percentile_95": at_95}
    return told


def summary(found: Found, eyes: bool) -> str:
    """One line for people."""
    told, finds = figures(found, eyes), found.right + len(found.false)
    line = (
        f"{found.right} of {found.photographs} found ({found.right / max(found.photographs, 1):.1%}), "
        f"{len(found.false)} of {finds} finds false ({len(found.false) / max(finds, 1):.1%}), "
        f"{told['milliseconds']:.0f} ms a picture"
    )
    for name, words in (("eyes", "both eyes in"), ("eyes_after_the_cut", "after the cut both eyes in")):
        if off := told.get(name):
            line += (
                f"; {words} {off['pairs']}, off by {off['mean']:.3f} of their distance in the mean, "
                f"{off['percentile_95']:.3f} at the 95th percentile"
            )
    return line


def main(
    folder: Annotated[Path, typer.Argument(help="That holds sfhq/ and sfhq-t2i/.")],
    detector: Annotated[Path | None, typer.Option(help="A YuNet model; else OpenCV's cascades.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A JSON file to write.")] = None,
) -> None:
    """Print a line for each kind of photograph."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    finder: Detector | None = None
    if detector is not None:
        from hyperdreambooth.faces.yunet import YuNet

        finder = YuNet(detector)
    console, told = Console(soft_wrap=True, highlight=False), {}

    def tell(kind: str, found: Found, eyes: bool = False) -> None:
        told[kind] = figures(found, eyes)
        console.print(f"{kind}:", summary(found, eyes))

    tell("sfhq", together(one for _, one in measure(framed(folder / "sfhq"), finder)), eyes=True)
    found = list(measure(labelled(folder / "sfhq-t2i", LABELLED.read_text().splitlines()), finder))
    for seen, words in (("yes", "both eyes to be seen"), ("part", "fewer"), ("no", "no face")):
        total = together(one for truth, one in found if truth.seen == seen)
        tell(f"sfhq-t2i, {words}", total)
        console.print(f"  missed: {', '.join(total.missed) or 'none'}; false: {', '.join(total.false) or 'none'}")
    tell("sfhq-t2i, all", together(one for _, one in found))
    if output is not None:
        write_text(output, json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
