"""The paper's tables, with our figures beside the paper's: lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from hyperdreambooth.baselines.methods import OURS
from hyperdreambooth.evaluation.compared import (
    common_people,
    known_prompts,
    of_people,
    on_common,
    paired,
    where_known,
    with_enough,
)
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
RANKS = (
    *("fixed-rank", "relaxed-2", "relaxed-4", "relaxed-8", "relaxed-lidb"),
    *("relaxed-full-2", "relaxed-full", "relaxed-full-8"),
)
SHOWN = tuple(CELLS)
SHARES = ("identified", "scene", "prompt_first")  # of pictures: in per cent
BEYOND = tuple(ONCE)
_SAID = {"k-1": "k-1: the first of three rounds", BASE_METHOD: "nobody: the bare base"}
FEW = "too few people"  # for an interval, or for a verdict
Heads = Mapping[str, str]
"""How a table calls the measures."""


def paper_tables(scores: Mapping[str, Scores], heads: Heads = MEASURES) -> Iterator[str]:
    """Tables 1, 2 and 3 as far as the run has their methods, the ranks, and what else it has.

    Each is of the people whom all of its methods have drawn, and of the prompts that all have of a person; the floor
    and the ceiling, the bare base and true pictures, are of the same people, the ceiling only where it is of the same
    prompts. A method that has drawn very few stands on its own, marked.
    """
    listed = {name for names in (*TABLES.values(), RANKS) for name in names} | {TRUE, BASE_METHOD}
    others = tuple(name for name in scores if name not in listed)
    tables = {**TABLES, "Ranks: relaxed and not": (OURS, *RANKS), "What the paper has not": (OURS, *others)}
    for title, names in tables.items():
        there = [scores[name] for name in names if name in scores]
        if len(there) < 2:
            continue
        yield from (f"### {title}", "", *_table(there, scores, heads, PAPER), "")


def all_together(scores: Mapping[str, Scores], heads: Heads = MEASURES) -> Iterator[str]:
    """One table of all methods, in `known_prompts`, and where these are not all, ours less each method in them."""
    known, there = known_prompts(scores), where_known(scores)
    methods = [one for name, one in there.items() if name not in (TRUE, BASE_METHOD)]
    whole = bool(known.all())
    which = "" if whole else f", in {int(known.sum())} of {len(known)} prompts: it is known how people truly look there"
    yield from (f"### All methods{which}", "", *_table(methods, there, heads, {}), "")
    if not whole:
        yield from (*differences(there, heads), "")


def _table(
    there: Sequence[Scores],
    scores: Mapping[str, Scores],
    heads: Heads,
    papers: Mapping[str, tuple[float, float, float, float]],
) -> Iterator[str]:
    """One table of these methods, of a run's `scores`, with the paper's figures of some."""
    there, few = with_enough(there)
    if not (people := common_people(there)):
        yield "There is nobody whom all of these have drawn."
        return
    yield from (f"Of {len(people)} whom all of these have drawn, and their common prompts.", "")
    values = {measure: on_common(there, measure) for measure in SHOWN}
    body = [
        row
        for number, one in enumerate(there)
        for row in _rows_of(one, {measure: own[number] for measure, own in values.items()}, papers)
    ]
    for one in few:
        own = {measure: of_people(one, one.people.tolist(), measure) for measure in SHOWN}
        body += _rows_of(one, own, papers, f" (of {len(one.people)} of them)" if len(one.people) else "")
    unknown = ~known_prompts(scores)
    more = any(bool((~one.cells["clip_t"][:, unknown].isnan()).any()) for one in there)  # prompts than the ceiling
    for name in (BASE_METHOD,) if more else (BASE_METHOD, TRUE):
        if name in scores:
            bounds = {measure: of_people(scores[name], people, measure) for measure in SHOWN}
            body.append([f"*{_SAID.get(name, name)}*", "", *_means(bounds)])
    yield from rows(["", "iterations", *(heads[name] for name in SHOWN)], body)


def _rows_of(
    scores: Scores,
    values: Mapping[str, Tensor],
    papers: Mapping[str, tuple[float, float, float, float]],
    mark: str = "",
) -> Iterator[list[str]]:
    steps = "" if scores.iterations is None else f"{scores.iterations:,.0f}"
    name = f"**{scores.method}**" if scores.method == OURS else _SAID.get(scores.method, scores.method)
    yield [name + mark, steps, *_means(values)]
    if scores.method in papers:
        paper = dict(zip(_PAPERS, papers[scores.method], strict=True))
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
        body.append([name, people, *(signed(gap, measure in SHARES) for measure, gap in gaps.items())])
    yield from rows([f"{OURS} less", "people", *(heads[name] for name in SHOWN)], body)


def beyond(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Diversity of the pictures of one person, how far they copy, how much of them "a face" becomes, attributes."""
    body = [
        [
            "nobody worn" if name == BASE_METHOD else name,
            str(len(one.people)),
            *(_said(one.measures[measure]) for measure in BEYOND),
            "" if one.attributes is None else f"{one.attributes:.2f}",
        ]
        for name, one in scores.items()
    ]
    yield from rows(["", "people", *(MEASURES[name] for name in BEYOND), "attribute error"], body)


def _said(values: Tensor, share: bool = False) -> str:
    mean = bootstrap(values)
    if math.isnan(mean.value):
        return ""
    spelled = ".0%" if share else ".3f"
    interval = FEW if mean.unsure else f"{mean.low:{spelled}} to {mean.high:{spelled}}"
    return f"{mean.value:{spelled}}<br>*{interval}*"


def signed(mean: Mean, share: bool, between: str = "<br>") -> str:
    """A difference and its interval, bold where that does not cross 0; a share's in points of 100."""
    scale, digits = (100, 1) if share else (1, 3)
    if math.isnan(mean.value):
        return ""
    value, low, high = (scale * number for number in (mean.value, mean.low, mean.high))
    sure = "**" if low > 0 or high < 0 else ""
    interval = FEW if mean.unsure else f"{low:+.{digits}f} to {high:+.{digits}f}"
    return f"{sure}{value:+.{digits}f}{sure}{between}*{interval}*"
