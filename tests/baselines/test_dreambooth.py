"""The pictures of the class: the base's own, drawn once, and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperdreambooth.base.model import Base
from hyperdreambooth.baselines.dreambooth import DreamBooth, PriorConfig, class_pictures
from hyperdreambooth.baselines.e4t import E4T
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.errors import UserError
from hyperdreambooth.faces import FaceCrop
from hyperdreambooth.fitting.fit import Prior
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.pipeline import HyperDreamBooth

CONFIG = PriorConfig(pictures=5, drawing=DrawConfig(seed=3, steps=2, likeness=None, batch=2))


def made(booth: HyperDreamBooth, config: PriorConfig = CONFIG) -> tuple[Prior, list[int]]:
    """The prior, and how far each report says that it is."""
    work, done = class_pictures(booth, config), list[int]()
    while True:
        try:
            done.append(next(work).done)
        except StopIteration as stop:
            assert isinstance(stop.value, Prior)
            return stop.value, done


def test_they_are_what_the_base_draws_and_are_drawn_once(
    booth: HyperDreamBooth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, done = made(booth)
    assert done == [0, 2, 4] and first.prompt == "a face" and len(first.latents) == 5
    alone = booth.draw(None, "a face", DrawConfig(count=5, seed=3, steps=2, likeness=None))
    with torch.no_grad():
        assert torch.allclose(first.latents, booth.base.encode_pictures(alone), atol=2e-3)  # kept in half precision
    again, done = made(booth)
    assert done == [] and torch.equal(again.latents, first.latents)
    other, done = made(booth, PriorConfig(pictures=5, prompt="a [V] face", drawing=CONFIG.drawing))
    assert done and not torch.equal(other.latents, first.latents)


def test_weights_move_though_the_base_works_in_half_precision(
    fresh_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 itself a step of 1e-5 is lost in nearly all weights: it is less than their last digit."""
    booth = HyperDreamBooth(fresh_base)
    before = {name: p.detach().clone() for name, p in fresh_base.unet.named_parameters()}
    booth.base.to(dtype=torch.bfloat16)
    work = DreamBooth(fit=FitConfig(steps=3, lr=1e-5), prior=None).personalizing(
        booth, [FaceCrop.framed(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1)))]
    )
    for _ in work:
        pass
    (person,) = work.people
    moved = torch.cat(
        [(person.tensors[f"unet.{name}"] != p.bfloat16().float()).flatten() for name, p in before.items()]
    )
    assert moved.float().mean() > 0.9
    assert all(p.dtype == torch.bfloat16 for p in booth.base.unet.parameters())
    monkeypatch.setattr(booth, "hypernetwork", object())
    with pytest.raises(UserError, match="--precision fp32"):
        E4T().check(booth)
