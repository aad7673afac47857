"""Samplers of diffusers: which of them a base may have, and where the noise that they add comes from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from hyperdreambooth.errors import BadBase, one_line

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def noise_source(scheduler: SchedulerMixin, generators: Sequence[torch.Generator] | None) -> dict[str, Any]:
    """What to hand to `scheduler.step` beside latents, so that noise it adds comes from these generators, one a row."""
    takes_any = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": list(generators)} if takes_any and generators is not None else {}


def scheduler_of(config: Mapping[str, Any], where: str) -> SchedulerMixin:
    """The scheduler that a configuration names. Raises `BadBase`, naming `where` it stands, for one of no use here."""
    cls = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin) and hasattr(cls, "from_config")):
        raise BadBase(f"{where} names {config.get('_class_name')!r}, expected a scheduler of diffusers")
    scheduler = cls.from_config(config)
    predicted = scheduler.config.get("prediction_type")
    if predicted not in PREDICTION_TYPES or not hasattr(scheduler, "alphas_cumprod"):
        raise BadBase(f"{where} predicts {predicted!r}, expected one of {', '.join(PREDICTION_TYPES)}")
    _check_follows_seeds(where, cls, config)
    return scheduler


def _check_follows_seeds(where: str, cls: Any, config: Mapping[str, Any]) -> None:
    """Raise `BadBase` for a sampler that adds noise of its own: pictures would not depend on their seeds alone."""

    def first_step(seed: int) -> Tensor:
        scheduler = cls.from_config(config)
        scheduler.set_timesteps(4)
        latents, added = torch.ones(1, 4, 8, 8), noise_source(scheduler, [torch.Generator().manual_seed(0)])
        torch.manual_seed(seed)
        output = torch.zeros_like(scheduler.scale_model_input(latents, scheduler.timesteps[0]))
        return scheduler.step(output, scheduler.timesteps[0], latents, return_dict=False, **added)[0]

    try:
        with torch.random.fork_rng(devices=()):
            same = torch.equal(first_step(0), first_step(1))
    except Exception as error:  # samplers of other kinds of models, or with needs of their own
        raise BadBase(
            f"{where} names {cls.__name__!r}, which cannot draw ({one_line(error)}), expected a sampler of "
            "Stable Diffusion: name another one, such as DDIMScheduler"
        ) from error
    if not same:
        raise BadBase(
            f"{where} names {cls.__name__!r}, which adds noise of its own, expected a sampler whose "
            "pictures depend on their seed alone: name another one, such as DDIMScheduler"
        )
