"""What other programs call the sites, and what their LoRA files call the factors of a layer.

Three layouts are in use. kohya, read by A1111 and ComfyUI: ``lora_unet_..._attn1_to_q.lora_down.weight``, ``lora_te_``
(with two text encoders ``lora_te1_`` and ``lora_te2_``), and one ``alpha`` per layer. diffusers:
``unet.....attn1.to_q.lora_A.weight``, ``text_encoder.``. PEFT: one folder per model,
``base_model.model.....attn1.to_q.lora_A.weight``. Flattened to kohya's, all of them name a layer alike.
"""

import re
from typing import NamedTuple

from hyperdreambooth.lidb.sites import Site

PEFT_PREFIX = "base_model.model."  # of a layer's path in PEFT's files
TEXT_MODEL = "text_model."  # of paths in text encoders: canonical, and the modules' own in earlier transformers
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


_SGM_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_SGM_ENDS = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "out_2": "conv_out",
}


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
    name = layer.removeprefix(PEFT_PREFIX).replace(".processor.", ".")
    if not name.startswith(tuple(_MODELS)):
        owner, _, path = name.partition(".")
        if owner not in _TWO:
            owner, path = model or ("unet" if name.startswith(_UNET_STAGES) else "text_encoder"), name
        if owner != "unet":
            path = f"{TEXT_MODEL}{path.removeprefix(TEXT_MODEL)}"
        name = (_TWO if two or owner == _SECOND else _ONE)[owner] + path.replace(".", "_")
    if two and name.startswith(_TWO["unet"]):
        name = _TWO["unet"] + _of_sgm(name.removeprefix(_TWO["unet"]))
    return re.sub(r"(attn[12]_to_out)$", r"\1_0", name)  # diffusers' first layout left the number out


def _of_sgm(path: str) -> str:
    """kohya names the U-Net of SDXL as Stability's own code does: "input_blocks_4_1_proj_in" and so on, to diffusers'.

    Three blocks a stage, of which the third of the way down is what halves the picture. Other names stay as they are.
    """
    if match := re.fullmatch(r"(input|output)_blocks_(\d+)_(\d)_(.+)", path):
        down, block, part, rest = match[1] == "input", int(match[2]), int(match[3]), match[4]
        stage, layer = divmod(block - 1 if down else block, 3)
        if down and layer == 2:
            return f"down_blocks_{stage}_downsamplers_0_conv"
        if part == 2:
            return f"up_blocks_{stage}_upsamplers_0_conv"
        kind = ("resnets", "attentions")[part]
        return f"{'down' if down else 'up'}_blocks_{stage}_{kind}_{layer}_{_of_resnet(rest)}"
    if match := re.fullmatch(r"middle_block_([012])_(.+)", path):
        return f"mid_block_{('resnets_0', 'attentions_0', 'resnets_1')[int(match[1])]}_{_of_resnet(match[2])}"
    return _SGM_ENDS.get(path, path)


def _of_resnet(path: str) -> str:
    """A layer inside a residual block of Stability's code, in diffusers' words; others stay as they are."""
    return _SGM_RESNET.get(path, path)


def model_of(flat: str) -> str:
    """The model of a layer in kohya's layout: "unet", "text_encoder" or "text_encoder_2"."""
    return next(model for prefix, model in _MODELS.items() if flat.startswith(prefix))


def architecture_of(layers: list[str]) -> str:
    """What a file's names say that it was made for, in words; "" where they say nothing."""
    found = (title for pieces, title in _OTHERS if any(piece in layer for layer in layers for piece in pieces))
    return next(found, "")
