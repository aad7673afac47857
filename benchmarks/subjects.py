"""The people whom benchmarks judge: synthetic ones of a split, and photographs from the recipe's cache."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.judges import Recogniser
from hyperdreambooth.evaluation.subjects import Subjects, portraits_of
from hyperdreambooth.portraits.captions import STYLES, Scene
from hyperdreambooth.portraits.splits import REPORTING, TRAINING, TUNING
from recipes.photographs import load_photographs

PORTRAITS = {"training": TRAINING, "tuning": TUNING, "reporting": REPORTING}


def galleries_of(subjects: Subjects, recogniser: Recogniser) -> dict[str, Tensor]:
    """What each person is recognised by in every style, (N, E) by its name."""
    return {style: subjects.gallery(recogniser, Scene(style=style)) for style in STYLES}


def portraits(split: str, count: int, size: int) -> Subjects:
    """The first `count` portraits of a split, each seen from the front in surroundings of its own.

    Raises:
        UserError: the split has not so many.
    """
    if not 1 <= count <= len(PORTRAITS[split]):
        raise UserError(f"got {count} people, expected 1 to the {len(PORTRAITS[split])} of the split {split}")
    return portraits_of(PORTRAITS[split][:count], size)


def photographs(cache: Path, split: str, count: int, size: int) -> Subjects:
    """The first `count` photographs of a split, fewer where it has fewer, from the file of the recipe's first stage.

    Raises:
        UserError: there are none.
    """
    references = load_photographs(cache).split(split).centre(size)[:count]
    if not len(references):
        raise UserError(f"{cache} has no {split} photographs, expected some: frame a folder that holds those listed")
    return Subjects("photographs", references, None)


def both_worlds(split: str, count: int, size: int, photos: Path | None) -> list[Subjects]:
    """The first `count` portraits of a split and, where the recipe's photographs are given, as many of those."""
    worlds = [portraits(split, count, size)]
    return worlds if photos is None else [*worlds, photographs(photos, split, count, size)]
