"""Stable Diffusion 1, 2 and XL from a folder, a half-precision folder and one file: one base, diffusers' pictures."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.model import Base
from hyperdreambooth.base.sampling import started
from hyperdreambooth.base.single_file import open_single_file
from tests.base.checkpoints import CARD, SIZE, random_pipeline, save_single_file, write_layout
from tests.base.conftest import Model

FORMATS = ("folder", "fp16-folder", "variant-folder", "file", "fp16-file", "average-file")


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


def test_a_running_average_beside_the_networks_is_left_alone(model: Model) -> None:
    """By plain diffusers too; and in its float32 it does not change the precision that the networks are read in."""
    path = model.files["average-file"]
    assert sum(name.startswith("model_ema.") for name in load_file(path)) > 100
    ours = open_single_file(path, about={"layout": model.layout}).unet
    theirs = UNet2DConditionModel.from_single_file(str(path), config=str(model.layout), subfolder="unet")
    assert ours.dtype == torch.float16
    for name, tensor in model.pipeline.unet.state_dict().items():
        assert torch.equal(ours.state_dict()[name].float(), tensor) and torch.equal(theirs.state_dict()[name], tensor)


def test_other_numbers_are_another_base_and_other_pictures(model: Model, tmp_path: Path) -> None:
    other = save_single_file(random_pipeline(model.layout, seed=1), tmp_path / "o.safetensors")
    (tmp_path / "o.hyperdreambooth.json").write_text(json.dumps(CARD | {"layout": str(model.layout)}))
    base, own = load_base(other, device="cpu"), load_base(model.files["folder"], device="cpu")
    noise = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    assert base.fingerprint != own.fingerprint
    assert (draw(base, noise) - draw(own, noise)).abs().max() > 0.1


@pytest.mark.parametrize(("marks", "first"), [(("v_pred", "ztsnr"), 999), (("v_pred",), 961)])
def test_a_file_marked_as_of_zero_terminal_snr_is_drawn_from_noise_alone(
    marks: tuple[str, ...], first: int, tmp_path: Path
) -> None:
    """The marks are tensors without a number; with both, 25 steps begin at the last of 1,000 timesteps."""
    layout = write_layout("sdxl", tmp_path / "layout")
    path = save_single_file(random_pipeline(layout), tmp_path / "v.safetensors")
    save_file(load_file(path) | {mark: torch.zeros(0) for mark in marks}, path)
    path.with_suffix(".hyperdreambooth.json").write_text(json.dumps(CARD | {"layout": "layout"}))
    base = load_base(path, device="cpu")
    assert base.prediction_type == "v_prediction"
    timesteps = started(base.scheduler, 25).timesteps
    assert len(timesteps) == 25 and timesteps[0] == first
    signal, _ = base.noise_levels(torch.tensor([999]))
    assert (signal.item() < 1e-3) == ("ztsnr" in marks)
