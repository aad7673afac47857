"""What a face verifier learns from: squares of photographs that show a face, and squares that cascades took for one.

A photograph teaches where its face is beyond doubt: many looks agree on it, and its eyes are seen. Whatever cascades
see elsewhere in it, be it once, is none: ears, necks, collars, half faces. None of those photographs is learnt from
that tune, report, or are labelled for `benchmarks.faces`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hyperdreambooth.errors import HyperDreamBoothError, UserError
from hyperdreambooth.faces import FaceBox, enough_for, in_order, read_picture
from hyperdreambooth.faces.eyes import eye_marks, eyes_of
from hyperdreambooth.faces.finding import DETECTION_SIDE, SAME, WEIGHTS, copy_at, look, scaled
from hyperdreambooth.faces.verifier import SIDE, FaceVerifier, square_of
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run, steps
from hyperdreambooth.lidb.basis import random_state
from recipes.parts import Part, parts, remove_parts
from recipes.photographs import learnt_faces

FACE, MISTAKEN, ELSEWHERE = range(3)  # kinds of squares: the face, what cascades took for one, anywhere else
_EACH = {FACE: 6, MISTAKEN: 12, ELSEWHERE: 6}  # of one photograph, at most
_OF_A_BATCH = {FACE: 6, MISTAKEN: 4, ELSEWHERE: 2}  # twelfths

_SEEN, _BEYOND_DOUBT = 40.0, 90.0  # votes that make a face certain with eyes, and without
_SHIFT, _SCALE = 0.25, 1.55  # how far squares of a face are off, in its sides
_OFF, _SIZES = 0.36, (0.47, 2.1)  # from which on, or beyond which, a square is of no face


def gather(folder: Path, cache: Path, each: int = 50) -> Iterator[str]:
    """The squares of all photographs below `folder` into `cache`; a line per `each` files, and at the end.

    As many processes as there are cores share the work; it is stopped at the cost of `each` files.

    Raises:
        UserError: no photograph has a face that is beyond doubt. DiskFull, WorkError: what is finished stays.
    """
    if cache.exists():
        remove_parts(cache)
        return
    files = learnt_faces(folder)
    some = [files[first : first + each] for first in range(0, len(files), each)]

    def make(numbers: list[int]) -> Generator[Part]:
        left = [file for number in numbers for file in some[number]]
        with closing(in_order(squares_of, left, enough_for(len(left)))) as made:
            for number in numbers:
                kinds, squares = zip(*(next(made) for _ in some[number]), strict=True)
                together = torch.from_numpy(np.concatenate(squares))
                yield {"kinds": torch.from_numpy(np.concatenate(kinds)), "squares": together}, {}

    contents = ["\n".join(f"{file.stat().st_size} {file.name}" for file in part) for part in some]
    every: dict[str, list[Tensor]] = {"kinds": [], "squares": []}
    for number, (tensors, _) in enumerate(parts(cache, contents, make), start=1):
        for name, tensor in tensors.items():
            every[name].append(tensor)
        yield f"{min(number * each, len(files))} of {len(files)} photographs"
    if not sum(map(len, every["kinds"])):
        remove_parts(cache)
        raise UserError(f"{folder} holds no face beyond doubt, expected photographs of faces")
    save_tensors(cache, {name: torch.cat(tensors) for name, tensors in every.items()})
    remove_parts(cache)
    yield f"{sum(map(len, every['kinds'])):,} squares"


def squares_of(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The squares of one photograph: kinds (n,) and pixels (n, 3, SIDE, SIDE) uint8, none without a certain face.

    Arrays, which processes hand on whole; the same for the same file.
    """
    nothing = np.zeros(0, np.int64), np.zeros((0, 3, SIDE, SIDE), np.uint8)
    try:
        picture = read_picture(file)
    except HyperDreamBoothError:
        return nothing
    seen = _seen(picture)
    face = _certain(picture, seen)
    if face is None:
        return nothing
    random, boxes = random_state("face squares", file.name), list[tuple[int, FaceBox]]()
    for _ in range(_EACH[FACE]):
        side = face.side * _SCALE ** random.uniform(-1, 1)
        middle = [value + face.side * random.uniform(-_SHIFT, _SHIFT) for value in face.centre]
        boxes.append((FACE, _around(middle[0], middle[1], side)))
    wrong = [box for box, _ in seen if _is_wrong(box, face)]
    chosen = random.permutation(len(wrong))[: _EACH[MISTAKEN]]
    boxes += [(MISTAKEN, wrong[one]) for one in chosen]
    boxes += [(ELSEWHERE, box) for box in _elsewhere(face, picture, random)]
    pixels = [(square_of(picture, box) * 255).round().byte().numpy() for _, box in boxes]
    return np.array([kind for kind, _ in boxes]), np.stack(pixels)


def _seen(picture: Tensor) -> list[tuple[FaceBox, float]]:
    """All that cascades see, were it only once, with the votes for it, the most exact first."""
    scale = DETECTION_SIDE / max(picture.shape[1:])
    grey = copy_at(picture, scale)
    found = list[tuple[FaceBox, float]]()
    for name, weight in WEIGHTS.items():
        for light in (grey, cv2.equalizeHist(grey)):
            found += scaled(look(name, light, fewest=2), scale, weight)
    return found


def _certain(picture: Tensor, seen: list[tuple[FaceBox, float]]) -> FaceBox | None:
    """The face that has most votes, if they or its eyes leave no doubt."""
    votes = [sum(count for other, count in seen if other.overlap(box) >= SAME) for box, _ in seen]
    if not votes or max(votes) < _SEEN:
        return None
    best = seen[votes.index(max(votes))][0]
    return best if max(votes) >= _BEYOND_DOUBT or eyes_of(eye_marks(picture, best)) else None


def _elsewhere(face: FaceBox, picture: Tensor, random: np.random.RandomState) -> Iterator[FaceBox]:
    """Squares with their middle in the picture that are of no face: six in ten near it, where cascades go wrong."""
    height, width = picture.shape[1:]
    found = 0
    while found < _EACH[ELSEWHERE]:
        x, y = random.uniform(0, width), random.uniform(0, height)
        if random.uniform() < 0.6:
            x, y = (middle + 0.6 * face.side * random.standard_normal() for middle in face.centre)
        box = _around(x, y, face.side * 2.2 ** random.uniform(-2, 1))
        if 0 < x < width and 0 < y < height and _is_wrong(box, face):
            found += 1
            yield box


def _around(x: float, y: float, side: float) -> FaceBox:
    return FaceBox(x - side / 2, y - side / 2, side)


def _is_wrong(box: FaceBox, face: FaceBox) -> bool:
    away = max(abs(a - b) for a, b in zip(box.centre, face.centre, strict=True))
    return away > _OFF * face.side or not _SIZES[0] <= box.side / face.side <= _SIZES[1]


def train_verifier(
    verifier: FaceVerifier,
    cache: Path,
    batch: int,
    config: FitConfig,
    generator: torch.Generator,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Train a verifier on what `gather` left in `cache`, from squares turned, tinted and blurred."""
    tensors, _ = load_tensors(cache)
    device = next(verifier.parameters()).device
    kinds = {kind: tensors["squares"][tensors["kinds"] == kind] for kind in _EACH}
    counts = {kind: batch * share // 12 for kind, share in _OF_A_BATCH.items() if len(kinds[kind])}

    def loss(_step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = [
            kinds[kind][torch.randint(len(kinds[kind]), (count,), generator=generator)]
            for kind, count in counts.items()
        ]
        squares = varied(torch.cat(chosen).float() / 255, generator).to(device)
        truth = torch.cat([torch.full((count,), float(kind == FACE)) for kind, count in counts.items()]).to(device)
        logits = verifier(squares)
        right = ((logits > 0) == (truth > 0.5)).float().mean()
        return F.binary_cross_entropy_with_logits(logits, 0.98 * truth + 0.01), {"right": float(right)}

    return steps(
        dict(verifier.named_parameters()), loss, config, checkpoint=checkpoint, generators={"squares": generator}
    )


def varied(squares: Tensor, generator: torch.Generator) -> Tensor:
    """Squares (N, 3, S, S) mirrored, turned, in other colours or none, and some of them blurred."""
    n, side = len(squares), squares.shape[-1]
    draw = partial(torch.rand, generator=generator)
    turn = 0.25 * torch.randn(n, generator=generator)
    mirror = torch.where(draw(n) < 0.5, -1.0, 1.0)
    cos, sin, zero = turn.cos(), turn.sin(), torch.zeros(n)
    ways = torch.stack([cos * mirror, -sin, zero, sin * mirror, cos, zero], dim=-1).view(n, 2, 3)
    grid = F.affine_grid(ways, list(squares.shape), align_corners=False)
    turned = F.grid_sample(squares, grid, padding_mode="reflection", align_corners=False)
    grey, colour = turned.mean(dim=1, keepdim=True), draw(n, 1, 1, 1)
    turned = grey + (turned - grey) * torch.where(colour < 0.3, 0.0, 1.5 * colour)
    tinted = turned * (0.6 + 0.8 * draw(n, 3, 1, 1)) + 0.1 * torch.randn((n, 3, 1, 1), generator=generator)
    small = F.interpolate(tinted, size=(16, 16), mode="bilinear", antialias=True)
    blurred = F.interpolate(small, size=(side, side), mode="bilinear")
    mixed = torch.where(draw(n, 1, 1, 1) < 0.3, blurred, tinted)
    return mixed + 0.02 * torch.randn(mixed.shape, generator=generator)
