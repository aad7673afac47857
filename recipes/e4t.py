"""Stage: what E4T learns beforehand, on the people whom the hypernetwork learns from and with its eyes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hyperdreambooth.baselines.e4t import E4TNetwork, e4t_network, pretraining_loss
from hyperdreambooth.hypernetwork.loss import People
from hyperdreambooth.people import Crowd
from hyperdreambooth.pipeline import HyperDreamBooth
from recipes.judges import fresh

PULL = 0.01  # towards the class noun's word
_DRAWS, _NOISES = 8, 4  # of a view, and of noises of each, that a score is the mean of


def fresh_network(booth: HyperDreamBooth) -> E4TNetwork:
    """One with random weights that depend on a seed alone."""
    return fresh(lambda: e4t_network(booth))


def people_of(crowd: Crowd, booth: HyperDreamBooth) -> People:
    """A crowd as the loss takes it; nobody of it is pre-optimised, so the numbers are the start's."""
    start = booth.space.rule.start()
    nobody = start.expand(2, *start.shape)
    return People(crowd.pictures, crowd.latents, nobody, crowd.masks, crowd.prompts)


def own_scores(network: E4TNetwork, booth: HyperDreamBooth, people: People) -> dict[str, float]:
    """The denoising loss of people under their predicted words and everybody's offsets, and under the class noun alone.

    People are those that it never saw; both meet the same noises.
    """
    assert booth.hypernetwork is not None  # by `e4t_network`
    nobody, scores = fresh_network(booth), dict[str, float]()
    torch.nn.init.zeros_(nobody.head[-1].weight)
    rows, eyes = torch.arange(len(people.pictures)), booth.hypernetwork.encoder
    for name, one in {"denoising": network, "denoising, nobody's word": nobody}.items():
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            losses = [
                pretraining_loss(one, eyes, booth.base, booth.adapters, people, rows, _NOISES, 0.0, generator)
                for _ in range(_DRAWS)
            ]
        scores[f"portraits it never saw, {name}"] = float(torch.stack(losses).mean())
    return scores


def training_loss(
    network: E4TNetwork,
    booth: HyperDreamBooth,
    worlds: Sequence[People],
    people: int,
    noises: int,
    generator: torch.Generator,
) -> Callable[[int], tuple[Tensor, Mapping[str, float]]]:
    """The loss of a step: `people` of one world, the worlds in turn."""
    assert booth.hypernetwork is not None  # by `e4t_network`
    eyes = booth.hypernetwork.encoder

    def loss(step: int) -> tuple[Tensor, Mapping[str, float]]:
        world = worlds[step % len(worlds)]
        rows = torch.randperm(len(world.pictures), generator=generator)[:people]
        total = pretraining_loss(network, eyes, booth.base, booth.adapters, world, rows, noises, PULL, generator)
        return total, {}

    return loss
