"""DreamBooth (Ruiz et al., arXiv 2208.12242): all weights of the U-Net are the person.

One photograph for the prompt with the rare token, and beside it, so that the class stays what it was, pictures of the
class that the base drew itself (prior preservation).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from hyperdreambooth.base.model import Base
from hyperdreambooth.baselines.work import Fitting, TunedWork, Tuning, how_made, trained_copy
from hyperdreambooth.drawing import DrawConfig, draw
from hyperdreambooth.errors import BadFile, WorkError
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.fitting.fit import Objective, Pictures, Prior, fit
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.personalization import Photos
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.progress import Progress, log

PHASE = "draw class"


@dataclass(frozen=True)
class PriorConfig:
    """The pictures of the class: how many the base draws of nobody, for which prompt, and what they weigh."""

    pictures: int = 200
    prompt: str = "a face"
    weight: float = 1.0
    drawing: DrawConfig = DrawConfig(seed=500_000, likeness=None)  # noqa: RUF009  # frozen


@dataclass(frozen=True)
class DreamBooth(Tuning):
    """How DreamBooth is fitted: a step is one photograph and one picture of the class."""

    name: str = "dreambooth"
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=1200, lr=5e-5))
    objective: Objective = field(default_factory=lambda: Objective(noises=1))
    text_encoder: bool = False  # whether its weights are the person too
    prior: PriorConfig | None = PriorConfig()
    at_once: ClassVar[int] = 1  # each has a copy of all weights

    def personalizing(self, booth: HyperDreamBooth, photos: Sequence[Photos], seed: int = 0) -> TunedWork:
        """N photographs, one person after the other; the class's pictures are drawn first, once per base."""
        objective, prior = replace(self.objective, seed=seed), list[Prior]()

        def prepare() -> Iterator[Progress]:
            if self.prior is not None:
                prior.append((yield from class_pictures(booth, self.prior)))

        def begin(base: Base, pictures: Pictures, _faces: Tensor) -> Fitting:
            return self.begin(base, pictures, objective, prior[0] if prior else None)

        how = how_made(self.name, self.fit, objective)
        return TunedWork(booth, photos, begin, how, objective.prompt, prepare=prepare)

    def begin(self, base: Base, pictures: Pictures, objective: Objective, prior: Prior | None) -> Fitting:
        """The fit of one person on a copy of the base's weights."""
        tuned = trained_copy(base, self.text_encoder)
        parameters = {f"unet.{name}": p for name, p in tuned.unet.named_parameters()}
        if self.text_encoder:
            parameters |= {f"text_encoder.{name}": p for name, p in tuned.text_encoder.named_parameters()}
        for parameter in parameters.values():
            parameter.requires_grad_()
        run = fit(tuned, parameters, nullcontext, pictures, objective, self.fit.on(base.dtype), prior=prior)

        def tensors() -> list[Mapping[str, Tensor]]:
            return [{name: p.detach().cpu() for name, p in run.averages.items()}]

        return Fitting(run, tensors)


def class_pictures(booth: HyperDreamBooth, config: PriorConfig) -> Generator[Progress, None, Prior]:
    """The latents of pictures that the base draws of the class; kept in the user's cache, so drawn once per base.

    What is kept and damaged is drawn again; where nothing can be kept, they are used all the same.
    """
    path = _cached(booth, config)
    if (kept := _read(path)) is None:
        log.warning("drawing %d pictures of the class, once for this base: kept in %s", config.pictures, path)
        latents, batch = list[Tensor](), config.drawing.batch
        for first in range(0, config.pictures, batch):
            yield Progress(PHASE, first, config.pictures)
            count = min(batch, config.pictures - first)
            drawing = replace(config.drawing, count=count, seed=config.drawing.seed + first)
            drawn = draw(booth.base, booth.adapters, [None], [config.prompt], drawing)
            with torch.no_grad():
                latents.append(booth.base.encode_pictures(drawn).cpu().half())  # (count, C, h, w)
        kept = torch.cat(latents)
        try:
            save_tensors(path, {"latents": kept})
        except WorkError as error:
            log.warning("the pictures of the class are not kept: %s", error)
    return Prior(kept.float(), config.prompt, config.weight)


def _cached(booth: HyperDreamBooth, config: PriorConfig) -> Path:
    """The file of these pictures; what they weigh does not change them."""
    what = repr((booth.fingerprint, config.pictures, config.prompt, config.drawing))
    return cache_folder() / f"class-{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"


def _read(path: Path) -> Tensor | None:
    """The latents of a file, (N, C, h, w); None where there are none."""
    try:
        return load_tensors(path)[0]["latents"]
    except (BadFile, KeyError):
        return None


def cache_folder() -> Path:
    """Where what can be made again is kept: `hyperdreambooth` in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hyperdreambooth"
