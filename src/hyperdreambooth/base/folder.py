"""Open a folder in diffusers' layout. Never a pickled file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hyperdreambooth.base.libraries import quiet
from hyperdreambooth.base.parts import KNOWN, Parts, check_numbers, check_unet, read_json
from hyperdreambooth.base.prompting import SecondText
from hyperdreambooth.base.sampling import scheduler_of
from hyperdreambooth.errors import BadBase, one_line

NETWORKS = {  # class, name of the weights' file without its suffix, name of from_pretrained's dtype argument
    "vae": (AutoencoderKL, "diffusion_pytorch_model", "torch_dtype"),
    "text_encoder": (CLIPTextModel, "model", "dtype"),
    "text_encoder_2": (CLIPTextModelWithProjection, "model", "dtype"),
    "unet": (UNet2DConditionModel, "diffusion_pytorch_model", "torch_dtype"),
}
_OF_CLIP = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")  # beside its text model
_PICKLED = (".bin", ".pt", ".ckpt", ".pth")
VARIANT = "fp16"  # what some folders hold in the place of the plain files


def open_folder(folder: Path, dtype: torch.dtype | None = None) -> Parts:
    """The parts of a base from a folder, on the CPU.

    dtype: float16 reads the text encoders and the U-Net in it; else they come in the precision of their files. The VAE,
    which is small, comes in float32. Raises `BadBase` naming what is missing, damaged or of another kind.
    """
    two = _check_kind(folder)
    _check_whole(folder, two)
    networks = {part: _load_network(folder, part, dtype) for part in NETWORKS if two or part != "text_encoder_2"}
    second = None
    if two:
        pipeline = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
        zero = bool(pipeline.get("force_zeros_for_empty_prompt", True))
        second = SecondText(networks["text_encoder_2"], _load_tokenizer(folder, "tokenizer_2"), zero)
    return Parts(
        vae=networks["vae"],
        text_encoder=networks["text_encoder"],
        tokenizer=_load_tokenizer(folder, "tokenizer"),
        unet=networks["unet"],
        scheduler=scheduler_of(read_json(folder / "scheduler" / "scheduler_config.json"), f"{folder}/scheduler"),
        second=second,
    )


def _check_kind(folder: Path) -> bool:
    """Whether the folder's base has two text encoders; `BadBase` names a model of another kind."""
    index = folder / "model_index.json"
    pipeline = read_json(index) if index.is_file() else {}
    for part in ("transformer", "prior", "text_encoder_3"):
        named = pipeline.get(part)
        if isinstance(named, list) and named[-1] is not None:
            raise BadBase(f"{folder} is a {pipeline.get('_class_name')} with a {part} ({named[-1]}), {KNOWN}")
    if (folder / "transformer").is_dir() and not (folder / "unet").is_dir():
        raise BadBase(f"{folder} has a transformer in the place of the unet, {KNOWN}")
    if pipeline.get("requires_aesthetics_score"):
        raise BadBase(f"{folder} is SDXL's refiner, {KNOWN}: give the SDXL base")
    config = folder / "unet" / "config.json"
    if not config.is_file():
        return False  # said by the next check
    unet = read_json(config)
    check_unet(f"{folder}/unet", unet)
    return unet.get("addition_embed_type") == "text_time"


def _check_whole(folder: Path, two: bool) -> None:
    """Raise `BadBase` naming the first thing that a base must have and this folder has not."""
    parts = [part for part in NETWORKS if two or part != "text_encoder_2"]
    configs = [f"{part}/config.json" for part in parts] + ["scheduler/scheduler_config.json"]
    configs += ["tokenizer/tokenizer_config.json"] + (["tokenizer_2/tokenizer_config.json"] if two else [])
    for name in configs:
        if not (folder / name).is_file():
            raise BadBase(f"{folder} has no {name}, expected a base in diffusers' layout: give another folder")
    for part in parts:
        if files_of(folder, part):
            continue
        stem = NETWORKS[part][1]
        pickled = sorted(path.name for path in (folder / part).iterdir() if path.suffix in _PICKLED)
        found = f"only {pickled[0]}, a pickled file that could run code" if pickled else "no weights"
        raise BadBase(f"{folder / part} has {found}, expected {stem}.safetensors: convert the base to safetensors")


def files_of(folder: Path, part: str) -> list[Path]:
    """The weights' files of a network, those of the half-precision variant where there are no others."""
    stem, place = NETWORKS[part][1], folder / part
    plain = [*place.glob(f"{stem}.safetensors"), *place.glob(f"{stem}-*-of-*.safetensors")]
    return sorted(plain or [*place.glob(f"{stem}.{VARIANT}.safetensors"), *place.glob(f"{stem}.{VARIANT}-*-of-*")])


def _load_network(folder: Path, part: str, dtype: torch.dtype | None) -> Any:
    cls, stem, dtype_name = NETWORKS[part]
    files = files_of(folder, part)
    saved = {check_numbers(file) for file in files}
    own = saved.pop() if len(saved) == 1 else torch.float32
    read = torch.float32 if part == "vae" else torch.float16 if dtype == torch.float16 else own
    variant = VARIANT if files[0].name.startswith(f"{stem}.{VARIANT}") else None
    try:
        with quiet():
            network, info = cls.from_pretrained(
                folder / part,
                use_safetensors=True,
                local_files_only=True,
                variant=variant,
                output_loading_info=True,
                **{dtype_name: read},
            )
    except Exception as error:  # the libraries raise anything from KeyError to SafetensorError on a damaged file
        raise BadBase(f"{folder / part} cannot be opened ({one_line(error)}): make or copy the base again") from error
    for keys, fault in (("missing_keys", "lacks"), ("unexpected_keys", "holds, beyond its configuration,")):
        # Else left at random, or left out, by libraries that only warn; of a whole CLIP, only the text is wanted.
        if names := sorted(name for name in info[keys] if not name.startswith(_OF_CLIP) or fault == "lacks"):
            others = f" and {len(names) - 1} others" if len(names) > 1 else ""
            raise BadBase(f"{folder / part} {fault} {names[0]}{others}, {KNOWN}: make or copy the base again")
    return network


def _load_tokenizer(folder: Path, name: str) -> CLIPTokenizer:
    try:
        return CLIPTokenizer.from_pretrained(folder / name, local_files_only=True)
    except Exception as error:
        raise BadBase(f"{folder}/{name} cannot be opened ({one_line(error)}): make or copy the base again") from error
