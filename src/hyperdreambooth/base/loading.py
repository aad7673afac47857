"""Find a base and open it: the embedded one, or a folder in diffusers' layout. Never a pickled file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import diffusers
import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hyperdreambooth.base.model import CARD_FILE, PREDICTION_TYPES, Base, Card, noise_source, quiet
from hyperdreambooth.embedded import BASE
from hyperdreambooth.errors import BadBase

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
    folder = BASE if str(name_or_path) == "embedded" else Path(name_or_path)
    _check_whole(folder)
    dtype = dtype or torch.float32
    # A fingerprint is of numbers in float16: what rounds them in another way comes after it.
    read = dtype if dtype == torch.float16 else torch.float32
    networks = {part: _load_network(folder, part, read) for part in _NETWORKS}
    base = Base(
        vae=networks["vae"],
        text_encoder=networks["text_encoder"],
        tokenizer=_load_tokenizer(folder),
        unet=networks["unet"],
        scheduler=_load_scheduler(folder),
        card=_load_card(folder, networks),
    )
    return base.to(device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype)


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
    _check_follows_seeds(folder, cls, config)
    return scheduler


def _check_follows_seeds(folder: Path, cls: Any, config: dict[str, Any]) -> None:
    """Raise `BadBase` for a sampler that adds noise of its own: pictures would not depend on their seeds alone."""

    def first_step(seed: int) -> Tensor:
        scheduler = cls.from_config(config)
        scheduler.set_timesteps(4)
        latents, added = torch.ones(1, 4, 8, 8), noise_source(scheduler, [torch.Generator().manual_seed(0)])
        torch.manual_seed(seed)
        return scheduler.step(torch.zeros_like(latents), scheduler.timesteps[0], latents, return_dict=False, **added)[0]

    try:
        with torch.random.fork_rng(devices=()):
            same = torch.equal(first_step(0), first_step(1))
    except Exception as error:  # samplers of other kinds of models, or with needs of their own
        raise BadBase(
            f"{folder}/scheduler names {cls.__name__!r}, which cannot draw ({_line(error)}), expected a sampler of "
            "Stable Diffusion: name another one, such as DDIMScheduler"
        ) from error
    if not same:
        raise BadBase(
            f"{folder}/scheduler names {cls.__name__!r}, which adds noise of its own, expected a sampler whose "
            "pictures depend on their seed alone: name another one, such as DDIMScheduler"
        )


def _load_card(folder: Path, networks: dict[str, Any]) -> Card:
    """The folder's card; where it says nothing, what Stable Diffusion is, at the size its own networks name."""
    path = folder / CARD_FILE
    values: dict[str, Any] = {"name": folder.name} | (_read_json(path) if path.is_file() else {})
    if "picture_size" not in values:
        values["picture_size"] = _picture_size(folder, networks)
    types = get_type_hints(Card)
    known = {name: value for name, value in values.items() if name in types}
    for name, value in known.items():
        accepted = (int, float) if types[name] is float else (types[name],)
        if type(value) not in accepted:  # `isinstance` would take True for a number
            raise BadBase(f"{path} has {name} {value!r}, expected {types[name].__name__}: correct it")
        if name in ("a", "b", "picture_size") and value < 1:
            raise BadBase(f"{path} has {name} {value}, expected 1 or more: correct it")
    return Card(**known)


def _picture_size(folder: Path, networks: dict[str, Any]) -> int:
    """The side of the pictures that the networks were made for."""
    side = networks["unet"].config.sample_size
    if type(side) is not int:
        raise BadBase(
            f"{folder}/unet/config.json has sample_size {side!r}, expected a whole number: set it there, or "
            f"picture_size in {CARD_FILE}"
        )
    return side * int(2 ** (len(networks["vae"].config.block_out_channels) - 1))


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
