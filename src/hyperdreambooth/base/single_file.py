"""Open a single-file checkpoint in the key layout of the first Stable Diffusion, as people share fine-tunes.

What such a file does not hold stands here: configurations in `layouts/`, in diffusers' own layout, and CLIP's
vocabulary. So nothing is asked of a hub. The conversion of keys is diffusers'.

Some files hold the U-Net twice, as it was trained last and as a running average ("model_ema."). The first is taken, as
`from_single_file` of diffusers does; files whose makers want the average used hold it alone, in the first one's place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from hyperdreambooth.base.libraries import quiet
from hyperdreambooth.base.parts import KNOWN, Parts, check_numbers, check_unet, read_json
from hyperdreambooth.base.prompting import SecondText
from hyperdreambooth.base.sampling import PREDICTION_TYPES, scheduler_of
from hyperdreambooth.base.tokenizer import clip_tokenizer
from hyperdreambooth.errors import BadBase, one_line
from hyperdreambooth.files import load_header
from hyperdreambooth.progress import log

LAYOUTS = Path(__file__).parent / "layouts"
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_TEXT = {  # how the keys of the text encoder that tells a layout begin
    "sdxl": "conditioner.embedders.1.model.",
    "sd2": "cond_stage_model.model.",
    "sd1": "cond_stage_model.transformer.",
}
_NETWORKS = (_UNET, _VAE, "cond_stage_model.", "conditioner.")  # how the keys of those that are taken begin
_OTHERS = {  # what gives away a model of another kind, somewhere in a key
    "lora_": "a LoRA, which changes a base and is none",
    "joint_blocks.": "of Stable Diffusion 3's kind (joint_blocks)",
    "double_blocks.": "of Flux's kind (double_blocks)",
    "conditioner.embedders.0.model.": "SDXL's refiner",
    "control_model.": "a ControlNet",
    "down_blocks.": "one network in diffusers' layout",
}
_FIRST_CONVOLUTION = f"{_UNET}input_blocks.0.0.weight"


def open_single_file(path: Path, dtype: torch.dtype | None = None, about: Mapping[str, Any] | None = None) -> Parts:
    """The parts of a base from one safetensors file, on the CPU.

    Args:
        path: the file.
        dtype: as in `open_folder`.
        about: what is known beyond the file: "layout", a folder of configurations in diffusers' layout (and of
            tokenizers, if it holds any), in the place of those here; "prediction_type".

    Raises:
        BadBase: the file is damaged, pickled, not whole, or of another kind of model.
    """
    about = about or {}
    saved = check_numbers(path, _NETWORKS)
    names = {name: shape for name, (_, shape) in load_header(path).items()}
    kind = _kind(path, names)
    layout = Path(about["layout"]) if "layout" in about else LAYOUTS / kind
    parts = _convert(path, layout, torch.float16 if dtype == torch.float16 else saved)
    scheduler = _scheduler_config(path, layout, kind, names, about)
    two = "text_encoder_2" in parts
    _check_whole(path, parts, names)
    return Parts(
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        tokenizer=parts["tokenizer"],
        unet=parts["unet"],
        scheduler=scheduler_of(scheduler, f"the layout of {path}"),
        second=SecondText(parts["text_encoder_2"], parts["tokenizer_2"]) if two else None,
    )


def _kind(path: Path, names: Mapping[str, tuple[int, ...]]) -> str:
    """Which layout the file's keys have; `BadBase` says what else the file is, or what it lacks."""
    kind = next((kind for kind, text in _TEXT.items() if any(name.startswith(text) for name in names)), None)
    if kind is None or _FIRST_CONVOLUTION not in names:
        for mark, what in _OTHERS.items():
            if any(mark in name for name in names):
                raise BadBase(f"{path} is {what}, {KNOWN} as one file: give another base")
    lacking = {
        "a U-Net": _FIRST_CONVOLUTION not in names,
        "a VAE": not any(name.startswith(_VAE) for name in names),
        "a text encoder": kind is None,
    }
    if kind is None or any(lacking.values()):
        missing = " and ".join(part for part, lacks in lacking.items() if lacks)
        raise BadBase(f"{path} is without {missing}, expected a whole checkpoint: give one that was not stripped")
    check_unet(str(path), {"in_channels": names[_FIRST_CONVOLUTION][1]})
    return kind


def _convert(path: Path, layout: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Networks and tokenizers by the names of diffusers' pipelines."""
    import diffusers  # its pipelines are slow to import

    index = read_json(layout / "model_index.json")
    networks = {"vae": (AutoencoderKL, torch.float32), "unet": (UNet2DConditionModel, dtype)}
    two = "text_encoder_2" in index
    tokenizers = {"tokenizer": _tokenizer(layout / "tokenizer", openclip=not two and _is_openclip(layout))}
    if two:
        tokenizers["tokenizer_2"] = _tokenizer(layout / "tokenizer_2", openclip=True)
    own = {part: _network(path, layout, part, *how) for part, how in networks.items()}
    try:
        with quiet():
            pipeline = getattr(diffusers, index["_class_name"]).from_single_file(
                str(path), config=str(layout), torch_dtype=dtype, local_files_only=True, **own, **tokenizers
            )
    except Exception as error:  # shapes that do not fit, keys that are not there: in the library's many words
        raise BadBase(f"{path} is not of the layout {layout.name} ({one_line(error)}), {KNOWN}") from error
    return dict(pipeline.components)


def _network(path: Path, layout: Path, part: str, cls: type[Any], dtype: torch.dtype) -> nn.Module:
    """One network of diffusers'."""
    where = {"config": str(layout), "subfolder": part, "local_files_only": True}
    try:
        with quiet():
            network: nn.Module = cls.from_single_file(str(path), torch_dtype=dtype, **where)
    except Exception as error:
        if "meta" in str(error):  # where torch was left to put numbers that are not in the file
            raise BadBase(f"{path} lacks weights of the {part}, {KNOWN} as a whole file: fetch it again") from error
        raise BadBase(f"{path} is not of the layout {layout.name} ({one_line(error)}), {KNOWN}") from error
    return network


def _is_openclip(layout: Path) -> bool:
    """Whether the text encoder is OpenCLIP's, known by its activation."""
    return read_json(layout / "text_encoder" / "config.json").get("hidden_act") == "gelu"


def _tokenizer(folder: Path, openclip: bool) -> CLIPTokenizer:
    """The layout's own tokenizer if it holds one, else CLIP's."""
    if folder.is_dir():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return clip_tokenizer("!") if openclip else clip_tokenizer()


def _scheduler_config(
    path: Path, layout: Path, kind: str, names: Collection[str], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The layout's scheduler, with what this file or its card says of what the U-Net predicts."""
    config = read_json(layout / "scheduler" / "scheduler_config.json")
    if "v_pred" in names:  # the mark of SDXL fine-tunes that predict v
        config["prediction_type"] = "v_prediction"
        if "ztsnr" in names:  # whose first step is to begin at noise alone, at the last timestep
            config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if predicted := about.get("prediction_type"):
        if predicted not in PREDICTION_TYPES:
            raise BadBase(
                f"the card of {path} has prediction_type {predicted!r}, expected {', '.join(PREDICTION_TYPES)}"
            )
        return config | {"prediction_type": predicted}
    if kind == "sd2" and "layout" not in about:
        log.warning(
            "%s does not say what it predicts: taken as %s of %s pixels, as Stable Diffusion 2.1; for a fine-tune "
            'of the 512 pixel base, write {"prediction_type": "epsilon", "picture_size": 512} into %s',
            path.name,
            config["prediction_type"],
            768,
            card_beside(path).name,
        )
    return config


def card_beside(path: Path) -> Path:
    """Where a single file's card is looked for: model.hyperdreambooth.json beside model.safetensors."""
    return path.with_suffix(".hyperdreambooth.json")


def _check_whole(path: Path, parts: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise `BadBase` if numbers of a network are not in the file, or numbers of the file in no network."""
    for part, network in parts.items():
        if not isinstance(network, nn.Module):
            continue
        lacking = [name for name, tensor in network.named_parameters() if tensor.is_meta]
        if lacking:
            raise BadBase(f"{path} lacks {part}.{lacking[0]} and {len(lacking) - 1} others of its layout, {KNOWN}")
    has, wanted = sum(name.startswith(_UNET) for name in names), len(parts["unet"].state_dict())
    if has != wanted:
        raise BadBase(f"the U-Net of {path} has {has} tensors, its layout {wanted}, {KNOWN}: give another base")
