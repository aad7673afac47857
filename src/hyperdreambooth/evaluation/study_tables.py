"""Tables 4 and 5, what people and the automatic judge answered beside the paper's figures: lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hyperdreambooth.baselines.methods import OURS
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.page import rows
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.study import Kind, Study
from hyperdreambooth.evaluation.study_scores import AUTOMATIC, Result, Score, Tally, score

KEY_FILE = "key.json"
# The paper's shares in per cent, by kind and the other method: ours, the other, undecided. Second-hand, as its tables.
PAPER_STUDIES: Mapping[tuple[Kind, str], tuple[float, float, float]] = {
    ("identity", "dreambooth"): (64.8, 23.3, 11.9),
    ("identity", "textual-inversion"): (70.6, 21.6, 7.8),
    ("style", "e4t"): (60.0, 37.5, 2.5),
}
TITLES: Mapping[Kind, str] = {
    "identity": "Table 4: who is more like the person",
    "style": "Table 5: who is more like the person, in that style",
}
_HEADER = ("", "answered by", "ours", "the other", "undecided", "ours of the decided", "questions", "raters", "kappa")
_NOTE = (
    "Shares of the questions, by the majority of the answers to each; the interval is Wilson's, of 95 %, as if no two"
    " questions were about one person; kappa is Fleiss'. The paper's are second-hand, of other people in other "
    "pictures: 1,000 pairs of 25 people, five answers each (Table 4), and 600 answers on 10 people in four prompts "
    "(Table 5). The automatic judge is a network and no human: it takes the picture whose face is more like the "
    "photograph's, knows no style, and errs as Face Rec. does."
)


@dataclass(frozen=True)
class Answered:
    """A study, and what was answered."""

    study: Study
    result: Result

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a folder of `key.json`, as `hdb study make` writes it, and files of answers, anywhere inside.

        Raises:
            UserError: no key, no answers, or what `study_scores.score` refuses.
        """
        study = Study.open(folder / KEY_FILE)
        files = sorted(path for path in folder.rglob("*.json") if path != folder / KEY_FILE)
        if not files:
            raise UserError(
                f"{folder} has {KEY_FILE} and no other .json, expected files of answers beside it: put those of the "
                "participants there, or make one by hdb study judge"
            )
        return cls(study, score(study, files))

    def check(self, runs: Sequence[RunFolder]) -> None:
        """Raise UserError where the study was made from none of these runs."""
        for run in runs[:-1]:
            try:
                return self.study.check_pictures(run)
            except UserError:
                continue
        self.study.check_pictures(runs[-1])


def study_tables(studies: Sequence[Answered]) -> Iterator[str]:
    """Tables 4 and 5, as far as there are studies: people and the automatic judge apart, then the paper's shares."""
    for kind, title in TITLES.items():
        if these := [one for one in studies if one.study.kind == kind]:
            yield from (f"### {title}", "", *rows(_HEADER, [row for one in these for row in _rows_of(one)]), "")
    yield _NOTE


def _rows_of(one: Answered) -> Iterator[list[str]]:
    study = one.study
    name = f"{study.ours} against {study.other}"
    for who, said in (("people", one.result.people), (f"*{AUTOMATIC}*", one.result.automatic)):
        if said is not None:
            yield [name, who, *_shares(said.majorities), *_decided(said), *_counts(said)]
    if study.ours == OURS and (paper := PAPER_STUDIES.get((study.kind, study.other))):
        yield ["*the paper's*", "*people*", *(f"*{share:.1f} %*" for share in paper), "", "", "", ""]


def _shares(tally: Tally) -> Iterator[str]:
    yield from (f"{getattr(tally, name) / tally.total:.1%}" for name in ("ours", "other", "undecided"))


def _decided(said: Score) -> Iterator[str]:
    rate = said.majorities.decided
    if rate is None:
        yield ""
        return
    low, high = rate.interval
    yield f"{rate.share:.0%}<br>*{low:.0%} to {high:.0%}*"


def _counts(said: Score) -> Iterator[str]:
    yield from (f"{said.majorities.total:,}", f"{said.raters:,}", "" if said.kappa is None else f"{said.kappa:.2f}")
