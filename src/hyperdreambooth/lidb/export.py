"""Persons as plain LoRA files for other programs: kohya, diffusers, PEFT.

Exact, without any SVD: R ranks of LiDB and r full-space ranks beside them stack to one LoRA. Ranks that change nothing
are left out, so layers have ranks of their own, K the greatest of them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hyperdreambooth.errors import NotFinite
from hyperdreambooth.files import save_tensors, write_folder, write_text
from hyperdreambooth.lidb.lora import Factors, LoRALayout
from hyperdreambooth.lidb.names import PEFT_PREFIX, TEXT_MODEL, has_two_encoders, kohya_name
from hyperdreambooth.lidb.reading import PEFT_CONFIG, PEFT_WEIGHTS
from hyperdreambooth.lidb.sites import Site, total_width
from hyperdreambooth.lidb.space import LiDBSpace

CARD = "README.md"


@dataclass(frozen=True)
class About:
    """What an exported file says of itself beside its numbers.

    Attributes:
        metadata: text in the header of every file.
        base: the name of the base, for PEFT's settings.
        card: a model card, for folders; "" for none.
        dtype: of the numbers.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None
    card: str = ""
    dtype: torch.dtype = torch.float32


_NOTHING = About()


def to_lora(space: LiDBSpace, weights: Tensor, lora: Tensor | None = None) -> list[Factors]:
    """Each site's down (K, n) and up (m, K), dW = up @ down, for one person and full-space factors beside it.

    Args:
        space: the base's space of all sites; a person may be of the first ones alone.
        weights: packed LiDB numbers (S, R, a + b).
        lora: flat full-space factors (size,) as in LoRALayout, or None.
    """
    factors = [_compose(space, weights, index) for index in range(len(weights))]
    if lora is None:
        return factors
    sites = space.of(weights).sites
    full = LoRALayout(sites, lora.shape[-1] // total_width(sites)).split(lora)
    if not space.split(weights)[1].any():
        return full  # LiDB ranks that change nothing are not handed on
    return [
        (torch.cat([down, more_down.to(down)]), torch.cat([up, more_up.to(up)], dim=1))
        for (down, up), (more_down, more_up) in zip(factors, full, strict=True)
    ]


def save_kohya(
    path: str | Path, space: LiDBSpace, weights: Tensor, lora: Tensor | None = None, about: About = _NOTHING
) -> None:
    """Write one file in kohya's layout, for A1111, ComfyUI and diffusers: lora_unet_ and lora_te_ keys, alpha per site.

    Every alpha is K, as diffusers loses those of single layers; where a layer has fewer ranks, up makes good for it.
    With two text encoders their keys begin with lora_te1_ and lora_te2_, as for SDXL. The metadata say "conv_dim" where
    there are convolutions of more than one place, as kohya's own do.

    Raises:
        WorkError: the file cannot be written whole, or (NotFinite) a number not in its dtype.
    """
    tensors, two = {}, has_two_encoders(space.sites)
    named = _named(space, weights, lora, about)
    rank = max(len(down) for _, (down, _) in named)
    for site, (down, up) in named:
        key = kohya_name(site, two)
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up * (len(down) / rank)  # programs multiply by rank / len(down)
        tensors[f"{key}.alpha"] = torch.tensor(float(rank), dtype=about.dtype)
    network = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    if any(site.kernel > 1 for site, _ in named):
        network["ss_network_args"] = json.dumps({"conv_dim": str(rank), "conv_alpha": str(rank)})
    save_tensors(path, tensors, {"format": "pt", **network, **about.metadata})


def save_diffusers(
    path: str | Path, space: LiDBSpace, weights: Tensor, lora: Tensor | None = None, about: About = _NOTHING
) -> None:
    """Write one file for StableDiffusionPipeline.load_lora_weights, under Stable Diffusion's own names.

    Without any alpha, diffusers scales every layer by 1; before 0.42.1 it does so only where all have the same rank.

    Raises:
        WorkError: the file cannot be written whole, or (NotFinite) a number not in its dtype.
    """
    tensors = {}
    for site, (down, up) in _named(space, weights, lora, about):
        tensors[f"{site.name}.lora_A.weight"] = down
        tensors[f"{site.name}.lora_B.weight"] = up
    save_tensors(path, tensors, {"format": "pt", **about.metadata})


def save_peft(
    folder: str | Path, space: LiDBSpace, weights: Tensor, lora: Tensor | None = None, about: About = _NOTHING
) -> None:
    """Write a folder with one PEFT adapter per model: unet/, text_encoder/, each for PeftModel.from_pretrained.

    PEFT knows layers by their module path alone. Those of text encoders began with text_model. in earlier transformers;
    both are written, of which PEFT takes those that it finds.

    Raises:
        WorkError: a file cannot be written whole, or (NotFinite) a number not in its dtype; the folder stays as it was.
    """
    named = _named(space, weights, lora, about)

    def write(part: Path) -> None:
        for model in dict.fromkeys(site.model for site, _ in named):
            tensors, ranks = {}, {}
            for site, (down, up) in named:
                if site.model != model:
                    continue
                path = site.name.removeprefix(f"{model}.")
                short = path.removeprefix(TEXT_MODEL)
                ranks[short] = len(down)
                for name in (short, path):
                    tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = down
                    tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = up
            save_tensors(part / model / PEFT_WEIGHTS, tensors, {"format": "pt", **about.metadata})
            write_text(part / model / PEFT_CONFIG, json.dumps(_peft_config(ranks, about.base), indent=2) + "\n")
        if about.card:
            write_text(part / CARD, about.card)

    write_folder(folder, write)


def _compose(space: LiDBSpace, weights: Tensor, index: int) -> Factors:
    """One site's bases times its person: down (R, n) and up (m, R)."""
    a_aux, b_aux = (side.to(weights) for side in space.bases(index))
    a_train, b_train = space.split(weights[index])  # (R, a), (R, b)
    return a_train @ a_aux.T, space.scale * b_aux.T @ b_train.T


def shaped(site: Site, down: Tensor, up: Tensor) -> Factors:
    """Factors as a LoRA's own layers have them: those of a convolution are (K, C, k, k) and (m, K, 1, 1)."""
    if not site.kernel:
        return down, up
    return down.reshape(len(down), -1, site.kernel, site.kernel), up.reshape(*up.shape, 1, 1)


def _named(space: LiDBSpace, weights: Tensor, lora: Tensor | None, about: About) -> list[tuple[Site, Factors]]:
    """The sites that a person changes with the ranks that change them, in the file's dtype and shapes.

    A model of which no site makes it known keeps one rank of the first that does.
    """
    found = []
    for site, (down, up) in zip(space.sites, to_lora(space, weights, lora), strict=False):
        down, up = down.to(about.dtype), up.to(about.dtype)
        if not (down.isfinite().all() and up.isfinite().all()):
            raise NotFinite(f"the factors of {site.name} are not all finite in {about.dtype}: export in float32")
        found.append((site, down, up, down.any(dim=1) & up.any(dim=0)))
    named, known = [], {site.model for site, _, _, used in found if used.any() and _makes_known(site)}
    for site, down, up, used in found:
        if site.model not in known and _makes_known(site):
            known.add(site.model)
            used[0] = True
        if used.any():
            named.append((site, shaped(site, down[used], up[:, used])))
    return named


def _makes_known(site: Site) -> bool:
    """Whether programs see its model in a file by it: diffusers sees kohya's text encoders by an output projection."""
    return site.model == "unet" or site.path.endswith(".out_proj")


def _peft_config(ranks: Mapping[str, int], base: str | None) -> dict[str, object]:
    """PEFT's settings of one model for layers of these ranks by path, each scaled by 1."""
    rank = max(ranks.values())
    fewer = {path: own for path, own in ranks.items() if own < rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": fewer,
        "alpha_pattern": fewer,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(ranks),
    }
