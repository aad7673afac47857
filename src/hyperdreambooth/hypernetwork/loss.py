"""The people a hypernetwork learns from, and the loss of those who wear what it predicts: the first term of eq. 2.

Everybody meets the same noises, timesteps and views, so that what differs between two people's losses is who they are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperdreambooth.base.diffusion import PLAIN, Weighting, denoising_loss
from hyperdreambooth.base.model import Base
from hyperdreambooth.lidb import Adapters


@dataclass(frozen=True)
class People:
    """P plain pictures of each of N people, further ones under other prompts, and the numbers of the first M people.

    The encoder sees plain pictures alone; what it predicts from them is judged on all V = P + len(prompts). So it
    learns numbers that keep the person when the prompt changes.
    """

    pictures: Tensor  # (N, P, 3, H, W) uint8, what the encoder sees
    latents: Tensor  # (N, V, C, h, w), what is denoised, first `pictures`, as `Base.encode_pictures` scales them
    numbers: Tensor  # (M, S, 1, a + b), pre-optimised, 2 <= M <= N
    masks: Tensor | None = None  # (N, V, 1, h, w), >= 0, weights of places
    prompts: tuple[str, ...] = ()  # V - P, of the pictures beyond the first P, everybody's alike

    def __post_init__(self) -> None:
        shapes = [tuple(t.shape[:2]) for t in (self.pictures, self.latents, self.masks) if t is not None]
        people, plain = shapes[0]
        expected = (people, plain + len(self.prompts))
        if set(shapes[1:]) != {expected} or not 2 <= len(self.numbers) <= people:
            raise ValueError(
                f"got (N, P) = {shapes[0]} of pictures, (N, V) = {shapes[1:]} of latents and masks, {len(self.prompts)}"
                f" prompts, numbers of {len(self.numbers)} people: expected (N, V) = {expected} and numbers of 2 to N"
            )

    @property
    def plain(self) -> int:
        """P."""
        return int(self.pictures.shape[1])


def denoising_together(
    base: Base,
    adapters: Adapters,
    worn: Tensor,
    people: People,
    rows: Tensor,
    count: int,
    prompt: str,
    generator: torch.Generator,
    weighting: Weighting = PLAIN,
) -> Tensor:
    """Denoising losses (count * n,) of n people who wear `worn` (n, S, 1, a + b), all in the same views and noises.

    Args:
        base, adapters: whose adapters are in the base.
        worn: the numbers of the people in `rows`.
        people: whose latents are denoised.
        rows: (n,) of `people`.
        count: K, draws of a view, a noise and a timestep; the timesteps are spread evenly over all noise levels.
        prompt: of plain pictures.
        generator: of the draws, on the CPU.
        weighting: how much the noise levels count.
    """
    views = torch.randint(people.latents.shape[1], (count,), generator=generator)
    noise = torch.randn((count, *people.latents.shape[2:]), generator=generator)
    levels = (torch.rand(1, generator=generator) + torch.arange(count) / count) % 1.0
    places = rows.repeat(count), views.repeat_interleave(len(rows))  # (K * n,) each, as adapters take it
    levels, noise = (t.repeat_interleave(len(rows), dim=0) for t in (levels, noise))
    return worn_loss(base, adapters, worn, people, places, levels, noise, prompt, weighting)


def worn_loss(
    base: Base,
    adapters: Adapters,
    worn: Tensor | None,
    people: People,
    places: tuple[Tensor, Tensor],
    levels: Tensor,
    noise: Tensor,
    prompt: str,
    weighting: Weighting = PLAIN,
) -> Tensor:
    """The denoising loss (B,) of a base that wears n persons (n, S, 1, a + b), or nobody, each at B / n rows.

    places: rows and views (B,) of `people`; the rows are n persons, tiled. levels: (B,) in [0, 1) of the schedule.
    noise: (B, C, h, w). prompt: of plain pictures.
    """
    device = base.device
    latents = people.latents[places].to(device, torch.float32)  # (B, C, h, w)
    masks = None if people.masks is None else people.masks[places].to(device, torch.float32)
    timesteps = (levels * base.timesteps).long().to(device)
    prompts = [prompt] * (len(latents) if worn is None else len(worn))  # one a person serves all noises
    if people.prompts:
        of_view = [prompt] * people.plain + list(people.prompts)
        prompts = [of_view[view] for view in places[1].tolist()]  # B
    with without_autocast(base), adapters.use(worn):
        states = base.encode_prompts(prompts).repeat(len(latents) // len(prompts), 1, 1)  # (B, L, D)
        return denoising_loss(base, latents, states, timesteps, noise.to(device), masks, weighting)


def without_autocast(base: Base) -> AbstractContextManager[object]:
    """A base in half precision computes in it by itself; a step's autocast would have its norms in float32."""
    whole = base.dtype == torch.float32
    return nullcontext() if whole else torch.autocast(base.device.type, enabled=False)
