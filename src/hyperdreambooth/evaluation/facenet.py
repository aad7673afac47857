"""FaceNet, who is who on photographs: Inception-ResNet v1 (arXiv 1602.07261) in the layout of facenet-pytorch.

Its weights are those that facenet-pytorch publishes, trained on VGGFace2; `convert` makes them safetensors, once.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperdreambooth.errors import BadFile
from hyperdreambooth.files import load_tensors, save_tensors

FORMAT = "hyperdreambooth-facenet-1"
PUBLISHED = "20180402-114759-vggface2.pt"  # among the files of facenet-pytorch's releases
SIDE = 160  # of the pictures that it was trained on
EMBEDDING = 512  # numbers of a face's embedding
_LEFT_OUT = ("logits.weight", "logits.bias")  # who of the training's 8,631 people it is
_COUNTER = ".num_batches_tracked"  # of batches in training: nothing depends on it


class InceptionResnetV1(nn.Module):
    """Framed faces (N, 3, 160, 160), as (255 x - 127.5) / 128 of x in [0, 1], to unit embeddings (N, 512).

    Modules bear the published file's names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = _Convolution(3, 32, 3, stride=2)
        self.conv2d_2a = _Convolution(32, 32, 3)
        self.conv2d_2b = _Convolution(32, 64, 3, padding="same")
        self.conv2d_3b = _Convolution(64, 80, 1)
        self.conv2d_4a = _Convolution(80, 192, 3)
        self.conv2d_4b = _Convolution(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(block35() for _ in range(5)))
        self.mixed_6a = _Branches(
            _Convolution(256, 384, 3, stride=2),
            nn.Sequential(
                _Convolution(256, 192, 1),
                _Convolution(192, 192, 3, padding="same"),
                _Convolution(192, 256, 3, stride=2),
            ),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_2 = nn.Sequential(*(block17() for _ in range(10)))
        self.mixed_7a = _Branches(
            nn.Sequential(_Convolution(896, 256, 1), _Convolution(256, 384, 3, stride=2)),
            nn.Sequential(_Convolution(896, 256, 1), _Convolution(256, 256, 3, stride=2)),
            nn.Sequential(
                _Convolution(896, 256, 1),
                _Convolution(256, 256, 3, padding="same"),
                _Convolution(256, 256, 3, stride=2),
            ),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_3 = nn.Sequential(*(block8() for _ in range(5)))
        self.block8 = block8(scale=1.0, rectified=False)
        self.last_linear = nn.Linear(1792, EMBEDDING, bias=False)
        self.last_bn = nn.BatchNorm1d(EMBEDDING, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))  # (N, 64, 77, 77)
        x = F.max_pool2d(x, 3, stride=2)  # (N, 64, 38, 38)
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(x)))  # (N, 256, 17, 17)
        x = self.mixed_6a(self.repeat_1(x))  # (N, 896, 8, 8)
        x = self.mixed_7a(self.repeat_2(x))  # (N, 1792, 3, 3)
        x = self.block8(self.repeat_3(x)).mean(dim=(2, 3))  # (N, 1792)
        return F.normalize(self.last_bn(self.last_linear(x)), dim=1)  # (N, 512)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `convert` wrote: float32, on the CPU, in evaluation mode, without gradients.

        Raises:
            BadFile: absent, or not a whole, sound file of FaceNet.
        """
        if not Path(path).exists():
            raise BadFile(f"no FaceNet weights at {path}: fetch {PUBLISHED} of facenet-pytorch, then {_command(path)}")
        tensors, metadata = load_tensors(path)
        remedy = f"make it with {_command(path)}"
        if metadata.get("format") != FORMAT:
            raise BadFile(f"{path} holds {metadata.get('format', 'no format')}, expected {FORMAT}: {remedy}")
        with torch.device("meta"):  # no number is drawn for what is read anyway
            network = cls()
        network.load_state_dict(_checked(path, tensors, remedy), assign=True)
        network.requires_grad_(False)
        network.eval()
        return network


def convert(source: Path, target: Path) -> int:
    """Make safetensors of the file that facenet-pytorch publishes, without the training's people: how many numbers.

    Everywhere else, pickle is never read. This is the one door: torch's reader of weights alone (weights_only), which
    knows tensors and plain values, and refuses a file that asks for anything else before any of it runs.

    Raises:
        BadFile: not a whole, sound file of tensors in FaceNet's layout.
        WorkError: `target` could not be written.
    """
    remedy = f"fetch {PUBLISHED} of facenet-pytorch again"
    found = _read_published(source, remedy)
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise BadFile(f"{source} holds no tensors by name, expected FaceNet's: {remedy}")
    tensors = {str(name): tensor for name, tensor in found.items() if name not in _LEFT_OUT}
    kept = _checked(source, tensors, remedy)
    save_tensors(target, kept, {"format": FORMAT})
    return sum(tensor.numel() for tensor in kept.values())


def _read_published(source: Path, remedy: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is refused anyway
            return torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadFile(f"cannot read {source} ({reason}), expected {PUBLISHED}: check the path") from error
    except pickle.UnpicklingError as error:
        raise BadFile(
            f"{source} holds something other than tensors (none of it was run), expected FaceNet's weights: {remedy}"
        ) from error
    except Exception as error:  # the library raises anything from EOFError to KeyError on a damaged file
        raise BadFile(f"{source} is truncated or damaged, expected FaceNet's weights: {remedy}") from error


@cache
def layout() -> Mapping[str, tuple[int, ...]]:
    """The shape of each of FaceNet's tensors by name."""
    with torch.device("meta"):
        state = InceptionResnetV1().state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(_COUNTER)}


def _checked(path: str | Path, tensors: Mapping[str, Tensor], remedy: str) -> dict[str, Tensor]:
    """FaceNet's tensors in float32. Raises BadFile naming the first that is missing, unknown or wrong."""
    expected = layout()
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}
    if unknown := sorted(found.keys() - expected.keys()):
        raise BadFile(f"{path} holds {unknown[0][:80]!r}, which FaceNet has not, expected its layout: {remedy}")
    if missing := [name for name in expected if name not in found]:
        raise BadFile(f"{path} lacks {len(missing)} of {len(expected)} tensors, such as {missing[0]}: {remedy}")
    for name, shape in expected.items():
        if (got := tuple(found[name].shape)) != shape:
            raise BadFile(f"{path} has {name} of shape {got}, expected {shape}: {remedy}")
        if not (found[name].is_floating_point() and found[name].isfinite().all()):
            raise BadFile(f"{path} has numbers in {name} that are no finite floats, expected sound weights: {remedy}")
    return {name: found[name].float() for name in expected}


def _command(path: str | Path) -> str:
    return f"hdb convert {PUBLISHED} -o {path}"


class _Convolution(nn.Module):
    """Convolve, normalise, rectify: (N, n, H, W) -> (N, m, H', W')."""

    def __init__(self, n: int, m: int, kernel: int | tuple[int, int], stride: int = 1, padding: str = "valid") -> None:
        super().__init__()
        self.conv = nn.Conv2d(n, m, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(m, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Branches(nn.Module):
    """Branches of the same picture side by side: their channels joined."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.names = [f"branch{number}" for number in range(len(branches))]
        for name, branch in zip(self.names, branches, strict=True):
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(name)(x) for name in self.names], dim=1)


class _Residual(_Branches):
    """x + scale * (the branches, brought back to x's channels by a convolution of 1 x 1), rectified or not."""

    def __init__(self, inside: int, outside: int, scale: float, rectified: bool, *branches: nn.Module) -> None:
        super().__init__(*branches)
        self.scale, self.rectified = scale, rectified
        self.conv2d = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.scale * self.conv2d(super().forward(x))
        return F.relu(y) if self.rectified else y


def block35() -> nn.Module:
    """(N, 256, 17, 17) -> the same: the article's blocks are named after the size of its own pictures there."""
    return _Residual(
        96,
        256,
        0.17,
        True,
        _Convolution(256, 32, 1),
        nn.Sequential(_Convolution(256, 32, 1), _Convolution(32, 32, 3, padding="same")),
        nn.Sequential(
            _Convolution(256, 32, 1), _Convolution(32, 32, 3, padding="same"), _Convolution(32, 32, 3, padding="same")
        ),
    )


def block17() -> nn.Module:
    """(N, 896, 8, 8) -> the same."""
    return _crossed(896, 128, 7, 0.10, True)


def block8(scale: float = 0.20, rectified: bool = True) -> nn.Module:
    """(N, 1792, 3, 3) -> the same."""
    return _crossed(1792, 192, 3, scale, rectified)


def _crossed(outside: int, width: int, length: int, scale: float, rectified: bool) -> nn.Module:
    """A block of two branches, one of which looks along rows, then along columns."""
    return _Residual(
        2 * width,
        outside,
        scale,
        rectified,
        _Convolution(outside, width, 1),
        nn.Sequential(
            _Convolution(outside, width, 1),
            _Convolution(width, width, (1, length), padding="same"),
            _Convolution(width, width, (length, 1), padding="same"),
        ),
    )
