"""What was aimed at, what was measured, and whether it is so: lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from hyperdreambooth.baselines.methods import NOMINAL, OURS
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.compared import paired
from hyperdreambooth.evaluation.costs import (
    AIMS,
    EQUAL_AIMS,
    LIDB,
    NOT_COMPARABLE,
    RANK_ONE,
    UNET,
    WITH_BLOCKS,
    Reach,
    comparable,
    reaches,
)
from hyperdreambooth.evaluation.curves import named
from hyperdreambooth.evaluation.drawn import Drawn, check_same
from hyperdreambooth.evaluation.metrics import FEWEST, Mean
from hyperdreambooth.evaluation.page import rows
from hyperdreambooth.evaluation.prompts import SETS
from hyperdreambooth.evaluation.protocol import asked
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.scores import MEASURES, Scores
from hyperdreambooth.evaluation.tables import FEW, SHARES, Heads, signed

QUICK = 300  # seconds for the quick set, ours alone, on two cores
_RELAXED = (OURS, "relaxed-lidb", "relaxed-full")  # as the base's space has it, and in both
_LIKE_AND_TRUE = ("identified", "dino", "clip_i", "clip_t")  # no worse than others in these
_ALL_FOUR = ("face", "dino", "clip_i", "clip_t")  # better than Textual Inversion in these
_NOT_MEASURED = "not measured"
_Row = list[str]  # aim, measured, reached


def aims(
    points: Mapping[str, Scores], heads: Heads = MEASURES, quick: tuple[float, str] | None = None
) -> Iterator[str]:
    """What ours was to reach against each other method of a run, the paper's count of bytes, and the quick set.

    Args:
        points: scores by method, with the points of curves.
        heads: how the measures are called.
        quick: as of `quick_set`.
    """
    scores = named(points)
    body = [*_of_pictures(scores, heads), *_of_speed(points), *_of_bytes(scores), _of_quick(quick)]
    yield from rows(["aim", "measured", "reached"], body)


def quick_set(drawn: Drawn) -> tuple[float, str] | None:
    """Seconds of everybody's fit and pictures by ours, and the machine; None unless it is a whole quick set, and timed.

    Loading the base and judging are not in.
    """
    planned = {one.prompt: one.count for one in asked(SETS["quick"])}
    made, pictures = drawn.made.get(OURS, []), drawn.whole(OURS)
    machines = {one.machine for one in made}
    seconds = [*(one.seconds for one in made), *(one.seconds for one in pictures)]
    whole = drawn.counts == planned and len(made) == SETS["quick"].people and not drawn.incomplete(OURS)[0]
    if not whole or len(machines) != 1:
        return None
    known = [value for value in seconds if value is not None]
    return (sum(known), machines.pop()) if len(known) == len(seconds) else None


def check_quick(quick: RunFolder, run: RunFolder) -> None:
    """Raise UserError for what is no whole quick set by ours, or as `check_same`."""
    check_same(quick, run, [OURS])
    if quick_set(Drawn(quick)) is None:
        raise UserError(
            f"{quick.path} holds no whole quick set by {OURS}, timed on one kind of machine, expected one: "
            f"hdb evaluate -o {quick.path} --methods {OURS}"
        )


def _of_pictures(scores: Mapping[str, Scores], heads: Heads) -> Iterator[_Row]:
    """As good is a difference whose interval does not lie below 0; better, one whose interval lies above it.

    Of people who are too few for an interval nothing is said to be reached.
    """
    ours = scores[OURS]
    for name in ("dreambooth", "dreambooth-agg-1", "dreambooth-agg-2", "e4t"):
        if name in scores:
            gaps = {measure: paired(ours, scores[name], measure) for measure in _LIKE_AND_TRUE}
            yield [f"no worse than {name}", *_verdict(gaps, heads, lambda gap: gap.high >= 0)]
    if (other := scores.get("textual-inversion")) is not None:
        gaps = {measure: paired(ours, other, measure) for measure in _ALL_FOUR}
        yield ["better than textual-inversion", *_verdict(gaps, heads, lambda gap: gap.low > 0)]
    for name in ("no-hyper", "only-hyper", "k-1", "fixed-rank"):
        if name in scores:
            gaps = {"face": paired(ours, scores[name], "face")}
            yield [f"the paper's order: above {name}", *_verdict(gaps, heads, lambda gap: gap.low > 0)]


def _verdict(gaps: Mapping[str, Mean], heads: Heads, good: Callable[[Mean], bool]) -> tuple[str, str]:
    """Differences in words, and in how many of them the aim is reached."""
    known = {measure: gap for measure, gap in gaps.items() if not math.isnan(gap.value)}
    said = [f"{heads[name]} {signed(gap, name in SHARES, ' ')}" for name, gap in known.items()]
    reached = [heads[name] for name, gap in known.items() if good(gap)]
    word = "yes" if len(reached) == len(known) else "no" if not reached else f"in {', '.join(reached)}"
    if known and all(gap.unsure for gap in known.values()):
        word = FEW
    return "; ".join(said), word if known else ""


def _of_speed(points: Mapping[str, Scores]) -> Iterator[_Row]:
    """Of the methods that the run has: as the paper counts steps, and when they are as like as ours."""
    nominal, found = points.get(NOMINAL), reaches(points)
    for name, least in AIMS.items():
        if (other := points.get(name)) is not None:
            yield [f"{least:g} x sooner than {name}, one noise a step", *_sooner(nominal, other, least)]
    for name, least in EQUAL_AIMS.items():
        if name in points:
            yield [f"{least:g} x sooner than {name}, at equal likeness", *_as_like(found.get(name), least)]


def _sooner(nominal: Scores | None, other: Scores, least: float) -> tuple[str, str]:
    if nominal is None or not nominal.seconds or other.seconds is None:
        return _NOT_MEASURED, ""
    if not comparable(other, nominal):
        return NOT_COMPARABLE, ""
    factor = other.seconds / nominal.seconds
    return f"{factor:,.1f} x", "yes" if factor >= least else "no"


def _as_like(reach: Reach | None, least: float) -> tuple[str, str]:
    if reach is None:
        return _NOT_MEASURED, ""
    if reach.factor is None:
        return NOT_COMPARABLE, ""
    above, below = reach.factor >= least and not reach.under, reach.factor < least and not reach.over
    word = FEW if reach.people < FEWEST else "yes" if above else "no" if below else "not known"
    return f"{reach.times} ({reach.said})", word


def _of_bytes(scores: Mapping[str, Scores]) -> Iterator[_Row]:
    """Before fine-tuning as the paper counts, on Stable Diffusion 1.5; after it as measured here."""
    counted = "before relaxation, on Stable Diffusion 1.5: at most"
    for numbers, where in ((LIDB, ""), (WITH_BLOCKS, ", with the residual blocks, as is usual here")):
        for what, most, whole in (("7.5 % of rank-1 LoRA", 0.075, RANK_ONE), ("1/10,000 of the U-Net", 1e-4, UNET)):
            said = f"{numbers:,} of {whole:,} numbers, 1/{whole / numbers:,.1f}"
            yield [f"{counted} {what}{where}", said, "yes" if numbers / whole <= most else "no"]
    sizes = {name: scores[name].bytes for name in _RELAXED if name in scores}
    said = "; ".join(f"{name} {_NOT_MEASURED if size is None else f'{size:,.0f}'}" for name, size in sizes.items())
    yield ["bytes after relaxation, in LiDB and in full space", said, ""]


def _of_quick(quick: tuple[float, str] | None) -> _Row:
    aim = f"the quick set by ours in {QUICK / 60:g} minutes, two cores"
    if quick is None:
        return [aim, _NOT_MEASURED, ""]
    seconds, machine = quick
    word = "yes" if seconds <= QUICK else "no"
    return [aim, f"{seconds:,.0f} s ({machine})", word if machine.startswith("cpu") else NOT_COMPARABLE]
