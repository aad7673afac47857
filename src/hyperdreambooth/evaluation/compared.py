"""Methods side by side: on the people and prompts that all of them have drawn, and on no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hyperdreambooth.evaluation.metrics import Mean, bootstrap, over_prompts
from hyperdreambooth.evaluation.scores import TRUE, Scores

ENOUGH = 10  # people on whom methods are compared, if need be
_FEW = 3  # one that has fewer, and so many times fewer than another, is not let decide on whom all are compared


def common_people(several: Sequence[Scores]) -> list[int]:
    """The run's numbers of those whom all have drawn, in order."""
    return sorted(set.intersection(*(set(one.people.tolist()) for one in several)))


def enough(counts: Sequence[int]) -> list[bool]:
    """Who has drawn ten people, or a third as many as any: for others' sake these would be compared on few."""
    most = max(counts, default=0)
    return [count >= ENOUGH or count * _FEW >= most for count in counts]


def with_enough(several: Sequence[Scores]) -> tuple[list[Scores], list[Scores]]:
    """Those that have drawn `enough` people, and the others."""
    there = enough([len(one.people) for one in several])
    return (
        [one for one, many in zip(several, there, strict=True) if many],
        [one for one, many in zip(several, there, strict=True) if not many],
    )


def known_prompts(scores: Mapping[str, Scores]) -> Tensor:
    """(Q,) bool: the prompts of which there are true pictures, of photographs styles; all where there are none at all.

    What is measured against true pictures is measured against the photograph in all others, which is not how somebody
    looks there.
    """
    some = scores.get(TRUE) or next(iter(scores.values()))
    unknown = some.cells["face"].isnan().all(dim=0)
    return ~unknown if TRUE in scores else torch.ones_like(unknown)


def where_known(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """The same in `known_prompts` alone: nothing is measured in the others."""
    unknown = ~known_prompts(scores)
    return {
        name: replace(one, cells={what: cells.masked_fill(unknown, torch.nan) for what, cells in one.cells.items()})
        for name, one in scores.items()
    }


def on_common(several: Sequence[Scores], measure: str) -> Tensor:
    """(S, P): each method's value of each person whom all have drawn, over those prompts that all have of that person.

    NaN for a person without any such prompt.
    """
    people = common_people(several)
    both = torch.stack([one.cells[measure][_rows(one, people)] for one in several])  # (S, P, Q)
    return over_prompts(both.masked_fill(both.isnan().any(dim=0), torch.nan))


def of_people(one: Scores, people: Sequence[int], measure: str) -> Tensor:
    """(P,): the value of each of these people whom it has drawn, over all of its prompts."""
    return one.measures[measure][_rows(one, people)]


def paired(ours: Scores, other: Scores, measure: str) -> Mean:
    """The mean difference over the people and prompts that both have, and its interval over people."""
    mine, theirs = on_common([ours, other], measure)
    return bootstrap(mine - theirs)


def _rows(one: Scores, people: Sequence[int]) -> list[int]:
    row = {person: number for number, person in enumerate(one.people.tolist())}
    return [row[person] for person in people if person in row]
