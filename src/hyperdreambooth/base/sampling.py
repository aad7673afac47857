"""Samplers of diffusers: the loop over their steps, where the noise that they add comes from, which a base may have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from hyperdreambooth.errors import BadBase, one_line

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noisy latents (N, C, h, w), timesteps and text states (N, L, D) to the U-Net's raw output."""


def started(own: SchedulerMixin, steps: int, device: torch.device | None = None) -> Any:
    """A scheduler of one sampling's own, at its first of so many steps: samplings at the same time share nothing."""
    scheduler: Any = type(own).from_config(own.config)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def denoised(
    scheduler: Any,
    predict: Predict,
    states: Tensor,
    factors: Sequence[float],
    latents: Tensor,
    rescale: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """The loop of `Base.sample_mixed`: noise (N, C, h, w) to clean latents, by a scheduler from `started`."""
    added = noise_source(scheduler, generators)
    answers, states = len(states), states.flatten(0, 1)  # (K * N, L, D)
    latents = latents.float() * scheduler.init_noise_sigma
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        rows = scheduler.scale_model_input(latents.repeat(answers, 1, 1, 1), timestep)  # (K * N, C, h, w)
        parts = predict(rows, timestep, states).float().chunk(answers)  # K of (N, C, h, w)
        output = torch.stack([factor * part for factor, part in zip(factors, parts, strict=True)]).sum(dim=0)
        output = rescaled(output, parts[-1], rescale)
        latents = scheduler.step(output, timestep, latents, return_dict=False, **added)[0]
        if progress is not None:
            progress(done, len(scheduler.timesteps))
    return latents


def rescaled(guided: Tensor, answer: Tensor, share: float) -> Tensor:
    """A guided output (N, C, h, w), brought back by a share to the spread of the answer to the prompt.

    Guidance stretches contrast and colours; this is sec. 3.4 of Lin et al., arXiv 2305.08891. 0 leaves all as it is.
    """
    if share == 0:
        return guided
    every = list(range(1, guided.dim()))
    factor = answer.std(dim=every, keepdim=True) / guided.std(dim=every, keepdim=True)
    return guided * (share * factor + (1 - share))


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
