"""Stable Diffusion 1, 2 and XL from a folder, a half-precision folder and one file: one base, diffusers' pictures."""

import json
from pathlib import Path

import pytest
import torch

from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.model import Base
from tests.base.checkpoints import CARD, SIZE, random_pipeline, save_single_file
from tests.base.conftest import Model

FORMATS = ("folder", "fp16-folder", "variant-folder", "file", "fp16-file")


def draw(base: Base, noise: torch.Tensor) -> torch.Tensor:
    """Two pictures of one prompt, at guidance 4, in three steps."""
    states, empty = base.encode_prompts(["a photo of a cat"] * 2), base.encode_prompts([""])
    return base.decode(base.sample(states, empty, noise, steps=3, guidance=4.0))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_draws_what_diffusers_draws(model: Model, kind: str) -> None:
    base = load_base(model.files[kind], device="cpu")
    noise = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    drawn = draw(base, noise)
    expected = model.pipeline(
        prompt=["a photo of a cat"] * 2,
        height=SIZE,
        width=SIZE,
        latents=noise,
        num_inference_steps=3,
        guidance_scale=4.0,
        output_type="pt",
    ).images
    assert expected.std() > 0.05  # there is something to see
    assert (drawn - expected).abs().max() < 1 / 255
    assert base.dtype == torch.float32 and base.picture_size == SIZE


def test_the_fingerprint_is_of_the_weights_and_not_of_their_file(model: Model) -> None:
    prints = {load_base(model.files[kind], device="cpu").fingerprint for kind in FORMATS}
    for kind, dtype in (("folder", torch.float16), ("file", torch.float16), ("fp16-file", torch.bfloat16)):
        prints.add(load_base(model.files[kind], device="cpu", dtype=dtype).fingerprint)
    assert len(prints) == 1


def test_other_numbers_are_another_base_and_other_pictures(model: Model, tmp_path: Path) -> None:
    other = save_single_file(random_pipeline(model.layout, seed=1), tmp_path / "o.safetensors")
    (tmp_path / "o.hyperdreambooth.json").write_text(json.dumps(CARD | {"layout": str(model.layout)}))
    base, own = load_base(other, device="cpu"), load_base(model.files["folder"], device="cpu")
    noise = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    assert base.fingerprint != own.fingerprint
    assert (draw(base, noise) - draw(own, noise)).abs().max() > 0.1
