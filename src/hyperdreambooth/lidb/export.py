"""Persons as plain LoRA files for other programs: kohya, diffusers, PEFT.

Exact, without any SVD: R ranks of LiDB and r full-space ranks beside them stack to one LoRA of rank K = R + r, whose
alpha is K so that every program scales it by 1.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from hyperdreambooth.files import save_tensors, write_atomically, write_folder
from hyperdreambooth.lidb.lora import Factors, LoRALayout
from hyperdreambooth.lidb.sites import Site, by_model, total_width
from hyperdreambooth.lidb.space import LiDBSpace


def to_lora(space: LiDBSpace, weights: Tensor, lora: Tensor | None = None) -> list[Factors]:
    """Each site's down (K, n) and up (m, K), dW = up @ down, for one person and full-space factors beside it.

    Args:
        space: the space that the person lives in.
        weights: packed LiDB numbers (S, R, a + b).
        lora: flat full-space factors (size,) as in LoRALayout, or None.
    """
    factors = [_compose(space, weights, index) for index in range(len(space.sites))]
    if lora is None:
        return factors
    layout = LoRALayout(space.sites, lora.shape[-1] // total_width(space.sites))
    return [
        (torch.cat([down, more_down.to(down)]), torch.cat([up, more_up.to(up)], dim=1))
        for (down, up), (more_down, more_up) in zip(factors, layout.split(lora), strict=True)
    ]


def save_kohya(path: str | Path, space: LiDBSpace, weights: Tensor, lora: Tensor | None = None) -> None:
    """Write one file in kohya's layout, for A1111, ComfyUI and diffusers: lora_unet_ and lora_te_ keys, alpha per site.

    With two text encoders their keys begin with lora_te1_ and lora_te2_, as for SDXL.

    Raises:
        WorkError: the file cannot be written whole.
    """
    tensors, rank = {}, 0
    two = "text_encoder_2" in by_model(space.sites)
    for site, (down, up) in _named(space, weights, lora):
        rank = len(down)
        key = _kohya_key(site, two)
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    save_tensors(path, tensors, {"format": "pt", **metadata})


def save_diffusers(path: str | Path, space: LiDBSpace, weights: Tensor, lora: Tensor | None = None) -> None:
    """Write one file for StableDiffusionPipeline.load_lora_weights, under Stable Diffusion's own names.

    Raises:
        WorkError: the file cannot be written whole.
    """
    tensors = {}
    for site, (down, up) in _named(space, weights, lora):
        tensors[f"{site.name}.lora_A.weight"] = down
        tensors[f"{site.name}.lora_B.weight"] = up
    save_tensors(path, tensors, {"format": "pt"})


def save_peft(folder: str | Path, space: LiDBSpace, weights: Tensor, lora: Tensor | None = None) -> None:
    """Write a folder with one PEFT adapter per model: unet/ and text_encoder/, each for PeftModel.from_pretrained.

    PEFT knows layers by their module path alone, so the paths are those of the library versions installed here.

    Raises:
        WorkError: a file cannot be written whole; the folder is as it was then.
    """
    factors = to_lora(space, weights, lora)

    def write(part: Path) -> None:
        for model, placed in by_model(space.sites).items():
            tensors, rank = {}, 0
            for index, site in placed:
                down, up = factors[index]
                rank = len(down)
                tensors[f"base_model.model.{site.path}.lora_A.weight"] = down
                tensors[f"base_model.model.{site.path}.lora_B.weight"] = up
            config = _peft_config(rank, [site.path for _, site in placed])
            save_tensors(part / model / "adapter_model.safetensors", tensors, {"format": "pt"})
            _write_text(part / model / "adapter_config.json", json.dumps(config, indent=2))

    write_folder(folder, write)


def _compose(space: LiDBSpace, weights: Tensor, index: int) -> Factors:
    """One site's bases times its person: down (R, n) and up (m, R)."""
    a_aux, b_aux = (side.to(weights) for side in space.bases(index))
    a_train, b_train = space.split(weights[index])  # (R, a), (R, b)
    return a_train @ a_aux.T, space.scale * b_aux.T @ b_train.T


def _named(space: LiDBSpace, weights: Tensor, lora: Tensor | None) -> Iterator[tuple[Site, Factors]]:
    return zip(space.sites, to_lora(space, weights, lora), strict=True)


def _kohya_key(site: Site, two: bool) -> str:
    """The key of a site, of a model with one text encoder or `two`."""
    first = "lora_te1" if two else "lora_te"
    prefix = {"unet": "lora_unet", "text_encoder": first, "text_encoder_2": "lora_te2"}[site.model]
    path = site.name.removeprefix(f"{site.model}.")
    return f"{prefix}_{path.replace('.', '_')}"


def _peft_config(rank: int, paths: list[str]) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": paths,
    }


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))
