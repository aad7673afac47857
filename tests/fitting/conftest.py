"""A tiny random base with adapters in it, and pictures of a few people for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hyperdreambooth.fitting.fit import Pictures
from tests.conftest import AdaptedBase, adapted_base, left_as_it_was


class World(AdaptedBase):
    def pictures(self, people: int, views: int = 1, masks: bool = False) -> Pictures:
        """Random latents, each person's around a mean of its own, and random soft masks."""
        random = torch.Generator().manual_seed(3)
        shape = self.base.latent_shape
        mean = torch.randn(people, 1, *shape, generator=random)
        latents = mean + 0.3 * torch.randn(people, views, *shape, generator=random)
        return Pictures(latents, torch.rand(people, views, 1, *shape[1:], generator=random) if masks else None)

    def people(self, count: int, ranks: int = 1) -> torch.Tensor:
        """(N, S, R, a + b): what a hypernetwork might have predicted."""
        random = torch.Generator().manual_seed(4)
        start = self.space.start(ranks)
        return start + 0.3 * torch.randn(count, *start.shape, generator=random)


def assert_same_fit(one: torch.Tensor, other: torch.Tensor, start: torch.Tensor) -> None:
    """Two fits differ by rounding only: 0.1 % of the way from their start.

    Not number by number: Adam takes full steps on gradients that are all rounding.
    """
    assert one.shape == other.shape
    moved, apart = (one - start).norm().item(), (one - other).norm().item()
    assert moved > 0 and apart < 1e-3 * moved, f"moved by {moved}, apart by {apart}"


def make_world() -> World:
    return World(*adapted_base())


@pytest.fixture(scope="session")
def session_world() -> World:
    return make_world()


@pytest.fixture
def world(session_world: World) -> Iterator[World]:
    """The same base for all tests: nothing here may change it."""
    with left_as_it_was(session_world.base):
        yield session_world


@pytest.fixture
def fresh_world() -> World:
    """One to change."""
    return make_world()
