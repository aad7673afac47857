"""Which linear layers of a text-to-image model carry a person: the 192-layer rule, under names that outlive libraries.

The rule: in the U-Net the query, key, value and output projections of self-attention and cross-attention and the GEGLU
projection of each transformer block; in each CLIP text encoder the four projections of each self-attention. On Stable
Diffusion 1.5 these are 192 layers, the only known set that gives both counts printed in the paper; the same rule finds
236 on Stable Diffusion 2.1 and 806 on SDXL.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from hyperdreambooth.errors import UserError

MODELS = ("text_encoder", "text_encoder_2", "unet")  # in order of execution

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT = re.compile(r"(?:text_model\.)?(encoder\.layers\.(\d+)\.self_attn\.(q_proj|k_proj|v_proj|out_proj))")

_STAGES = ("down_blocks", "mid_block", "up_blocks")
_LAYERS = tuple(
    f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
)
_LAYERS += ("ff.net.0.proj",)
_UNET = re.compile(
    r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.attentions\.(\d+)\.transformer_blocks\.(\d+)\.("
    + "|".join(map(re.escape, _LAYERS))
    + ")"
)

_BLOCK_LAYERS = ("conv1", "time_emb_proj", "conv2", "conv_shortcut")
_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.resnets\.(\d+)\.(" + "|".join(_BLOCK_LAYERS) + ")")


@dataclass(frozen=True)
class Site:
    """One adapted layer, x (n_in numbers) to y (n_out numbers).

    Attributes:
        name: canonical name: the model and Stable Diffusion's own module path, whatever installed libraries call it,
            such as ``text_encoder.text_model.encoder.layers.0.self_attn.q_proj``.
        model: ``"unet"``, ``"text_encoder"`` or, on SDXL, ``"text_encoder_2"``.
        path: the module's path inside that model today.
        n_in: n, the layer's inputs.
        n_out: m, the layer's outputs.
        kernel: side of a convolution's kernel, which makes it a linear layer on patches of n = channels * kernel^2
            numbers; 0 of a linear layer.
    """

    name: str
    model: str
    path: str
    n_in: int
    n_out: int
    kernel: int = 0


def find_sites(
    unet: nn.Module | None, text_encoder: nn.Module | None, text_encoder_2: nn.Module | None = None
) -> tuple[Site, ...]:
    """The adapted layers of a model in order of execution: text encoders, then U-Net down, middle, up.

    Works on real, random and meta-device models, with and without adapters injected. Any model may be left out.

    Raises:
        UserError: the U-Net's projections are fused, or no layer follows the rule: the error names what there is.
    """
    found = []
    for model, encoder in (("text_encoder", text_encoder), ("text_encoder_2", text_encoder_2)):
        if encoder is not None:
            found += sorted(_text_encoder_sites(model, encoder), key=lambda keyed: keyed[0])
    if unet is not None:
        refuse_fused(fusable(unet))
        in_unet = sorted(_unet_sites(unet), key=lambda keyed: keyed[0])
        if not in_unet:
            raise UserError(
                f"no attention layer found to adapt in {_described(unet)}, expected diffusers' UNet2DConditionModel: "
                "give Stable Diffusion 1.x, 2.x or SDXL"
            )
        found += in_unet
    if not found:
        raise UserError("no attention layer found to adapt: expected diffusers' UNet2DConditionModel and CLIPTextModel")
    return tuple(site for _, site in found)


def find_blocks(unet: nn.Module) -> tuple[Site, ...]:
    """The layers of the U-Net's residual blocks in order of execution: where fine-tuning sharpens a person.

    They are beside the paper's rule: docs/notes.md has what they hold of a person.
    """
    found = []
    for path, layer in unet.named_modules():
        if (match := _BLOCK.fullmatch(path)) and isinstance(layer, nn.Linear | nn.Conv2d):
            stage, *indices, kind = match.groups()
            key = (_STAGES.index(stage), *(int(index or 0) for index in indices), _BLOCK_LAYERS.index(kind))
            if isinstance(layer, nn.Linear):
                site = Site(f"unet.{path}", "unet", path, layer.in_features, layer.out_features)
            else:
                side = layer.kernel_size[0]
                site = Site(f"unet.{path}", "unet", path, layer.in_channels * side**2, layer.out_channels, side)
            found.append((key, site))
    return tuple(site for _, site in sorted(found, key=lambda keyed: keyed[0]))


def fusable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The attentions of a model whose projections may be fused, by name."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "fused_projections")]


def refuse_fused(attentions: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise UserError if one of these runs on fused projections, which would silently skip adapters."""
    for name, module in attentions:
        if module.fused_projections:
            raise UserError(
                f"{name} runs on fused projections (to_qkv), which skip the adapted to_q, to_k, to_v: "
                "call unfuse_qkv_projections() first"
            )


def total_width(sites: tuple[Site, ...]) -> int:
    """The numbers of a rank-1 LoRA on these sites: the sum of n + m."""
    return sum(site.n_in + site.n_out for site in sites)


_Key = tuple[int, ...]


def _text_encoder_sites(model: str, encoder: nn.Module) -> Iterator[tuple[_Key, Site]]:
    for path, layer in _linears(encoder):
        if match := _TEXT.fullmatch(path):
            canonical, index, projection = match.groups()
            name = f"{model}.text_model.{canonical}"
            key = (int(index), _PROJECTIONS.index(projection))
            yield key, Site(name, model, path, layer.in_features, layer.out_features)


def _unet_sites(model: nn.Module) -> Iterator[tuple[_Key, Site]]:
    for path, layer in _linears(model):
        if match := _UNET.fullmatch(path):
            stage, *indices, kind = match.groups()
            key = (_STAGES.index(stage), *(int(index or 0) for index in indices), _LAYERS.index(kind))
            yield key, Site(f"unet.{path}", "unet", path, layer.in_features, layer.out_features)


def _described(model: nn.Module) -> str:
    """A model's class, and the blocks of its attention where they are of another kind than the rule's."""
    blocks = sorted({type(module).__name__ for module in model.modules() if "Block" in type(module).__name__})
    return type(model).__name__ + (f" (of {', '.join(blocks)})" if blocks else "")


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear))
