"""Numbers per person, against the same worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hyperdreambooth.evaluation.metrics import Mean, bootstrap, diversity, likeness, per_person, prompt_text


def test_likeness_is_the_cosine_row_by_row() -> None:
    features = F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    others = F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), dim=1)
    assert torch.allclose(likeness(features, others), F.cosine_similarity(features, others))


def test_a_person_counts_once_however_many_pictures_there_are() -> None:
    means = per_person(torch.tensor([1.0, 0.0, 0.5, 0.25]), torch.tensor([0, 0, 2, 2]), 3)
    assert means[0] == 0.5 and means[2] == 0.375 and math.isnan(means[1])


def test_a_copied_picture_has_no_diversity() -> None:
    one, other = torch.eye(4)[:2]
    pictures = torch.stack([one, one, one, one, other, other])
    found = diversity(pictures, torch.tensor([0, 0, 1, 1, 1, 2]), 4)
    assert found[0] == 0 and found[1] == pytest.approx(2 / 3)  # pairs: one-one, one-other twice
    assert math.isnan(found[2]) and math.isnan(found[3])


def test_the_bootstrap_finds_the_interval_of_a_mean() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = bootstrap(values)
    assert mean.value == pytest.approx(float(values.mean()))
    error = 1.96 * float(values.std()) / 20
    assert mean.low == pytest.approx(mean.value - error, abs=0.02)
    assert mean.high == pytest.approx(mean.value + error, abs=0.02)
    assert bootstrap(values) == mean  # the same people are drawn again
    holes = torch.cat([values, torch.full((3,), torch.nan)])
    assert bootstrap(holes) == mean
    assert math.isnan(bootstrap(torch.tensor([torch.nan])).value)
    assert bootstrap(torch.tensor([0.25, 0.25])) == Mean(0.25, 0.25, 0.25)


def test_a_prompt_names_nobody_for_clip() -> None:
    assert prompt_text("a watercolor of a [V] face at the beach") == "a watercolor of a face at the beach"
