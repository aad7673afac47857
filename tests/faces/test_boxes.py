"""Boxes: which comes first, what is framed, what is level."""

import math

import pytest

from hyperdreambooth.errors import UserError
from hyperdreambooth.faces import Eyes, FaceBox
from hyperdreambooth.faces.boxes import FFHQ_CENTRE, FFHQ_SIDE, by_choice, check_inside, is_framed


def test_the_largest_and_most_central_comes_first() -> None:
    central, large, small = FaceBox(80, 80, 40), FaceBox(150, 150, 50), FaceBox(90, 90, 20)
    assert by_choice([small, large, central], 200, 200) == [central, large, small]
    assert by_choice([central, FaceBox(100, 100, 90)], 200, 200)[0].side == 90


def test_overlap_is_what_is_shared_of_what_is_covered() -> None:
    box = FaceBox(0, 0, 10)
    assert box.overlap(box) == 1 and box.overlap(FaceBox(20, 0, 10)) == 0
    assert box.overlap(FaceBox(5, 0, 10)) == pytest.approx(50 / 150)


def test_only_a_square_picture_around_ffhqs_place_is_framed() -> None:
    side = FFHQ_SIDE * 100
    box = FaceBox(FFHQ_CENTRE[0] * 100 - side / 2, FFHQ_CENTRE[1] * 100 - side / 2, side)
    assert is_framed(box, 100, 100) and not is_framed(box, 100, 130)
    assert not is_framed(FaceBox(box.left + 10, box.top, side), 100, 100)


def test_eyes_that_are_about_level_turn_nothing() -> None:
    def tilted(degrees: float) -> FaceBox:
        x, y = (20 * f(math.radians(degrees)) for f in (math.cos, math.sin))
        return FaceBox(0, 0, 50, Eyes((10.0, 10.0), (10 + x, 10 + y)))

    assert tilted(5).tilt == 0 and tilted(20).tilt == pytest.approx(20) and tilted(-20).tilt == pytest.approx(-20)
    assert FaceBox(0, 0, 50).tilt == 0


@pytest.mark.parametrize(
    "box", [(200, 0, 50), (-60, 0, 50), (0, 0, 0), (0, 0, -5), (0, 0, 900), (float("nan"), 0, 9), (0, 0, float("inf"))]
)
def test_a_box_that_cannot_be_a_faces_place_is_refused(box: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match="expected LEFT,TOP,SIDE"):
        check_inside(FaceBox(*box), 100, 100)
    check_inside(FaceBox(-10, 60, 50), 100, 100)
