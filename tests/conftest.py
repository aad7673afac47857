"""What all tests share: a tiny random base, and generators from a fixed seed."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import of the hub's client: tests download nothing
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from hyperdreambooth.base.build import PRESETS, build_base
from hyperdreambooth.base.model import Base, fingerprint_of
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import Adapters, LiDBSpace, LoRALayout, inject
from hyperdreambooth.pipeline import HyperDreamBooth, space_of

WORDS = "a photo portrait pencil sketch watercolor of in the snow at beach style wearing hat".split()


@pytest.fixture(scope="session")
def tiny_base() -> Base:
    """A base of half a million random numbers, 16 x 16 pictures; tests must leave it as it was."""
    return build_base(PRESETS["tiny"], WORDS, seed=0)


@pytest.fixture
def fresh_base() -> Base:
    """The same base, for a test that changes it."""
    return build_base(PRESETS["tiny"], WORDS, seed=0)


@dataclass
class AdaptedBase:
    """A base with adapters in it."""

    base: Base
    adapters: Adapters

    @property
    def space(self) -> LiDBSpace:
        return self.adapters.space


def adapted_base() -> tuple[Base, Adapters]:
    """A tiny random base, and the adapters that were injected into it."""
    base = build_base(PRESETS["tiny"], ["a", "face"])
    models = {"unet": base.unet, "text_encoder": base.text_encoder}
    return base, inject(models, space_of(base))


@contextmanager
def left_as_it_was(base: Base) -> Iterator[None]:
    """Fail where what is inside has changed a number of the base."""
    before = fingerprint_of(base.text_encoder, base.unet)
    yield
    assert fingerprint_of(base.text_encoder, base.unet) == before


@pytest.fixture(scope="module")
def booth(tiny_base: Base) -> Iterator[HyperDreamBooth]:
    """A booth without a hypernetwork; nothing may change its base."""
    with left_as_it_was(tiny_base):
        booth = HyperDreamBooth(tiny_base)
        yield booth
        booth.adapters.eject()


@pytest.fixture
def generator() -> torch.Generator:
    """A generator on the CPU, seeded anew for every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def generator_of() -> Callable[[int], torch.Generator]:
    """Generators on the CPU by seed."""
    return lambda seed: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def base_folder(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base in a folder, as `HyperDreamBooth.load` and `hdb --base` take it."""
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    tiny_base.save(folder)
    return folder


@pytest.fixture(scope="session")
def portrait_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portrait as a picture file."""
    from hyperdreambooth.portraits.person import Person
    from hyperdreambooth.portraits.renderer import render
    from hyperdreambooth.portraits.view import View
    from hyperdreambooth.sheet import save_png, to_image

    path = tmp_path_factory.mktemp("photos") / "alice.png"
    save_png(path, to_image(render([Person(7)], [View()], 96)[0]))
    return path


@pytest.fixture
def quick_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations draw in two steps of the sampler."""
    from hyperdreambooth.evaluation.protocol import Asked

    drawing = Asked.drawing
    monkeypatch.setattr(Asked, "drawing", lambda one, method: replace(drawing(one, method), steps=2))


def somebody(booth: HyperDreamBooth, seed: int, ranks: int = 1, lora_rank: int = 0) -> Identity:
    """A person strong enough to change a picture by far more than rounding."""
    random = torch.Generator().manual_seed(seed)
    start = booth.space.start(ranks)
    layout = LoRALayout(booth.space.sites, lora_rank)
    lora = 0.2 * torch.randn(layout.size, generator=random) if lora_rank else None
    weights = start + 0.5 * torch.randn(start.shape, generator=random)
    return Identity(weights, booth.space.info, booth.fingerprint, lora=lora)
