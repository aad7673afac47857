"""Faces are found, chosen and framed as FFHQ frames them."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hyperdreambooth.errors import BadPicture
from hyperdreambooth.faces import FaceBox, crop_face, find_face, find_faces, finding, read_picture
from hyperdreambooth.faces.boxes import FFHQ_CENTRE, FFHQ_SIDE
from hyperdreambooth.faces.framing import NO_FACE
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.view import View

PHOTOS = Path(__file__).parents[3] / "shared" / "photos" / "sfhq"


@lru_cache
def photographs() -> tuple[Tensor, ...]:
    """Three FFHQ-framed photographs, (3, 256, 256) each."""
    files = sorted(PHOTOS.glob("*.jpg"))[::150][:3]
    if not files:
        pytest.skip("the photographs are not beside this repository (../shared/photos)")
    return tuple(read_picture(file) for file in files)


def resized(picture: Tensor, size: int) -> Tensor:
    return functional.interpolate(picture.unsqueeze(0), (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)


def on_grey(pictures: dict[tuple[int, int], Tensor], height: int, width: int) -> Tensor:
    """Pictures pasted at (top, left) of a grey canvas (3, height, width)."""
    canvas = torch.full((3, height, width), 0.6)
    for (top, left), picture in pictures.items():
        canvas[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return canvas


@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_framed_photograph_stays_whole(size: int) -> None:
    for photograph in photographs():
        picture = resized(photograph, size)
        crop = crop_face(picture, size)
        assert (crop.found, crop.note) == (1, None)
        assert torch.equal(crop.picture, picture)


def test_a_photograph_within_a_larger_picture_is_cut_out_again() -> None:
    for photograph in photographs():
        picture = on_grey({(200, 330): photograph}, 600, 800)
        crop = crop_face(picture, 64)
        assert crop.found == 1
        assert crop.box is not None
        x, y = crop.box.centre
        assert abs(x - (330 + FFHQ_CENTRE[0] * 256)) < 12
        assert abs(y - (200 + FFHQ_CENTRE[1] * 256)) < 12
        assert abs(crop.box.side / 256 - FFHQ_SIDE) < 0.12
        again, found = find_face(crop.picture)  # in the crop, the box lies where FFHQ's lies
        assert found == 1
        assert again is not None
        assert abs(again.side / 64 - FFHQ_SIDE) < 0.07
        assert abs(again.centre[0] / 64 - FFHQ_CENTRE[0]) < 0.04
        assert abs(again.centre[1] / 64 - FFHQ_CENTRE[1]) < 0.04


@pytest.mark.parametrize("seed", [15_032, 15_043])  # one detector sees a lower face, one a small one
def test_a_portrait_stays_whole(seed: int) -> None:
    random = np.random.RandomState(3)
    view = [View.reference(random) for _ in range(seed - 15_000 + 1)][-1]
    portrait = render([Person(seed)], [view], 64)[0]
    assert torch.equal(crop_face(portrait, 64).picture, portrait)


def far_away(share: float) -> list[tuple[Tensor, tuple[float, float]]]:
    """Photographs in pictures of 1600 x 1200, their faces of that share of the shorter side; and the faces' middles."""
    size, left, top = round(share * 1200 / FFHQ_SIDE), 1100, 240
    x, y = FFHQ_CENTRE
    return [
        (on_grey({(top, left): resized(photograph, size)}, 1200, 1600), (left + x * size, top + y * size))
        for photograph in photographs()
    ]


@pytest.mark.parametrize("share", [0.05, 0.07])
def test_a_small_face_in_a_large_picture_is_found(share: float) -> None:
    """At least of two people of three: of the third's eyes the cascades see too little."""
    boxes = [(find_faces(picture), middle) for picture, middle in far_away(share)]
    assert sum(len(faces) for faces, _ in boxes) >= 2
    for faces, middle in boxes:
        for box in faces:
            assert max(abs(box.centre[0] - middle[0]), abs(box.centre[1] - middle[1])) < 0.2 * share * 1200
            assert 0.7 < box.side / (share * 1200) < 1.4


def test_small_faces_without_eyes_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    (picture, _), *_ = far_away(0.05)
    monkeypatch.setattr(finding, "eyes_of", lambda marks: None)
    assert find_faces(picture) == []


def test_small_faces_are_not_sought_where_a_face_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[int, ...]]()
    monkeypatch.setattr(finding, "_far_away", lambda picture: asked.append(tuple(picture.shape)) or [])
    assert find_faces(on_grey({(300, 500): resized(photographs()[0], 600)}, 1200, 1600)) and not asked
    assert find_faces(torch.full((3, 600, 800), 0.6)) == [] and asked == [(3, 600, 800)]


def test_of_several_faces_the_largest_is_taken() -> None:
    small, large = resized(photographs()[0], 120), photographs()[1]
    crop = crop_face(on_grey({(60, 20): small, (40, 220): large}, 340, 520), 64)
    assert crop.found == 2
    assert crop.note == "2 faces were found: the largest and most central is used; --face N takes another"
    assert crop.box is not None
    assert crop.box.left > 220


def test_without_a_face_the_centre_square_is_used() -> None:
    picture = torch.linspace(0, 1, 96).expand(3, 48, 96).clone()
    crop = crop_face(picture, 48)
    assert (crop.box, crop.found) == (None, 0)
    assert crop.note == NO_FACE and "--box LEFT,TOP,SIDE" in NO_FACE
    assert torch.equal(crop.picture, picture[:, :, 24:72])


@pytest.mark.parametrize("size", [16, 64, 200])
def test_any_size_comes_out_in_range(size: int) -> None:
    crop = crop_face(torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(0)), size)
    assert crop.picture.shape == (3, size, size)
    assert 0 <= crop.picture.min() <= crop.picture.max() <= 1


def test_a_batch_is_refused() -> None:
    with pytest.raises(BadPicture, match=r"expected \(3, H, W\)"):
        find_face(torch.zeros(1, 3, 64, 64))


def test_framed_photographs_stay_whole_all_of_them() -> None:
    """The networks that ship were trained on whole ones: a finder that cut them would move every face."""
    photographs()  # skips where there are none
    for file in sorted(PHOTOS.glob("*.jpg"))[7::16]:
        picture = read_picture(file)
        crop = crop_face(picture, 256)
        assert (crop.found, crop.note) == (1, None), file.name
        assert (crop.picture - picture).abs().max() <= 1 / 255, file.name


def test_a_face_that_fills_the_picture_is_found() -> None:
    """Cut from eyebrows to chin: nothing of the head is left around it."""
    tight = [photograph[:, 64:224, 48:208] for photograph in photographs()]
    found = [find_face(picture)[0] for picture in tight]
    assert sum(box is not None for box in found) >= 2
    assert all(box.side > 0.5 * 160 for box in found if box is not None)


def test_a_detector_of_ones_own_is_asked() -> None:
    boxes = [FaceBox(1, 2, 30)]
    assert find_faces(torch.zeros(3, 64, 64), lambda picture: boxes) == boxes


@pytest.mark.parametrize(
    ("name", "x", "y", "side"),  # of the face, as shares of the picture
    [
        ("Physical_Characteristics_008", 0.60, 0.45, 0.33),
        ("Age_x_Ethnicity_x_Sex_2_032", 0.51, 0.46, 0.38),
        ("Lighting_020", 0.50, 0.40, 0.51),  # in profile
        ("Glasses_Style_052", 0.57, 0.55, 0.45),  # the first looks see one in the corner
    ],
)
def test_a_closer_look_finds_what_the_first_ones_miss(name: str, x: float, y: float, side: float) -> None:
    photographs()  # skips where there are none
    picture = read_picture(PHOTOS.with_name("sfhq-t2i") / f"{name}.jpg")
    box, _ = find_face(picture)
    assert box is not None
    width = picture.shape[2]
    assert max(abs(box.centre[0] / width - x), abs(box.centre[1] / width - y)) <= side / 3
    assert side / 2 <= box.side / width <= 2 * side
