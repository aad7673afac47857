"""Which base this is: a hash of numbers sampled from its networks."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_SAMPLES_PER_TENSOR = 16


def fingerprint_of(*networks: nn.Module) -> str:
    """16 hex digits: a hash of names, shapes and numbers sampled from networks, as they are now.

    The networks are a base's text encoders and its U-Net, in this order. Numbers are rounded through float16, so that a
    base saved in half precision keeps its fingerprint; names are diffusers', whatever file they came from. The VAE has
    no part in it: an identity does not depend on which decoder draws it.
    """
    digest, samples = hashlib.sha256(), []
    for network in networks:
        for name, tensor in sorted(network.named_parameters()):
            # Checkpoints of earlier transformers call the same tensor "text_model.…".
            digest.update(f"{name.removeprefix('text_model.')}{tuple(tensor.shape)}".encode())
            step = max(1, tensor.numel() // _SAMPLES_PER_TENSOR)
            samples.append(tensor.detach().reshape(-1)[::step].half())
    digest.update(torch.cat(samples).cpu().numpy().astype("<f2").tobytes())
    return digest.hexdigest()[:16]
