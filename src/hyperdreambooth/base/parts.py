"""What a base consists of, wherever it comes from, and the checks that its parts are of Stable Diffusion's kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from hyperdreambooth.base.prompting import SecondText
from hyperdreambooth.errors import BadBase, BadFile, one_line
from hyperdreambooth.files import load_header

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
"""The numbers that weights may be, as safetensors spells them."""

_WHOLE_NUMBERS = ("I64", "I32")  # of position ids, which earlier libraries saved with the weights
KNOWN = "expected Stable Diffusion 1.x, 2.x or SDXL"


@dataclass(frozen=True)
class Parts:
    """The parts of a base: networks in whatever precision they were read, tokenizers, scheduler."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    second: SecondText | None = None


def check_unet(where: str, config: Mapping[str, Any]) -> None:
    """Raise `BadBase` for a U-Net that needs to be told more than noisy latents, a time and text."""
    if (channels := config.get("in_channels", 4)) != config.get("out_channels", 4):
        kind = {9: "an inpainting model", 8: "an editing model", 5: "a depth model", 7: "an upscaler"}
        raise BadBase(
            f"{where} takes {channels} channels ({kind.get(channels, 'more than latents')}), expected a model of text "
            "alone: give the base that it was made from"
        )
    told = {"addition_embed_type": (None, "text_time")} | dict.fromkeys(
        ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type", "time_cond_proj_dim"),
        (None,),
    )
    for name, accepted in told.items():
        if (value := config.get(name)) not in accepted:
            raise BadBase(f"{where} has {name} {value!r}, {KNOWN}: give another base")


def check_together(where: str, parts: Parts) -> None:
    """Raise `BadBase` if the text encoders do not say what the U-Net reads, as when folders were mixed."""
    width = parts.text_encoder.config.hidden_size
    if parts.second is not None:
        width += parts.second.text_encoder.config.hidden_size
    reads = parts.unet.config.cross_attention_dim
    if reads != width:
        raise BadBase(
            f"the U-Net of {where} reads text of {reads} numbers a token, its text encoders say {width}: give a folder "
            "whose parts belong together"
        )


def check_numbers(path: Path, networks: tuple[str, ...] = ("",)) -> torch.dtype:
    """The precision of the networks in a weights' file, float32 where it is mixed.

    Args:
        path: the file.
        networks: how the names of their tensors begin; others, such as a training's counters, may hold anything.

    Raises:
        BadBase: a file that is damaged or pickled, or networks whose numbers are packed into 8 bits or fewer.
    """
    try:
        header = load_header(path)
    except BadFile as error:
        raise BadBase(str(error)) from error
    kinds = {}
    for name, dtype in ((name, dtype) for name, (dtype, _) in header.items() if name.startswith(networks)):
        if dtype not in FLOATS and not (dtype in _WHOLE_NUMBERS and name.endswith("position_ids")):
            raise BadBase(
                f"{path} holds {dtype} numbers ({name}), expected {', '.join(FLOATS)}: take the file of this model in "
                "half precision"
            )
        kinds[dtype] = FLOATS.get(dtype)
    floats = {kind for kind in kinds.values() if kind is not None}
    return floats.pop() if len(floats) == 1 else torch.float32


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `BadBase` for anything else."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadBase(f"{path} cannot be read ({one_line(error)}), expected JSON: make or copy it again") from error
    if not isinstance(values, dict):
        raise BadBase(f"{path} holds a {type(values).__name__}, expected a JSON object: make or copy it again")
    return values
