"""The face encoder: a picture to a sequence of features, computed once however many rounds the decoder takes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperdreambooth.errors import BadFile, UserError, one_line
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.hub import download, is_hub_id

_PRETRAINED = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLED = (".bin", ".pt", ".ckpt", ".pth")
_INSIDE = "encoder."  # how the names of its parameters begin in a hypernetwork's file


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a face encoder; `picture_size` is a multiple of `patch`, `patch` a power of 2.

    With `pretrained`, a vision transformer of the transformers library that has a class token, by folder or hub id
    ("org/name" or "org/name@revision"), `patch`, `width`, `depth` and `heads` are its own, whatever stands here: what
    stands here is what is counted before it is fetched. Unless it is `trained` it stays frozen, and is not saved beside
    the numbers learnt here.
    """

    picture_size: int = 64
    patch: int = 16
    width: int = 192
    depth: int = 4
    heads: int = 6
    pretrained: str | None = None
    trained: bool = False  # whether a pretrained one learns too
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def frozen(self) -> bool:
        """Whether its numbers are those of somebody else's file, for good."""
        return self.pretrained is not None and not self.trained


class FaceEncoder(nn.Module):
    """A vision transformer with a convolutional stem: (N, 3, H, W) in [0, 1] -> (N, F, width), the whole face first.

    The first feature, of unit spread, is of the whole face, as a class token is; the others are of one patch each. The
    stem, a few convolutions for each halving up to the patch, lets the encoder learn to see from few pictures.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        halvings = config.patch.bit_length() - 1
        channels = [3, *(config.width >> (halvings - 1 - i) for i in range(halvings))]
        self.stem = nn.Sequential(*(_Halving(n, m) for n, m in pairwise(channels)))
        patches = (config.picture_size // config.patch) ** 2
        self.position = nn.Parameter(torch.randn(patches, config.width) * 0.02)
        self.blocks = blocks(config.width, config.heads, config.depth)
        self.norm = nn.LayerNorm(config.width)
        self.whole = nn.Linear(patches * config.width, config.width)  # each patch by itself: faces are aligned

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] of any size -> features (N, F, width), F = 1 + patches."""
        x = self.stem(pixels(pictures, self.config))  # (N, width, h, w)
        x = x.flatten(2).mT + self.position  # (N, F - 1, width)
        patches = self.norm(self.blocks(x))  # (N, F - 1, width)
        whole = F.layer_norm(self.whole(patches.flatten(1)), (self.width,))  # (N, width)
        return torch.cat([whole.unsqueeze(1), patches], dim=1)

    def save(self, path: str | Path) -> None:
        """Write the encoder's parameters, so that a hypernetwork can start from them."""
        save_tensors(path, self.state_dict())

    def load(self, path: str | Path) -> None:
        """Take the parameters of an encoder that was trained elsewhere: saved by `save`, or inside a hypernetwork.

        Raises:
            BadFile: not a safetensors file. UserError: an encoder of other sizes.
        """
        tensors, _ = load_tensors(path)
        inside = {name.removeprefix(_INSIDE): t for name, t in tensors.items() if name.startswith(_INSIDE)}
        load_parameters(self, inside or tensors, path)


class _Halving(nn.Module):
    """Half the size, then a residual block: (N, n, H, W) -> (N, m, H / 2, W / 2)."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.halve = nn.Sequential(nn.Conv2d(n, m, 3, stride=2, padding=1), nn.GroupNorm(1, m), nn.GELU())
        self.refine = nn.Sequential(nn.Conv2d(m, m, 3, padding=1), nn.GroupNorm(1, m))

    def forward(self, x: Tensor) -> Tensor:
        x = self.halve(x)
        return F.gelu(x + self.refine(x))


class PretrainedEncoder(nn.Module):
    """A vision transformer of the transformers library: (N, 3, H, W) in [0, 1] -> (N, F, width), class first.

    Frozen, unless its config says that it is trained.
    """

    def __init__(self, model: nn.Module, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.width = int(model.config.hidden_size)
        self.model = model.eval().requires_grad_(not config.frozen)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] of any size -> features (N, F, width)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            features: Tensor = self.model(pixel_values=pixels(pictures, self.config)).last_hidden_state
        return features

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """A frozen one stays in evaluation mode."""
        super().train(mode and not self.config.frozen)
        return self


def build_encoder(config: EncoderConfig) -> FaceEncoder | PretrainedEncoder:
    """An encoder of these sizes with random weights, or the pretrained one that the config names, opened now.

    Raises:
        UserError: the pretrained one is not there, is pickled, or cannot be opened. DiskFull, WorkError: while it
            is fetched.
    """
    if config.pretrained is None:
        return FaceEncoder(config)
    return PretrainedEncoder(_open_pretrained(config.pretrained), config)


def _open_pretrained(name: str) -> nn.Module:
    """A vision transformer from a folder or the hub; never a pickled one."""
    from transformers import AutoConfig, AutoModel, CLIPVisionModel  # slow, and needed for a pretrained encoder alone

    folder = Path(name)
    if not folder.is_dir():
        if not is_hub_id(name):
            raise _not_opened(name, "there is no such folder")
        folder = download(name, _PRETRAINED)
    if not any(folder.glob("model*.safetensors")):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        only = f"only {pickled[0]}, a pickled file that could run code" if pickled else "no model.safetensors"
        raise _not_opened(name, f"it has {only}")
    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        cls: Any = CLIPVisionModel if kind.startswith("clip") else AutoModel
        model: nn.Module = cls.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # the libraries raise anything from KeyError to SafetensorError on a damaged file
        raise _not_opened(name, one_line(error)) from error
    return model


def _not_opened(name: str, reason: str) -> UserError:
    return UserError(
        f"cannot open the pretrained encoder {name} ({reason}), expected a vision transformer in safetensors, in a "
        "folder or on the hub: fetch it or convert it first, or choose another preset"
    )


def random_encoder(config: EncoderConfig) -> FaceEncoder | PretrainedEncoder:
    """An encoder of these sizes with random numbers; in the place of a pretrained one CLIP's, of which none is fetched.

    That has `depth` layers of `width`, each with an inner width of four times as much.
    """
    if config.pretrained is None:
        return FaceEncoder(config)
    from transformers import CLIPVisionConfig, CLIPVisionModel  # slow, as above

    shape = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        image_size=config.picture_size,
        patch_size=config.patch,
        hidden_act="gelu",
    )
    return PretrainedEncoder(CLIPVisionModel(shape), config)


def blocks(width: int, heads: int, depth: int) -> nn.Sequential:
    """`depth` pre-norm transformer blocks without a mask: (N, T, width) -> (N, T, width)."""
    return nn.Sequential(
        *(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
    )


def pixels(pictures: Tensor, config: EncoderConfig) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] at the encoder's size, S x S, with its mean and spread: (N, 3, S, S)."""
    size = (config.picture_size, config.picture_size)
    if tuple(pictures.shape[-2:]) != size:
        pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
    mean, std = (pictures.new_tensor(values).view(3, 1, 1) for values in (config.pixel_mean, config.pixel_std))
    return (pictures - mean) / std


def load_parameters(module: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Fill all parameters of a module, in its own precision.

    Raises:
        BadFile: numbers that are not finite. UserError: names or shapes that are not the module's.
    """
    own = module.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if wrong:
        raise UserError(
            f"{path} holds a network of other sizes ({len(wrong)} of {len(own)} tensors differ, first {wrong[0]!r}): "
            "use the settings that it was trained with"
        )
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise BadFile(f"{path} holds numbers that are not finite, expected a sound network: make or copy it again")
    module.load_state_dict(tensors)
