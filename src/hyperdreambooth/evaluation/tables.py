"""The paper's tables, with our figures beside the paper's: lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from hyperdreambooth.baselines.methods import OURS
from hyperdreambooth.evaluation.curves import curves
from hyperdreambooth.evaluation.metrics import Mean, bootstrap, over_prompts
from hyperdreambooth.evaluation.scores import BASE_METHOD, CELLS, MEASURES, ONCE, TRUE, Scores

# The paper's rows: Face Rec., DINO, CLIP-I, CLIP-T. Second-hand (from a transcription), and on other data.
PAPER: Mapping[str, tuple[float, float, float, float]] = {
    OURS: (0.655, 0.473, 0.577, 0.286),
    "dreambooth": (0.618, 0.441, 0.546, 0.282),
    "textual-inversion": (0.623, 0.289, 0.472, 0.277),
    "dreambooth-agg-1": (0.615, 0.323, 0.431, 0.313),
    "dreambooth-agg-2": (0.616, 0.360, 0.467, 0.302),
    "no-hyper": (0.647, 0.392, 0.498, 0.299),
    "only-hyper": (0.631, 0.414, 0.501, 0.298),
    "k-1": (0.648, 0.464, 0.570, 0.288),
}
_PAPERS = ("face", "dino", "clip_i", "clip_t")
TABLES: Mapping[str, tuple[str, ...]] = {
    "Table 1: other methods": (OURS, "dreambooth", "textual-inversion"),
    "Table 2: DreamBooth in a hurry": (OURS, "dreambooth-agg-1", "dreambooth-agg-2"),
    "Table 3: without the one or the other": (OURS, "no-hyper", "only-hyper", "k-1"),
}
SHOWN = tuple(CELLS)
SHARES = ("identified", "scene", "prompt_first")  # of pictures: in per cent
BEYOND = tuple(ONCE)


def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown, line by line."""
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in body)


def paper_tables(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Tables 1, 2 and 3 as far as the run has their methods; what else it has, but the bare base, in a fourth."""
    listed = {name for names in TABLES.values() for name in names} | {TRUE, BASE_METHOD}
    tables = {**TABLES, "What the paper has not": (OURS, *(name for name in scores if name not in listed), TRUE)}
    for title, names in tables.items():
        there = [name for name in names if name in scores]
        if set(there) <= {OURS, TRUE}:
            continue
        yield from (f"### {title}", "")
        header = ["", "people", "iterations", *(MEASURES[name] for name in SHOWN)]
        yield from rows(header, [row for name in there for row in _rows_of(scores[name])])
        yield ""


def _rows_of(scores: Scores) -> Iterator[list[str]]:
    steps = "" if scores.iterations is None else f"{scores.iterations:,.0f}"
    means = [_said(scores.measures[name], share=name in SHARES) for name in SHOWN]
    name = f"**{scores.method}**" if scores.method == OURS else scores.method
    yield [name, str(len(scores.people)), steps, *means]
    if scores.method in PAPER:
        paper = dict(zip(_PAPERS, PAPER[scores.method], strict=True))
        yield ["*the paper's*", "", "", *(f"*{paper[name]:.3f}*" if name in paper else "" for name in SHOWN)]


def differences(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Ours less each other method, paired over the people and prompts that both have."""
    ours = scores[OURS]
    body = []
    for name, other in scores.items():
        if name in (OURS, TRUE, BASE_METHOD):
            continue
        gaps = {measure: paired(ours, other, measure) for measure in SHOWN}
        body.append([name, *(_signed(gap, measure in SHARES) for measure, gap in gaps.items())])
    yield from rows([f"{OURS} less", *(MEASURES[name] for name in SHOWN)], body)


def paired(ours: Scores, other: Scores, measure: str) -> Mean:
    """The mean difference over the people and prompts that both have, and its interval over people."""
    mine, theirs = on_common([ours, other], measure)
    return bootstrap(mine - theirs)


def on_common(several: Sequence[Scores], measure: str) -> Tensor:
    """(S, P): each method's value of each person whom all have drawn, over those prompts that all have of that person.

    NaN for a person without any such prompt.
    """
    people = sorted(set.intersection(*(set(one.people.tolist()) for one in several)))
    cells = []
    for one in several:
        row = {person: number for number, person in enumerate(one.people.tolist())}
        cells.append(one.cells[measure][[row[person] for person in people]])  # (P, Q)
    both = torch.stack(cells)  # (S, P, Q)
    return over_prompts(both.masked_fill(both.isnan().any(dim=0), torch.nan))


def beyond(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Diversity of the pictures of one person, how far they copy, how much of them "a face" becomes, attributes."""
    body = [
        [
            "nobody worn" if name == BASE_METHOD else name,
            *(_said(one.measures[measure]) for measure in BEYOND),
            "" if one.attributes is None else f"{one.attributes:.2f}",
        ]
        for name, one in scores.items()
    ]
    yield from rows(["", *(MEASURES[name] for name in BEYOND), "attribute error"], body)


def costs(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Iterations, U-Net samples, seconds and bytes of one person, and how many times ours each takes.

    Nothing is said of seconds that were shared by another number of people than ours were.
    """
    ours, body = scores[OURS], []
    for name, one in scores.items():
        if name == BASE_METHOD or one.seconds is None:
            continue
        seconds = (
            f"{one.seconds:,.2f}{_shared(one)} ({_times(one.seconds, ours.seconds) if _alike(one, ours) else '-'})"
        )
        counts = {what: (getattr(one, what), getattr(ours, what)) for what in ("iterations", "samples", "bytes")}
        said = {what: f"{value:,.0f} ({_times(value, our)})" for what, (value, our) in counts.items()}
        body.append([name, said["iterations"], said["samples"], seconds, said["bytes"]])
    yield from rows(["per person (times ours)", "iterations", "U-Net samples", "seconds", "bytes"], body)


def at_equal_likeness(scores: Mapping[str, Scores], measure: str = "face") -> Iterator[str]:
    """The seconds in which each method, run with several numbers of steps, reaches what ours measures at the end.

    Ours is measured on the people and prompts that all points of the method's curve have, as the curve is. A method
    has at any time the best that it has had by then. Between two runs, likeness grows evenly with the logarithm of the
    time, from the bare base on with the time itself; nothing is said of methods that were fitted once.
    """
    ours, body = scores[OURS], []
    for name, curve in curves(scores).items():
        if name == OURS or sum(bool(one.iterations) for one in curve) < 2 or not ours.seconds:
            continue
        values = on_common([ours, *curve], measure)  # (1 + S, P)
        target, *means = values.nanmean(dim=1).tolist()
        if not math.isnan(target):
            people = str(int((~values[0].isnan()).sum()))
            body.append([name, people, f"{target:.3f}", *_reaches(curve, list(accumulate(means, max)), target, ours)])
    if body:
        own = f"ours: {ours.seconds:,.2f} s{_shared(ours)}"
        yield from rows(["", "people", f"{MEASURES[measure]} of ours", f"reached in ({own})", "times ours"], body)


def _reaches(curve: Sequence[Scores], means: Sequence[float], target: float, ours: Scores) -> tuple[str, str]:
    """When a curve meets a target, in words, and in times of ours where the seconds can be compared."""
    fitted = [one for one in curve if one.iterations]  # the bare base has no time of its own
    if not all(_alike(one, fitted[0]) for one in fitted):
        return "not comparable: not all points are of as many people at once", "-"
    points = [(float(one.seconds or 0), mean) for one, mean in zip(curve, means, strict=True)]
    seconds, shared = reached(points, target), _shared(fitted[0])
    if seconds is None:
        return f"not in {points[-1][0]:,.1f} s{shared} (at best {means[-1]:.3f})", ""
    most = "at most " if means[0] >= target else ""
    return (
        f"{most}{seconds:,.1f} s{shared}",
        f"{most}{_times(seconds, ours.seconds)}" if _alike(fitted[0], ours) else "-",
    )


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


def _alike(one: Scores, other: Scores) -> bool:
    """Whether the seconds of both were shared by as many people."""
    return one.together is not None and other.together is not None and math.isclose(one.together, other.together)


def _shared(one: Scores) -> str:
    """What is to be said beside the seconds of people who were not made alone."""
    return "" if one.together in (None, 1) else f", {one.together:.3g} at once"


def _times(value: float, ours: float | None) -> str:
    return f"{value / ours:,.1f} x" if ours else "-"


def _said(values: Tensor, share: bool = False) -> str:
    mean = bootstrap(values)
    if mean.value != mean.value:
        return ""
    if share:
        return f"{mean.value:.0%}<br>*{mean.low:.0%} to {mean.high:.0%}*"
    return f"{mean.value:.3f}<br>*{mean.low:.3f} to {mean.high:.3f}*"


def _signed(mean: Mean, share: bool) -> str:
    scale, digits = (100, 1) if share else (1, 3)
    if math.isnan(mean.value):
        return ""
    value, low, high = (scale * number for number in (mean.value, mean.low, mean.high))
    sure = "**" if low > 0 or high < 0 else ""
    return f"{sure}{value:+.{digits}f}{sure}<br>*{low:+.{digits}f} to {high:+.{digits}f}*"
