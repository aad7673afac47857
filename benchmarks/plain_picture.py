"""A picture as diffusers' own pipeline draws it, called as a user calls it: what ours is timed against."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from hyperdreambooth.base.model import Base


def plain_pipeline(base: Base) -> StableDiffusionPipeline:
    """The pipeline of a base of one text encoder that nobody's adapters are in, whose networks it shares.

    Quiet, and without a safety checker, which ours has not either.
    """
    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=type(base.scheduler).from_config(base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_picture(
    pipeline: StableDiffusionPipeline,
    latents: Tensor,
    prompt: str,
    steps: int,
    guidance: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """From noise (1, C, h, w) to a picture, (1, 3, H, W) float32 in [0, 1] on the CPU; guidance is classifier-free.

    The generator is of the noise that a stochastic sampler adds on the way.
    """
    found = pipeline(
        prompt,
        latents=latents,
        height=latents.shape[-2] * pipeline.vae_scale_factor,
        width=latents.shape[-1] * pipeline.vae_scale_factor,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generator,
        output_type="pt",
    )
    picture: Tensor = found.images
    return picture.to("cpu", torch.float32)
