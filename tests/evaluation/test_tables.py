"""The paper's tables: what is compared with what, and when a curve meets a target."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hyperdreambooth.evaluation import tables
from hyperdreambooth.evaluation.scores import MEASURES, TRUE, Scores
from hyperdreambooth.evaluation.tables import PAPER, at_equal_likeness, paired, reached


def scores(name: str, value: float, people: int = 4, seconds: float = 2.0) -> Scores:
    """Everything about `value`, of people who differ a little."""
    values = value + torch.linspace(-0.01, 0.01, people, dtype=torch.float64)
    return Scores(name, torch.arange(people), dict.fromkeys(MEASURES, values), 0.9, 40, 80, seconds, 1, 1000)


def test_a_curve_meets_a_target_between_two_points() -> None:
    curve = [(1.0, 0.2), (10.0, 0.6), (1000.0, 0.5)]
    assert reached(curve, 0.4) == pytest.approx(math.sqrt(10))  # half of the way, in the logarithm
    assert reached(curve, 0.6) == pytest.approx(10.0)
    assert reached(curve, 0.1) == 1.0 and reached(curve, 0.61) is None


def test_speed_at_equal_likeness_is_said_of_methods_with_a_curve() -> None:
    ours = scores("hyperdreambooth", 0.4)
    run = {
        one.method: one
        for one in (
            scores(TRUE, 0.9),
            ours,
            scores("lora@10", 0.2, seconds=1),
            scores("lora@99", 0.6, seconds=100),
            scores("k-1", 0.3),
        )
    }
    text = "\n".join(at_equal_likeness(run))
    assert "to 0.400 Face Rec. (2.00 s of ours)" in text and "| lora | 10.0 s | 5.0 x |" in text and "k-1" not in text
    slow = run | {"lora@99": replace(run["lora@99"], measures=ours.measures | {"face": torch.tensor([0.3])})}
    assert "| lora | not in 100.0 s (at best 0.300) |" in "\n".join(at_equal_likeness(slow))
    assert list(at_equal_likeness({"hyperdreambooth": ours})) == []


def test_differences_are_of_people_whom_both_made() -> None:
    ours, other = scores("hyperdreambooth", 0.5, 4), scores("dreambooth", 0.5, 4)
    few = replace(
        other, people=torch.tensor([3, 1]), measures={"face": torch.tensor([0.10, 0.20], dtype=torch.float64)}
    )
    gap = paired(ours, few, "face")
    mine = ours.measures["face"]
    expected = ((mine[3] - 0.10) + (mine[1] - 0.20)) / 2
    assert gap.value == pytest.approx(float(expected))
    assert paired(ours, other, "face").value == 0


def test_the_tables_hold_the_papers_rows_and_whatever_else_there_is() -> None:
    names = (*PAPER, "fixed-rank", TRUE)
    text = "\n".join(tables.paper_tables({name: scores(name, 0.5) for name in names}))
    for title in (*tables.TABLES, "What the paper has not"):
        assert f"### {title}" in text
    assert text.count("| **hyperdreambooth** |") == 4
    for figures in PAPER.values():
        assert "| " + " | ".join(f"*{figure:.3f}*" for figure in figures) + " |" in text
    assert "fixed-rank" in text.partition("### What the paper has not")[2]
    alone = "\n".join(tables.paper_tables({"hyperdreambooth": scores("hyperdreambooth", 0.5), TRUE: scores(TRUE, 0.9)}))
    assert alone == ""
