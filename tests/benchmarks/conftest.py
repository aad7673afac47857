"""Random judges of 16 x 16 pixels, for benchmarks on a tiny random base."""

from __future__ import annotations

import pytest
import torch

from benchmarks.judges import Judges
from hyperdreambooth.evaluation.judges import AttributeReader, JudgeConfig, Recogniser, SceneClassifier


@pytest.fixture(scope="session")
def judges() -> Judges:
    config = JudgeConfig(picture_size=16, channels=(8, 16), embedding=12)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return Judges(Recogniser(config).eval(), SceneClassifier(config).eval(), AttributeReader(config).eval())
