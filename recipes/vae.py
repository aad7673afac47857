"""Stage: the VAE. Pictures in, latents of a quarter of the width out; L1, edges and a little KL."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from hyperdreambooth.photographs import as_floats

EDGE_WEIGHT = 1.0  # eyes and mouths are a few pixels: L1 alone blurs them away
KL_WEIGHT = 1e-6


def reconstruction_loss(
    vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a round trip of (N, 3, S, S) pictures in [0, 1], and its parts."""
    x = pictures * 2 - 1
    posterior = vae.encode(x).latent_dist
    decoded = vae.decode(posterior.sample(generator)).sample
    absolute = (decoded - x).abs().mean()
    edges = sum(((a - b).abs().mean() for a, b in zip(_edges(decoded), _edges(x), strict=True)), start=x.new_zeros(()))
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    loss = absolute + EDGE_WEIGHT * edges + KL_WEIGHT * kl
    return loss, {"l1": absolute.item(), "edges": edges.item(), "kl": kl.item()}


def batch_of(pictures: Tensor, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """`batch` random pictures of (N, 3, S, S) uint8, half of them mirrored, as floats on `device`."""
    rows = torch.randint(len(pictures), (batch,), generator=generator)
    chosen = as_floats(pictures[rows].to(device)).contiguous(memory_format=torch.channels_last)
    mirrored = torch.rand(batch, generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None].to(device), chosen.flip(-1), chosen)


@torch.no_grad()
def quiet_residuals(vae: AutoencoderKL) -> None:
    """Start with every residual branch at a constant: a short chain of linear maps, which learns faster."""
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
        elif isinstance(module, Attention):
            module.to_out[0].weight.zero_()


@torch.no_grad()
def latent_spread(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Standard deviation of the latents of (N, 3, S, S) pictures in [0, 1]: the scaling factor is its inverse."""
    return float(vae.encode(pictures * 2 - 1).latent_dist.mean.std())


def _edges(x: Tensor) -> list[Tensor]:
    """Differences of neighbouring pixels, across and down, at full and at half size."""
    half = F.avg_pool2d(x, 2)
    return [y.diff(dim=axis) for y in (x, half) for axis in (-1, -2)]
