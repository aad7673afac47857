"""Styles: deterministic, each picture by itself, at any size, each unlike the others, the person still there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hyperdreambooth.errors import UserError
from hyperdreambooth.portraits.styles import STYLES, stylize

PHOTOS = Path(__file__).parents[3] / "shared" / "photos" / "sfhq"
DRAWN = [style for style in STYLES if style != "plain"]


def scene(size: int = 64, count: int = 2) -> Tensor:
    """Smooth coloured blobs with hard-edged discs before them: (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(3)
    clouds = functional.interpolate(torch.rand(count, 3, 5, 5, generator=generator), (size, size), mode="bicubic")
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    for centre_x, centre_y, radius, value in ((0.5, 0.5, 0.32, 0.75), (0.38, 0.42, 0.06, 0.1), (0.62, 0.42, 0.06, 0.1)):
        disc = ((x - centre_x).square() + (y - centre_y).square()) < radius**2
        clouds[:, :, disc] = value * torch.tensor([1.0, 0.8, 0.65]).view(1, 3, 1)
    return clouds.clamp(0, 1)


def photographs(count: int) -> Tensor:
    files = sorted(PHOTOS.glob("*.jpg"))[:count]
    if not files:
        pytest.skip("the photographs are not beside this repository (../shared/photos)")
    pictures = [np.asarray(Image.open(file).convert("RGB").resize((64, 64)), dtype=np.float32) for file in files]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255


def luminance(pictures: Tensor) -> Tensor:
    return (pictures * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1)  # (N, H, W)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [(64, 64), (50, 71), (16, 16), (128, 96)])
def test_any_size_comes_back_in_its_shape_and_range(style: str, size: tuple[int, int]) -> None:
    pictures = functional.interpolate(scene(), size, mode="bilinear")
    drawn = stylize(pictures, style)
    assert drawn.shape == pictures.shape
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() <= drawn.max() <= 1  # false for NaN


def test_plain_is_the_identity() -> None:
    assert torch.equal(stylize(scene(), "plain"), scene())


@pytest.mark.parametrize("style", STYLES)
def test_a_batch_equals_one_by_one_and_leaves_its_input(style: str) -> None:
    pictures = scene(count=3)
    before = pictures.clone()
    together = stylize(pictures, style)
    assert torch.equal(pictures, before)
    alone = torch.cat([stylize(pictures[k : k + 1], style) for k in range(3)])
    # rounding may move a pixel to the neighbouring colour of a palette, never more than a few of them
    assert ((together - alone).abs() > 1e-3).float().mean() < 1e-3
    assert torch.equal(together, stylize(pictures, style))


@pytest.mark.parametrize("style", DRAWN)
def test_extreme_pictures_stay_finite(style: str) -> None:
    flat = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 64, 64)
    assert torch.isfinite(stylize(flat, style)).all()


def test_every_pair_of_styles_is_told_apart_on_photographs() -> None:
    pictures = photographs(12)
    drawn = torch.stack([stylize(pictures, style) for style in STYLES])  # (S, N, 3, H, W)
    for first in range(len(STYLES)):
        for second in range(first):
            difference = (drawn[first] - drawn[second]).abs().mean(dim=(1, 2, 3))  # (N,)
            assert difference.min() > 0.03, (STYLES[first], STYLES[second])


@pytest.mark.parametrize("style", DRAWN)
def test_a_drawing_is_nearest_to_its_own_photograph(style: str) -> None:
    """Edges, which every style keeps, tell among 24 people which photograph was drawn."""
    pictures = photographs(24)

    def edges(batch: Tensor) -> Tensor:
        light = functional.avg_pool2d(luminance(batch).unsqueeze(1), 2)
        across, down = light.diff(dim=3)[:, :, 1:].abs(), light.diff(dim=2)[:, :, :, 1:].abs()
        found = functional.avg_pool2d(across + down, 3, stride=1).flatten(1)
        return functional.normalize(found - found.mean(dim=1, keepdim=True))

    likeness = edges(stylize(pictures, style)) @ edges(pictures).T  # (24, 24)
    assert (likeness.argmax(dim=1) == torch.arange(24)).float().mean() >= 0.9


def test_pixel_art_has_flat_cells_and_few_colours() -> None:
    drawn = stylize(scene(), "pixel art")
    cells = drawn.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # (N, 3, 32, 32, 4)
    assert torch.equal(cells.amin(dim=4), cells.amax(dim=4))
    assert 4 < len(drawn.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)) <= 33


def test_a_sketch_is_grey_and_darker_where_the_picture_is() -> None:
    drawn = stylize(scene(), "pencil sketch")
    assert (drawn.amax(dim=1) - drawn.amin(dim=1)).max() < 0.05
    light = luminance(drawn)
    assert light[:, 25:29, 22:27].mean() < light[:, 36:44, 28:36].mean() - 0.2  # an eye, and the cheek below it


def test_neon_is_a_dark_room_between_two_signs() -> None:
    drawn = stylize(scene(), "neon")
    light = luminance(drawn)
    assert light.flatten(1).median(dim=1).values.max() < 0.35
    assert light.flatten(1).max(dim=1).values.min() > 0.5
    left, right = (half.mean(dim=(2, 3)) for half in drawn.split(32, dim=3))  # (N, 3)
    assert (left[:, 0] > 1.3 * right[:, 0]).all() and (right[:, 1] > 1.3 * left[:, 1]).all()  # magenta, cyan


def test_bronze_has_one_metal_whatever_the_colours() -> None:
    red, blue = scene(), scene().flip(1)
    for pictures in (red, blue):
        statue = stylize(pictures, "bronze statue")
        assert (statue[:, 0] >= statue[:, 2]).float().mean() > 0.9


def test_a_larger_picture_is_drawn_alike() -> None:
    small, large = scene(64), scene(128)
    for style in DRAWN:
        shrunk = functional.interpolate(stylize(large, style), (64, 64), mode="area")
        assert (stylize(small, style) - shrunk).abs().mean() < 0.08, style


def test_unknown_styles_and_wrong_shapes_are_named() -> None:
    with pytest.raises(UserError, match=r'"oil".*expected.*watercolor'):
        stylize(scene(), "oil")
    with pytest.raises(UserError, match=r"\(3, 8, 8\)"):
        stylize(torch.zeros(3, 8, 8), "neon")
