"""What other programs call the sites, and what their LoRA files call the factors of a layer.

Three layouts are in use. kohya, read by A1111 and ComfyUI: ``lora_unet_..._attn1_to_q.lora_down.weight``, ``lora_te_``
(with two text encoders ``lora_te1_`` and ``lora_te2_``), and one ``alpha`` per layer. diffusers:
``unet.....attn1.to_q.lora_A.weight``, ``text_encoder.``. PEFT: one folder per model,
``base_model.model.....attn1.to_q.lora_A.weight``. Flattened to kohya's, all of them name a layer alike.
"""

import re
from typing import NamedTuple

from hyperdreambooth.lidb.sites import Site

_SECOND = "text_encoder_2"
_ONE = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_TWO = {"unet": "lora_unet_", "text_encoder": "lora_te1_", _SECOND: "lora_te2_"}
_MODELS = {prefix: model for model, prefix in (*_ONE.items(), *_TWO.items())}
_UNET_STAGES = ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out", "time_embedding")
_PART = re.compile(
    r"(?P<layer>.+?)(?:"
    r"(?:\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(?P<side>down|up|A|B)(?:\.default)?\.weight"
    r"|\.alpha)"
)

# Beginnings and pieces of names that only other architectures have.
_OTHERS = (
    (("lora_te1_", "lora_te2_", "text_encoder_2.", "input_blocks_", "output_blocks_"), "Stable Diffusion XL"),
    (("double_blocks", "single_blocks", "single_transformer_blocks"), "Flux"),
    (("joint_blocks", "transformer.transformer_blocks", "lora_transformer_"), "a diffusion transformer"),
)


class Part(NamedTuple):
    """What one tensor of a LoRA file is: a layer's "down" or "up" factor, or its "alpha"."""

    layer: str
    kind: str


def has_two_encoders(sites: tuple[Site, ...]) -> bool:
    """Whether a second text encoder has sites, as SDXL's: kohya then numbers both."""
    return any(site.model == _SECOND for site in sites)


def kohya_name(site: Site, two: bool = False) -> str:
    """A site's name in kohya's layout, without the part: ``lora_unet_mid_block_..._attn1_to_q``.

    Args:
        site: the layer.
        two: whether its base has two text encoders: see `has_two_encoders`.
    """
    return (_TWO if two else _ONE)[site.model] + site.name.removeprefix(f"{site.model}.").replace(".", "_")


def parse(key: str) -> Part | None:
    """Which layer a tensor belongs to, under the file's own name for it, and as what; None for no part of a LoRA."""
    match = _PART.fullmatch(key)
    if match is None:
        return None
    kind = {"A": "down", "B": "up"}.get(match["side"], match["side"]) if match["side"] else "alpha"
    return Part(match["layer"], kind)


def flatten(layer: str, model: str = "", two: bool = False) -> str:
    """Any layout's name of a layer in kohya's: equal to `kohya_name` where it is that site.

    Args:
        layer: the file's own name, without the part.
        model: "unet", "text_encoder" or "text_encoder_2" where the file holds the layers of one model and does not say
            of which.
        two: as in `kohya_name`.
    """
    name = layer.removeprefix("base_model.model.").replace(".processor.", ".")
    if not name.startswith(tuple(_MODELS)):
        owner, _, path = name.partition(".")
        if owner not in _TWO:
            owner, path = model or ("unet" if name.startswith(_UNET_STAGES) else "text_encoder"), name
        if owner != "unet":
            path = f"text_model.{path.removeprefix('text_model.')}"
        name = (_TWO if two or owner == _SECOND else _ONE)[owner] + path.replace(".", "_")
    return re.sub(r"(attn[12]_to_out)$", r"\1_0", name)  # diffusers' first layout left the number out


def model_of(flat: str) -> str:
    """The model of a layer in kohya's layout: "unet", "text_encoder" or "text_encoder_2"."""
    return next(model for prefix, model in _MODELS.items() if flat.startswith(prefix))


def architecture_of(layers: list[str]) -> str:
    """What a file's names say that it was made for, in words; "" where they say nothing."""
    found = (title for pieces, title in _OTHERS if any(piece in layer for layer in layers for piece in pieces))
    return next(found, "")
