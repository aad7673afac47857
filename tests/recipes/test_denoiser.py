from __future__ import annotations

from itertools import islice
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
from recipes.denoiser import (
    SHAPES_AGAIN,
    WORDS_WEIGHT,
    Latents,
    encode,
    parameters,
    training_loss,
    word_reader,
    words_loss,
)
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


def test_encoding_goes_on_where_it_was_stopped(fresh_base: Base, pictures: Pictures, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.safetensors", tmp_path / "cache" / "latents.safetensors"
    list(encode(fresh_base, pictures, whole, batch=1, together=2))
    encoded, plain = list[Tensor](), fresh_base.encode_pictures

    def noted(some: Tensor) -> Tensor:
        encoded.append(some)
        return plain(some)

    def parts(most: int | None = None) -> list[str]:
        return list(islice(encode(fresh_base, pictures, path, batch=1, together=2), most))

    with mock.patch.object(fresh_base, "encode_pictures", noted):
        assert parts(1) == ["2 of 5 pictures encoded"] and not path.exists()
        kept = next(path.parent.iterdir()).read_bytes()
        assert parts() == [f"{done} of 5 pictures encoded" for done in (2, 4, 5)]
        assert torch.equal(torch.cat(encoded), pictures.pictures.float() / 255)  # in order, once each
        assert path.read_bytes() == whole.read_bytes() and list(path.parent.iterdir()) == [path]

        path.unlink()
        encoded.clear()
        part = path.with_name("latents.part-0000.safetensors")
        part.write_bytes(kept)
        parts()
        assert len(encoded) == 3
        path.unlink()
        encoded.clear()
        part.write_bytes(kept)
        with torch.no_grad():
            next(fresh_base.vae.parameters()).mul_(1.5)
        parts()
        assert len(encoded) == 5 and path.read_bytes() != whole.read_bytes()  # nothing of the VAE before


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

    loss = training_loss(fresh_base, (portraits, photographs), 24, generator, word_reader(fresh_base))
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


def test_shapes_are_shown_more_often(fresh_base: Base, generator: torch.Generator) -> None:
    """Of hats and far domains against all others, colours among them: counted in what is drawn."""
    scenes = (*SCENES, Scene("portrait", domain="doll"), Scene("portrait", edit="with blue hair"))
    seen = list[Tensor]()

    def loss_of(_base: Base, latents: Tensor, *_: object, **__: object) -> Tensor:
        seen.append(latents[:, 0, 0, 0])
        return latents.sum(dim=(1, 2, 3))

    with mock.patch.object(denoiser, "denoising_loss", loss_of):
        loss = training_loss(fresh_base, (world(scenes, (3, 4, 5, 6, 7), 0),), 300, generator, word_reader(fresh_base))
        for step in range(4):
            loss(step)
    counts = torch.cat(seen).long().bincount(minlength=5).tolist()
    often, seldom = (counts[1] + counts[3]) / 2, (counts[0] + counts[2] + counts[4]) / 3
    assert often / seldom == pytest.approx(SHAPES_AGAIN, rel=0.25)


def test_timesteps_cover_all_noise_levels(fresh_base: Base, generator: torch.Generator) -> None:
    steps_seen = list[Tensor]()

    def loss_of(_base: Base, latents: Tensor, _states: Tensor, timesteps: Tensor, *_: object, **__: object) -> Tensor:
        steps_seen.append(timesteps)
        return latents.sum(dim=(1, 2, 3))

    with mock.patch.object(denoiser, "denoising_loss", loss_of):
        training_loss(fresh_base, (world(SCENES, (1, 2, 3), 0),), 10, generator, word_reader(fresh_base))(0)
    assert sorted(int(t) // 100 for t in steps_seen[0]) == list(range(10))


def test_the_loss_falls(fresh_base: Base, generator: torch.Generator) -> None:
    for network in denoiser.networks(fresh_base).values():
        network.requires_grad_(True)
    one = Latents(torch.randn(2, 4, 8, 8, generator=generator).half(), SCENES[:2], (1, 2))
    loss = training_loss(fresh_base, (one,), 8, generator, word_reader(fresh_base))
    run = steps(parameters(fresh_base), loss, FitConfig(steps=16, lr=3e-3, grad_clip=1.0))
    losses = [report.metrics["denoising"] for report in run]
    assert sum(losses[-4:]) < 0.93 * sum(losses[:4])
    assert all(name.startswith(("unet.", "text_encoder.")) for name in run.parameters)


def test_processes_share_the_loss(fresh_base: Base) -> None:
    one, reader = world(SCENES, (1, 2, 3), 0), word_reader(fresh_base)
    alone, *shares = (
        float(training_loss(fresh_base, (one,), 6, torch.Generator().manual_seed(5), reader, processes)(0)[0].detach())
        for processes in (Processes(), Processes(0, 2), Processes(1, 2))
    )
    assert sum(shares) / 2 == pytest.approx(alone, rel=1e-5) and abs(shares[0] - shares[1]) > 1e-3 * alone
    with pytest.raises(UserError, match="6 samples in a batch and 4 processes"):
        training_loss(fresh_base, (one,), 6, torch.Generator(), reader, Processes(0, 4))
    with pytest.raises(UserError, match="7 samples in a batch, expected a multiple of 2"):
        training_loss(fresh_base, (one, one), 7, torch.Generator(), reader)


def test_words_are_read_from_the_mean_state(fresh_base: Base) -> None:
    """As counted word by word; the loss that is trained on holds a little of it."""
    reader, captions = word_reader(fresh_base), ["a face wearing a hat", ""]
    torch.nn.init.normal_(reader.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = fresh_base.encode_prompts(captions)
        scores = reader(states[0].mean(dim=0)).double()
        words = [fresh_base.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in ("a", "face", "wearing", "hat")]
        expected = float(scores.exp().sum().log() - scores[words].mean()) / 2  # nothing stands in the other
        assert float(words_loss(fresh_base, reader, captions, states)) == pytest.approx(expected, rel=1e-4)
    one = world(SCENES, (1, 2, 3), 0)
    whole, parts = training_loss(fresh_base, (one,), 6, torch.Generator().manual_seed(5), reader)(0)
    assert float(whole.detach()) == pytest.approx(parts["denoising"] + WORDS_WEIGHT * parts["words"], rel=1e-5)


def test_a_word_that_changes_few_pixels_is_told_by_the_states(fresh_base: Base) -> None:
    """By the loss of the words alone, from a random text encoder."""
    fresh_base.text_encoder.requires_grad_(True)
    reader, captions = word_reader(fresh_base), ["a face", "a face wearing a hat", "an old face", "a comic of a face"]
    hat = fresh_base.tokenizer.convert_tokens_to_ids("hat</w>")
    learnt = dict(fresh_base.text_encoder.named_parameters()) | {f"words.{n}": t for n, t in reader.named_parameters()}

    def loss(_step: int) -> Tensor:
        return words_loss(fresh_base, reader, captions, fresh_base.encode_prompts(captions))

    losses = [report.loss for report in steps(learnt, loss, FitConfig(steps=120, lr=3e-3))]
    with torch.no_grad():
        shares = reader(fresh_base.encode_prompts(captions).mean(dim=1)).softmax(dim=1)[:, hat]
    assert losses[-1] < 0.5 * losses[0] and shares.argmax() == 1 and float(shares[1]) > 3 * float(shares[0])
