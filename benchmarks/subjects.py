"""The people that are judged: one reference picture each, and their true pictures in every style."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.judges import Recogniser
from hyperdreambooth.portraits.captions import STYLES, Scene
from hyperdreambooth.portraits.person import truth_matrix
from hyperdreambooth.portraits.pictures import draw, in_styles
from hyperdreambooth.portraits.splits import REPORTING, TRAINING, TUNING
from hyperdreambooth.portraits.view import View
from recipes.judges import STRONG
from recipes.photographs import load_photographs

PORTRAITS = {"training": TRAINING, "tuning": TUNING, "reporting": REPORTING}
VIEWS = 3  # true pictures per person and style that a portrait is recognised by


@dataclass(frozen=True)
class Subjects:
    """N people of one world.

    Attributes:
        references: (N, 3, S, S) in [0, 1], the one picture that each is made from.
        seeds: of portraits; None for photographs.
    """

    world: str
    references: Tensor
    seeds: tuple[int, ...] | None

    @property
    def labels(self) -> Tensor:
        """(N,) each person's row in a gallery."""
        return torch.arange(len(self.references))

    @property
    def truth(self) -> Tensor | None:
        """(N, T), the attributes of portraits."""
        return None if self.seeds is None else truth_matrix(self.seeds)

    def true_picture(self, style: str) -> Tensor:
        """The reference itself in a style: (N, 3, S, S)."""
        return in_styles(self.references, [style] * len(self.references))

    def another_picture(self, style: str) -> Tensor:
        """A true picture in a style that is not in the gallery, (N, 3, S, S): the best that anybody can draw.

        Portraits: the reference. Photographs: the one there is, mirrored, cut and lit otherwise.
        """
        if self.seeds is not None:
            return self.true_picture(style)
        changed = STRONG(self.references.flip(-1), torch.Generator().manual_seed(8_000))
        return in_styles(changed, [style] * len(changed))

    def gallery(self, recogniser: Recogniser, style: str) -> Tensor:
        """What each person is recognised by in a style, (N, E).

        Portraits: the mean of true pictures in other views than the reference's. Photographs, of which there is one of
        each: that one, under the style's filter.
        """
        if self.seeds is None:
            return recogniser.embed(self.true_picture(style))
        random = np.random.RandomState(7_000)
        scenes = [Scene("portrait", style)] * len(self.seeds)
        size = self.references.shape[-1]
        seen = [
            recogniser.embed(draw(self.seeds, [View.sample(random) for _ in self.seeds], scenes, size))
            for _ in range(VIEWS)
        ]
        return torch.stack(seen).mean(dim=0)

    def galleries(self, recogniser: Recogniser) -> dict[str, Tensor]:
        """The gallery of every style, by its name."""
        return {style: self.gallery(recogniser, style) for style in STYLES}


def portraits(split: str, count: int, size: int) -> Subjects:
    """The first `count` portraits of a split, each seen from the front in surroundings of its own.

    Raises:
        UserError: the split has not so many.
    """
    if not 1 <= count <= len(PORTRAITS[split]):
        raise UserError(f"got {count} people, expected 1 to the {len(PORTRAITS[split])} of the split {split}")
    seeds = tuple(PORTRAITS[split][:count])
    random = np.random.RandomState(6_000)
    views = [View.reference(random) for _ in seeds]
    return Subjects("portraits", draw(seeds, views, [Scene("portrait")] * len(seeds), size), seeds)


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
