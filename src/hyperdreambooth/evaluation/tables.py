"""The paper's tables, with our figures beside the paper's: lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hyperdreambooth.baselines.methods import OURS
from hyperdreambooth.evaluation.metrics import Mean, bootstrap
from hyperdreambooth.evaluation.scores import MEASURES, TRUE, Scores, families

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
SHOWN = ("face", "dino", "clip_i", "clip_t", "identified", "scene")
BEYOND = ("diversity", "drift")


def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown, line by line."""
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in body)


def paper_tables(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Tables 1, 2 and 3 as far as the run has their methods; what else it has in a fourth."""
    listed = {name for names in TABLES.values() for name in names} | {TRUE}
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
    means = [_said(scores.measures[name], share=name in ("identified", "scene")) for name in SHOWN]
    name = f"**{scores.method}**" if scores.method == OURS else scores.method
    yield [name, str(len(scores.people)), steps, *means]
    if scores.method in PAPER:
        paper = dict(zip(_PAPERS, PAPER[scores.method], strict=True))
        yield ["*the paper's*", "", "", *(f"*{paper[name]:.3f}*" if name in paper else "" for name in SHOWN)]


def differences(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Ours less each other method, paired over the people whom both made."""
    ours = scores[OURS]
    body = []
    for name, other in scores.items():
        if name in (OURS, TRUE):
            continue
        gaps = {measure: paired(ours, other, measure) for measure in SHOWN}
        body.append([name, *(_signed(gap, measure in ("identified", "scene")) for measure, gap in gaps.items())])
    yield from rows([f"{OURS} less", *(MEASURES[name] for name in SHOWN)], body)


def paired(ours: Scores, other: Scores, measure: str) -> Mean:
    """The mean difference over the people whom both made, and its interval."""
    both = [person for person in ours.people.tolist() if person in set(other.people.tolist())]
    mine, theirs = (
        dict(zip(one.people.tolist(), one.measures[measure].tolist(), strict=True)) for one in (ours, other)
    )
    return bootstrap(torch.tensor([mine[person] - theirs[person] for person in both], dtype=torch.float64))


def beyond(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Diversity of the pictures of one person, how much of them "a face" becomes, attributes read back."""
    body = [
        [
            name,
            *(_said(one.measures[measure]) for measure in BEYOND),
            "" if one.attributes is None else f"{one.attributes:.2f}",
        ]
        for name, one in scores.items()
    ]
    yield from rows(["", *(MEASURES[name] for name in BEYOND), "attribute error"], body)


def costs(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Iterations, U-Net samples, seconds and bytes of one person, and how many times ours each takes."""
    ours, body = scores[OURS], []
    for name, one in scores.items():
        if one.seconds is None or ours.seconds is None:
            continue
        times = [
            _times(getattr(one, what), getattr(ours, what)) for what in ("iterations", "samples", "seconds", "bytes")
        ]
        body.append(
            [
                name,
                f"{one.iterations:,.0f} ({times[0]})",
                f"{one.samples:,.0f} ({times[1]})",
                f"{one.seconds:,.2f} ({times[2]})",
                f"{one.together:.0f}",
                f"{one.bytes:,.0f} ({times[3]})",
            ]
        )
    header = ["per person (times ours)", "iterations", "U-Net samples", "seconds", "people at once", "bytes"]
    yield from rows(header, body)


def at_equal_likeness(scores: Mapping[str, Scores], measure: str = "face") -> Iterator[str]:
    """The seconds in which each method, run with several numbers of steps, reaches what ours measures at the end.

    Between two runs, likeness grows evenly with the logarithm of the time; nothing is said of methods with one run.
    """
    ours, body = scores[OURS], []
    target = float(ours.measures[measure].nanmean())
    for name, several in families(scores).items():
        if name != OURS and len(several) > 1 and ours.seconds:
            points = sorted((float(one.seconds or 0), float(one.measures[measure].nanmean())) for one in several)
            seconds = reached(points, target)
            if seconds is None:
                best = max(value for _, value in points)
                body.append([name, f"not in {points[-1][0]:,.1f} s (at best {best:.3f})", ""])
            else:
                body.append([name, f"{seconds:,.1f} s", _times(seconds, ours.seconds)])
    if body:
        yield from rows([f"to {target:.3f} {MEASURES[measure]} ({ours.seconds:,.2f} s of ours)", "takes", ""], body)


def reached(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """Where a curve of (seconds > 0, value), in the order of the seconds, first meets the target; None if it does not.

    Between two points the value is linear in the logarithm of the seconds; before the first it is not known, so that
    a curve that begins above the target meets it at its first point.
    """
    if points[0][1] >= target:
        return points[0][0]
    for (before, low), (after, high) in pairwise(points):
        if low < target <= high:
            share = (target - low) / (high - low)
            return float(math.exp(math.log(before) * (1 - share) + math.log(after) * share))
    return None


def _times(value: float, ours: float) -> str:
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
    value, low, high = (scale * number for number in (mean.value, mean.low, mean.high))
    sure = "**" if low > 0 or high < 0 else ""
    return f"{sure}{value:+.{digits}f}{sure}<br>*{low:+.{digits}f} to {high:+.{digits}f}*"
