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


def fresh_network(booth: HyperDreamBooth) -> E4TNetwork:
    """One with random weights that depend on a seed alone."""
    return fresh(lambda: e4t_network(booth))


def people_of(crowd: Crowd, booth: HyperDreamBooth) -> People:
    """A crowd as the loss takes it; nobody of it is pre-optimised, so the numbers are the start's."""
    start = booth.space.rule.start()
    nobody = start.expand(2, *start.shape)
    return People(crowd.pictures, crowd.latents, nobody, crowd.masks, crowd.prompts)


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
