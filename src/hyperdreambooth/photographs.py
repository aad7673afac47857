"""Photographs of many people to their faces and latents: few of them in memory at a time, and each made once.

    FOLDER/faces/      cut, uint8, at the base's size
    FOLDER/latents/    of these

What is there already for the same photographs, of any run, is taken from there (`kept.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from hyperdreambooth.base.fingerprint import fingerprint_of
from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import BadPicture, UserError
from hyperdreambooth.faces import cut_people
from hyperdreambooth.faces.yunet import YuNet
from hyperdreambooth.fitting.processes import ALONE, Processes
from hyperdreambooth.folders import Source, Sources
from hyperdreambooth.kept import Kept, Made, key_of
from hyperdreambooth.progress import Progress, log

CHECK, READ, ENCODE = "check photographs", "read people", "encode"

_FRAMING = 4  # to be raised when faces are found or cut otherwise: those that are kept are cut anew then

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Keeping:
    """Where faces and latents are kept.

    Attributes:
        folder: for what is made here.
        others: where some may be already.
        processes: those that read the same people together.
    """

    folder: Path
    others: tuple[Path, ...] = ()
    processes: Processes = ALONE

    def of(self, kind: str) -> Kept:
        """What is kept of one kind."""
        return Kept(self.folder / kind, [other / kind for other in self.others], self.processes)


class Photographed:
    """N people of whom there are photographs, all cut and kept, none in memory.

    Args:
        sources: everybody's photographs.
        where: they come from, for errors.
        size: side of the faces in pixels.
        views: photographs of a person, at most: the first in which a face is found.
        keeping: where faces and latents are kept.
        progress: is told of photographs looked at, and of people cut.
        detector: what finds faces; None is OpenCV's cascades.

    Attributes:
        names: N; people of whom no photograph is of use are left out.
        views: V, the most that anybody has.

    Raises:
        UserError: nobody is left, or another process reads people into the same folder. DiskFull, WorkError.
    """

    def __init__(
        self,
        sources: Sources,
        where: str,
        size: int,
        views: int,
        keeping: Keeping,
        progress: OnProgress,
        detector: YuNet | None = None,
    ) -> None:
        self._size, self._most, self._keeping, self._progress = size, views, keeping, progress
        self._detector, found = detector, () if detector is None else (detector.digest,)
        keys = dict[str, str]()
        for done, (name, pictures) in enumerate(sources.items()):
            progress(Progress(CHECK, done, len(sources)))
            keys[name] = key_of("faces", _FRAMING, *found, size, views, *map(_digest, pictures))
        self._pictures = {key: sources[name] for name, key in keys.items()}
        self._faces = keeping.of("faces")
        self._faces.ensure(self._pictures, self._cut)
        entries = {name: self._faces.entries[key] for name, key in keys.items()}
        tried, got = sum(one.tried for one in entries.values()), sum(one.views for one in entries.values())
        check_read(where, tried, got, sum(map(len, sources.values())), views)
        self._keys = {name: key for name, key in keys.items() if entries[name].views}
        self.names = tuple(self._keys)
        self.views = max(one.views for one in entries.values())

    def pictures(self, side: int | None = None) -> Tensor:
        """Everybody's faces, (N, V, 3, side, side) uint8, at most as large as they were cut; None is as large."""
        faces = self._faces.each(self._unique(), self._cut)
        return self._together((key, reduced(own, side or self._size)) for key, own in faces)

    def latents(self, base: Base, progress: OnProgress = lambda _: None) -> Tensor:
        """Everybody's latents, (N, V, C, h, w) float32."""
        encoder = _encoder(base)
        face_of = {key_of("latents", *encoder, face): face for face in self._unique()}
        key_of_face = {face: key for key, face in face_of.items()}

        def encode(missing: Collection[str]) -> Iterator[Made]:
            faces = self._faces.each([face_of[key] for key in missing], self._cut)
            for done, (face, pictures) in enumerate(faces):
                progress(Progress(ENCODE, done, len(missing)))
                yield Made(key_of_face[face], encode_few(base, pictures), len(pictures))

        each = self._keeping.of("latents").each(face_of, encode)
        return self._together((face_of[key], own) for key, own in each)

    def _unique(self) -> list[str]:
        return list(dict.fromkeys(self._keys.values()))

    def _cut(self, missing: Collection[str]) -> Iterator[Made]:
        """Find and cut the faces of these people."""
        people = {key: self._pictures[key] for key in missing}
        for done, (key, cut) in enumerate(cut_people(people, self._size, self._most, detector=self._detector)):
            self._progress(Progress(READ, done, len(people)))
            for note in cut.notes:
                log.warning("%s", note)
            yield Made(key, cut.pictures, cut.tried)

    def _together(self, each: Iterable[tuple[str, Tensor]]) -> Tensor:
        """Everybody's tensors in one, (N, V, ...): whoever has fewer than V shows them again."""
        rows = dict[str, list[int]]()
        for row, key in enumerate(self._keys.values()):
            rows.setdefault(key, []).append(row)
        together: Tensor | None = None
        for key, own in each:
            if together is None:
                together = own.new_empty(len(self.names), self.views, *own.shape[1:])
            for row in rows[key]:
                together[row] = own[torch.arange(self.views) % len(own)]
        assert together is not None  # there is somebody
        return together


def check_read(where: str, tried: int, got: int, there: int, views: int) -> None:
    """Say how many photographs were left out. Raises UserError where none is left.

    Args:
        where: they come from.
        tried: how many were read, of which `got` are of use, and `there` are in all.
        views: that are taken of a person at most.
    """
    if not got:
        raise UserError(f"got {where} without a photograph of a face, expected person/photo.jpg or photo.jpg inside")
    if tried > got:
        log.warning("%d of %d pictures were left out", tried - got, tried)
    if there > tried:
        log.warning("%d photographs were not looked at: %d of a person are enough", there - tried, views)


@torch.no_grad()
def encode_few(base: Base, pictures: Tensor) -> Tensor:
    """One person's pictures (V, 3, S, S), uint8 or in [0, 1], to latents (V, C, h, w), no more at once than fit."""
    return torch.cat([base.encode_pictures(as_floats(some)).cpu() for some in pictures.split(base.at_once)])


def as_floats(pictures: Tensor) -> Tensor:
    """Pictures of uint8 in [0, 1]; others as they are."""
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures


def reduced(pictures: Tensor, side: int) -> Tensor:
    """Pictures (V, 3, S, S) uint8 as an encoder of this side would see them; smaller ones as they are."""
    if pictures.shape[-1] <= side:
        return pictures
    smaller = functional.interpolate(as_floats(pictures), (side, side), mode="bilinear", antialias=True)
    return (smaller * 255).round().byte()


def _digest(source: Source) -> str:
    """Of a photograph's bytes; of the reason, where it cannot be had."""
    try:
        if not isinstance(source, Path):
            return hashlib.sha256(source.fetch()).hexdigest()
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return str(error.strerror)
    except BadPicture as error:
        return str(error)


def _encoder(base: Base) -> Sequence[object]:
    """All that latents depend on beside the picture."""
    vae = base.vae
    tile = vae.tile_sample_min_size if vae.use_tiling else None
    return base.fingerprint, fingerprint_of(vae), vae.dtype, vae.config.scaling_factor, tile
