"""Find a base and open it: the embedded one, a folder, an id of the hub, or one file. Never a pickled one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import torch

from hyperdreambooth.base.folder import open_folder
from hyperdreambooth.base.hardware import settle
from hyperdreambooth.base.hub import fetch
from hyperdreambooth.base.model import CARD_FILE, Base, Card
from hyperdreambooth.base.parts import Parts, check_together, read_json
from hyperdreambooth.base.single_file import card_beside, open_single_file
from hyperdreambooth.embedded import BASE
from hyperdreambooth.errors import BadBase
from hyperdreambooth.hub import is_hub_id

_PICKLED = (".ckpt", ".pt", ".pth", ".bin")


def load_base(
    name_or_path: str | Path = "embedded",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    offload: bool = False,
) -> Base:
    """Open a base.

    Args:
        name_or_path: "embedded", the one in the package; a folder as `StableDiffusionPipeline` or
            `StableDiffusionXLPipeline` saves them; an id of the hub, "org/name" or "org/name@revision"; a single-file
            checkpoint in safetensors.
        device, dtype: None chooses, see `hardware.choose`.
        offload: the networks stay on the CPU until they are at work, see `Base.offload`.

    Raises:
        BadBase: naming what is missing, damaged or of another kind. DiskFull, WorkError: while fetching.
    """
    name, path = str(name_or_path), BASE if str(name_or_path) == "embedded" else Path(name_or_path)
    if path.is_file():
        base = _base_of_file(path, dtype)
    elif path.is_dir():
        base = _base_of(open_folder(path, dtype), path, path.name, path / CARD_FILE)
    elif isinstance(name_or_path, str) and is_hub_id(name):
        folder = fetch(name)
        base = _base_of(open_folder(folder, dtype), folder, name, folder / CARD_FILE)
    else:
        raise BadBase(
            f"{path} is no folder, expected a base: give 'embedded' or a folder in diffusers' layout, an id of the hub "
            "(org/name), or a .safetensors file"
        )
    return settle(base, device, dtype, offload)


def _base_of_file(path: Path, dtype: torch.dtype | None) -> Base:
    if path.suffix in _PICKLED:
        raise BadBase(f"{path} is a pickled file, which could run code, expected .safetensors: convert it first")
    card = card_beside(path)
    about = read_json(card) if card.is_file() else {}
    if "layout" in about:
        about["layout"] = path.parent / str(about["layout"])
    return _base_of(open_single_file(path, dtype, about), path, path.stem, card)


def _base_of(parts: Parts, where: Path, name: str, card: Path) -> Base:
    check_together(str(where), parts)
    return Base(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=parts.scheduler,
        card=_load_card(card, name, parts),
        second=parts.second,
    )


def _load_card(path: Path, name: str, parts: Parts) -> Card:
    """The base's card; where it says nothing, what Stable Diffusion is, at the size its own networks name."""
    values: dict[str, Any] = {"name": name} | (read_json(path) if path.is_file() else {})
    if "picture_size" not in values:
        values["picture_size"] = _picture_size(path, parts)
    types = get_type_hints(Card)
    known = {name: value for name, value in values.items() if name in types}
    for name, value in known.items():
        accepted = (int, float) if types[name] is float else (types[name],)
        if type(value) not in accepted:  # `isinstance` would take True for a number
            raise BadBase(f"{path} has {name} {value!r}, expected {types[name].__name__}: correct it")
        if name in ("a", "b", "picture_size") and value < 1:
            raise BadBase(f"{path} has {name} {value}, expected 1 or more: correct it")
    return Card(**known)


def _picture_size(card: Path, parts: Parts) -> int:
    """The side of the pictures that the networks were made for."""
    side = parts.unet.config.sample_size
    if type(side) is not int:
        raise BadBase(
            f"the U-Net's configuration has sample_size {side!r}, expected a whole number: set it there, or "
            f"picture_size in {card}"
        )
    return side * int(2 ** (len(parts.vae.config.block_out_channels) - 1))
