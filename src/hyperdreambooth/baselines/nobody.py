"""Nobody: the base as it is, whoever a photograph shows; the floor of every figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hyperdreambooth.baselines.work import Settings, settings_of
from hyperdreambooth.drawing import DrawConfig, Person
from hyperdreambooth.errors import UserError
from hyperdreambooth.identity import Identity
from hyperdreambooth.personalization import Photos, photos_of, read_views, stopwatch
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.progress import Progress

BASE = "base"


@dataclass(frozen=True)
class Nobody:
    """The base as it is, whoever the photograph shows: the floor of every figure."""

    at_once: int = 20
    drawing: DrawConfig = DrawConfig(likeness=None)  # noqa: RUF009  # frozen
    iterations: int = 0

    def settings_on(self, booth: HyperDreamBooth) -> Settings:
        """Every setting."""
        return settings_of(self)

    def with_steps(self, steps: int) -> Nobody:
        """Raises UserError for any."""
        raise UserError(f"got {steps} steps for {BASE}, which takes none: leave them out")

    def check(self, booth: HyperDreamBooth) -> None:
        """Any base will do."""

    def personalizing(self, booth: HyperDreamBooth, photos: Sequence[Photos], seed: int = 0) -> _NobodyWork:
        """N times nobody, at once."""
        return _NobodyWork(booth, photos)

    def save(self, person: Person, path: Path) -> int:
        """Write the file of nobody; nothing of it has to be kept."""
        person.save(path)
        return 0


class _NobodyWork:
    """People whose numbers change nothing."""

    predicted = None
    samples = 0

    def __init__(self, booth: HyperDreamBooth, photos: Sequence[Photos]) -> None:
        self._booth, self._photos, self._watch = booth, photos_of(photos), stopwatch(booth.base.device)
        self.faces, self.people = torch.empty(0), list[Identity]()

    @property
    def seconds(self) -> dict[str, float]:
        return self._watch.seconds

    def __iter__(self) -> Iterator[Progress]:
        base, space = self._booth.base, self._booth.space.rule
        self.faces = (yield from read_views(self._photos, base.picture_size, self._watch))[:, 0]
        nobody = Identity(space.start(), space.info, self._booth.fingerprint, base.name, how={"method": BASE})
        self.people = [nobody] * len(self._photos)
