"""Stage: U-Net and text encoder together, on cached latents of both worlds, by the denoising loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hyperdreambooth.base.diffusion import denoising_loss
from hyperdreambooth.base.model import Base
from hyperdreambooth.portraits.captions import Scene, training_caption
from hyperdreambooth.portraits.person import Person
from recipes.pictures import Pictures, as_floats

CAPTION_DROPPED = 0.1  # for classifier-free guidance
MIN_SNR = 5.0


@dataclass(frozen=True)
class Latents:
    """The latents (N, C, h, w) float16 of `Pictures`, with what each one shows."""

    latents: Tensor
    scenes: tuple[Scene, ...]
    people: tuple[int, ...]


@torch.no_grad()
def encode(base: Base, pictures: Pictures, batch: int = 100) -> Latents:
    """The latents of all pictures."""
    parts = [base.encode_pictures(as_floats(some)).half().cpu() for some in pictures.pictures.split(batch)]
    return Latents(torch.cat(parts), pictures.scenes, pictures.people)


def training_loss(
    base: Base, worlds: tuple[Latents, ...], batch: int, generator: torch.Generator
) -> Callable[[int], Tensor]:
    """The loss of a step: `batch` samples, the worlds in equal shares, each with fresh caption, noise and timestep."""

    def loss(_step: int) -> Tensor:
        drawn = [_draw(world, batch // len(worlds), generator) for world in worlds]
        latents = torch.cat([latents for latents, _ in drawn]).to(base.device)  # (N, C, h, w)
        states = base.encode_prompts([caption for _, captions in drawn for caption in captions])  # (N, L, D)
        # The timesteps of a batch are spread evenly over all noise levels.
        spread = (torch.rand(1, generator=generator) + torch.arange(len(latents)) / len(latents)) % 1.0
        timesteps = (spread * base.timesteps).long().to(base.device)  # (N,)
        noise = torch.randn(latents.shape, generator=generator).to(base.device)
        order = torch.randperm(len(latents), generator=generator).to(base.device)
        return denoising_loss(base, latents, states, timesteps[order], noise, min_snr=MIN_SNR).mean()

    return loss


def _draw(world: Latents, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """`count` random pictures of a world, as latents and captions."""
    rows = torch.randint(len(world.people), (count,), generator=generator)
    random = np.random.RandomState(int(torch.randint(2**31, (), generator=generator)))
    captions = [
        "" if random.rand() < CAPTION_DROPPED else _caption(world.scenes[row], world.people[row], random)
        for row in rows.tolist()
    ]
    return world.latents[rows].float(), captions


def _caption(scene: Scene, person: int, random: np.random.RandomState) -> str:
    return training_caption(scene, Person(person) if person >= 0 else None, random)
