"""OpenCV 4's cascades, which ship inside its wheel."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hyperdreambooth.errors import WorkError


class Seen(NamedTuple):
    """A square that a cascade took for what it seeks, in pixels of the picture it looked at."""

    left: float
    top: float
    side: float
    votes: int
    """How many squares of about this place and size it took for that."""


_loaded = threading.local()  # a cascade takes 20 to 40 ms to load, and may not be shared by threads


def detect(
    cascade: str, grey: np.ndarray, smallest: int, largest: int | None = None, step: float = 1.1, fewest: int = 5
) -> list[Seen]:
    """What one cascade sees in a grey picture (h, w) uint8.

    Args:
        smallest, largest: sides that are sought, in pixels, each `step` times the one before.
        fewest: votes below which nothing is seen.

    Raises:
        WorkError: the installed OpenCV has no cascades.
    """
    found, votes = _load(cascade).detectMultiScale2(
        grey,
        scaleFactor=step,
        minNeighbors=fewest - 1,
        minSize=(smallest, smallest),
        maxSize=(largest or max(grey.shape),) * 2,
    )
    return [Seen(float(x), float(y), float(w), int(n)) for (x, y, w, _), n in zip(found, votes, strict=True)]


def _load(cascade: str) -> cv2.CascadeClassifier:
    known: dict[str, cv2.CascadeClassifier] = _loaded.__dict__
    if cascade not in known:
        name = f"haarcascade_{cascade}.xml"
        detector = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / name))
        if detector.empty():
            raise WorkError(f"got an OpenCV without {name}, expected version 4: pip install 'opencv-python-headless<5'")
        known[cascade] = detector
    return known[cascade]


def grey_copy(picture: Tensor, height: int, width: int) -> np.ndarray:
    """A picture (3, H, W) in [0, 1] as grey (height, width) uint8, anti-aliased."""
    small = functional.interpolate(
        picture.detach().float().cpu().unsqueeze(0), (height, width), mode="bicubic", antialias=True
    )[0]
    grey = 0.299 * small[0] + 0.587 * small[1] + 0.114 * small[2]  # (h, w)
    levels: np.ndarray = (grey.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()
    return levels
