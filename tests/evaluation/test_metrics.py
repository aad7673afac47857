"""Numbers per person, against the same worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hyperdreambooth.evaluation.metrics import (
    Mean,
    bootstrap,
    diversity,
    framing,
    likeness,
    over_prompts,
    per_cell,
    per_person,
    prompt_text,
    ranked_first,
    ssim,
    student,
)


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


def test_structural_similarity_window_by_window() -> None:
    a, b = torch.rand(2, 14, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = 0.0
    for row in range(14):
        for column in range(13):
            weights, at = [], []
            for down in range(-5, 6):
                for right in range(-5, 6):
                    weights.append(math.exp(-(down * down + right * right) / (2 * 1.5**2)))
                    at.append((min(max(row + down, 0), 13), min(max(column + right, 0), 12)))
            w = torch.tensor(weights, dtype=torch.float64)
            x, y = (torch.stack([picture[place] for place in at]) for picture in (a, b))
            mx, my = (float((w * one).sum() / w.sum()) for one in (x, y))
            vx, vy = (float((w * (one - m) ** 2).sum() / w.sum()) for one, m in ((x, mx), (y, my)))
            both = float((w * (x - mx) * (y - my)).sum() / w.sum())
            bright = (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4)
            total += bright * (2 * both + 9e-4) / (vx + vy + 9e-4)
    assert float(ssim(a[None], b[None])) == pytest.approx(total / (14 * 13))
    assert float(ssim(a[None], a[None])) == pytest.approx(1.0) and float(ssim(a[None], 1 - a[None])) < 0


def test_a_face_elsewhere_in_the_frame_is_framed_otherwise() -> None:
    here, there = torch.zeros(2, 20, 20)
    here[3:9, 4:9], there[10:16, 8:13] = 1.0, 1.0
    found = framing(torch.stack([here, here, here, there]), torch.tensor([0, 0, 1, 1]), 3)
    assert found[0] == pytest.approx(0, abs=1e-6) and found[1] > 0.2 and math.isnan(found[2])


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
    assert bootstrap(torch.full((5,), 0.25)) == Mean(0.25, 0.25, 0.25)


@pytest.mark.parametrize(("people", "studies"), [(7, 1000), (100, 500)])
def test_intervals_hold_the_truth_as_often_as_they_say(people: int, studies: int, generator: torch.Generator) -> None:
    means = [bootstrap(torch.randn(people, generator=generator)) for _ in range(studies)]
    assert 0.92 < sum(mean.low < 0 < mean.high for mean in means) / studies < 0.97


def test_few_people_have_a_mean_and_no_interval() -> None:
    for people in (1, 4):
        mean = bootstrap(torch.full((people,), 0.25))
        assert mean.value == 0.25 and math.isnan(mean.low) and math.isnan(mean.high) and mean.unsure
    assert not bootstrap(torch.arange(5.0)).unsure and not bootstrap(torch.tensor([torch.nan])).unsure


@pytest.mark.parametrize(("freedom", "table"), [(4, 2.776), (6, 2.447), (11, 2.201), (99, 1.984)])
def test_students_quantile_is_that_of_the_tables(freedom: int, table: float) -> None:
    assert student(freedom) == pytest.approx(table, abs=1e-3)


def test_a_prompt_names_nobody_for_clip() -> None:
    assert prompt_text("a watercolor of a [V] face at the beach") == "a watercolor of a face at the beach"


def test_prompts_weigh_alike_however_many_pictures_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(60, generator=generator)
    people, prompts = torch.randint(4, (60,), generator=generator), torch.randint(3, (60,), generator=generator)
    here = ~((people == 1) & (prompts == 2)) & (people != 3)  # one has nothing in one prompt, one nothing at all
    values, people, prompts = values[here], people[here], prompts[here]
    cells = per_cell(values, people, prompts, (4, 3))
    for person in range(4):
        means = []
        for prompt in range(3):
            own = [
                value
                for value, whose, asked in zip(values.tolist(), people.tolist(), prompts.tolist(), strict=True)
                if (whose, asked) == (person, prompt)
            ]
            if own:
                means.append(sum(own) / len(own))
                assert float(cells[person, prompt]) == pytest.approx(means[-1])
            else:
                assert math.isnan(cells[person, prompt])
        mean = float(over_prompts(cells)[person])
        assert mean == pytest.approx(sum(means) / len(means)) if means else math.isnan(mean)
    many = per_cell(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.zeros(4).long(), torch.tensor([0, 0, 0, 1]), (1, 2))
    assert over_prompts(many).tolist() == [0.5]


def test_a_picture_is_ranked_first_where_no_text_is_nearer_than_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures, texts = (F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (40, 6))
    own = torch.randint(6, (40,), generator=generator)
    found = ranked_first(pictures, texts, own)
    for picture, row, first in zip(pictures, own.tolist(), found.tolist(), strict=True):
        cosines = [float(F.cosine_similarity(picture, text, dim=0)) for text in texts]
        assert first == (max(cosines) == cosines[row])
    assert 0 < found.sum() < 40
