"""How much of fitted numbers repeats and is explained, on numbers whose share is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hyperdreambooth.fitting.explained import _ridge, explained_share, repeatability


def people(noise: float, count: int = 900) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two fits (N, 5, 1, 8) and the truth (N, 12): linear in the truth plus independent noise, around a common mean."""
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(count, 12, generator=random)
    signal = truth @ torch.randn(12, 40, generator=random)
    signal = (signal - signal.mean(0)) / signal.std(0)
    fits = [5.0 + signal + noise * torch.randn(count, 40, generator=random) for _ in range(2)]
    return fits[0].view(-1, 5, 1, 8), fits[1].view(-1, 5, 1, 8), truth


@pytest.mark.parametrize(("noise", "share"), [(0.0, 1.0), (1.0, 0.5), (2.0, 0.2)])
def test_the_explained_share_is_that_of_the_signal(noise: float, share: float) -> None:
    numbers, _, truth = people(noise)
    assert explained_share(numbers, truth) == pytest.approx(share, abs=0.04)


def test_people_who_explain_nothing_have_a_share_of_zero() -> None:
    numbers, _, truth = people(1.0)
    assert abs(explained_share(numbers, truth.roll(1, 0))) < 0.03


def test_nobody_is_foretold_from_a_regression_that_saw_them() -> None:
    """Of 60 people, 40 attributes of pure chance would explain two thirds of the numbers if they were not held out."""
    random = torch.Generator().manual_seed(2)
    numbers, truth = torch.randn(60, 30, generator=random), torch.randn(60, 40, generator=random)
    assert explained_share(numbers, truth) < 0.02


def test_attributes_that_never_differ_do_no_harm() -> None:
    numbers, _, truth = people(1.0)
    constant = torch.cat([truth, torch.ones(900, 2)], dim=1)
    assert explained_share(numbers, constant) == pytest.approx(explained_share(numbers, truth), abs=1e-6)


def test_ridge_is_least_squares_on_rows_added_for_the_shrinkage() -> None:
    random = torch.Generator().manual_seed(1)
    x, y, new = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((30, 4), (30, 3), (5, 4)))
    added = torch.cat([x - x.mean(0), (0.1 * 30) ** 0.5 * torch.eye(4, dtype=torch.float64)])
    coefficients = torch.linalg.lstsq(
        added, torch.cat([y - y.mean(0), torch.zeros(4, 3, dtype=torch.float64)])
    ).solution
    torch.testing.assert_close(_ridge(x, y, new, [0.1])[0], (new - x.mean(0)) @ coefficients + y.mean(0))


def test_repeatability_of_two_noisy_fits() -> None:
    first, second, _ = people(1.0)
    measured = repeatability(first, second)
    centred = [(fit - fit.mean(0)).flatten().numpy() for fit in (first, second)]
    assert measured.correlation == pytest.approx(np.corrcoef(*centred)[0, 1], abs=1e-4)
    assert measured.correlation == pytest.approx(0.5, abs=0.03)
    assert measured.r2 == pytest.approx(0.0, abs=0.05)  # the noise of both, against signal and noise of one


def test_what_is_common_to_all_people_is_no_repetition() -> None:
    first, second, _ = people(100.0)
    assert abs(repeatability(first, second).correlation) < 0.05
    same = repeatability(first, first)
    assert (same.r2, same.correlation) == pytest.approx((1.0, 1.0))


def test_fits_of_other_people_are_refused() -> None:
    with pytest.raises(ValueError, match="same people"):
        repeatability(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="3 truths"):
        explained_share(torch.zeros(2, 2), torch.zeros(3, 2))
