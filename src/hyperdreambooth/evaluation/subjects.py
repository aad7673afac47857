"""The people that are judged: one reference picture each, and their true pictures in every scene."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.encoders import ImageEncoder
from hyperdreambooth.hypernetwork.jitter import Jitter
from hyperdreambooth.portraits.captions import Scene
from hyperdreambooth.portraits.person import truth_matrix
from hyperdreambooth.portraits.pictures import draw, in_styles
from hyperdreambooth.portraits.view import View

VIEWS = 3  # true pictures per person and scene that a portrait is recognised by
CHANGED = Jitter(zoom=0.08, shift=0.05, colour=0.2, blur=0.8)  # of a photograph: what a recogniser should not mind
_PORTRAIT = re.compile(r"portrait-(\d+)")


@dataclass(frozen=True)
class Subjects:
    """N people of one world.

    Attributes:
        world: "portraits" or "photographs".
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
        changed = CHANGED(self.references.flip(-1), torch.Generator().manual_seed(8_000))
        return in_styles(changed, [style] * len(changed))

    def true_views(self, scene: Scene, count: int = VIEWS) -> Tensor:
        """Pictures of everybody in a scene, other views than the reference's: (V, N, 3, S, S).

        Of photographs, of which there is one of each: that one, under the style's filter, V = 1.
        """
        if self.seeds is None:
            return self.true_picture(scene.style).unsqueeze(0)
        random, size = np.random.RandomState(7_000), self.references.shape[-1]
        scenes = [Scene("portrait", scene.style, scene.domain, scene.context, scene.edit)] * len(self.seeds)
        return torch.stack(
            [draw(self.seeds, [View.sample(random) for _ in self.seeds], scenes, size) for _ in range(count)]
        )

    def gallery(self, recogniser: ImageEncoder, scene: Scene) -> Tensor:
        """What each person is recognised by in a scene, (N, E): the mean of the true views."""
        return torch.stack([recogniser.embed(view) for view in self.true_views(scene)]).mean(dim=0)


def portraits_of(seeds: Sequence[int], size: int) -> Subjects:
    """Portraits of these seeds, each seen from the front in surroundings of its own, by its place among them."""
    random = np.random.RandomState(6_000)
    views = [View.reference(random) for _ in seeds]
    return Subjects("portraits", draw(seeds, views, [Scene("portrait")] * len(seeds), size), tuple(seeds))


def are_portraits(names: Sequence[str]) -> bool:
    """Whether people are synthetic, by their names in a run: all "portrait-SEED"."""
    return all(_PORTRAIT.fullmatch(name) for name in names)


def check_photographs(names: Sequence[str]) -> None:
    """Raise UserError for photographs that a run would take for synthetic people, all called "portrait-SEED"."""
    if names and are_portraits(names):
        raise UserError(
            f"got photographs that are all called as synthetic people are ({names[0]}, ...), expected other names: "
            "rename one, or ask for portraits:FIRST-LAST"
        )


def subjects_of(names: Sequence[str], references: Tensor) -> Subjects:
    """People by their names in a run, and their references (N, 3, S, S): all "portrait-SEED", or photographs."""
    matches = [_PORTRAIT.fullmatch(name) for name in names]
    if all(matches):
        return Subjects("portraits", references, tuple(int(match[1]) for match in matches if match))
    return Subjects("photographs", references, None)
