"""Exports loaded by the real libraries draw the same picture as the adapters do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from hyperdreambooth.lidb import LoRALayout, save_diffusers, save_kohya, save_peft, to_lora
from tests.lidb.conftest import World, picture, pipeline_of

TOLERANCE = 1 / 255

Worn = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]  # LiDB numbers, full-space factors, picture
Save = Callable[..., None]


@pytest.fixture
def pipeline(world: World) -> StableDiffusionPipeline:
    return pipeline_of(world)


def person(world: World, with_lora: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    layout = LoRALayout(world.space.sites, 2)
    lora = 0.2 * torch.randn(layout.size, generator=torch.Generator().manual_seed(1)) if with_lora else None
    return world.persons(1, ranks=2)[0], lora


@pytest.fixture(params=[False, True], ids=["lidb", "with lora"])
def worn(request: pytest.FixtureRequest, world: World, pipeline: StableDiffusionPipeline) -> Worn:
    """A person and the picture that the adapters draw of it, far from the plain model's, each model taking part."""
    weights, lora = person(world, request.param)
    plain, adapters = picture(pipeline, world), world.inject()
    with adapters.use(weights, lora):
        expected = picture(pipeline, world)
    adapters.eject()
    assert (expected - plain).abs().max() > 20 * TOLERANCE
    return weights, lora, expected


@pytest.mark.parametrize("save", [save_kohya, save_diffusers])
def test_loaded_by_diffusers_draws_the_same_picture(
    worn: Worn, save: Save, world: World, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    weights, lora, expected = worn
    save(tmp_path / "person.safetensors", world.space, weights, lora)
    pipeline.load_lora_weights(tmp_path / "person.safetensors")
    assert {"unet", "text_encoder"} == set(pipeline.get_list_adapters())
    assert (picture(pipeline, world) - expected).abs().max() < TOLERANCE


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft reads it
def test_loaded_by_peft_draws_the_same_picture(
    worn: Worn, world: World, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    weights, lora, expected = worn
    save_peft(tmp_path / "person", world.space, weights, lora)
    PeftModel.from_pretrained(pipeline.unet, tmp_path / "person" / "unet")
    PeftModel.from_pretrained(pipeline.text_encoder, tmp_path / "person" / "text_encoder")
    assert (picture(pipeline, world) - expected).abs().max() < TOLERANCE


def test_each_model_takes_part(world: World, pipeline: StableDiffusionPipeline) -> None:
    """So that an export which loses one model's half fails above."""
    weights, adapters = world.persons(1, ranks=2)[0], world.inject()
    with adapters.use(weights):
        whole = picture(pipeline, world)
    for model in ("unet", "text_encoder"):
        half = weights.clone()
        half[[site.model == model for site in world.space.sites]] = 0
        with adapters.use(half):
            assert (picture(pipeline, world) - whole).abs().max() > 5 * TOLERANCE


def test_factors_stack_to_the_very_delta(world: World) -> None:
    weights, lora = person(world, with_lora=True)
    assert lora is not None
    factors = LoRALayout(world.space.sites, 2).split(lora)
    for index, (down, up) in enumerate(to_lora(world.space, weights, lora)):
        assert down.shape[0] == up.shape[1] == 4
        expected = world.space.delta(weights, index) + factors[index][1] @ factors[index][0]
        assert torch.allclose(up @ down, expected, atol=1e-5)


def test_kohya_names_are_stable_diffusions_own(world: World, tmp_path: Path) -> None:
    save_kohya(tmp_path / "person.safetensors", world.space, world.persons(1, ranks=3)[0])
    tensors = load_file(tmp_path / "person.safetensors")
    stems = {key.split(".")[0] for key in tensors}
    assert len(tensors) == 3 * len(world.space.sites) == 3 * len(stems)
    assert {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj",
    } <= stems
    assert all(tensors[f"{stem}.alpha"].item() == 3 for stem in stems)


def test_peft_folder_names_its_layers_one_by_one(world: World, tmp_path: Path) -> None:
    save_peft(tmp_path, world.space, world.persons(1)[0])
    config = json.loads((tmp_path / "text_encoder" / "adapter_config.json").read_text())
    projections = [f"self_attn.{side}_proj" for side in ("q", "k", "v", "out")]
    assert config["target_modules"] == [f"encoder.layers.{layer}.{name}" for layer in (0, 1) for name in projections]
    assert config["r"] == config["lora_alpha"] == 1


class Older(nn.Module):
    """A text encoder whose layers have the paths that they had in earlier transformers."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.text_model = encoder

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.text_model(tokens).last_hidden_state
        return states


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft reads it
@pytest.mark.parametrize("older", [False, True])
def test_peft_finds_the_layers_of_todays_and_of_older_text_encoders(older: bool, world: World, tmp_path: Path) -> None:
    weights, lora = person(world, with_lora=True)
    tokens, encoder, adapters = world.inputs()[2], Older(world.text_encoder), world.inject()
    with torch.no_grad():
        plain = encoder(tokens)
        with adapters.use(weights, lora):
            expected = encoder(tokens)
        adapters.eject()
        save_peft(tmp_path, world.space, weights, lora)
        network = encoder if older else world.text_encoder
        PeftModel.from_pretrained(network, tmp_path / "text_encoder")
        torch.testing.assert_close(encoder(tokens), expected, atol=1e-4, rtol=1e-4)
    assert (expected - plain).abs().max() > 0.1
