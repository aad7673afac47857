"""What people take by each method, and how many times ours: lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from hyperdreambooth.baselines.methods import NOMINAL, OURS
from hyperdreambooth.evaluation.compared import on_common, with_enough
from hyperdreambooth.evaluation.curves import curves
from hyperdreambooth.evaluation.page import rows
from hyperdreambooth.evaluation.scores import BASE_METHOD, MEASURES, Scores

AIMS: Mapping[str, float] = {"dreambooth": 25, "lora-dreambooth": 25, "textual-inversion": 125}  # of one noise each
"""How many times ours they are to take, nominally: the paper's claim."""
EQUAL_AIMS: Mapping[str, float] = {"dreambooth": 25}
"""How many times ours they are to take until they are as like."""
NOT_COMPARABLE = "not comparable"  # seconds of other numbers of people at once, or of other machines
LIDB, RANK_ONE, UNET = 28_800, 385_344, 859_520_964
"""Numbers of a person by LiDB and by rank-1 LoRA, of the paper's layers of Stable Diffusion 1.5, and of its U-Net."""
WITH_BLOCKS = 40_800
"""The first with the residual blocks' layers, in which people are predicted and fitted unless told otherwise."""


def costs(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Iterations, U-Net samples, seconds and bytes of one person, and how many times ours each takes.

    Nothing is said of seconds that were shared by another number of people than ours were, or taken elsewhere.
    """
    ours, body = scores[OURS], []
    for name, one in scores.items():
        if name == BASE_METHOD or one.seconds is None:
            continue
        seconds = f"{one.seconds:,.2f}{shared(one)} ({times(one, ours)})"
        counts = {what: (getattr(one, what), getattr(ours, what)) for what in ("iterations", "samples", "bytes")}
        said = {what: f"{value:,.0f} ({_ratio(value, our)})" for what, (value, our) in counts.items()}
        body.append([name, said["iterations"], said["samples"], seconds, said["bytes"]])
    yield from rows(["per person (times ours)", "iterations", "U-Net samples", "seconds", "bytes"], body)


def nominal(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Seconds as the paper counts them: one noise in each step of everybody's, ours with encoding and prediction."""
    if (ours := scores.get(NOMINAL)) is None:
        return
    body = [
        [name, f"{one.iterations:,.0f}", _seconds(one), times(one, ours), f"{AIMS[name]:g} x" if name in AIMS else ""]
        for name in (NOMINAL, *AIMS)
        if (one := scores.get(name)) is not None and one.seconds is not None
    ]
    yield from rows(["one noise a step", "iterations", "seconds", f"times {NOMINAL}", "the paper's"], body)


def at_equal_likeness(scores: Mapping[str, Scores], measure: str = "face") -> Iterator[str]:
    """The seconds in which each method, run with several numbers of steps, reaches what ours measures at the end.

    Ours is measured on the people and prompts that all points of the method's curve have, as the curve is; points of
    very few people are left out where two others remain. A method
    has at any time the best that it has had by then. Between two runs, likeness grows evenly with the logarithm of the
    time, from the bare base on with the time itself; nothing is said of methods that were fitted once.
    """
    ours, found = scores[OURS], reaches(scores, measure)
    if found:
        body = [[name, str(one.people), f"{one.target:.3f}", one.said, one.times] for name, one in found.items()]
        own = f"ours: {ours.seconds:,.2f} s{shared(ours)}"
        yield from rows(["", "people", f"{MEASURES[measure]} of ours", f"reached in ({own})", "times ours"], body)


@dataclass(frozen=True)
class Reach:
    """When a method is as like as ours at the end.

    Attributes:
        people: on whom both are measured.
        target: what ours measures.
        said: the seconds, in words.
        factor: these in times of ours; None where they cannot be compared.
        over, under: whether the method takes longer than that, or may have been there before.
    """

    people: int
    target: float
    said: str
    factor: float | None = None
    over: bool = False
    under: bool = False

    @property
    def times(self) -> str:
        """The factor in words."""
        bound = "more than " if self.over else "at most " if self.under else ""
        return "-" if self.factor is None else f"{bound}{self.factor:,.1f} x"


def reaches(scores: Mapping[str, Scores], measure: str = "face") -> dict[str, Reach]:
    """By method, when its curve meets what ours measures; see `at_equal_likeness`."""
    ours, found = scores[OURS], dict[str, Reach]()
    for name, curve in curves(scores).items():
        many, _ = with_enough(curve)  # of few people there may be more points, which say less
        curve = many if sum(bool(one.iterations) for one in many) > 1 else curve
        if name == OURS or sum(bool(one.iterations) for one in curve) < 2 or not ours.seconds:
            continue
        values = on_common([ours, *curve], measure)  # (1 + S, P)
        target, *means = values.nanmean(dim=1).tolist()
        if not math.isnan(target):
            people = int((~values[0].isnan()).sum())
            found[name] = _reach(curve, list(accumulate(means, max)), Reach(people, target, ""), ours)
    return found


def _reach(curve: Sequence[Scores], means: Sequence[float], asked: Reach, ours: Scores) -> Reach:
    """When a curve meets the target that is asked for."""
    fitted = [one for one in curve if one.iterations]  # the bare base has no time of its own
    if not all(comparable(one, fitted[0]) for one in fitted):
        said = f"{NOT_COMPARABLE}: not all points are of as many people at once, on the same machine"
        return replace(asked, said=said)
    points = [(float(one.seconds or 0), mean) for one, mean in zip(curve, means, strict=True)]
    seconds, at_once = reached(points, asked.target), shared(fitted[0])
    over, under = seconds is None, means[0] >= asked.target
    if seconds is None:
        seconds = points[-1][0]
        said = f"not in {seconds:,.1f} s{at_once} (at best {means[-1]:.3f})"
    else:
        said = f"{'at most ' if under else ''}{seconds:,.1f} s{at_once}"
    factor = seconds / ours.seconds if ours.seconds and comparable(fitted[0], ours) else None
    return replace(asked, said=said, factor=factor, over=over, under=under)


def reached(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """Where a curve of (seconds, value), in the order of the seconds, first meets the target; None if it does not.

    Between two points the value is linear in the logarithm of the seconds, behind 0 seconds in the seconds; before the
    first point it is not known, so that a curve that begins above the target meets it there.
    """
    if points[0][1] >= target:
        return points[0][0]
    for (before, low), (after, high) in pairwise(points):
        if low < target <= high:
            share = (target - low) / (high - low)
            if before == 0:
                return share * after
            return float(math.exp(math.log(before) * (1 - share) + math.log(after) * share))
    return None


def comparable(one: Scores, other: Scores) -> bool:
    """Whether the seconds of both were shared by as many people, on one kind of machine."""
    if one.together is None or other.together is None or one.machine != other.machine:
        return False
    return math.isclose(one.together, other.together)


def times(one: Scores, ours: Scores) -> str:
    """How many times ours a method takes, where that can be said."""
    return _ratio(one.seconds or 0.0, ours.seconds) if comparable(one, ours) else "-"


def shared(one: Scores) -> str:
    """What is to be said beside the seconds of people who were not made alone."""
    return "" if one.together in (None, 1) else f", {one.together:.3g} at once"


def _seconds(one: Scores) -> str:
    return f"{one.seconds:,.2f}{shared(one)}"


def _ratio(value: float, ours: float | None) -> str:
    return f"{value / ours:,.1f} x" if ours else "-"
