"""Find a base and open it: the embedded one, or a folder in diffusers' layout. Never a pickled file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from hyperdreambooth.base.model import CARD_FILE, PREDICTION_TYPES, Base, Card, quiet
from hyperdreambooth.errors import BadBase

EMBEDDED = Path(__file__).parents[1] / "embedded" / "base"

_NETWORKS = {  # class, name of the weights' file without its suffix, name of from_pretrained's dtype argument
    "vae": (AutoencoderKL, "diffusion_pytorch_model", "torch_dtype"),
    "text_encoder": (CLIPTextModel, "model", "dtype"),
    "unet": (UNet2DConditionModel, "diffusion_pytorch_model", "torch_dtype"),
}
_CONFIGS = (
    "vae/config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)


def load_base(
    name_or_path: str | Path = "embedded",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Base:
    """Open a base: "embedded", the one in the package, or a folder as `StableDiffusionPipeline` saves them.

    device: None takes a GPU where there is one, else the CPU; dtype: None is float32. Raises `BadBase` naming what is
    missing or damaged.
    """
    folder = EMBEDDED if str(name_or_path) == "embedded" else Path(name_or_path)
    _check_whole(folder)
    networks = {part: _load_network(folder, part, dtype or torch.float32) for part in _NETWORKS}
    base = Base(
        vae=networks["vae"],
        text_encoder=networks["text_encoder"],
        tokenizer=_load_tokenizer(folder),
        unet=networks["unet"],
        scheduler=_load_scheduler(folder),
        card=_load_card(folder, networks),
    )
    return base.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _check_whole(folder: Path) -> None:
    """Raise `BadBase` naming the first thing that a base must have and this folder has not."""
    if not folder.is_dir():
        raise BadBase(f"{folder} is no folder, expected a base: give 'embedded' or a folder in diffusers' layout")
    for name in _CONFIGS:
        if not (folder / name).is_file():
            raise BadBase(f"{folder} has no {name}, expected a base in diffusers' layout: give another folder")
    for part, (_, stem, _) in _NETWORKS.items():
        if any((folder / part).glob(f"{stem}.safetensors*")):
            continue
        pickled = sorted(path.name for path in (folder / part).iterdir() if path.suffix in (".bin", ".pt", ".ckpt"))
        found = f"only {pickled[0]}, a pickled file that could run code" if pickled else "no weights"
        raise BadBase(f"{folder / part} has {found}, expected {stem}.safetensors: convert the base to safetensors")


def _load_network(folder: Path, part: str, dtype: torch.dtype) -> Any:
    cls, _, dtype_name = _NETWORKS[part]
    try:
        with quiet():
            return cls.from_pretrained(
                folder / part, use_safetensors=True, local_files_only=True, **{dtype_name: dtype}
            )
    except Exception as error:  # the libraries raise anything from KeyError to SafetensorError on a damaged file
        raise BadBase(f"{folder / part} cannot be opened ({_line(error)}): make or copy the base again") from error


def _load_tokenizer(folder: Path) -> CLIPTokenizer:
    try:
        return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:
        raise BadBase(f"{folder}/tokenizer cannot be opened ({_line(error)}): make or copy the base again") from error


def _load_scheduler(folder: Path) -> SchedulerMixin:
    config = _read_json(folder / "scheduler" / "scheduler_config.json")
    cls = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin) and hasattr(cls, "from_config")):
        raise BadBase(f"{folder}/scheduler names {config.get('_class_name')!r}, expected a scheduler of diffusers")
    scheduler = cls.from_config(config)
    predicted = scheduler.config.get("prediction_type")
    if predicted not in PREDICTION_TYPES or not hasattr(scheduler, "alphas_cumprod"):
        raise BadBase(f"{folder}/scheduler predicts {predicted!r}, expected one of {', '.join(PREDICTION_TYPES)}")
    return scheduler


def _load_card(folder: Path, networks: dict[str, Any]) -> Card:
    """The folder's card; where it says nothing, what Stable Diffusion is, at the size its own networks name."""
    size = networks["unet"].config.sample_size * 2 ** (len(networks["vae"].config.block_out_channels) - 1)
    values = {"name": folder.name, "picture_size": size}
    if (folder / CARD_FILE).is_file():
        values |= _read_json(folder / CARD_FILE)
    known = {field.name for field in dataclasses.fields(Card)}
    return Card(**{name: value for name, value in values.items() if name in known})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadBase(f"{path} cannot be read ({_line(error)}), expected JSON: make or copy the base again") from error
    if not isinstance(values, dict):
        raise BadBase(f"{path} holds a {type(values).__name__}, expected a JSON object: make or copy the base again")
    return values


def _line(error: Exception) -> str:
    """An error's text on one line, cut to 160 characters."""
    return " ".join(str(error).split())[:160] or type(error).__name__
