"""The loop that a user of diffusers and PEFT writes to fit a LoRA to one picture: what ours is timed against.

After diffusers' examples/dreambooth/train_dreambooth_lora.py: LoRA on the attention projections of the U-Net, float32
factors under autocast, AdamW, clipped gradients, one picture, and in a step as many noises as asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor

from hyperdreambooth.base.model import Base

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


@dataclass(frozen=True)
class PlainLora:
    """A fit of so many ranks.

    encodes: whether the picture goes through the VAE and the prompt through the text encoder at every step, as they do
    in that script unless it is told otherwise; else once, before the steps.
    noises: samples of the picture in a step, each under a noise and a timestep of its own.
    """

    rank: int
    encodes: bool = False
    noises: int = 1

    def losses(self, base: Base, picture: Tensor, generator: torch.Generator) -> Iterator[float]:
        """The loss of each step, for as long as it is asked for; then the U-Net is without the LoRA again.

        Args:
            base: that nobody's adapters are in.
            picture: (1, 3, H, W) in [0, 1], on the base's device.
            generator: of noises and timesteps, on the CPU.
        """
        unet, device = base.unet, base.device
        unet.add_adapter(
            LoraConfig(r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian", target_modules=TARGETS)
        )
        cast_training_params(unet, dtype=torch.float32)
        parameters = [p for p in unet.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)
        scheduler = DDPMScheduler.from_config(base.scheduler.config)
        latents, states = self._encode(base, picture)
        try:
            while True:
                if self.encodes:
                    latents, states = self._encode(base, picture)
                rows = latents.expand(self.noises, *latents.shape[1:])
                noise = torch.randn(rows.shape, generator=generator).to(rows)
                steps = scheduler.config.num_train_timesteps
                timesteps = torch.randint(steps, (self.noises,), generator=generator).to(device)
                noisy, read = scheduler.add_noise(rows, noise, timesteps), states.expand(self.noises, *states.shape[1:])
                with torch.autocast(device.type, base.dtype, enabled=base.dtype != torch.float32):
                    output = unet(noisy, timesteps, encoder_hidden_states=read, return_dict=False)[0]
                loss = F.mse_loss(output.float(), noise.float())
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                yield loss.item()
        finally:
            unet.unload_lora()

    @torch.no_grad()
    def _encode(self, base: Base, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (1, C, h, w) and text states (1, L, D), in the precision of the networks."""
        return base.encode_pictures(picture).to(base.dtype), base.encode_prompts(["a [V] face"])
