"""Which base this is: a hash of the signs of numbers sampled from its networks."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

_SAMPLES_PER_TENSOR = 64


def fingerprint_of(*networks: nn.Module) -> str:
    """16 hex digits: a hash of names, shapes and the signs of numbers sampled from networks, as they are now.

    The networks are a base's text encoders and its U-Net, in this order. Rounding changes no sign, not even of what it
    rounds to zero, so that a base saved in any precision keeps its fingerprint; of Stable Diffusion 1.5's 56,000 the
    lightest fine-tune turns some. Names are diffusers', whatever file they came from. The VAE has no part in it: an
    identity does not depend on which decoder draws it.
    """
    digest, signs = hashlib.sha256(), []
    for network in networks:
        for name, tensor in sorted(network.named_parameters()):
            # Checkpoints of earlier transformers call the same tensor "text_model.…".
            digest.update(f"{name.removeprefix('text_model.')}{tuple(tensor.shape)}".encode())
            step = max(1, tensor.numel() // _SAMPLES_PER_TENSOR)
            signs.append(tensor.detach().reshape(-1)[::step].signbit())
    digest.update(np.packbits(torch.cat(signs).cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]
