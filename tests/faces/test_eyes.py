"""Eyes are where FFHQ's alignment puts them, turned with the face, and none where there is no face."""

import math

import pytest
import torch

from hyperdreambooth.faces import FaceBox, find_eyes
from hyperdreambooth.faces.boxes import FFHQ_CENTRE, FFHQ_EYES, FFHQ_SIDE
from hyperdreambooth.faces.cutting import turned_square
from tests.faces.test_finding import photographs

SIDE = FFHQ_SIDE * 256
BOX = FaceBox(FFHQ_CENTRE[0] * 256 - SIDE / 2, FFHQ_CENTRE[1] * 256 - SIDE / 2, SIDE)


def test_eyes_are_where_ffhq_puts_them() -> None:
    found = [find_eyes(photograph, BOX) for photograph in photographs()]
    eyes = [one for one in found if one is not None]
    assert len(eyes) >= 2
    for one in eyes:
        for eye, place in zip((one.left, one.right), FFHQ_EYES, strict=True):
            assert math.dist(eye, (place[0] * 256, place[1] * 256)) < 0.12 * 64
        assert abs(one.tilt) < 5


@pytest.mark.parametrize("degrees", [-12.0, 12.0])
def test_the_tilt_of_a_turned_face_is_seen(degrees: float) -> None:
    tilts = []
    for photograph in photographs():
        turned = turned_square(photograph, (128.0, 128.0), 256, degrees, 256)
        if (eyes := find_eyes(turned, BOX)) is not None:
            tilts.append(eyes.tilt)
    assert tilts and all(abs(tilt + degrees) < 5 for tilt in tilts)


def test_noise_has_no_eyes() -> None:
    assert find_eyes(torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0)), BOX) is None
