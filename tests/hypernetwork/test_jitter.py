from __future__ import annotations

import torch

from hyperdreambooth.hypernetwork.jitter import Jitter


def ramp(count: int = 2) -> torch.Tensor:
    """Pictures whose red grows to the right and whose green grows downwards."""
    line = torch.linspace(0.2, 0.8, 16)
    picture = torch.stack([line.expand(16, 16), line.expand(16, 16).T, torch.full((16, 16), 0.5)])
    return picture.expand(count, 3, 16, 16)


def test_zero_changes_nothing(generator: torch.Generator) -> None:
    still = Jitter(zoom=0, shift=0, colour=0, blur=0)
    torch.testing.assert_close(still(ramp(), generator), ramp(), atol=1e-5, rtol=0)


def test_every_picture_is_changed_in_its_own_way_and_never_mirrored(generator: torch.Generator) -> None:
    changed = Jitter()(ramp(16), generator)
    assert changed.shape == (16, 3, 16, 16) and changed.min() >= 0 and changed.max() <= 1
    assert (changed[0] - changed[1]).abs().max() > 0.01
    red, green = changed[:, 0].mean(dim=1), changed[:, 1].mean(dim=2)
    assert (red[:, -1] > red[:, 0]).all() and (green[:, -1] > green[:, 0]).all()


def test_shifts_reach_their_limit_and_not_beyond(generator: torch.Generator) -> None:
    """On a ramp a shift is a change of brightness: 0.04 per column of the 16."""
    moved = Jitter(zoom=0, shift=2 / 16, colour=0, blur=0)(ramp(200), generator)
    columns = (moved - ramp(1))[:, 0, 8, 8] / 0.04
    assert 1.7 < columns.abs().max() <= 2.01
    assert columns.min() < -1.5 and columns.max() > 1.5


def test_blur_keeps_the_mean_and_takes_the_detail(generator: torch.Generator) -> None:
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * torch.ones(4, 3, 16, 16)
    blurred = Jitter(zoom=0, shift=0, colour=0, blur=1)(checks, generator)
    torch.testing.assert_close(blurred.mean(dim=(1, 2, 3)), checks.mean(dim=(1, 2, 3)), atol=1e-4, rtol=0)
    assert (blurred.std(dim=(1, 2, 3)) < checks.std(dim=(1, 2, 3))).all()
