"""Small changes of a picture that leave it the same person: framing, light and sharpness.

Mirroring is not among them: a parting or a mole belongs to one side of a face.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Jitter:
    """How far each picture is changed, at most; all zero changes nothing."""

    zoom: float = 0.06  # 1 - zoom to 1 + zoom
    shift: float = 0.04  # of the picture's width, each way
    colour: float = 0.1  # brightness, contrast, saturation and the colour of the light
    blur: float = 0.5  # share of a version at half the size that is mixed in

    def __call__(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1], changed each in its own way; drawn from a generator on the CPU."""
        draw = (2 * torch.rand(len(pictures), 9, generator=generator) - 1).to(pictures.device)  # (N, 9) in [-1, 1]
        pictures = self._framed(pictures, draw[:, :3])
        pictures = self._lit(pictures, draw[:, 3:8, None, None])
        half = F.interpolate(F.avg_pool2d(pictures, 2), pictures.shape[-2:], mode="bilinear")
        return pictures.lerp(half, self.blur * draw[:, 8, None, None, None].abs()).clamp(0, 1)

    def _framed(self, pictures: Tensor, draw: Tensor) -> Tensor:
        """Zoomed and shifted by draw (N, 3); beyond the border its colours go on."""
        transform = pictures.new_zeros(len(pictures), 2, 3)
        transform[:, 0, 0] = transform[:, 1, 1] = 1 + self.zoom * draw[:, 0]
        transform[:, :, 2] = 2 * self.shift * draw[:, 1:]  # the width is 2 in the grid's units
        grid = F.affine_grid(transform, list(pictures.shape), align_corners=False)
        return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)

    def _lit(self, pictures: Tensor, draw: Tensor) -> Tensor:
        """Under another light, by draw (N, 5, 1, 1): two of its colour, contrast, saturation and brightness."""
        warmth, tint, contrast, saturation, brightness = (self.colour * draw).unsqueeze(2).unbind(dim=1)  # (N, 1, 1, 1)
        grey = pictures.mean(dim=1, keepdim=True)
        pictures = grey + (pictures - grey) * (1 + 2 * saturation)
        pictures = 0.5 + (pictures - 0.5) * (1 + 2 * contrast) + brightness
        return pictures * torch.cat([1 + warmth, 1 + tint, 1 - warmth], dim=1)
