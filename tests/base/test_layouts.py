"""The layouts that ship, at their true sizes on the meta device, against the published checkpoints."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hyperdreambooth.base.single_file import LAYOUTS

VAE, CLIP_L = (83_653_863, 248), (123_060_480, 196)  # parameters, tensors


@pytest.mark.parametrize(
    ("layout", "unet", "texts"),
    [
        ("sd1", (859_520_964, 686), [CLIP_L]),
        ("sd2", (865_910_724, 686), [(340_387_840, 372)]),
        ("sdxl", (2_567_463_684, 1680), [CLIP_L, (694_659_840, 517)]),
    ],
)
def test_a_layout_has_the_published_sizes(layout: str, unet: tuple[int, int], texts: list[tuple[int, int]]) -> None:
    folder = LAYOUTS / layout
    with torch.device("meta"):
        models: list[torch.nn.Module] = [
            UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")),
            AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")),
            CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")),
        ]
        if len(texts) == 2:
            second = CLIPTextConfig.from_pretrained(folder / "text_encoder_2")
            models.append(CLIPTextModelWithProjection(second))
    sizes = [(sum(tensor.numel() for tensor in model.parameters()), len(model.state_dict())) for model in models]
    assert sizes == [unet, VAE, *texts]
