"""The networks of the paper's four metrics behind one small interface: face recognition, DINO, CLIP of images and text.

Those that ship (`judges.py`, `features.py`) look at pictures of the embedded base; those of `pretrained.py` at
photographs at full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from hyperdreambooth.embedded import JUDGES
from hyperdreambooth.evaluation.features import ImageText, SelfSupervised
from hyperdreambooth.evaluation.judges import AttributeReader, Recogniser, SceneClassifier


class ImageEncoder(Protocol):
    """Pictures to embeddings whose products are likenesses."""

    def embed(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> unit (N, E) float32 on the CPU."""


class ImageTextEncoder(ImageEncoder, Protocol):
    """The same, and texts in the same space."""

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> unit (N, E) float32 on the CPU."""


@dataclass(frozen=True)
class Encoders:
    """Those of the paper's tables, or what stands in their places.

    Attributes:
        stand_ins: whether they are small networks of the embedded base's two worlds, with figures of their own.
    """

    face: ImageEncoder
    dino: ImageEncoder
    clip: ImageTextEncoder
    stand_ins: bool = False


@dataclass(frozen=True)
class Panel:
    """All who judge pictures of the embedded base; nothing that they judge has learnt from any of them."""

    encoders: Encoders
    scenes: SceneClassifier
    attributes: AttributeReader

    @classmethod
    def load(cls, folder: Path = JUDGES) -> Panel:
        """Those of a folder. Raises BadFile for one that is not there, or not sound."""
        recogniser = Recogniser.load(folder / "recogniser.safetensors")
        dino = SelfSupervised.load(folder / "self-supervised-encoder.safetensors")
        clip = ImageText.load(folder / "image-text-model.safetensors")
        return cls(
            Encoders(recogniser, dino, clip, stand_ins=True),
            SceneClassifier.load(folder / "scene-classifier.safetensors"),
            AttributeReader.load(folder / "attribute-reader.safetensors"),
        )
