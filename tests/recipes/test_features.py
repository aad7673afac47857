"""The losses of the two judges in the place of DINO and CLIP: they fall, on a few pictures, and say what they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hyperdreambooth.evaluation.features import ImageText, SelfSupervised
from hyperdreambooth.evaluation.judges import JudgeConfig
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.photographs import as_floats
from hyperdreambooth.portraits.captions import Scene, caption
from recipes.features import PROMPTS, found_again, prompt_matched, train_image_text, train_self_supervised
from recipes.judges import fresh
from recipes.pictures import Pictures, random_portraits

TINY = JudgeConfig(picture_size=16, channels=(16, 32), embedding=16)
SHORT = FitConfig(steps=60, lr=3e-3)


@pytest.fixture(scope="module")
def portraits() -> Pictures:
    return random_portraits(np.random.RandomState(0), 24, people=1000, size=16)


def test_pictures_are_found_again(portraits: Pictures, generator: torch.Generator) -> None:
    encoder = fresh(lambda: SelfSupervised(TINY))
    assert isinstance(encoder, SelfSupervised)
    reports = list(train_self_supervised(encoder, portraits, 16, SHORT, generator))
    assert reports[-1].loss < 0.6 * reports[0].loss
    assert reports[-1].metrics["nearest"] > 0.4
    encoder.eval()
    rate = found_again(encoder, as_floats(portraits.pictures), torch.Generator().manual_seed(0))
    assert rate.share > 0.3  # 1 in 24 by chance


def test_captions_find_their_pictures(generator: torch.Generator) -> None:
    scenes = [Scene("portrait", "neon"), Scene("portrait", "plain"), Scene("portrait", "pencil sketch")] * 4
    colours = torch.tensor([[20, 200, 20], [200, 20, 20], [240, 240, 240]]).repeat(4, 1)
    pictures = Pictures(
        colours[:, :, None, None].expand(12, 3, 16, 16).byte().contiguous(), tuple(scenes), tuple(range(12))
    )
    model = fresh(lambda: ImageText(TINY))
    assert isinstance(model, ImageText)
    reports = list(train_image_text(model, pictures, 12, SHORT, generator))
    assert reports[-1].loss < reports[0].loss
    model.eval()
    texts = model.embed_text(["neon art of a face", "a face", "a pencil sketch of a face"])
    right = (model.embed(as_floats(pictures.pictures[:3])) @ texts.T).argmax(dim=1)
    assert right.tolist() == [0, 1, 2]
    asked = [Scene(style=scene.style) for scene in scenes]
    rate, among = prompt_matched(model, as_floats(pictures.pictures), asked), model.embed_text(PROMPTS)
    likeliest = (model.embed(as_floats(pictures.pictures)) @ among.T).argmax(dim=1)
    hits = [PROMPTS[best] == caption(scene) for best, scene in zip(likeliest.tolist(), asked, strict=True)]
    assert rate.hits == sum(hits) and rate.trials == 12
