"""The shipped judges, as every benchmark uses them."""

from __future__ import annotations

from dataclasses import dataclass

from hyperdreambooth.embedded import JUDGES
from hyperdreambooth.evaluation.judges import AttributeReader, Recogniser, SceneClassifier


@dataclass(frozen=True)
class Judges:
    """Who judges, none of whom any network that is judged has learnt from."""

    recogniser: Recogniser
    scenes: SceneClassifier
    attributes: AttributeReader

    @classmethod
    def load(cls) -> Judges:
        """The shipped ones."""
        return cls(
            Recogniser.load(JUDGES / "recogniser.safetensors"),
            SceneClassifier.load(JUDGES / "scene-classifier.safetensors"),
            AttributeReader.load(JUDGES / "attribute-reader.safetensors"),
        )
