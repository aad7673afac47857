"""A person inside a whole model: a folder that any diffusers program opens, without a LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from hyperdreambooth.base.model import Base
from hyperdreambooth.exchange.cards import model_card
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb.export import CARD
from hyperdreambooth.pipeline import HyperDreamBooth

_LARGEST_FILE = "5GB"  # as diffusers' own


def save_model(
    folder: str | Path, booth: HyperDreamBooth, person: Identity, title: str, dtype: torch.dtype = torch.float32
) -> None:
    """Write the base with one person merged into its weights, atomically, in diffusers' layout with a model card.

    Args:
        folder: that `StableDiffusionPipeline.from_pretrained` opens, or SDXL's.
        booth: whose base it is; left bit for bit as it was.
        person: whom to merge.
        title: what people call it.
        dtype: of the numbers; half precision rounds what was merged.

    Raises:
        WorkError: the folder cannot be written whole; it is as it was then.
    """
    base, adapters = booth.base, booth.adapters
    adapters.merge(person.weights.to(base.device), None if person.lora is None else person.lora.to(base.device))
    try:
        card = replace(base.card, name=f"{base.name} + {title}")
        merged = Base(base.vae, base.text_encoder, base.tokenizer, base.unet, base.scheduler, card, base.second)
        merged.save(folder, dtype, _LARGEST_FILE, {CARD: model_card(person, base.name, title, "diffusers")})
    finally:
        adapters.unmerge()
