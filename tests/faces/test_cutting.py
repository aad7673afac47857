"""Squares are cut, turned and carried on beyond the borders."""

import cv2
import numpy as np
import torch

from hyperdreambooth.faces.cutting import level_square, reflected, turned_square


def test_a_turned_square_is_what_opencv_turns() -> None:
    picture = torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(0))
    square = turned_square(picture, (60.0, 45.0), 40, 20.0, 40)
    turn = cv2.getRotationMatrix2D((59.5, 44.5), 20.0, 1.0)  # clockwise angles are negative there, y points down
    turned = cv2.warpAffine(picture.permute(1, 2, 0).numpy(), turn, (120, 90))
    expected = torch.from_numpy(np.ascontiguousarray(turned[25:65, 40:80])).permute(2, 0, 1)
    assert (square - expected).abs().mean() < 0.01


def test_a_square_turned_by_nothing_is_level() -> None:
    picture = torch.rand(3, 50, 50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        turned_square(picture, (25.0, 25.0), 40, 0.0, 20), level_square(picture, 5, 5, 40, 20), atol=1e-4
    )


def test_beyond_the_border_the_picture_is_mirrored_and_blurred() -> None:
    picture = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    square = level_square(picture, -20, 0, 60, 60)
    assert torch.equal(square[:, :40, 20:], picture)  # what was there stays
    far = square[:, 5:35, :14]
    assert far.std() < 0.5 * picture.std()
    assert abs(far.mean() - picture.mean()) < 0.05


def test_reflection_folds_any_index() -> None:
    ladder = [0, 1, 2, 2, 1, 0]
    assert reflected(torch.arange(-6, 12), 3).tolist() == ladder * 3


def test_downscaling_is_anti_aliased() -> None:
    checkers = ((torch.arange(256).view(-1, 1) + torch.arange(256)) % 2).float().expand(3, 256, 256)
    assert (level_square(checkers, 0, 0, 256, 64) - 0.5).abs()[:, 2:-2, 2:-2].max() < 0.02
