"""What a method has reached after how many steps: from its runs with several numbers of them, and those of none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hyperdreambooth.baselines.methods import begins_bare, family_of
from hyperdreambooth.evaluation.scores import BASE_METHOD, TRUE, Scores


def named(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Methods as they are meant, each once: "dreambooth@40" is a point of a curve and no row of a table."""
    return {name: one for name, one in scores.items() if "@" not in name}


def curves(scores: Mapping[str, Scores]) -> dict[str, list[Scores]]:
    """By the name of the method, what it is worth after each number of steps, in the order of the seconds.

    Of several learning rates that were run for as many steps, the one whose pictures are most like the photograph.
    What fits from nothing begins, at no step and 0 seconds, with the bare base; ours begins with its prediction, which
    has taken its time. True pictures and what nobody timed are in no curve.
    """
    found: dict[str, dict[int, Scores]] = {}
    for name, one in scores.items():
        if name in (TRUE, BASE_METHOD) or one.seconds is None:
            continue
        points, steps = found.setdefault(family_of(name), {}), round(one.iterations or 0)
        if steps not in points or _likeness(one) > _likeness(points[steps]):
            points[steps] = one
    if bare := scores.get(BASE_METHOD):
        for family, points in found.items():
            if begins_bare(family):
                points[0] = replace(bare, iterations=0.0, samples=0.0, seconds=0.0, together=None)
    return {family: sorted(points.values(), key=lambda one: one.seconds or 0.0) for family, points in found.items()}


def _likeness(one: Scores) -> float:
    return float(one.measures["face"].nanmean())
