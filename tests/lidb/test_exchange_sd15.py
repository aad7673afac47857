"""People of Stable Diffusion 1.5's layers in diffusers and PEFT, alone and beside other adapters."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import (
    ControlNetModel,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    TCDScheduler,
)
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from hyperdreambooth.lidb import LoRALayout, save_diffusers, save_kohya, save_peft, to_lora
from tests.lidb.conftest import World, picture, pipeline_of

TOLERANCE = 1 / 255
RELAXED = ("predicted", "lidb", "lora")
Person = tuple[torch.Tensor, torch.Tensor | None]


@pytest.fixture
def world(narrow_world: World) -> World:
    """A copy, which adapters may change."""
    return deepcopy(narrow_world)


@pytest.fixture
def whole(whole_world: World) -> World:
    """The same with the residual blocks."""
    return deepcopy(whole_world)


def person(world: World, relaxed: str) -> Person:
    """Before relaxation, after it inside the bases, after it in full space."""
    layout = LoRALayout(world.space.sites, 4)
    lora = 0.3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(1)) if relaxed == "lora" else None
    return world.persons(1, ranks=4 if relaxed == "lidb" else 1)[0], lora


def merge(world: World, weights: torch.Tensor, lora: torch.Tensor | None, factor: float = 1.0) -> None:
    """Add a person's change to the models' own weights, by hand."""
    with torch.no_grad():
        for site, (down, up) in zip(world.space.sites, to_lora(world.space, weights, lora), strict=True):
            weight = world.models[site.model].get_submodule(site.path).weight
            weight += factor * (up @ down).reshape(weight.shape)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft reads it
@pytest.mark.parametrize("relaxed", RELAXED)
@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_loaded_it_changes_the_picture_as_the_person_does(
    layout: str, relaxed: str, world: World, tmp_path: Path
) -> None:
    weights, lora = person(world, relaxed)
    pipeline, path = pipeline_of(world), tmp_path / "a.safetensors"
    plain, adapters = picture(pipeline, world), world.inject()
    with adapters.use(weights, lora):
        expected = picture(pipeline, world)
    adapters.eject()
    assert (expected - plain).abs().max() > 20 * TOLERANCE
    {"kohya": save_kohya, "diffusers": save_diffusers, "peft": save_peft}[layout](path, world.space, weights, lora)
    if layout == "peft":
        for name, network in world.models.items():
            PeftModel.from_pretrained(network, path / name)
    else:
        pipeline.load_lora_weights(path)
    layers = [layer for network in world.models.values() for layer in network.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == 192
    assert (picture(pipeline, world) - expected).abs().max() < TOLERANCE


def style_file(world: World, path: Path) -> dict[tuple[str, str], torch.Tensor]:
    """A LoRA in kohya's layout with convolutions and feed-forward layers, as LCM-LoRA has them; its dW by module."""
    random = torch.Generator().manual_seed(7)
    tensors, deltas = {}, {}
    for name, layer in world.unet.named_modules():
        if not name.endswith(("attn1.to_q", "ff.net.2", "conv1", "time_emb_proj", "downsamplers.0.conv")):
            continue
        weight = layer.weight
        down = torch.randn(2, *weight.shape[1:], generator=random)
        up = torch.randn(len(weight), 2, *(1 for _ in weight.shape[2:]), generator=random)
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(0.2)}
        deltas["unet", name] = 0.1 * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    save_file(tensors, path)
    return deltas


@pytest.fixture(params=["two adapters", "LCM", "Hyper-SD", "ControlNet"])
def drawing(
    request: pytest.FixtureRequest, whole: World
) -> Iterator[tuple[StableDiffusionPipeline, dict[str, object]]]:
    """A pipeline of each kind that people stack LoRAs in, and what its call takes."""
    pipeline = pipeline_of(whole)
    more: dict[str, object] = {}
    if request.param in ("LCM", "Hyper-SD"):
        kind = LCMScheduler if request.param == "LCM" else TCDScheduler
        pipeline.scheduler = kind(original_inference_steps=10)
        more = {"guidance_scale": 1.0, "generator": torch.Generator().manual_seed(3)}
    if request.param == "ControlNet":
        torch.manual_seed(1)
        control = ControlNetModel.from_unet(
            whole.unet, conditioning_embedding_out_channels=(8, 8), load_weights_from_unet=True
        )
        torch.nn.init.normal_(control.controlnet_mid_block.weight)
        pipeline = StableDiffusionControlNetPipeline(**pipeline.components, controlnet=control.eval(),
                                                     requires_safety_checker=False)  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        more = {"image": torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(4))}
    yield pipeline, more


@pytest.mark.filterwarnings("ignore:Already found a .peft_config. attribute:UserWarning")  # which is what we want
def test_a_person_and_a_style_add_up(
    drawing: tuple[StableDiffusionPipeline, dict[str, object]], whole: World, tmp_path: Path
) -> None:
    """set_adapters with two weights draws as our merged weights and the other's do, of which some are in one layer."""
    pipeline, more = drawing
    weights, lora = person(whole, "lora")
    save_kohya(tmp_path / "alice.safetensors", whole.space, weights, lora)
    style = style_file(whole, tmp_path / "style.safetensors")

    def draw() -> torch.Tensor:
        fresh = {
            key: value.clone_state() if isinstance(value, torch.Generator) else value for key, value in more.items()
        }
        return picture(pipeline, whole, **fresh)

    plain = draw()
    pipeline.load_lora_weights(tmp_path / "alice.safetensors", adapter_name="alice")
    pipeline.set_adapters("alice")
    alice = draw()
    pipeline.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    pipeline.set_adapters(["alice", "style"], [0.8, 0.6])
    both = draw()
    pipeline.unload_lora_weights()
    assert torch.equal(draw(), plain)
    merge(whole, weights, lora, 0.8)
    with torch.no_grad():
        for (network, name), delta in style.items():
            whole.models[network].get_submodule(name).weight += 0.6 * delta
    assert (draw() - both).abs().max() < TOLERANCE
    assert min((both - plain).abs().max(), (both - alice).abs().max()) > 10 * TOLERANCE
