"""The paper's tables, with our figures beside the paper's, and what was aimed at: lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from hyperdreambooth.baselines.methods import NOMINAL, OURS
from hyperdreambooth.evaluation.compared import common_people, of_people, on_common, paired, with_enough
from hyperdreambooth.evaluation.costs import AIMS, comparable
from hyperdreambooth.evaluation.metrics import Mean, bootstrap
from hyperdreambooth.evaluation.page import rows
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
RANKS = ("fixed-rank", "relaxed-2", "relaxed-4", "relaxed-8", "relaxed-lidb", "relaxed-full-2", "relaxed-full-8")
SHOWN = tuple(CELLS)
SHARES = ("identified", "scene", "prompt_first")  # of pictures: in per cent
BEYOND = tuple(ONCE)
_SAID = {"k-1": "k-1: the first of three rounds", BASE_METHOD: "nobody: the bare base"}
_FEW = "too few people"  # for an interval, or for a verdict
_LIKE_AND_TRUE = ("identified", "dino", "clip_i", "clip_t")  # no worse than others in these
_ALL_FOUR = ("face", "dino", "clip_i", "clip_t")  # better than Textual Inversion in these
Heads = Mapping[str, str]
"""How a table calls the measures."""


def paper_tables(scores: Mapping[str, Scores], heads: Heads = MEASURES) -> Iterator[str]:
    """Tables 1, 2 and 3 as far as the run has their methods, the ranks, and what else it has.

    Each is of the people whom all of its methods have drawn, and of the prompts that all have of a person; the floor
    and the ceiling, the bare base and true pictures, are of the same people. A method that has drawn very few stands on
    its own, marked.
    """
    listed = {name for names in (*TABLES.values(), RANKS) for name in names} | {TRUE, BASE_METHOD}
    others = tuple(name for name in scores if name not in listed)
    tables = {**TABLES, "Ranks: relaxed and not": (OURS, *RANKS), "What the paper has not": (OURS, *others)}
    for title, names in tables.items():
        there = [scores[name] for name in names if name in scores]
        if len(there) < 2:
            continue
        yield from (f"### {title}", "")
        there, few = with_enough(there)
        if not (people := common_people(there)):
            yield from ("There is nobody whom all of these have drawn.", "")
            continue
        yield from (f"Of {len(people)} whom all of these have drawn, and their common prompts.", "")
        values = {measure: on_common(there, measure) for measure in SHOWN}
        body = [
            row
            for number, one in enumerate(there)
            for row in _rows_of(one, {measure: own[number] for measure, own in values.items()})
        ]
        for one in few:
            own = {measure: of_people(one, one.people.tolist(), measure) for measure in SHOWN}
            body += _rows_of(one, own, f" (of {len(one.people)} of them)" if len(one.people) else "")
        for name in (BASE_METHOD, TRUE):
            if name in scores:
                bounds = {measure: of_people(scores[name], people, measure) for measure in SHOWN}
                body.append([f"*{_SAID.get(name, name)}*", "", *_means(bounds)])
        yield from rows(["", "iterations", *(heads[name] for name in SHOWN)], body)
        yield ""


def _rows_of(scores: Scores, values: Mapping[str, Tensor], mark: str = "") -> Iterator[list[str]]:
    steps = "" if scores.iterations is None else f"{scores.iterations:,.0f}"
    name = f"**{scores.method}**" if scores.method == OURS else _SAID.get(scores.method, scores.method)
    yield [name + mark, steps, *_means(values)]
    if scores.method in PAPER:
        paper = dict(zip(_PAPERS, PAPER[scores.method], strict=True))
        yield ["*the paper's*", "", *(f"*{paper[name]:.3f}*" if name in paper else "" for name in SHOWN)]


def _means(values: Mapping[str, Tensor]) -> list[str]:
    return [_said(values[name], share=name in SHARES) for name in SHOWN]


def differences(scores: Mapping[str, Scores], heads: Heads = MEASURES) -> Iterator[str]:
    """Ours less each other method, paired over the people and prompts that both have."""
    ours = scores[OURS]
    body = []
    for name, other in scores.items():
        if name in (OURS, TRUE, BASE_METHOD):
            continue
        gaps = {measure: paired(ours, other, measure) for measure in SHOWN}
        people = str(len(common_people([ours, other])))
        body.append([name, people, *(_signed(gap, measure in SHARES) for measure, gap in gaps.items())])
    yield from rows([f"{OURS} less", "people", *(heads[name] for name in SHOWN)], body)


def aims(scores: Mapping[str, Scores], heads: Heads = MEASURES) -> Iterator[str]:
    """What ours was to reach against each other method, what was measured, and whether it is so.

    As good is a difference whose interval does not lie below 0; better, one whose interval lies above it. Of people
    who are too few for an interval nothing is said to be reached.
    """
    ours, body = scores[OURS], []
    for name in ("dreambooth", "dreambooth-agg-1", "dreambooth-agg-2", "e4t"):
        if name in scores:
            gaps = {measure: paired(ours, scores[name], measure) for measure in _LIKE_AND_TRUE}
            body.append([f"no worse than {name}", *_verdict(gaps, heads, lambda gap: gap.high >= 0)])
    if (other := scores.get("textual-inversion")) is not None:
        gaps = {measure: paired(ours, other, measure) for measure in _ALL_FOUR}
        body.append(["better than textual-inversion", *_verdict(gaps, heads, lambda gap: gap.low > 0)])
    for name in ("no-hyper", "only-hyper", "k-1", "fixed-rank"):
        if name in scores:
            gaps = {"face": paired(ours, scores[name], "face")}
            body.append([f"the paper's order: above {name}", *_verdict(gaps, heads, lambda gap: gap.low > 0)])
    nominal = scores.get(NOMINAL)
    for name, least in AIMS.items():
        other = scores.get(name)
        if nominal is None or other is None or not nominal.seconds or not comparable(other, nominal):
            continue
        factor = (other.seconds or 0.0) / nominal.seconds
        reached = "yes" if factor >= least else "no"
        body.append([f"{least:g} x sooner than {name}, one noise a step", f"{factor:,.1f} x", reached])
    yield from rows(["aim", "measured", "reached"], body)


def _verdict(gaps: Mapping[str, Mean], heads: Heads, good: Callable[[Mean], bool]) -> tuple[str, str]:
    """Differences in words, and in how many of them the aim is reached."""
    known = {measure: gap for measure, gap in gaps.items() if not math.isnan(gap.value)}
    said = [f"{heads[name]} {_signed(gap, name in SHARES, ' ')}" for name, gap in known.items()]
    reached = [heads[name] for name, gap in known.items() if good(gap)]
    word = "yes" if len(reached) == len(known) else "no" if not reached else f"in {', '.join(reached)}"
    if known and all(gap.unsure for gap in known.values()):
        word = _FEW
    return "; ".join(said), word if known else ""


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


def _said(values: Tensor, share: bool = False) -> str:
    mean = bootstrap(values)
    if math.isnan(mean.value):
        return ""
    spelled = ".0%" if share else ".3f"
    interval = _FEW if mean.unsure else f"{mean.low:{spelled}} to {mean.high:{spelled}}"
    return f"{mean.value:{spelled}}<br>*{interval}*"


def _signed(mean: Mean, share: bool, between: str = "<br>") -> str:
    scale, digits = (100, 1) if share else (1, 3)
    if math.isnan(mean.value):
        return ""
    value, low, high = (scale * number for number in (mean.value, mean.low, mean.high))
    sure = "**" if low > 0 or high < 0 else ""
    interval = _FEW if mean.unsure else f"{low:+.{digits}f} to {high:+.{digits}f}"
    return f"{sure}{value:+.{digits}f}{sure}{between}*{interval}*"
