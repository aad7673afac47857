"""Fit any tensors to pictures of people with the denoising loss: N people in one batch, K noises per step.

People in one batch are strangers: the loss is the sum of their own losses and Adam works number by number, so fitting
N people at once gives what fitting them one by one gives. For that, everybody meets the same noises, timesteps and
views at the same step (`NoiseSequence`), which is also what makes the numbers of two people comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hyperdreambooth.base.diffusion import PLAIN, Weighting, denoising_loss
from hyperdreambooth.base.model import Base
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run, steps
from hyperdreambooth.lidb.basis import random_state

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Objective:
    """What is minimised, beside the pictures themselves.

    `pull` weighs the squared distance of a person's numbers from where they began, against the person's mean denoising
    loss. `window` is the share of the noise schedule that timesteps are drawn from, (0, 1) being all of it.
    """

    prompt: str = "a [V] face"
    noises: int = 2  # K, samples through the U-Net per person and step
    seed: int = 0  # of the noise sequence
    window: tuple[float, float] = (0.0, 1.0)
    pull: float = 0.0
    weighting: Weighting = PLAIN  # of the noise levels


@dataclass(frozen=True)
class Pictures:
    """V pictures of each of N people; where `masks` are given, places count by their weight."""

    latents: Tensor  # (N, V, C, h, w), as `Base.encode_pictures` scales them
    masks: Tensor | None = None  # (N, V, 1, h, w), >= 0

    def __post_init__(self) -> None:
        shape = tuple(self.latents.shape)
        if len(shape) != 5:
            raise ValueError(f"got latents of shape {shape}, expected (N, V, C, h, w)")
        masks = None if self.masks is None else tuple(self.masks.shape)
        expected = (*shape[:2], 1, *shape[3:])
        if masks is not None and masks != expected:
            raise ValueError(f"got masks of shape {masks} for latents of shape {shape}, expected {expected}")

    def of(self, people: Sequence[int]) -> Pictures:
        """Those of some of the people alone, by their rows."""
        rows = list(people)
        return Pictures(self.latents[rows], None if self.masks is None else self.masks[rows])

    def views(self, chosen: Tensor) -> tuple[Tensor, Tensor | None]:
        """The chosen views (K,) of everybody: latents (K * N, C, h, w) and masks (K * N, 1, h, w); all N, K times."""
        latents = self.latents[:, chosen].transpose(0, 1).flatten(0, 1)  # (K * N, C, h, w)
        masks = None if self.masks is None else self.masks[:, chosen].transpose(0, 1).flatten(0, 1)
        return latents, masks


@dataclass(frozen=True)
class Prior:
    """Pictures of the class that are to stay as likely as they were: DreamBooth's prior preservation.

    Attributes:
        latents: (M, C, h, w) of pictures that the base itself drew of nobody.
        prompt: that they were drawn for.
        weight: of their loss against a person's.
    """

    latents: Tensor
    prompt: str = "a face"
    weight: float = 1.0


@dataclass(frozen=True)
class Draw:
    """What everybody meets at one step."""

    timesteps: Tensor  # (K,) int64
    noise: Tensor  # (K, C, h, w) float32
    views: Tensor  # (K,) int64


@dataclass(frozen=True)
class NoiseSequence:
    """The noises, timesteps and views of a fit, a pure function of the seed and the step: the same on every machine.

    Timesteps are stratified. Within a step there is one in each of the K equal parts of the window; from step to step
    their place in the part moves on by the golden ratio, which covers it evenly after any number of steps. Views are
    dealt without repeats as far as there are enough of them.
    """

    shape: tuple[int, int, int]  # (C, h, w) of one picture's latents
    timesteps: int  # T, the length of the noise schedule
    views: int  # V
    noises: int  # K
    seed: int = 0
    window: tuple[float, float] = (0.0, 1.0)

    def draw(self, step: int) -> Draw:
        """What everybody meets at this step."""
        shift = (random_state("timesteps", self.seed).random_sample() + step * _GOLDEN) % 1.0
        low, high = self.window
        levels = low + (high - low) * (np.arange(self.noises) + shift) / self.noises  # (K,) in the window
        random = random_state("noises", self.seed, step)
        views = np.resize(random.permutation(self.views), self.noises)
        noise = random.standard_normal((self.noises, *self.shape))
        return Draw(
            timesteps=torch.from_numpy((levels * self.timesteps).astype(np.int64)),
            noise=torch.from_numpy(noise.astype(np.float32)),
            views=torch.from_numpy(views.astype(np.int64)),
        )


def fit(
    base: Base,
    parameters: Mapping[str, Tensor],
    wear: Callable[[], AbstractContextManager[None]],
    pictures: Pictures,
    objective: Objective,
    config: FitConfig,
    *,
    prior: Prior | None = None,
    states: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Fit tensors so that `base`, wearing them, draws these people for the prompt: an iterable of StepReports.

    Args:
        base: frozen; runs in its own precision, in float16 under a scaled loss.
        parameters: what is fitted, by name: leaf tensors on the base's device, usually with a leading N; changed in
            place. Those of different people must be different numbers, or the same to all of them by intent.
        wear: makes the context in which the base wears the parameters as they are now, as
            `lambda: adapters.use(parameters["weights"])`. The batch is the N people, tiled K times.
        pictures: what is fitted to.
        objective: prompt, noises and pull.
        config: the steps. `grad_clip` is refused with several people: the norm would tie them to each other.
        prior: pictures of the class, as many of them at each step as noises, under noises of their own.
        states: (N, L, D) of the prompt, where no parameter changes them; else it is encoded anew at every step, by N
            rows, as the text encoder is adapted too.
        checkpoint: where the run keeps itself.

    Returns:
        The run; its reports carry the loss summed over people, the metric `denoising`, the mean denoising loss of a
        person, and the samples through the U-Net.
    """
    people, views = pictures.latents.shape[:2]
    if config.grad_clip is not None and people > 1:
        raise ValueError(
            "grad_clip ties people of one batch to each other, expected None: fit one person, or unclipped"
        )
    device = base.device
    pictures = Pictures(
        pictures.latents.to(device, torch.float32),
        None if pictures.masks is None else pictures.masks.to(device, torch.float32),
    )
    channels, height, width = pictures.latents.shape[2:]
    sequence = NoiseSequence(
        (channels, height, width), base.timesteps, views, objective.noises, objective.seed, objective.window
    )
    start = {name: p.detach().clone() for name, p in parameters.items()}
    kept = None if prior is None else _kept(base, prior, people, objective)

    def loss(step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        parts = [_Part(pictures, objective.prompt, sequence.draw(step), states)]
        if kept is not None:
            parts.append(kept(step))
        denoising, *of_class = _denoising(base, wear, parts, objective.weighting)  # (N,) each
        total = denoising.sum()
        if prior is not None:
            total = total + prior.weight * of_class[0].sum()
        if objective.pull:
            distance = torch.stack([(parameters[name] - start[name]).square().sum() for name in start]).sum()
            total = total + objective.pull * distance
        return total, {"denoising": denoising.detach().mean()}  # read behind the backward pass: a GPU is not waited for

    samples = people * objective.noises * (1 if prior is None else 2)
    half = base.dtype == torch.float16
    return steps(parameters, loss, config, checkpoint=checkpoint, samples=samples, scaled=half)


@dataclass(frozen=True)
class _Part:
    """What a step draws for one prompt, of N people."""

    pictures: Pictures
    prompt: str
    draw: Draw
    states: Tensor | None = None  # (N, L, D) of the prompt, if they are known


def _kept(base: Base, prior: Prior, people: int, objective: Objective) -> Callable[[int], _Part]:
    """The class's pictures of a step: the same for everybody, under noises of their own."""
    count, channels, height, width = prior.latents.shape
    latents = prior.latents.to(base.device, torch.float32)
    pictures = Pictures(latents.expand(people, *latents.shape))  # (N, M, C, h, w)
    sequence = NoiseSequence(
        (channels, height, width), base.timesteps, count, objective.noises, objective.seed + 1, objective.window
    )
    return lambda step: _Part(pictures, prior.prompt, sequence.draw(step))


def _denoising(
    base: Base, wear: Callable[[], AbstractContextManager[None]], parts: Sequence[_Part], weighting: Weighting
) -> list[Tensor]:
    """Each person's mean denoising loss over the K noises, (N,) of each of P parts; all rows go through together."""
    people, device = len(parts[0].pictures.latents), base.device
    noises = len(parts[0].draw.timesteps)
    views = [part.pictures.views(part.draw.views.to(device)) for part in parts]  # of (K * N, ...)
    latents = torch.cat([latents for latents, _ in views])  # (P * K * N, C, h, w)
    masks = None
    if any(mask is not None for _, mask in views):  # a mean over weights of 1 is the plain mean
        masks = torch.cat([x.new_ones(len(x), 1, *x.shape[2:]) if mask is None else mask for x, mask in views])
    timesteps = torch.cat([part.draw.timesteps for part in parts]).to(device).repeat_interleave(people)
    noise = torch.cat([part.draw.noise for part in parts]).to(device).repeat_interleave(people, dim=0)
    with wear():
        unread = [part.prompt for part in parts if part.states is None for _ in range(people)]
        read = iter(base.encode_prompts(unread).split(people) if unread else ())  # (N, L, D) each
        each = [next(read) if part.states is None else part.states for part in parts]
        states = torch.cat([own.repeat(noises, 1, 1) for own in each])  # (P * K * N, L, D)
        losses = denoising_loss(base, latents, states, timesteps, noise, masks, weighting)  # (P * K * N,)
    return list(losses.view(len(parts), noises, people).mean(dim=1))
