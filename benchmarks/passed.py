"""How much of a person passes from a picture to the numbers, and how much of a gradient is no person's own?

    python -m benchmarks.passed --people 200

First: two pictures of each tuning portrait, in views of their own; how often is the nearest of the second pictures the
same person's, by the encoder's first feature, by theta, and by the judging recogniser for scale? And how many
directions hold 98 % of the spread? Then: which share of the mean square of people's gradients is the same for all? And
of what is not, by noise level: how large is it, and how much of it comes back under other noises, as the person does?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.judges import Judges
from benchmarks.subjects import PORTRAITS
from hyperdreambooth import HyperDreamBooth
from hyperdreambooth.base.diffusion import denoising_loss
from hyperdreambooth.evaluation.identification import identification_rate
from hyperdreambooth.evaluation.judges import Recogniser
from hyperdreambooth.fitting.fit import Pictures
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.people import encode_people, read_people
from hyperdreambooth.portraits.captions import Scene
from hyperdreambooth.portraits.pictures import draw
from hyperdreambooth.portraits.view import View

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)  # of the noise schedule
HELD = 0.98
_BATCH = 50


@dataclass(frozen=True)
class Passed:
    """How well people are told apart, 0 to 1, and the directions that hold most of the spread between them."""

    right: float
    directions: int


def passed(one: Tensor, other: Tensor) -> Passed:
    """Of what was made of one picture (N, ...) of N people and of another, row by row."""
    one, other = one.flatten(1), other.flatten(1)
    mean = torch.cat([one, other]).mean(dim=0)
    centred = [torch.nn.functional.normalize(t - mean, dim=1) for t in (one, other)]
    rate = identification_rate(centred[0], centred[1], torch.arange(len(one)))
    energy = torch.linalg.svdvals(one - one.mean(dim=0)).square()
    share = energy.cumsum(0) / energy.sum().clamp(min=1e-12)
    return Passed(rate.share, int((share < HELD).sum()) + 1)


@torch.no_grad()
def of_persons(network: HyperNetwork, recogniser: Recogniser, seeds: range, size: int) -> dict[str, Passed]:
    """What passes on the way of portraits with these seeds, by the name of the place."""
    random, scenes = np.random.RandomState(3), [Scene("portrait")] * len(seeds)
    pair = [draw(seeds, [View.sample(random) for _ in seeds], scenes, size) for _ in range(2)]
    device = network.start.device
    features = [torch.cat([network.encoder(some.to(device)) for some in shown.split(_BATCH)]) for shown in pair]
    thetas = [torch.cat([network.decode(some) for some in parts.split(_BATCH)]) for parts in features]
    return {
        "the judging recogniser": passed(*(recogniser.embed(shown) for shown in pair)),
        "the encoder's first feature": passed(*(some[:, 0].cpu() for some in features)),
        "theta": passed(*(theta.cpu() for theta in thetas)),
    }


def common_share(gradients: Tensor) -> float:
    """Share of the mean square of gradients (N, ...) that is the same for all: 1 / N for strangers, 1 if all agree."""
    flat = gradients.flatten(1)
    return float(flat.mean(dim=0).square().sum() / flat.square().sum(dim=1).mean())


def shares(booth: HyperDreamBooth, pictures: Pictures) -> Iterator[tuple[str, list[float]]]:
    """The common share at each of `LEVELS`, by what people (N, V, C, h, w), all at the start, meet together."""
    people, views = pictures.latents.shape[:2]
    one = pictures.latents.shape[2:]
    for name, same_noise, same_view in (
        ("noises and views of their own", False, False),
        ("the same noise, views of their own", True, False),
        ("the same noise and view", True, True),
    ):
        generator, found = torch.Generator().manual_seed(0), list[float]()
        for level in LEVELS:
            noise = torch.randn(1 if same_noise else people, *one, generator=generator).expand(people, *one)
            view = torch.randint(views, (1 if same_view else people,), generator=generator).expand(people)
            found.append(common_share(_gradients(booth, pictures, view, level, noise)))
        yield name, found


@dataclass(frozen=True)
class Own:
    """Of the gradients at one noise level, less what everybody's have in common.

    Attributes:
        square: mean over people and draws of the sum of squares.
        person: share of it that comes back under other noises and in other views, about 0 to 1.
    """

    square: float
    person: float


def own(draws: Tensor) -> Own:
    """Of gradients (D, N, ...) of N people under D draws, of which everybody meets the same."""
    flat = draws.flatten(2)
    flat = flat - flat.mean(dim=1, keepdim=True)
    square = float(flat.square().sum(dim=2).mean())
    halves = flat[0::2].mean(dim=0), flat[1::2].mean(dim=0)  # (N, ...) each: they share the person alone
    return Own(square, float((halves[0] * halves[1]).sum(dim=1).mean()) / max(square, 1e-12))


def own_by_level(booth: HyperDreamBooth, pictures: Pictures, start: Tensor | None, draws: int) -> Iterator[Own]:
    """At each of `LEVELS`, of people (N, V, C, h, w) at `start` (N, S, 1, a + b), or the common start."""
    people, views = pictures.latents.shape[:2]
    generator = torch.Generator().manual_seed(1)
    for level in LEVELS:
        found = list[Tensor]()
        for draw_ in range(draws):
            noise = torch.randn(1, *pictures.latents.shape[2:], generator=generator).expand(people, -1, -1, -1)
            view = torch.full((people,), draw_ // 2 % views)  # both halves see all
            found.append(_gradients(booth, pictures, view, level, noise, start))
        yield own(torch.stack(found))


def _gradients(
    booth: HyperDreamBooth, pictures: Pictures, views: Tensor, level: float, noise: Tensor, start: Tensor | None = None
) -> Tensor:
    """Of each person's loss at one level, on their numbers at the start, (N, S, 1, a + b)."""
    base, people, device = booth.base, torch.arange(len(noise)), booth.base.device
    worn = booth.space.rule.start().expand(len(noise), -1, -1, -1) if start is None else start
    worn = worn.to(device, copy=True).requires_grad_()
    masks = None if pictures.masks is None else pictures.masks[people, views].to(device)
    timesteps, latents = torch.full((len(noise),), int(level * base.timesteps)), pictures.latents[people, views]
    with booth.adapters.use(worn):
        states = base.encode_prompts(["a [V] face"] * len(noise))
        latents, timesteps, noise = (tensor.to(device) for tensor in (latents, timesteps, noise))
        denoising_loss(base, latents, states, timesteps, noise, masks).sum().backward()
    assert worn.grad is not None
    return worn.grad.cpu()


def main(
    people: Annotated[int, typer.Option(help="Tuning portraits who are told apart, 2 to 900.")] = 200,
    strangers: Annotated[int, typer.Option(help="Of them, those whose gradients are compared; 0 is nobody.")] = 32,
    draws: Annotated[int, typer.Option(help="Noises by which their own gradients are compared; 0 is none.")] = 24,
    hypernetwork: Annotated[str, typer.Option(help="A file or a folder.")] = "embedded",
) -> None:
    """Print all tables."""
    torch.set_flush_denormal(True)
    booth = HyperDreamBooth.load("embedded", hypernetwork=hypernetwork)
    seeds, size, console = PORTRAITS["tuning"], booth.base.picture_size, Console()
    if booth.hypernetwork is not None:
        told = of_persons(booth.hypernetwork, Judges.load().recogniser, seeds[:people], size)
        for place, some in told.items():
            console.print(f"{place}: {some.right:.0%} of {people} right, {some.directions} directions hold {HELD:.0%}")
    if strangers:
        some = read_people(f"portraits:{seeds[0]}-{seeds[strangers - 1]}", size, 4, lambda _: None)
        pictures = encode_people(booth.base, some)
        console.print(f"common share of the gradient at {', '.join(map(str, LEVELS))} of the schedule:")
        for name, found in shares(booth, pictures):
            console.print(f"  {name}: {', '.join(f'{share:.2f}' for share in found)}")
    if strangers and draws:
        network = booth.hypernetwork
        start = None if network is None else network.predict(some.pictures[:, 0])
        console.print(
            "of what is not common, where the prediction stands: mean square, and the share that is the person:"
        )
        for level, part in zip(LEVELS, own_by_level(booth, pictures, start, draws), strict=True):
            console.print(f"  {level}: {part.square:.2g}, {part.person:.3f}")


if __name__ == "__main__":
    typer.run(main)
