"""Photographs to people by any method: the protocol, and the work of those that replace numbers of the base."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from hyperdreambooth.base.model import Base
from hyperdreambooth.drawing import LIKENESS, DrawConfig, Person, note_faults
from hyperdreambooth.errors import UserError
from hyperdreambooth.faces import face_masks
from hyperdreambooth.fitting.fit import Objective, Pictures
from hyperdreambooth.fitting.steps import FitConfig, Run
from hyperdreambooth.personalization import (
    ENCODE,
    FINETUNE,
    Photo,
    Photos,
    counted,
    encode_views,
    photos_of,
    read_views,
    stopwatch,
)
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.progress import Progress
from hyperdreambooth.tuned import Tuned, word_embeddings

Settings = dict[str, Any]


class Work(Protocol):
    """N people being made from their photographs: iterate to do it, then read the results."""

    def __iter__(self) -> Iterator[Progress]: ...

    @property
    def people(self) -> Sequence[Person]:
        """Those who are made, when the work is done."""

    @property
    def predicted(self) -> Sequence[Person] | None:
        """What was known of them before any fitting, if anything was."""

    @property
    def faces(self) -> Tensor:
        """(N, 3, size, size), the photographs as the base sees them, the first of each person."""

    @property
    def seconds(self) -> dict[str, float]:
        """Of each phase."""

    @property
    def samples(self) -> int:
        """Through the U-Net, for all of them."""


class Method(Protocol):
    """One way to put people into a base."""

    @property
    def iterations(self) -> int:
        """Steps of the optimiser per person."""

    @property
    def at_once(self) -> int:
        """How many people it makes in one batch, at most."""

    @property
    def drawing(self) -> DrawConfig:
        """How its people are drawn best."""

    def settings_on(self, booth: HyperDreamBooth) -> Settings:
        """All that decides what it makes, for JSON: the same settings, the same people."""

    def with_steps(self, steps: int) -> Method:
        """The same with so many steps. Raises UserError for a number that it cannot do."""

    def save(self, person: Person, path: Path) -> int:
        """Write a person's file as this method keeps it; returns its bytes. Raises as the person's own `save`."""

    def check(self, booth: HyperDreamBooth) -> None:
        """Raise UserError for a booth that lacks what the method needs."""

    def personalizing(self, booth: HyperDreamBooth, photos: Sequence[Photos], seed: int = 0) -> Work:
        """N different people, by one photograph or several of each. Raises as `check`."""


@dataclass(frozen=True)
class Fitting:
    """A fit that replaces numbers of a base: its run, and then each person's tensors, as in `Tuned`."""

    run: Run
    tensors: Callable[[], list[Mapping[str, Tensor]]]


def settings_of(method: Any) -> Settings:
    """All fields of a dataclass, those of dataclasses inside too, as JSON knows them; what is no value by its name."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            inner = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
            return {"kind": type(value).__name__, **inner}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return getattr(value, "__name__", None) or str(value)

    return dict(plain(method))


def how_made(method: str, fit: FitConfig, objective: Objective) -> dict[str, str | int | float]:
    """How a person was made, for the file."""
    return {
        "method": method,
        "steps": fit.steps,
        "noises": objective.noises,
        "lr": fit.lr,
        "seed": objective.seed,
    }


def noun_embedding(base: Base) -> Tensor:
    """The embedding (W,) of the class noun, float32 on the base's device, where a person's own word begins."""
    noun = base.tokenizer(base.class_noun, add_special_tokens=False).input_ids[0]
    return word_embeddings(base).weight[noun].detach().to(base.device, torch.float32)


def trained_copy(base: Base, text_encoder: bool = False) -> Base:
    """A base with copies of the networks whose weights are to be fitted, in float32 whatever it works in.

    In half precision a step of a usual learning rate is lost in most weights: it is smaller than their last digit.
    """
    return base.with_networks(
        deepcopy(base.text_encoder).float() if text_encoder else None, deepcopy(base.unet).float()
    )


@dataclass(frozen=True)
class Tuning:
    """What methods that only fit have in common: a name, a fit, an objective, and how their people are drawn."""

    name: str
    fit: FitConfig
    objective: Objective
    drawing: DrawConfig = DrawConfig(likeness=LIKENESS)  # noqa: RUF009  # frozen

    @property
    def iterations(self) -> int:
        """Steps of the optimiser per person."""
        return self.fit.steps

    def settings_on(self, booth: HyperDreamBooth) -> Settings:
        """Every setting."""
        return settings_of(self)

    def save(self, person: Person, path: Path) -> int:
        """In half precision."""
        return person.save(path)

    def with_steps(self, steps: int) -> Self:
        """The same with so many steps. Raises UserError for none."""
        if steps < 1:
            raise UserError(f"got {steps} steps for a method that only fits, expected 1 or more")
        return replace(self, fit=replace(self.fit, steps=steps))

    def check(self, booth: HyperDreamBooth) -> None:
        """Any base will do, unless a method says otherwise."""


class TunedWork:
    """N people being made whose numbers stand in the place of the base's own.

    Args:
        booth: whose base they are for; it stays as it is.
        photos: one of each, or several.
        begin: starts the fit of n of them, of the base, their pictures, and their first faces (n, 3, size, size).
        how: for their files.
        prompt: that they are fitted to.
        at_once: how many are fitted together.
        prepare: what the method has to do first, once for a base, whose time is nobody's.
    """

    def __init__(
        self,
        booth: HyperDreamBooth,
        photos: Sequence[Photos],
        begin: Callable[[Base, Pictures, Tensor], Fitting],
        how: Mapping[str, str | int | float],
        prompt: str,
        at_once: int = 1,
        prepare: Callable[[], Iterator[Progress]] = lambda: iter(()),
    ) -> None:
        booth.adapters.check_bare()
        self._base, self._photos, self._begin = booth.base, photos_of(photos), begin
        self._how, self._prompt, self._at_once, self._prepare = dict(how), prompt, at_once, prepare
        self._watch = stopwatch(booth.base.device)
        self.faces = torch.empty(0)
        self.people: list[Tuned] = []
        self.predicted: list[Tuned] | None = None
        self.samples = 0

    @property
    def seconds(self) -> dict[str, float]:
        """Of each phase so far."""
        return self._watch.seconds

    def __iter__(self) -> Iterator[Progress]:
        note_faults(self._base, self._prompt)
        yield from self._prepare()
        views = yield from read_views(self._photos, self._base.picture_size, self._watch)
        self.faces = views[:, 0]
        yield Progress(ENCODE, 0, 1)
        latents = self._watch.timed(ENCODE, lambda: encode_views(self._base, views))  # (N, V, C, h, w)
        for some, shown in zip(latents.split(self._at_once), self.faces.split(self._at_once), strict=True):
            yield from self._fit(Pictures(some, face_masks(some)), shown)

    def _fit(self, pictures: Pictures, faces: Tensor) -> Iterator[Progress]:
        before, batches = self.samples, math.ceil(len(self._photos) / self._at_once)
        fitting = self._watch.timed(FINETUNE, lambda: self._begin(self._base, pictures, faces))
        reports = iter(fitting.run)
        while (report := self._watch.timed(FINETUNE, lambda: next(reports, None))) is not None:
            self.samples = before + report.samples
            each = round(report.step / report.progress)  # steps of a batch
            done = len(self.people) // self._at_once * each + report.step
            yield Progress(FINETUNE, done, batches * each, report.loss)
        photos = self._photos[len(self.people) :]
        self.people += [self._person(*one) for one in zip(fitting.tensors(), photos, strict=False)]

    def _person(self, tensors: Mapping[str, Tensor], photos: Sequence[Photo]) -> Tuned:
        base = self._base
        return Tuned(
            tensors=tensors,
            base=base.fingerprint,
            base_name=base.name,
            prompt=self._prompt,
            rare_token=base.rare_token,
            class_noun=base.class_noun,
            how=self._how | counted(photos),
        )
