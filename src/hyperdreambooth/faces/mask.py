"""Where in an FFHQ-framed picture the person is, softly: the mask of the denoising loss."""

from __future__ import annotations

import torch
from torch import Tensor

CENTRE = (0.50, 0.49)
"""Middle of head and hair, (x, y) as shares of the frame."""

RADII = (0.36, 0.46)
"""Half-width and half-height of head and hair, as shares of the frame."""

FADE = 0.40
"""Width of the soft edge, in radii."""

BACKGROUND = 0.25
"""Weight of what lies beyond, where head and hair weigh 1."""


def soft_face_mask(size: int, floor: float = BACKGROUND) -> Tensor:
    """1 on the head and its hair, falling smoothly to `floor` on the background.

    Framing as FFHQ's puts every head at the same place, so that one ellipse serves every picture.

    Args:
        size: side of the mask in pixels; use the latents' side for a mask of latents.
        floor: weight of the background, in (0, 1]; above 0, so that the background is still drawn, 1 for no mask.

    Returns:
        (1, size, size) float32 in [floor, 1].
    """
    centres = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    x = (centres - CENTRE[0]).view(1, 1, size) / RADII[0]
    y = (centres - CENTRE[1]).view(1, size, 1) / RADII[1]
    outside = ((x.square() + y.square()).sqrt() - 1.0) / FADE  # 0 on the ellipse, 1 where the fade ends
    share = 1.0 - outside.clamp(0.0, 1.0)
    share = share * share * (3.0 - 2.0 * share)
    return floor + (1.0 - floor) * share  # (1, size, size)


def face_masks(latents: Tensor) -> Tensor:
    """A soft face mask (..., 1, h, w) for each of latents (..., C, h, w)."""
    return soft_face_mask(latents.shape[-1]).expand(*latents.shape[:-3], -1, -1, -1)
