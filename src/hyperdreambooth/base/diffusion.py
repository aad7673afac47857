"""The one denoising loss of the whole project: training, fitting and fine-tuning all minimise this function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hyperdreambooth.base.model import Base


@dataclass(frozen=True)
class Weighting:
    """How much the noise levels count; as it stands, plain errors of what the base predicts.

    Attributes:
        min_snr: gamma of the min-SNR weighting (Hang et al., arXiv 2303.09556).
        fade: exponent of the share of signal in the noisy latents' variance, by which the loss is multiplied. Where
            little but noise is left, the gradient is largest and says least about who it is: docs/notes.md has the
            measurement from which 0.3 follows.
    """

    min_snr: float | None = None
    fade: float = 0.0

    def of(self, prediction_type: str, signal: Tensor, sigma: Tensor) -> Tensor | float:
        """The weight of each sample, (N,), from its `signal` and `sigma`, (N, 1, 1, 1) each; 1 of plain errors."""
        weight: Tensor | float = 1.0
        if self.fade:
            weight = (signal.square() / (signal.square() + sigma.square())).flatten() ** self.fade
        if self.min_snr is not None:
            weight = weight * _min_snr_weight(prediction_type, (signal / sigma).square().flatten(), self.min_snr)
        return weight


PLAIN = Weighting()


def denoising_loss(
    base: Base,
    latents: Tensor,
    states: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    mask: Tensor | None = None,
    weighting: Weighting = PLAIN,
) -> Tensor:
    """||D(x + eps, c) - x||^2 of eq. 2, in the terms that `base` predicts: one mean squared error per sample, (N,).

    latents: x, (N, C, h, w), scaled as `Base.encode_pictures` returns them; noise: eps, the same shape.
    states: c, (N, L, D), from `Base.encode_prompts`; timesteps: (N,) integers in [0, T).
    mask: (N, 1, h, w), weights >= 0 of the places in the picture; each sample's mean is taken over its weights.
    weighting: how much the noise levels count.
    """
    signal, sigma = base.noise_levels(timesteps)  # (N, 1, 1, 1) each
    noisy = signal * latents + sigma * noise  # (N, C, h, w)
    output = base.predict(noisy, timesteps, states).float()
    error = (output - _target(base.prediction_type, latents, noise, signal, sigma)).square()
    if mask is None:
        loss = error.mean(dim=(1, 2, 3))  # (N,)
    else:
        loss = (error.mean(dim=1, keepdim=True) * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))  # (N,)
    return loss * weighting.of(base.prediction_type, signal, sigma)


def _target(prediction_type: str, latents: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """What the U-Net should say, (N, C, h, w)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return signal * noise - sigma * latents
    return latents  # "sample"


def _min_snr_weight(prediction_type: str, snr: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) as a weight of the error in x, turned into one of the error in what is predicted; (N,)."""
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return torch.where(snr > 0, clipped / snr, torch.ones_like(snr))
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    return clipped
