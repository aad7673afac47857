from __future__ import annotations

import pytest
import torch

from hyperdreambooth.evaluation.identification import (
    Rate,
    identification_rate,
    identified,
    scene_recognised,
    spread,
    spread_ratio,
)
from hyperdreambooth.portraits.captions import Scene


def test_wilson_interval_is_that_of_the_textbook() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29, to four places."""
    for hits, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert Rate(hits, trials).interval == pytest.approx((low, high), abs=1e-4)
    assert str(Rate(15, 148)) == "10.1% (6.2% to 16.0%, n = 148)"


def test_true_people_are_identified_and_strangers_by_chance(generator: torch.Generator) -> None:
    gallery = torch.randn(100, 32, generator=generator)
    labels = torch.arange(100).repeat(8)
    probes = gallery[labels] + 0.3 * torch.randn(800, 32, generator=generator)
    assert identification_rate(gallery, probes, labels).share > 0.99
    strangers = identification_rate(gallery, torch.randn(800, 32, generator=generator), labels)
    assert strangers.interval[0] < 0.01 < strangers.interval[1]


def test_the_nearest_is_nearest_in_direction() -> None:
    gallery = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    probes = torch.tensor([[1.0, 0.9], [0.5, 1.0]])
    assert identified(gallery, probes, torch.tensor([0, 0])).tolist() == [True, False]


def test_spread_is_the_trace_of_the_covariance(generator: torch.Generator) -> None:
    embeddings = torch.randn(500, 6, generator=generator)
    assert spread(embeddings) == pytest.approx(float(embeddings.T.cov(correction=0).trace()), rel=1e-4)
    assert spread_ratio(embeddings * 0.5, embeddings) == pytest.approx(0.25)
    assert spread(embeddings[:1].expand(9, -1)) == pytest.approx(0.0, abs=1e-9)


def test_a_scene_is_recognised_when_all_that_was_asked_is_there() -> None:
    asked = [Scene(style="neon"), Scene(domain="doll"), Scene(edit="old", context="in space"), Scene()]
    read = [
        Scene(style="neon", edit="smiling"),  # what was not asked is free
        Scene(),  # no doll
        Scene(edit="old"),  # half of it
        Scene(style="comic"),  # plain is a style
    ]
    assert scene_recognised(read, asked) == Rate(1, 4)
