"""A tiny random base with adapters in it, and a hypernetwork for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from hyperdreambooth.base.build import PRESETS as BASES
from hyperdreambooth.base.build import build_base
from hyperdreambooth.base.model import Base, fingerprint_of
from hyperdreambooth.hypernetwork.model import PRESETS, HyperNetwork, build_hypernetwork
from hyperdreambooth.hypernetwork.training import People
from hyperdreambooth.lidb import Adapters, LiDBSpace, find_sites, inject


@dataclass
class World:
    base: Base
    adapters: Adapters

    @property
    def space(self) -> LiDBSpace:
        return self.adapters.space

    def network(self, seed: int = 0) -> HyperNetwork:
        return build_hypernetwork(PRESETS["tiny"], self.space, self.base.fingerprint, self.base.name, seed)

    def people(self, count: int, views: int = 2, seed: int = 0) -> People:
        """People whose flat colour decides their numbers, linearly; latents are of that colour too."""
        random = torch.Generator().manual_seed(seed)
        start = self.space.start()
        meaning = torch.randn(3, start.numel(), generator=torch.Generator().manual_seed(99))
        colour = torch.rand(count, 3, generator=random)
        numbers = start + 0.1 * ((colour - 0.5) @ meaning).view(count, *start.shape)
        pictures = (colour[:, None, :, None, None] * 255).byte().expand(count, views, 3, 16, 16)
        channels, *size = self.base.latent_shape
        flat = colour @ torch.randn(3, channels, generator=torch.Generator().manual_seed(98))
        return People(pictures, flat[:, None, :, None, None].expand(count, views, channels, *size), numbers)


@pytest.fixture(scope="session")
def session_world() -> World:
    base = build_base(BASES["tiny"], ["a", "face"])
    models = {"unet": base.unet, "text_encoder": base.text_encoder}
    return World(base, inject(models, LiDBSpace(find_sites(**models), base.card.a, base.card.b)))


@pytest.fixture
def world(session_world: World) -> Iterator[World]:
    """The same base for all tests: nothing here may change it."""
    base = session_world.base
    before = fingerprint_of(base.text_encoder, base.unet)
    yield session_world
    assert fingerprint_of(base.text_encoder, base.unet) == before
