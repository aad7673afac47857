"""From photographs to identities: read the faces, predict, relax, fine-tune; N people in one batch, phase by phase."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TypeAlias, get_args

import torch
from PIL import Image
from torch import Tensor

from hyperdreambooth.base.memory import hosting
from hyperdreambooth.base.model import Base
from hyperdreambooth.drawing import note_faults
from hyperdreambooth.errors import UserError
from hyperdreambooth.faces import FaceCrop, LocatedFace, crop_face, face_masks, read_picture, to_picture
from hyperdreambooth.fitting.finetune import PRESETS, FinetuneConfig, Relax, Where, finetune, relaxation_in
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import Adapters, LiDBSpace
from hyperdreambooth.progress import Progress, Stopwatch, log

Photo: TypeAlias = "str | Path | Image.Image | Tensor | FaceCrop | LocatedFace"
"""A picture file, a PIL image, a tensor (3, H, W), float in [0, 1] or uint8; or a face that is found or cut already."""

Photos: TypeAlias = "Photo | Sequence[Photo]"
"""One photograph of a person, or several of the same person."""

READ, ENCODE, PREDICT, FINETUNE = PHASES = ("read face", "encode", "predict", "fine-tune")


@dataclass(frozen=True)
class PersonalizeConfig:
    """How a person is made from a photograph; learning rates and the like stand in `fitting.finetune.PRESETS`."""

    steps: int = 40  # of fast fine-tuning; 0 is the hypernetwork alone
    noises: int = 2  # samples through the U-Net per step
    relax: Relax | None = None  # None: as `relaxation_in` the base's space
    rank: int | None = None  # fresh ranks beside the prediction; None is the preset's of this relaxation
    prompt: str = "a [V] face"
    seed: int = 0  # of the noises
    lr: float | None = None  # learning rate; None is the preset's
    rounds: int | None = None  # of the hypernetwork's prediction; None is as many as it was trained with
    method: str = "hyperdreambooth"  # the name of all this, for the file
    where: Where = "up"  # the fresh ranks are

    def __post_init__(self) -> None:
        if self.steps < 0 or self.noises < 1 or (self.rank is not None and self.rank < 1):
            raise UserError(
                f"got {self.steps} steps, {self.noises} noises, rank {self.rank}: expected 0 or more, 1 or more, "
                "1 or more"
            )
        if self.relax is not None and self.relax not in get_args(Relax):
            raise UserError(f"got relax {self.relax!r}, expected one of {', '.join(get_args(Relax))}")

    def finetune_in(self, space: LiDBSpace) -> FinetuneConfig:
        """The preset of this relaxation, with what is asked for here, for people of a space; there must be steps."""
        preset = PRESETS[self.relax or relaxation_in(space)].config
        objective = replace(preset.objective, prompt=self.prompt, noises=self.noises, seed=self.seed)
        rank = preset.rank_in(space) if self.rank is None else self.rank
        fit = replace(preset.fit, steps=self.steps, lr=preset.fit.lr if self.lr is None else self.lr)
        alone = preset.lr_alone if self.lr is None else None
        return replace(preset, rank=rank, where=self.where, fit=fit, lr_alone=alone, objective=objective)


class Personalization:
    """N people being made from their photographs: iterate to do the work, then read the results.

    Args:
        photos: one of each person, or several; those with fewer than others are seen as often.
        fingerprint: of the base; None computes it.

    Raises:
        UserError: no photographs, neither steps nor a hypernetwork, a person merged into the base, ejected adapters.

    Attributes:
        config: what was asked for.
        faces: (N, 3, size, size), the photographs as the base sees them, the first of each person.
        views: (N, V, 3, size, size), all of them; the photographs of who has fewer than V come again.
        predicted: what the hypernetwork alone says, of several photographs the mean in dW; None without one.
        identities: the people, when the work is done.
        samples: samples that went through the U-Net.
    """

    def __init__(
        self,
        base: Base,
        adapters: Adapters,
        hypernetwork: HyperNetwork | None,
        photos: Sequence[Photos],
        config: PersonalizeConfig,
        fingerprint: str | None = None,
    ) -> None:
        adapters.check_bare()
        self._photos = photos_of(photos)
        if config.steps == 0 and hypernetwork is None:
            raise UserError(
                f'got 0 steps and no hypernetwork for the base "{base.name}", expected one or the other: '
                "ask for some steps, or train a hypernetwork"
            )
        self._base, self._adapters, self._hypernetwork = base, adapters, hypernetwork
        self.config = config
        self._fingerprint = base.fingerprint if fingerprint is None else fingerprint
        space = adapters.space  # the numbers do not matter: too long a description is found before the work
        self._people(torch.zeros(1, len(space.sites), 1, space.width), None, config.steps)[0].check_description()
        self.faces = self.views = torch.empty(0)
        self.predicted: list[Identity] | None = None
        self.identities: list[Identity] = []
        self._watch = stopwatch(base.device)
        self.samples = 0

    @property
    def seconds(self) -> dict[str, float]:
        """Of each phase so far; what the caller does between two reports is not counted."""
        return self._watch.seconds

    @property
    def people(self) -> list[Identity]:
        """The identities, under the name that people of any method have."""
        return self.identities

    def __iter__(self) -> Iterator[Progress]:
        self._adapters.check_bare()
        note_faults(self._base, self.config.prompt)
        self.views = yield from read_views(self._photos, self._base.picture_size, self._watch)
        self.faces = self.views[:, 0]
        yield Progress(ENCODE, 0, 1)
        latents = self._watch.timed(ENCODE, partial(encode_views, self._base, self.views))  # (N, V, C, h, w)
        yield Progress(PREDICT, 0, 1)
        prediction = self._watch.timed(PREDICT, self._predict)  # (N, S, 1, a + b) or None
        if prediction is not None:
            self.identities = self.predicted = self._people(prediction, None, steps=0)
        yield Progress(PREDICT, 1, 1)
        if self.config.steps:
            yield from self._finetune(latents, prediction)

    def _predict(self) -> Tensor | None:
        if self._hypernetwork is None:
            return None
        counts = [len(of_one) for of_one in self._photos]
        faces = torch.cat([views[:count] for views, count in zip(self.views, counts, strict=True)])
        with hosting(self._base, self._hypernetwork):
            every = self._hypernetwork.predict(faces, self.config.rounds)
        each = every.split(counts)  # N of (photographs, S, 1, a + b)
        return torch.stack([mean_prediction(of_one, self._adapters.space) for of_one in each])

    def _finetune(self, latents: Tensor, prediction: Tensor | None) -> Iterator[Progress]:
        yield Progress(FINETUNE, 0, self.config.steps)
        config, masks = self.config.finetune_in(self._adapters.space), face_masks(latents)
        begin = partial(finetune, self._base, self._adapters, latents, prediction, config, masks=masks)
        tuning = self._watch.timed(FINETUNE, begin)
        reports = iter(tuning)
        while (report := self._watch.timed(FINETUNE, lambda: next(reports, None))) is not None:
            self.samples = report.samples
            yield Progress(FINETUNE, report.step, self.config.steps, report.loss)
        self.identities = self._people(tuning.weights, tuning.lora, self.config.steps)

    def _people(self, weights: Tensor, lora: Tensor | None, steps: int) -> list[Identity]:
        """Packed numbers (N, S, R, a + b) and full-space factors (N, size) as N identities."""
        base, space = self._base, self._adapters.space.of(weights)
        how = self._how(steps)
        return [
            Identity(
                weights=weights[n].float().cpu(),
                space=space.info,
                base=self._fingerprint,
                base_name=base.name,
                prompt=self.config.prompt,
                rare_token=base.rare_token,
                class_noun=base.class_noun,
                how=how | counted(self._photos[n]),
                lora=None if lora is None else lora[n].float().cpu(),
                blocks=space.blocks,
            )
            for n in range(len(weights))
        ]

    def _how(self, steps: int) -> dict[str, str | int | float]:
        """How a person was made, for its file: no times, so that the same work writes the same bytes."""
        config = self.config
        predicted = "none" if self._hypernetwork is None else "yes"
        how: dict[str, str | int | float] = {"method": config.method, "hypernetwork": predicted, "steps": steps}
        if steps:
            space = self._adapters.space
            tuning = config.finetune_in(space)
            fit, rank = tuning.fit_of(self._hypernetwork is not None), tuning.rank_in(space)
            how |= {"noises": config.noises, "relax": tuning.relax, "seed": config.seed}
            how |= {} if tuning.relax == "none" else {"rank": rank}  # of the fresh factors
            how |= {"lr": fit.lr, "samples": steps * config.noises}
        return how


def photos_of(photos: Sequence[Photos]) -> list[list[Photo]]:
    """The photographs of N people, a list for each. Raises UserError where there are none."""
    people = [list(of_one) if isinstance(of_one, list | tuple) else [of_one] for of_one in photos]
    if not people or not all(people):
        raise UserError("got no photographs, expected one of each person")
    return people


def counted(of_one: Sequence[Photo]) -> dict[str, int]:
    """What a person's file says of how many photographs they were made from: nothing where it was one."""
    return {"photographs": len(of_one)} if len(of_one) > 1 else {}


def mean_prediction(predictions: Tensor, space: LiDBSpace) -> Tensor:
    """What was predicted from several photographs of one person, (P, S, R, a + b), as one: their mean in dW."""
    return predictions[0] if len(predictions) == 1 else space.average(list(predictions))


def read_views(people: Sequence[Sequence[Photo]], size: int, watch: Stopwatch) -> Generator[Progress, None, Tensor]:
    """The faces of N people's photographs, (N, V, 3, size, size), with a report before each photograph.

    V is the most that anybody has; who has fewer is seen again from the first one on. What is odd is logged.
    """
    faces: list[list[Tensor]] = []
    total, most = sum(map(len, people)), max(map(len, people))
    for of_one in people:
        faces.append([])
        for photo in of_one:
            yield Progress(READ, sum(map(len, faces)), total)
            crop = watch.timed(READ, partial(read_face, photo, size))
            if crop.note is not None:
                log.warning("%s%s", f"{photo}: " if isinstance(photo, str | Path) else "", crop.note)
            faces[-1].append(crop.picture)
    return torch.stack([torch.stack([*islice(cycle(of_one), most)]) for of_one in faces])


@torch.no_grad()
def encode_views(base: Base, views: Tensor) -> Tensor:
    """Latents (N, V, C, h, w) of pictures (N, V, 3, size, size), no more at once than fit."""
    some = views.flatten(0, 1).split(base.at_once)
    return torch.cat([base.encode_pictures(few) for few in some]).unflatten(0, views.shape[:2])


def read_face(photo: Photo, size: int) -> FaceCrop:
    """The chosen face of a photograph in the training pictures' framing. Raises BadPicture for anything else.

    A face that is cut out already comes back as it is.
    """
    if isinstance(photo, FaceCrop):
        return photo
    if isinstance(photo, LocatedFace):
        return photo.crop(size)
    return crop_face(read_picture(photo) if isinstance(photo, str | Path) else to_picture(photo), size)


def stopwatch(device: torch.device) -> Stopwatch:
    """A stopwatch that waits for what a GPU was given."""
    return Stopwatch(partial(torch.cuda.synchronize, device)) if device.type == "cuda" else Stopwatch()
