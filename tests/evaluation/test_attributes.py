from __future__ import annotations

import pytest
import torch

from hyperdreambooth.evaluation.attributes import attribute_error, attribute_errors
from hyperdreambooth.portraits.person import ATTRIBUTES, Person, truth_matrix

SEEDS = list(range(60))


def test_the_truth_has_no_error_and_another_person_has() -> None:
    truth = truth_matrix(SEEDS)
    assert attribute_error(truth, truth) == 0.0
    assert 0.8 < attribute_error(truth.roll(1, dims=0), truth) < 2.0


def test_a_constant_answer_is_a_guess() -> None:
    """No constant answer beats the guess that is the unit of the error."""
    truth = truth_matrix(SEEDS)
    assert attribute_error(truth.mean(dim=0).expand_as(truth), truth) == pytest.approx(1.0, abs=0.05)
    assert all(attribute_error(truth[row].expand_as(truth), truth) >= 1.0 for row in range(10))


def test_errors_are_distances_of_numbers_and_shares_of_wrong_choices() -> None:
    truth = truth_matrix(SEEDS)
    read, column = truth.clone(), 0
    for attribute in ATTRIBUTES:
        if attribute.name == "age":
            read[:, column] += 0.125
        if attribute.name == "beard":
            part = read[:30, column : column + attribute.width]
            read[:30, column : column + attribute.width] = part.roll(1, dims=1)
        column += attribute.width
    errors = attribute_errors(read, truth)
    assert errors.pop("age") == pytest.approx(0.125) and errors.pop("beard") == 0.5
    assert not any(errors.values())


def test_attributes_that_all_share_are_left_out() -> None:
    same = truth_matrix([5] * 4)
    truth = same.clone()
    truth[:, 0] = torch.tensor([0.0, 0.2, 0.2, 1.0])
    assert Person(5).values  # everything but the first is one person's
    assert attribute_error(truth, truth) == 0.0
    halfway = truth.clone()
    halfway[:, 0] = (truth[:, 0] + 0.2) / 2  # half the way from the median
    assert attribute_error(halfway, truth) == pytest.approx(0.5)
