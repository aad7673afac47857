"""The soft mask: whole on the head, never zero elsewhere, smooth."""

import torch
from torch.nn import functional

from hyperdreambooth.faces import face_masks, soft_face_mask


def test_head_counts_fully_and_corners_at_the_floor() -> None:
    mask = soft_face_mask(64, floor=0.25)
    assert mask.shape == (1, 64, 64)
    for x, y in ((0.38, 0.48), (0.62, 0.48), (0.5, 0.6), (0.5, 0.72), (0.5, 0.1)):  # eyes, nose, mouth, hair
        assert mask[0, int(64 * y), int(64 * x)] == 1
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert mask[0, row, column] == 0.25


def test_floor_is_never_undercut_and_one_means_no_mask() -> None:
    assert soft_face_mask(16, floor=0.1).min() >= 0.1
    assert torch.equal(soft_face_mask(16, floor=1.0), torch.ones(1, 16, 16))


def test_mirrored_it_is_the_same_and_it_has_no_jumps() -> None:
    mask = soft_face_mask(64)
    assert torch.allclose(mask, mask.flip(2), atol=1e-6)
    assert max(mask.diff(dim=1).abs().max(), mask.diff(dim=2).abs().max()) < 0.15


def test_a_small_mask_is_the_large_one_shrunk() -> None:
    shrunk = functional.avg_pool2d(soft_face_mask(64), 8)
    assert (soft_face_mask(8) - shrunk).abs().max() < 0.1


def test_everybody_gets_the_mask_of_their_latents_size() -> None:
    masks = face_masks(torch.zeros(3, 2, 4, 16, 16))
    assert masks.shape == (3, 2, 1, 16, 16) and all(
        torch.equal(mask, soft_face_mask(16)) for mask in masks.flatten(0, 1)
    )
