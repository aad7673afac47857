"""Faces are chosen by number or by hand, and stand upright in their crop."""

import math
from dataclasses import replace

import pytest
import torch

from hyperdreambooth.errors import BadPicture, UserError
from hyperdreambooth.faces import Eyes, FaceBox, FaceCrop, crop_face, find_eyes, locate_face
from hyperdreambooth.faces.boxes import FFHQ_CENTRE, FFHQ_SIDE
from hyperdreambooth.faces.cutting import level_square, turned_square
from hyperdreambooth.faces.framing import LocatedFace
from tests.faces.test_eyes import BOX
from tests.faces.test_finding import on_grey, photographs, resized


def test_any_size_is_cut_from_one_search() -> None:
    picture = on_grey({(200, 330): photographs()[0]}, 600, 800)
    face = locate_face(picture)
    assert torch.equal(face.crop(48).picture, crop_face(picture, 48).picture)
    assert face.crop(200).picture.shape == (3, 200, 200)


def test_the_second_face_is_taken_by_its_number() -> None:
    small, large = resized(photographs()[0], 140), photographs()[1]
    face = locate_face(on_grey({(60, 20): small, (40, 220): large}, 340, 520))
    assert len(face.faces) == 2 and face.box is not None and face.box.left > 200
    second = face.take(2)
    assert second.box is not None and second.box.left < 200 and second.note is None
    assert not torch.equal(second.crop(64).picture, face.crop(64).picture)
    with pytest.raises(UserError, match="got face 7 where 2 faces were found"):
        face.take(7)


def test_without_a_face_there_is_none_to_take() -> None:
    with pytest.raises(UserError, match=r"no faces were found.*--box"):
        locate_face(torch.full((3, 40, 60), 0.5)).take(1)


def test_a_box_by_hand_is_cut_where_it_says() -> None:
    picture = torch.rand(3, 100, 160, generator=torch.Generator().manual_seed(0))
    face = locate_face(picture, box=FaceBox(60, 30, 39))
    side = round(39 / FFHQ_SIDE)
    left, top = round(79.5 - FFHQ_CENTRE[0] * side), round(49.5 - FFHQ_CENTRE[1] * side)
    assert torch.equal(face.crop(32).picture, level_square(picture, left, top, side, 32))
    with pytest.raises(UserError, match="160 x 100 pixels"):
        locate_face(picture, box=FaceBox(300, 0, 40))
    with pytest.raises(BadPicture):
        locate_face(picture[None], box=FaceBox(0, 0, 40))


@pytest.mark.parametrize("degrees", [-20.0, 20.0])
def test_a_tilted_face_comes_out_upright(degrees: float) -> None:
    """Turned about the middle of its box, a framed face is cut as it was before."""
    photograph = photographs()[0]
    turned = turned_square(photograph, BOX.centre, 300, degrees, 300)
    level = find_eyes(photograph, BOX)
    assert level is not None
    tilt = math.radians(-degrees)
    box = FaceBox(150 - BOX.side / 2, 150 - BOX.side / 2, BOX.side, Eyes((0, 0), (math.cos(tilt), math.sin(tilt))))
    back = LocatedFace(turned, box, (box,), None, whole=False).crop(256).picture
    inside = slice(60, 196)
    assert (back - photograph).abs()[:, inside, inside].mean() < 0.02
    untouched = LocatedFace(turned, replace(box, eyes=None), (box,), None, whole=False).crop(256).picture
    assert (untouched - photograph).abs()[:, inside, inside].mean() > 0.05


def test_a_crop_of_a_framed_face_is_the_picture() -> None:
    picture = torch.rand(3, 20, 20)
    assert FaceCrop.framed(picture).picture is picture
