"""The judges, as every benchmark uses them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hyperdreambooth.embedded import JUDGES
from hyperdreambooth.evaluation.judges import AttributeReader, Judge, Recogniser, SceneClassifier

J = TypeVar("J", bound=Judge)


@dataclass(frozen=True)
class Judges:
    """Who judges, none of whom any network that is judged has learnt from.

    Without a recogniser there is nothing to say; where one of the others is None, its column is left out.
    """

    recogniser: Recogniser
    scenes: SceneClassifier | None = None
    attributes: AttributeReader | None = None

    @classmethod
    def load(cls, folder: Path = JUDGES) -> Judges:
        """Those of a folder. Raises BadFile where there is no recogniser, or a file is not sound."""
        return cls(
            Recogniser.load(folder / "recogniser.safetensors"),
            _load(SceneClassifier, folder / "scene-classifier.safetensors"),
            _load(AttributeReader, folder / "attribute-reader.safetensors"),
        )


def _load(kind: type[J], path: Path) -> J | None:
    return kind.load(path) if path.exists() else None
