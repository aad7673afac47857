"""A folder of face photographs -> framed faces in one file, and who is held out of training.

Any folder of pictures will do. The lists in `splits/` name the files of SFHQ and SFHQ-T2I that tune and report,
wherever they lie; in a folder that holds no files of these names, everything trains. SFHQ shows some of its people
twice: nobody is listed who was found again in a photograph that trains.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hyperdreambooth.errors import HyperDreamBoothError, UserError
from hyperdreambooth.faces import crop_face, enough_for, in_order, read_picture
from hyperdreambooth.files import load_tensors, save_tensors
from recipes.parts import Part, parts, remove_parts

SPLITS = ("training", "tuning", "reporting")
_LISTS = Path(__file__).parent / "splits"
LABELLED = _LISTS / "photographs-labelled.txt"  # faces that somebody marked by hand, for `benchmarks.faces`
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}

_BENT, _BEND = (5, 5), 0.035  # points of the face that move, and how far, in halves of its side
_STRETCH = 0.05  # of width and height
_TINT, _SHADE = 0.12, 0.15  # of a colour, and of all, as the logarithm of its gamma


@dataclass(frozen=True)
class Photographs:
    """Framed faces: `pictures` (N, 3, S, S) uint8 and the file of each, relative to its folder."""

    pictures: Tensor
    names: tuple[str, ...]

    def split(self, name: str) -> Photographs:
        """Those of one of `SPLITS`, in the order of their names (of the list, for the two that are lists)."""
        if name == "training":
            held = {_key(file) for split in SPLITS[1:] for file in _listed(split)}
            rows = [row for row, file in enumerate(self.names) if _key(file) not in held]
        else:
            position = {_key(file): row for row, file in enumerate(self.names)}
            rows = [position[key] for file in _listed(name) if (key := _key(file)) in position]
        return Photographs(self.pictures[rows], tuple(self.names[row] for row in rows))

    def centre(self, size: int) -> Tensor:
        """The middle of each picture, (N, 3, size, size) float32 in [0, 1]."""
        room = (self.pictures.shape[-1] - size) // 2
        return self.pictures[:, :, room : room + size, room : room + size].float() / 255


def frame_photographs(folder: Path, cache: Path, size: int, each: int = 100) -> Iterator[str]:
    """Find, crop and shrink every face below `folder` into `cache`; yields a line per `each` files, and at the end.

    As many processes as there are cores share the work. A picture without a face that can be found is left out. Does
    nothing where `cache` exists. It is stopped at the cost of `each` files: the next call goes on behind them.

    Raises:
        UserError: no pictures, or no face in any of them.
        DiskFull, WorkError: while iterating; what is finished stays.
    """
    if cache.exists():
        remove_parts(cache)
        return
    files = files_below(folder)
    some = [files[first : first + each] for first in range(0, len(files), each)]

    def named(file: Path) -> str:
        return file.relative_to(folder).as_posix()

    def make(numbers: list[int]) -> Generator[Part]:
        left = [file for number in numbers for file in some[number]]
        with closing(in_order(partial(_framed, size=size), left, enough_for(len(left)))) as framed:
            for number in numbers:
                found = [(named(file), picture) for file in some[number] if (picture := next(framed)) is not None]
                faces = np.stack([picture for _, picture in found]) if found else np.zeros((0, 3, size, size), np.uint8)
                yield {"pictures": torch.from_numpy(faces)}, {"names": "\n".join(name for name, _ in found)}

    contents = [f"{size} px" + "".join(f"\n{file.stat().st_size} {named(file)}" for file in part) for part in some]
    pictures, names = list[Tensor](), list[str]()
    for number, (tensors, about) in enumerate(parts(cache, contents, make), start=1):
        pictures.append(tensors["pictures"])  # (n, 3, S, S)
        names += about["names"].split("\n") if about["names"] else []
        if (done := number * each) <= len(files):
            yield f"{done} of {len(files)} photographs, {done - len(names)} without a face"
    if not names:
        remove_parts(cache)
        raise UserError(f"{folder} holds {len(files)} pictures without a face, expected face photographs")
    save_tensors(cache, {"pictures": torch.cat(pictures)}, {"names": "\n".join(names)})
    remove_parts(cache)
    yield f"{len(names)} photographs framed, {len(files) - len(names)} without a face left out"


def files_below(folder: Path) -> list[Path]:
    """All pictures below a folder, in order. Raises UserError where there are none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no pictures, expected face photographs: give a folder of JPEG or PNG files")
    return files


def labels(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words of each line of `LABELLED` about a photograph: its name, what of its face is seen, and where."""
    return (line.split() for line in lines if line.strip() and not line.startswith("#"))


def learnt_faces(folder: Path) -> list[Path]:
    """The pictures below a folder that a face verifier learns from: nobody who tunes or reports, and none labelled."""
    labelled = {name for name, *_ in labels(LABELLED.read_text().splitlines())}
    held_out = labelled | {_key(file) for split in SPLITS[1:] for file in _listed(split)}
    return [file for file in files_below(folder) if file.name not in held_out]


def _framed(file: Path, size: int) -> np.ndarray | None:
    """The face in a file, (3, size, size) uint8; None without one. An array, which processes hand on whole."""
    try:
        crop = crop_face(read_picture(file), size)
    except HyperDreamBoothError:
        return None
    return (crop.picture * 255).round().byte().numpy() if crop.found else None


def load_photographs(cache: Path) -> Photographs:
    """What `frame_photographs` wrote."""
    tensors, metadata = load_tensors(cache)
    return Photographs(tensors["pictures"], tuple(metadata["names"].split("\n")))


def lookalike(picture: Tensor, generator: torch.Generator) -> Tensor:
    """A photograph (3, S, S) in [0, 1] -> somebody else's: the face bent smoothly, skin and hair in other colours.

    There are too few photographs to learn from; these stand in for people whom nobody photographed.
    """
    side = picture.shape[-1]
    ways = torch.randn((1, 2, *_BENT), generator=generator) * _BEND
    bend = F.interpolate(ways, size=(side, side), mode="bicubic", align_corners=True)[0]  # (2, S, S)
    stretch = torch.eye(2, 3) * (1 + _STRETCH * torch.randn((2, 1), generator=generator))
    grid = F.affine_grid(stretch.unsqueeze(0), [1, 3, side, side], align_corners=False)
    bent = F.grid_sample(picture[None], grid + bend.movedim(0, -1), padding_mode="reflection", align_corners=False)[0]
    gamma = (_TINT * torch.randn((3, 1, 1), generator=generator) + _SHADE * torch.randn((), generator=generator)).exp()
    return bent.clamp(0, 1) ** gamma


def _key(file: str) -> str:
    """A file by its own name alone: a folder above or below the one of the lists holds the same people."""
    return file.rpartition("/")[2]


def _listed(split: str) -> list[str]:
    return (_LISTS / f"photographs-{split}.txt").read_text().split()
