"""The names that A1111 and ComfyUI expect of a LoRA for Stable Diffusion 1.5, key by key, none missing, none more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from hyperdreambooth.base.single_file import LAYOUTS
from hyperdreambooth.files import load_metadata, load_tensors
from hyperdreambooth.lidb import LoRALayout, Site, find_blocks, find_sites, save_kohya
from hyperdreambooth.lidb.names import architecture_of, flatten, kohya_name, model_of, parse
from tests.base.checkpoints import NARROW, unet_keys
from tests.lidb.conftest import World, tiny_text_encoder

# From Stable Diffusion 1.5's config: CrossAttnDownBlock2D three times with two attentions each, then DownBlock2D; up,
# UpBlock2D, then CrossAttnUpBlock2D three times with three each; one in the middle; twelve layers of CLIP.
BLOCKS = (
    *(f"down_blocks_{block}_attentions_{number}" for block in (0, 1, 2) for number in (0, 1)),
    "mid_block_attentions_0",
    *(f"up_blocks_{block}_attentions_{number}" for block in (1, 2, 3) for number in (0, 1, 2)),
)
LAYERS = (
    *(f"{attention}_{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out_0")),
    "ff_net_0_proj",
)
NAMES = {f"lora_unet_{block}_transformer_blocks_0_{layer}" for block in BLOCKS for layer in LAYERS} | {
    f"lora_te_text_model_encoder_layers_{number}_self_attn_{side}_proj"
    for number in range(12)
    for side in ("q", "k", "v", "out")
}


# Two residual blocks in each stage down, two in the middle, three in each stage up. A 1 x 1 convolution goes past a
# block whose channels change: where a stage down begins wider than the last one ended, and all the way up, where the
# skips come in.
RESNETS = (
    *(f"down_blocks_{block}_resnets_{number}" for block in range(4) for number in range(2)),
    *(f"mid_block_resnets_{number}" for number in range(2)),
    *(f"up_blocks_{block}_resnets_{number}" for block in range(4) for number in range(3)),
)
CHANGING = ("down_blocks_1_resnets_0", "down_blocks_2_resnets_0", *(name for name in RESNETS if name.startswith("up_")))
BLOCK_NAMES = {f"lora_unet_{block}_{layer}" for block in RESNETS for layer in ("conv1", "time_emb_proj", "conv2")} | {
    f"lora_unet_{block}_conv_shortcut" for block in CHANGING
}


def test_the_table_is_of_192_layers_and_80() -> None:
    assert len(NAMES) == 192 and len(BLOCK_NAMES) == 80
    assert {
        "lora_unet_down_blocks_1_resnets_0_conv_shortcut",
        "lora_unet_mid_block_resnets_1_time_emb_proj",
        "lora_unet_up_blocks_3_resnets_2_conv2",
    } <= BLOCK_NAMES
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q" in NAMES
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in NAMES


def test_stable_diffusions_sites_have_these_names() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        for sites, names in ((find_sites(unet, tiny_text_encoder(12)), NAMES), (find_blocks(unet), BLOCK_NAMES)):
            assert sorted(kohya_name(site) for site in sites) == sorted(names)


@pytest.mark.parametrize("relaxed", ["predicted", "lidb", "lora"])
def test_exported_keys_are_exactly_these(relaxed: str, narrow_world: World, tmp_path: Path) -> None:
    space = narrow_world.space
    lora = torch.ones(LoRALayout(space.sites, 4).size) if relaxed == "lora" else None
    save_kohya(tmp_path / "a.safetensors", space, narrow_world.persons(1, ranks=4 if relaxed == "lidb" else 1)[0], lora)
    tensors = load_file(tmp_path / "a.safetensors")
    assert set(tensors) == {
        f"{name}.{part}" for name in NAMES for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    rank = {"predicted": 1, "lidb": 4, "lora": 5}[relaxed]
    assert {tensors[f"{name}.alpha"].item() for name in NAMES} == {rank}
    assert {len(tensors[f"{name}.lora_down.weight"]) for name in NAMES} == {rank}


def test_the_residual_blocks_are_named_and_shaped_as_convolutions_are(whole_world: World, tmp_path: Path) -> None:
    weights = whole_world.persons(1, ranks=4)[0]
    save_kohya(tmp_path / "a.safetensors", whole_world.space, weights)
    tensors, metadata = load_tensors(tmp_path / "a.safetensors")
    assert {key.partition(".")[0] for key in tensors} == NAMES | BLOCK_NAMES
    for name in BLOCK_NAMES:
        side = {"conv1": (3, 3), "conv2": (3, 3), "conv_shortcut": (1, 1)}.get(name.rpartition("_resnets_")[2][2:], ())
        down, up = (tensors[f"{name}.lora_{part}.weight"] for part in ("down", "up"))
        assert len(down) == up.shape[1] == tensors[f"{name}.alpha"] == 4
        assert tuple(down.shape[2:]) == side and tuple(up.shape[2:]) == (() if side == () else (1, 1))
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "4"}
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "4"
    save_kohya(tmp_path / "rule.safetensors", whole_world.space, weights[:192])
    assert "ss_network_args" not in load_metadata(tmp_path / "rule.safetensors")


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
TEXT = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"


@pytest.mark.parametrize(
    ("key", "kind", "flat"),
    [
        (f"{FLAT}.lora_down.weight", "down", FLAT),
        (f"{FLAT}.alpha", "alpha", FLAT),
        (f"unet.{BLOCK}.attn1.to_out.0.lora_B.weight", "up", FLAT),
        (f"unet.{BLOCK}.attn1.to_out.0.lora.up.weight", "up", FLAT),
        (f"unet.{BLOCK}.attn1.processor.to_out_lora.down.weight", "down", FLAT),
        (f"{BLOCK}.attn1.processor.to_out_lora.down.weight", "down", FLAT),
        (f"base_model.model.{BLOCK}.attn1.to_out.0.lora_A.weight", "down", FLAT),
        (f"base_model.model.{BLOCK}.attn1.to_out.0.lora_A.default.weight", "down", FLAT),
        ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.up.weight", "up", TEXT),
        ("text_encoder.encoder.layers.3.self_attn.q_proj.lora_A.weight", "down", TEXT),
        ("base_model.model.encoder.layers.3.self_attn.q_proj.lora_A.weight", "down", TEXT),
        ("base_model.model.text_model.encoder.layers.3.self_attn.q_proj.lora_A.weight", "down", TEXT),
    ],
)
def test_every_layout_names_the_same_layer(key: str, kind: str, flat: str) -> None:
    part = parse(key)
    assert part is not None and (part.kind, flatten(part.layer)) == (kind, flat)


@pytest.mark.parametrize("model", ["text_encoder", "text_encoder_2"])
def test_two_text_encoders_are_numbered(model: str) -> None:
    path = "encoder.layers.3.self_attn.q_proj"
    site = Site(f"{model}.text_model.{path}", model, path, 8, 8)
    flat = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[model] + TEXT.removeprefix("lora_te_")
    assert kohya_name(site, two=True) == flat and model_of(flat) == model
    for name in (flat, site.name, f"{model}.{path}"):
        assert flatten(name, two=True) == flat
    assert flatten(f"base_model.model.{path}", model, two=True) == flat


def test_what_is_no_part_of_a_lora() -> None:
    for key in ("lidb", f"{FLAT}.hada_w1_a", f"{FLAT}.dora_scale", "unet.conv_in.weight", f"{FLAT}.lora_mid.weight"):
        assert parse(key) is None


def test_other_architectures_are_named() -> None:
    assert architecture_of(["lora_unet_input_blocks_4_1_proj_in"]) == "Stable Diffusion XL"
    assert architecture_of(["lora_te2_text_model_encoder_layers_0_self_attn_q_proj"]) == "Stable Diffusion XL"
    assert architecture_of(["transformer.single_transformer_blocks.0.attn.to_q"]) == "Flux"
    assert architecture_of(sorted(NAMES)) == ""


@pytest.mark.parametrize("layer", [nn.Linear, nn.Conv2d])
def test_sdxls_layers_are_known_by_the_names_of_stabilitys_code(layer: type[nn.Module]) -> None:
    """kohya's files for SDXL name them so; the rules of the tests' single files say which is which."""
    config = UNet2DConditionModel.load_config(LAYOUTS / "sdxl" / "unet") | NARROW["sdxl"]["unet"]
    unet = UNet2DConditionModel.from_config(config)
    keys = {tensor.data_ptr(): key for key, tensor in unet_keys(unet).items()}
    theirs = {name: keys[tensor.data_ptr()] for name, tensor in unet.state_dict().items()}
    paths = [path for path, module in unet.named_modules() if isinstance(module, layer)]
    assert len(paths) > 40
    for path in paths:
        their = theirs[f"{path}.weight"].removesuffix(".weight").replace(".", "_")
        assert flatten(f"lora_unet_{their}", two=True) == f"lora_unet_{path.replace('.', '_')}"
        assert flatten(f"lora_unet_{path.replace('.', '_')}", two=True) == f"lora_unet_{path.replace('.', '_')}"
