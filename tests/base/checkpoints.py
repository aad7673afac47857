"""Narrow random models in the exact layouts of Stable Diffusion 1, 2 and XL, and the files that people share them in.

The keys of a single file are written by rules of our own, from diffusers' names to those of the first Stable Diffusion:
nothing here is of the conversion that opens such files.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hyperdreambooth.base.single_file import LAYOUTS
from hyperdreambooth.base.tokenizer import clip_tokenizer

KINDS = ("sd1", "sd2", "sdxl")
SIZE = 64
CARD = {"a": 10, "b": 6, "picture_size": SIZE}
_CHANNELS = {"block_out_channels": [16, 32, 32, 32], "norm_num_groups": 8}
_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
_SECOND = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 2, "projection_dim": 40}
NARROW: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "sd1": {"text_encoder": _CLIP, "unet": _CHANNELS | {"sample_size": 8, "cross_attention_dim": 32}},
    "sd2": {
        "text_encoder": _CLIP | {"hidden_size": 32},
        "unet": _CHANNELS | {"sample_size": 8, "cross_attention_dim": 32, "attention_head_dim": [2, 4, 4, 4]},
    },
    "sdxl": {
        "text_encoder": _CLIP | {"num_hidden_layers": 3},
        "text_encoder_2": _SECOND | {"num_hidden_layers": 3},
        "unet": {
            "sample_size": 8,
            "block_out_channels": [16, 32, 32],
            "norm_num_groups": 8,
            "cross_attention_dim": 80,
            "attention_head_dim": [2, 4, 4],
            "transformer_layers_per_block": [1, 2, 3],
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 40 + 6 * 8,
        },
    },
}
_VAE = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 8, "sample_size": SIZE}


def write_layout(kind: str, folder: Path) -> Path:
    """The configurations of a layout, narrowed: as they stand beside a single file of such a model."""
    shutil.copytree(LAYOUTS / kind, folder)
    for part, values in {**NARROW[kind], "vae": _VAE}.items():
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def random_pipeline(layout: Path, seed: int = 0) -> DiffusionPipeline:
    """The plain pipeline of diffusers of a narrow layout, with random numbers."""
    index = json.loads((layout / "model_index.json").read_text())
    two = "text_encoder_2" in index
    torch.manual_seed(seed)
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(layout / "vae")),
        "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(layout / "unet")),
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(layout / "text_encoder")),
    }
    openclip = parts["text_encoder"].config.hidden_act == "gelu"
    parts["tokenizer"] = clip_tokenizer("!") if openclip else clip_tokenizer()
    if two:
        config = CLIPTextConfig.from_pretrained(layout / "text_encoder_2")
        parts |= {"text_encoder_2": CLIPTextModelWithProjection(config), "tokenizer_2": clip_tokenizer("!")}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    for network in parts.values():
        if isinstance(network, nn.Module):
            _lively(network.eval())
    scheduler = getattr(diffusers, index["scheduler"][1])
    parts["scheduler"] = scheduler.from_config(scheduler.load_config(layout / "scheduler"))
    return getattr(diffusers, index["_class_name"])(**parts)


def _lively(network: nn.Module) -> None:
    """Numbers that half precision holds exactly, and of which every one matters: no weight is 0, no scale 1."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter)).copy_(parameter.half().float())


def save_single_file(
    pipeline: DiffusionPipeline, path: Path, dtype: torch.dtype = torch.float32, average: bool = False
) -> Path:
    """Write a pipeline as one file with the keys of the first Stable Diffusion.

    average: with what a training leaves beside the networks, see `training_keys`.
    """
    two = hasattr(pipeline, "text_encoder_2")
    tensors = _prefixed("model.diffusion_model.", unet_keys(pipeline.unet))
    tensors |= _prefixed("first_stage_model.", vae_keys(pipeline.vae))
    first = {name.removeprefix("text_model."): tensor for name, tensor in pipeline.text_encoder.state_dict().items()}
    if two:
        tensors |= _prefixed("conditioner.embedders.0.transformer.text_model.", first)
        tensors |= _prefixed("conditioner.embedders.1.model.", openclip_keys(pipeline.text_encoder_2))
    elif pipeline.text_encoder.config.hidden_act == "gelu":
        tensors |= _prefixed("cond_stage_model.model.", openclip_keys(pipeline.text_encoder, unused_layer=True))
    else:
        tensors |= _prefixed("cond_stage_model.transformer.text_model.", first)
        ids = torch.arange(77)[None]
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = ids
    halved = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    kept = training_keys(pipeline.unet) if average else {}
    save_file({name: tensor.clone().contiguous() for name, tensor in (halved | kept).items()}, path)
    return path


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


_RESNET = {
    r"\.norm1\.": ".in_layers.0.",
    r"\.conv1\.": ".in_layers.2.",
    r"\.time_emb_proj\.": ".emb_layers.1.",
    r"\.norm2\.": ".out_layers.0.",
    r"\.conv2\.": ".out_layers.3.",
    r"\.conv_shortcut\.": ".skip_connection.",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def unet_keys(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """A U-Net's tensors by the first names: blocks are counted through, and an upsampler stands behind attention."""
    layers = unet.config.layers_per_block

    def place(name: str) -> str:
        for end, first in _ENDS.items():
            if name.startswith(f"{end}."):
                return first + name.removeprefix(end)
        way, block, kind, index, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name).groups()
        count, side = int(block) * (layers + 1), "input_blocks" if way == "down" else "output_blocks"
        if kind == "downsamplers":
            return f"input_blocks.{count + layers + 1}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            behind = 2 if "CrossAttn" in unet.config.up_block_types[int(block)] else 1
            return f"output_blocks.{count + layers}.{behind}.{rest}"
        number = count + int(index) + (1 if way == "down" else 0)
        return f"{side}.{number}.{0 if kind == 'resnets' else 1}.{rest}"

    keys = {}
    for name, tensor in unet.state_dict().items():
        first = place(name)
        keys[_renamed(first, _RESNET) if ".resnets." in name else first] = tensor
    return keys


def training_keys(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """What the first Stable Diffusion's training saves with the networks: a running average of the U-Net and counters.

    The average is of other numbers than the U-Net, in float32, under its names without their dots.
    """
    own = {"diffusion_model." + name: tensor for name, tensor in unet_keys(unet).items()}
    average = {f"model_ema.{name.replace('.', '')}": torch.rand_like(tensor) for name, tensor in own.items()}
    counters = {"model_ema.num_updates": torch.tensor(470_000, dtype=torch.int32), "global_step": torch.tensor(470_000)}
    schedule = {"betas": torch.linspace(0.03, 0.1, 1000) ** 2, "model_ema.decay": torch.tensor(0.9999)}
    return average | counters | schedule


def vae_keys(vae: AutoencoderKL) -> dict[str, Tensor]:
    """A VAE's tensors by the first names: the way up is counted from the end, attention is of 1 x 1 convolutions."""
    levels = len(vae.config.block_out_channels)
    rules = {
        r"down_blocks\.(\d+)\.resnets\.": r"down.\1.block.",
        r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
        r"up_blocks\.(\d+)": lambda found: f"up_blocks.{levels - 1 - int(found[1])}",
        r"up_blocks\.(\d+)\.resnets\.": r"up.\1.block.",
        r"up_blocks\.(\d+)\.upsamplers\.0": r"up.\1.upsample",
        r"mid_block\.resnets\.0": "mid.block_1",
        r"mid_block\.resnets\.1": "mid.block_2",
        r"mid_block\.attentions\.0": "mid.attn_1",
        r"attn_1\.group_norm": "attn_1.norm",
        r"attn_1\.to_(q|k|v)": r"attn_1.\1",
        r"attn_1\.to_out\.0": "attn_1.proj_out",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
    }
    keys = {_renamed(name, rules): tensor for name, tensor in vae.state_dict().items()}
    return {
        name: tensor[..., None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name) else tensor
        for name, tensor in keys.items()
    }


def openclip_keys(encoder: nn.Module, unused_layer: bool = False) -> dict[str, Tensor]:
    """A text encoder's tensors by OpenCLIP's names: q, k and v in one, the projection the other way round.

    unused_layer: one more than the model runs, as in the files of Stable Diffusion 2, and a projection of the pooled.
    """
    rules = {
        r"^text_model\.": "",
        r"^encoder\.layers\.": "transformer.resblocks.",
        r"layer_norm(\d)": r"ln_\1",
        r"mlp\.fc1": "mlp.c_fc",
        r"mlp\.fc2": "mlp.c_proj",
        r"self_attn\.out_proj": "attn.out_proj",
        r"^final_layer_norm": "ln_final",
        r"^embeddings\.token_embedding": "token_embedding",
        r"^embeddings\.position_embedding\.weight": "positional_embedding",
    }
    own = {_renamed(name, rules): tensor for name, tensor in encoder.state_dict().items()}
    keys = {name: tensor for name, tensor in own.items() if "self_attn" not in name}
    for number in range(encoder.config.num_hidden_layers):
        block = f"transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            parts = [own[f"{block}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            keys[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    if "text_projection.weight" in keys:
        keys["text_projection"] = keys.pop("text_projection.weight").T
    if unused_layer:
        count, width = encoder.config.num_hidden_layers, encoder.config.hidden_size
        last = {name: tensor for name, tensor in keys.items() if f".{count - 1}." in name}
        keys |= {name.replace(f".{count - 1}.", f".{count}."): torch.rand_like(tensor) for name, tensor in last.items()}
        keys["text_projection"] = torch.rand(width, width)
    return keys
