"""Pictures that stay on disk, so that a benchmark that was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hyperdreambooth.files import load_tensors, save_tensors


def kept(path: Path, about: Mapping[str, str], make: Callable[[], Tensor]) -> Tensor:
    """Pictures (..., 3, H, W) in [0, 1], in steps of 1 / 255: from the file where it was made of the same, else made.

    Args:
        path: the file.
        about: all that decides the pictures.
        make: the pictures.
    """
    if path.exists():
        tensors, made_of = load_tensors(path)
        if made_of == dict(about):
            return tensors["pictures"].float() / 255
    pictures = (make() * 255).round().to(torch.uint8)
    save_tensors(path, {"pictures": pictures}, about)
    return pictures.float() / 255
