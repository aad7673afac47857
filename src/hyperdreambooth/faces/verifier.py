"""A second opinion on what cascades found: a small network that says whether a square shows a face."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from hyperdreambooth.embedded import FACE_VERIFIER
from hyperdreambooth.faces.boxes import FaceBox
from hyperdreambooth.faces.cutting import level_square
from hyperdreambooth.files import load_tensors

SIDE = 40
"""Side of what it looks at, in pixels."""

_AROUND = 1.4  # side of that square in the picture, in sides of the box
_DOUBTED = -3.0  # logit below which a find is doubted: a chance of a twentieth that it is a face


class FaceVerifier(nn.Module):
    """Squares around boxes (N, 3, SIDE, SIDE) in [0, 1] to the logits (N,) that they show a face there."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 3 * width)
        self.trunk = nn.Sequential(*(_level(n, m) for n, m in pairwise(channels)))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(channels[-1] * (SIDE // 8) ** 2, 1))

    def forward(self, squares: Tensor) -> Tensor:
        """Whatever the light: each square is taken at a mean of 0 and a spread of 1."""
        centred = squares - squares.mean(dim=(1, 2, 3), keepdim=True)
        level = centred / (centred.std(dim=(1, 2, 3), keepdim=True) + 0.05)
        logits: Tensor = self.head(self.trunk(level))[:, 0]
        return logits


def square_of(picture: Tensor, box: FaceBox) -> Tensor:
    """What the verifier sees of a box in a picture (3, H, W) in [0, 1]: (3, SIDE, SIDE)."""
    x, y = box.centre
    side = _AROUND * box.side
    return level_square(picture, round(x - side / 2), round(y - side / 2), max(1, round(side)), SIDE)


@torch.no_grad()
def is_doubted(picture: Tensor, box: FaceBox) -> bool:
    """Whether a find in a picture (3, H, W) in [0, 1] is hardly a face. Without a verifier nothing is doubted."""
    verifier = _shipped()
    if verifier is None:
        return False
    square = square_of(picture.detach().float().cpu(), box)
    return float(verifier(torch.stack([square, square.flip(-1)])).mean()) < _DOUBTED


@cache
def _shipped() -> FaceVerifier | None:
    """What ships with the package; None in one that has none yet."""
    if not FACE_VERIFIER.is_file():
        return None
    verifier = FaceVerifier()
    verifier.load_state_dict({name: tensor.float() for name, tensor in load_tensors(FACE_VERIFIER)[0].items()})
    verifier.eval()
    return verifier


def _level(n: int, m: int) -> nn.Sequential:
    """Half the side, `m` channels."""
    return nn.Sequential(
        *(nn.Conv2d(n, m, 3, stride=2, padding=1), nn.GroupNorm(4, m), nn.SiLU()),
        *(nn.Conv2d(m, m, 3, padding=1), nn.GroupNorm(4, m), nn.SiLU()),
    )
