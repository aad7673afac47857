"""E4T: what is predicted is a person's, what is everybody's changes nothing at first, a person is tuned from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperdreambooth.base.model import Base
from hyperdreambooth.baselines.e4t import E4T, E4TNetwork, e4t_network
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.errors import BadFile, UserError, WrongBase
from hyperdreambooth.fitting.steps import FitConfig, steps
from hyperdreambooth.hypernetwork import model as hypernetworks
from hyperdreambooth.hypernetwork.loss import People
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.tuned import WORD, Tuned, rare_token_id, word_embeddings
from recipes.e4t import fresh_network, training_loss
from tests.conftest import left_as_it_was

STILL = FitConfig(steps=1, lr=0.0)
QUICK = DrawConfig(steps=2, guidance=3.0)


@pytest.fixture(scope="module")
def booth(tiny_base: Base) -> Iterator[HyperDreamBooth]:
    with left_as_it_was(tiny_base):
        booth = HyperDreamBooth(tiny_base)
        network = hypernetworks.build_hypernetwork(hypernetworks.PRESETS["tiny"], booth.space, booth.fingerprint)
        booth.hypernetwork = network.eval().requires_grad_(False)
        yield booth
        booth.adapters.eject()


@pytest.fixture
def faces() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def made(booth: HyperDreamBooth, method: E4T, faces: torch.Tensor) -> list[Tuned]:
    work = method.personalizing(booth, list(faces))
    assert list(work)[-1].done > 0
    return work.people


def test_untrained_and_not_tuned_everybody_is_the_class_noun(
    booth: HyperDreamBooth, faces: torch.Tensor, tmp_path: Path
) -> None:
    network = fresh_network(booth)
    torch.nn.init.zeros_(network.head[-1].weight)
    network.save(tmp_path / "e4t", booth.fingerprint, booth.base.name)
    person, _ = made(booth, E4T(fit=STILL, network=tmp_path / "e4t"), faces)
    table = word_embeddings(booth.base).weight
    noun = booth.base.tokenizer("face", add_special_tokens=False).input_ids[0]
    assert torch.allclose(person.tensors[WORD], table[noun], atol=1e-6)
    said = Tuned({WORD: table[noun].detach()}, booth.fingerprint)  # the word alone, on the base as it is
    prompt = "a watercolor of a [V] face"
    assert torch.allclose(booth.draw(person, prompt, QUICK), booth.draw(said, prompt, QUICK), atol=1e-3)


def test_what_is_everybodys_is_merged_and_the_word_is_a_persons(
    booth: HyperDreamBooth, faces: torch.Tensor, tmp_path: Path
) -> None:
    network = fresh_network(booth)
    torch.nn.init.normal_(network.head[-1].weight, std=0.1)
    with torch.no_grad():
        network.offsets += 0.3 * torch.randn(network.offsets.shape, generator=torch.Generator().manual_seed(1))
    network.save(tmp_path / "e4t", booth.fingerprint, booth.base.name)
    first, second = made(booth, E4T(fit=STILL, network=tmp_path / "e4t"), faces)
    assert (first.tensors[WORD] - second.tensors[WORD]).abs().max() > 1e-3
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors if name != WORD)
    booth.adapters.merge(E4TNetwork.load(tmp_path / "e4t", booth).offsets)
    merged = dict(booth.base.unet.named_parameters(prefix="unet"))
    assert all(torch.allclose(first.tensors[name], merged[name], atol=1e-6) for name in merged)
    booth.adapters.unmerge()
    assert rare_token_id(booth.base) == rare_token_id(first.on(booth.base))


def test_tuning_moves_all_of_the_unet_and_the_word_and_no_text_encoder(
    booth: HyperDreamBooth, faces: torch.Tensor, tmp_path: Path
) -> None:
    fresh_network(booth).save(tmp_path / "e4t", booth.fingerprint, booth.base.name)
    still = E4T(fit=STILL, network=tmp_path / "e4t")
    before, after = (
        made(booth, method, faces)[0].tensors for method in (still, replace(still, fit=FitConfig(2, lr=1e-3)))
    )
    moved = {name.partition(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"unet", WORD}
    assert still.with_steps(7).iterations == 7


def test_pretraining_learns_to_tell_people_apart_by_a_word(booth: HyperDreamBooth) -> None:
    """Two people of different colours: the loss falls, and their words come apart."""
    random = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (4, 1, 3, 16, 16), generator=random, dtype=torch.uint8)
    shape = booth.base.latent_shape
    latents = 1.5 * torch.randn(4, 1, *shape, generator=random)
    start = booth.space.start()
    people = People(pictures, latents, start.expand(2, *start.shape))
    network = fresh_network(booth)

    def measured() -> float:
        """On the same draws."""
        loss = training_loss(network, booth, [people], 4, 64, torch.Generator().manual_seed(9))
        with torch.no_grad():
            return float(loss(0)[0])

    before = measured()
    loss = training_loss(network, booth, [people], 4, 4, torch.Generator().manual_seed(0))
    list(steps(dict(network.named_parameters()), loss, FitConfig(steps=60, lr=1e-2)))
    assert measured() < 0.99 * before
    assert not torch.equal(network.offsets, start)
    assert booth.hypernetwork is not None
    words = network(booth.hypernetwork.encoder(pictures[:, 0].float() / 255))
    assert (words[0] - words[1]).abs().max() > 1e-3


def test_what_is_wrong_is_said(booth: HyperDreamBooth, tiny_base: Base, tmp_path: Path) -> None:
    method = E4T(network=tmp_path / "nothing")
    with pytest.raises(UserError, match="which is not there: make it by the recipe's stage e4t"):
        method.check(booth)
    (tmp_path / "other").write_bytes(b"")
    with pytest.raises(BadFile, match="empty"):
        E4TNetwork.load(tmp_path / "other", booth)
    fresh_network(booth).save(tmp_path / "e4t", "0" * 16, "another")
    with pytest.raises(WrongBase, match='was made for base "another"'):
        E4TNetwork.load(tmp_path / "e4t", booth)
    with pytest.raises(WrongBase, match='was made for base "another"'):
        replace(method, network=tmp_path / "e4t").check(booth)
    network = booth.hypernetwork
    booth.hypernetwork = None
    try:
        with pytest.raises(UserError, match="the eyes of a hypernetwork"):
            e4t_network(booth)
    finally:
        booth.hypernetwork = network
