"""The scores of first light: from pictures to a table for people and numbers for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.judges import Judges
from hyperdreambooth.evaluation.attributes import attribute_error
from hyperdreambooth.evaluation.identification import Rate, identified, scene_recognised
from hyperdreambooth.evaluation.metrics import Mean, bootstrap
from hyperdreambooth.evaluation.subjects import Subjects
from hyperdreambooth.evaluation.tables import FEW
from hyperdreambooth.portraits.captions import STYLE_SCENES, STYLES

TRUE, ROUND_TRIP, LONG_FIT = "true pictures", "VAE round trip", "200 steps alone"
OURS, TUNED_ALONE, HYPER_ALONE = "ours", "fine-tuning alone", "hypernetwork alone"


@dataclass(frozen=True)
class Score:
    """How one way of making pictures did, one picture of each of N people in each style.

    Attributes:
        hits: (styles, N) bool, the right one of the N was nearest.
        style: how often the prompted style is read; None without a scene classifier.
        attributes: of the plain style, 0 all read back, 1 no better than a guess; None for photographs, and without an
            attribute reader.
    """

    hits: Tensor
    style: Rate | None
    attributes: float | None

    @property
    def people(self) -> int:
        """N."""
        return self.hits.shape[1]

    @property
    def share(self) -> float:
        """Identification rate over all styles, 0 to 1."""
        return float(self.hits.float().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval. The trials are people: eight pictures of one person are no eight independent trials."""
        return Rate(round(self.share * self.people), self.people).interval

    @property
    def by_style(self) -> dict[str, float]:
        """Identification rate in each style."""
        return dict(zip(STYLES, self.hits.float().mean(dim=1).tolist(), strict=True))


def score(subjects: Subjects, pictures: Tensor, judges: Judges, galleries: Mapping[str, Tensor]) -> Score:
    """Judge pictures (styles, N, 3, S, S), one of each person in each style.

    Args:
        subjects: who they should be.
        pictures: in [0, 1].
        judges: who say who they are.
        galleries: what each person is recognised by, (N, E) by style.
    """
    hits = [
        identified(galleries[style], judges.recogniser.embed(drawn), subjects.labels)
        for style, drawn in zip(STYLES, pictures, strict=True)
    ]
    style = error = None
    if judges.scenes is not None:
        prompted = [scene for scene in STYLE_SCENES for _ in subjects.labels]
        style = scene_recognised(judges.scenes.read(pictures.flatten(0, 1)), prompted)
    if judges.attributes is not None and subjects.truth is not None:
        error = attribute_error(judges.attributes.read(pictures[STYLES.index("plain")]), subjects.truth)
    return Score(torch.stack(hits), style, error)


def table(world: str, scores: Mapping[str, Score], among: int | None = None) -> Table:
    """The scores for people to read, a column each; rows that nobody could judge are left out.

    Args:
        world: of the people.
        scores: by name.
        among: how many people they were told apart from; None is only each other.
    """
    some = next(iter(scores.values()))
    among = some.people if among is None else among
    result = Table(
        title=f"{world}: identification among {among}, chance {1 / among:.0%}",
        caption=f"{some.people} people, one picture of each in each style; 95 % intervals over people",
    )
    extras = {
        "style recognised": lambda value: value.style and f"{value.style.share:.1%}",
        "attribute error": lambda value: value.attributes is not None and f"{value.attributes:.2f}",
    }
    for column in ("", *scores):
        result.add_column(column)
    result.add_row("all styles", *(f"{value.share:.1%}" for value in scores.values()))
    result.add_row("", *("{:.0%} to {:.0%}".format(*value.interval) for value in scores.values()))
    for style in STYLES:
        result.add_row(style, *(f"{value.by_style[style]:.0%}" for value in scores.values()))
    if OURS in scores and TUNED_ALONE in scores:
        gap = _margin(scores)
        interval = FEW if gap.unsure else f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
        margin = f"{100 * gap.value:+.1f} ({interval})"
        result.add_row(f"less {TUNED_ALONE}", *(margin if name == OURS else "" for name in scores))
    for name, text in extras.items():
        if any(text(value) for value in scores.values()):
            result.add_row(name, *(text(value) or "" for value in scores.values()))
    return result


def as_json(scores: Mapping[str, Score]) -> dict[str, object]:
    """The scores for programs; with the paired difference of ours to fine-tuning alone where both are there."""
    result: dict[str, object] = {name: _numbers(value) for name, value in scores.items()}
    if OURS in scores and TUNED_ALONE in scores:
        gap = _margin(scores)
        interval = None if gap.unsure else (gap.low, gap.high)  # of too few people there is none
        result[f"{OURS} minus {TUNED_ALONE}"] = {"difference": gap.value, "interval": interval}
    return result


def _margin(scores: Mapping[str, Score]) -> Mean:
    """How much ours is above fine-tuning alone, paired over people: probes of one person are not independent."""
    ours, others = scores[OURS].hits.double(), scores[TUNED_ALONE].hits.double()  # (styles, N)
    return bootstrap((ours - others).mean(dim=0))


def _numbers(value: Score) -> dict[str, object]:
    numbers: dict[str, object] = {
        "identification": value.share,
        "interval": value.interval,
        "people": value.people,
        "pictures": value.hits.numel(),
        "by_style": value.by_style,
    }
    if value.style is not None:
        numbers["style_recognised"] = value.style.share
    if value.attributes is not None:
        numbers["attribute_error"] = value.attributes
    return numbers
