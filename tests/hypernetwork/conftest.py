"""A tiny random base with adapters in it, and a hypernetwork for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hyperdreambooth.hypernetwork.loss import People
from hyperdreambooth.hypernetwork.model import PRESETS, HyperNetwork, build_hypernetwork
from tests.conftest import AdaptedBase, adapted_base, left_as_it_was


class World(AdaptedBase):
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
    return World(*adapted_base())


@pytest.fixture
def world(session_world: World) -> Iterator[World]:
    """The same base for all tests: nothing here may change it."""
    with left_as_it_was(session_world.base):
        yield session_world
