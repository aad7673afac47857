"""What the tests of the recipe share: a few generated portraits in the place of photographs, and a tiny workshop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdreambooth.base.build import PRESETS
from hyperdreambooth.evaluation.judges import JudgeConfig
from hyperdreambooth.hypernetwork.model import PRESETS as HYPERNETWORK_PRESETS
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.view import View
from hyperdreambooth.sheet import save_png, to_image
from recipes.budget import Budget
from recipes.photographs import Photographs
from recipes.workshop import Sizes, Workshop

SECONDS = 0.2  # of each training
TINY = Sizes(
    PRESETS["tiny"],
    HYPERNETWORK_PRESETS["tiny"],
    JudgeConfig(picture_size=16, channels=(8, 16), embedding=12),
    shard=16,
)
BUDGET = Budget(
    people=50,
    portraits=2,
    photograph_pictures=2,
    people_pictures=2,
    face_pictures=2,
    verifier_minutes=SECONDS / 60,
    verifier_batch=12,
    vae_minutes=SECONDS / 60,
    vae_batch=2,
    denoiser_minutes=SECONDS / 60,
    denoiser_batch=6,
    judge_minutes=SECONDS / 60,
    judge_batch=8,
    self_supervised_batch=4,
    image_text_batch=8,
    recogniser_people=2,
    judged_people=3,
    encoder_people=2,
    encoder_minutes=SECONDS / 60,
    fitted_portraits=4,
    hypernetwork_portraits=6,
    fitted_photographs=4,
    fit_minutes=1.0,
    fit_steps=2,
    fit_noises=1,
    hypernetwork_people=4,
    hypernetwork_noises=1,
    hypernetwork_minutes=2 * SECONDS / 60,
    e4t_minutes=SECONDS / 60,
)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six face pictures that any face detector finds, one of them deeper, and a text file."""
    folder = tmp_path_factory.mktemp("photos")
    for number, picture in enumerate(render([Person(seed) for seed in range(6)], [View.reference()] * 6, 128)):
        save_png(folder / ("deep/er" if number == 5 else "") / f"{number}.png", to_image(picture))
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def framed() -> Photographs:
    """Eight coarse patterns of 24 x 24 pixels, two of them held out of training for tuning and for reporting."""
    random = np.random.RandomState(0)
    pictures = torch.from_numpy(random.randint(256, size=(8, 3, 6, 6)).astype(np.uint8))
    names = (*(f"own/{number}.png" for number in range(6)), "sfhq/sample_2x4_003.jpg", "sfhq/sample_2x4_005.jpg")
    return Photographs(pictures.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3), names)


@pytest.fixture
def shop(photos: Path, tmp_path: Path) -> Workshop:
    """A workshop in which everything takes a fraction of a second."""
    return Workshop(photos, tmp_path / "cache", BUDGET, torch.device("cpu"), tmp_path / "out", TINY)
