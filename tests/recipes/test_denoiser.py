from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError
from hyperdreambooth.files import load_tensors
from hyperdreambooth.fitting.processes import Processes
from hyperdreambooth.fitting.steps import FitConfig, steps
from hyperdreambooth.portraits.captions import Scene, parse
from recipes import denoiser
from recipes.denoiser import Latents, encode, parameters, training_loss
from recipes.pictures import Pictures, random_portraits

SCENES = (Scene("portrait", "neon"), Scene("portrait", edit="wearing a hat"), Scene("portrait", "comic"))


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return random_portraits(np.random.RandomState(0), 5, people=20, size=16)


def world(scenes: tuple[Scene, ...], people: tuple[int, ...], seed: int) -> Latents:
    """Latents of which each is known by its constant value, `seed` and up."""
    return Latents(torch.arange(len(scenes)).view(-1, 1, 1, 1).expand(-1, 4, 8, 8).half() + seed, scenes, people)


def test_encoded_pictures_are_the_bases_latents(tiny_base: Base, pictures: Pictures, tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    assert list(encode(tiny_base, pictures, path, batch=2)) == ["5 of 5 pictures encoded"]
    with torch.no_grad():
        expected = tiny_base.encode_pictures(pictures.pictures.float() / 255)
    assert torch.allclose(load_tensors(path)[0]["latents"].float(), expected, atol=2e-3)
    assert not list(encode(tiny_base, pictures, path))


def test_captions_say_what_the_pictures_show(fresh_base: Base, generator: torch.Generator) -> None:
    """The loss is given each picture's latents under a caption of that picture's scene, some of them dropped."""
    portraits = world(SCENES, (3, 4, 5), seed=0)
    photographs = world((Scene("photo", "watercolor"), Scene("photo")), (-1, -2), seed=10)
    captions, seen = list[str](), list[Tensor]()
    say = fresh_base.encode_prompts

    def encode_prompts(prompts: list[str]) -> Tensor:
        captions.extend(prompts)
        return say(prompts)

    def loss_of(_base: Base, latents: Tensor, *_: object, **__: object) -> Tensor:
        seen.append(latents)
        return latents.sum(dim=(1, 2, 3))

    loss = training_loss(fresh_base, (portraits, photographs), 24, generator)
    say_all, measure = (
        mock.patch.object(fresh_base, "encode_prompts", encode_prompts),
        mock.patch.object(denoiser, "denoising_loss", loss_of),
    )
    with say_all, measure:
        for step in range(10):
            loss(step)
    shown = [int(value) for latents in seen for value in latents[:, 0, 0, 0].tolist()]
    assert len(shown) == len(captions) == 240 and sum(value >= 10 for value in shown) == 120
    scenes = {**dict(enumerate(SCENES)), 10: Scene("photo", "watercolor"), 11: Scene("photo")}
    for value, text in zip(shown, captions, strict=True):
        read, truth = parse(text), scenes[value]
        assert not text or ((read.style, read.edit) == (truth.style, truth.edit) and read.world in (None, truth.world))
    assert 0.03 < captions.count("") / 240 < 0.2
    assert any(" with " in text for value, text in zip(shown, captions, strict=True) if value < 10)
    assert not any(" with " in text for value, text in zip(shown, captions, strict=True) if value >= 10)


def test_timesteps_cover_all_noise_levels(fresh_base: Base, generator: torch.Generator) -> None:
    steps_seen = list[Tensor]()

    def loss_of(_base: Base, latents: Tensor, _states: Tensor, timesteps: Tensor, *_: object, **__: object) -> Tensor:
        steps_seen.append(timesteps)
        return latents.sum(dim=(1, 2, 3))

    with mock.patch.object(denoiser, "denoising_loss", loss_of):
        training_loss(fresh_base, (world(SCENES, (1, 2, 3), 0),), 10, generator)(0)
    assert sorted(int(t) // 100 for t in steps_seen[0]) == list(range(10))


def test_the_loss_falls(fresh_base: Base, generator: torch.Generator) -> None:
    for network in denoiser.networks(fresh_base).values():
        network.requires_grad_(True)
    one = Latents(torch.randn(2, 4, 8, 8, generator=generator).half(), SCENES[:2], (1, 2))
    loss = training_loss(fresh_base, (one,), 8, generator)
    run = steps(parameters(fresh_base), loss, FitConfig(steps=16, lr=3e-3, grad_clip=1.0))
    losses = [report.loss for report in run]
    assert sum(losses[-4:]) < 0.93 * sum(losses[:4])
    assert all(name.startswith(("unet.", "text_encoder.")) for name in run.parameters)


def test_processes_share_the_loss(fresh_base: Base) -> None:
    one = world(SCENES, (1, 2, 3), 0)
    alone, *shares = (
        float(training_loss(fresh_base, (one,), 6, torch.Generator().manual_seed(5), processes)(0))
        for processes in (Processes(), Processes(0, 2), Processes(1, 2))
    )
    assert sum(shares) / 2 == pytest.approx(alone, rel=1e-5) and abs(shares[0] - shares[1]) > 1e-3 * alone
    with pytest.raises(UserError, match="6 samples in a batch and 4 processes"):
        training_loss(fresh_base, (one,), 6, torch.Generator(), Processes(0, 4))
