"""Answers to a study and what they say: majorities, shares, agreement. An automatic judge fills in the same form.

People's answers and the automatic judge's are never counted together.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.identification import Rate
from hyperdreambooth.evaluation.judges import Recogniser
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.study import Question, Study, read_json
from hyperdreambooth.faces import read_picture

FORMAT = "study-answers-1"  # no name of a method: participants read it
AUTOMATIC = "automatic judge (not human)"  # the participant of its answers
LEFT, RIGHT, UNDECIDED = CHOICES = ("left", "right", "undecided")
# A smaller difference of two cosines is undecided. True portraits in a style are at 0.91 (neon) to 0.97 (comic) from
# themselves in plain, strangers at 0.
THRESHOLD = 0.02


@dataclass(frozen=True)
class Answers:
    """What one participant chose."""

    study: str
    participant: str
    choices: Mapping[str, str]  # by a question's id
    how: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> str:
        """As the page writes it."""
        listed = [{"question": question, "choice": choice} for question, choice in self.choices.items()]
        said = {"format": FORMAT, "study": self.study, "participant": self.participant, "how": dict(self.how)}
        return json.dumps({**said, "answers": listed}, indent=1) + "\n"

    @classmethod
    def open(cls, path: str | Path, study: Study) -> Self:
        """Read a participant's answers to a study.

        Raises:
            UserError: no file of answers, or of another study; a question that is foreign or answered twice; a choice
                that there is not.
        """
        values = read_json(path, "a file of answers", "save it again from the page")
        if values.get("format") != FORMAT:
            raise UserError(f"{path} is {values.get('format', 'foreign')}, expected {FORMAT}: give a file of answers")
        if values.get("study") != study.id:
            raise UserError(f"{path} answers study {values.get('study')}, the key is of {study.id}: give its own key")
        participant, listed = values.get("participant"), values.get("answers")
        if not (isinstance(participant, str) and participant and isinstance(listed, list) and listed):
            raise UserError(f"{path} has no participant or no answers, expected both: leave it out")
        known, choices = {one.id for one in study.questions}, dict[str, str]()
        for one in listed:
            question, choice = _checked(path, one, known)
            if question in choices:
                raise UserError(f"{path} answers question {question} twice, expected once: remove one of the two")
            choices[question] = choice
        return cls(study.id, participant, choices)


@dataclass(frozen=True)
class Tally:
    """How often each was preferred."""

    ours: int
    other: int
    undecided: int

    @classmethod
    def of(cls, counts: Mapping[str, int], study: Study) -> Self:
        """From counts by method; what is under no method is undecided."""
        ours, other = counts.get(study.ours, 0), counts.get(study.other, 0)
        return cls(ours, other, sum(counts.values()) - ours - other)

    @property
    def total(self) -> int:
        """All of them."""
        return self.ours + self.other + self.undecided

    @property
    def decided(self) -> Rate | None:
        """Ours among the decided ones; None where there are none."""
        return Rate(self.ours, self.ours + self.other) if self.ours + self.other else None

    def facts(self) -> dict[str, float]:
        """Shares of the total, for a report."""
        return {name: round(getattr(self, name) / self.total, 4) for name in ("ours", "other", "undecided")}


@dataclass(frozen=True)
class Score:
    """What raters of one sort said."""

    raters: int
    majorities: Tally  # of the questions that anybody answered
    answers: Tally
    kappa: float | None  # Fleiss', of left, right and undecided

    def facts(self) -> dict[str, object]:
        """For a report: shares, Wilson's 95 % interval of ours among the decided majorities, agreement."""
        decided = None
        if rate := self.majorities.decided:
            low, high = (round(end, 4) for end in rate.interval)
            decided = {"questions": rate.trials, "ours": round(rate.share, 4), "low": low, "high": high}
        return {
            "raters": self.raters,
            "answers": self.answers.total,
            "questions": self.majorities.total,
            "majority": self.majorities.facts(),
            "decided_majority": decided,
            "single_answers": self.answers.facts(),
            "fleiss_kappa": None if self.kappa is None else round(self.kappa, 4),
        }


@dataclass(frozen=True)
class Result:
    """A study's score by people and by the automatic judge; None where there are no such answers."""

    people: Score | None
    automatic: Score | None


def score(study: Study, files: Sequence[str | Path]) -> Result:
    """Score files of answers, one or several of each participant.

    Raises:
        UserError: a file that `Answers.open` refuses, or a participant who answered a question in two files.
    """
    people, automatic = list[Answers](), list[Answers]()
    seen: dict[tuple[str, str], str | Path] = {}  # participant and question: the file of the answer
    for path in files:
        answers = Answers.open(path, study)
        for question in answers.choices:
            if before := seen.get((answers.participant, question)):
                raise UserError(
                    f"{path} answers question {question} for participant {answers.participant} as {before} does, "
                    "expected one answer of each participant: leave one of the two files out"
                )
        seen |= {(answers.participant, question): path for question in answers.choices}
        (automatic if answers.participant == AUTOMATIC else people).append(answers)
    return Result(_score(study, people), _score(study, automatic))


def _score(study: Study, given: Sequence[Answers]) -> Score | None:
    if not given:
        return None
    counts = [
        Counter(one.choices[question.id] for one in given if question.id in one.choices) for question in study.questions
    ]
    asked = [(question, count) for question, count in zip(study.questions, counts, strict=True) if count]
    majorities = Counter(_method(question, majority(count)) for question, count in asked)
    answers = Counter[str]()
    for question, count in asked:
        for choice, number in count.items():
            answers[_method(question, choice)] += number
    return Score(
        len({one.participant for one in given}),
        Tally.of(majorities, study),
        Tally.of(answers, study),
        fleiss_kappa([[count[choice] for choice in CHOICES] for _, count in asked]),
    )


def majority(count: Mapping[str, int]) -> str:
    """The choice of the most; undecided where two share that place."""
    most = [choice for choice in CHOICES if count.get(choice, 0) == max(count.values())]
    return most[0] if len(most) == 1 else UNDECIDED


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Agreement of raters beyond chance: 1 in everything, 0 as by chance (Fleiss 1971).

    Subjects may have different numbers of raters: one with fewer than two tells nothing of agreement and is left out,
    all others weigh the same. The categories should be what raters saw: those of a study do not know which method is
    on the left, so their chance is that of left and right.

    Args:
        counts: for each subject, how many raters put it into each category.

    Returns:
        kappa; None without a subject of two raters, or where everybody used one category alone.
    """
    rated = [row for row in counts if sum(row) >= 2]
    if not rated:
        return None
    agreement = sum(sum(n * (n - 1) for n in row) / (sum(row) * (sum(row) - 1)) for row in rated) / len(rated)
    shares = [sum(column) / len(rated) for column in zip(*([n / sum(row) for n in row] for row in rated), strict=True)]
    chance = sum(share**2 for share in shares)
    return None if max(shares) == 1 else (agreement - chance) / (1 - chance)


def automatic_answers(study: Study, run: RunFolder, recogniser: Recogniser, threshold: float = THRESHOLD) -> Answers:
    """The answers of a network that is no human: the picture whose embedding is nearer to the reference's.

    It judges likeness alone, in a study of style too. Raises UserError where the pictures are not the study's.

    Args:
        study: its questions.
        run: the run that it was made from.
        recogniser: whose embeddings are compared.
        threshold: a smaller difference of the two cosines is undecided.
    """
    study.check_pictures(run)

    def embedded(path: Path) -> Tensor:
        return recogniser.embed(read_picture(path)[None])[0]  # (E,)

    reference = cache(lambda person: embedded(run.reference(person)))
    choices = {}
    for one in study.questions:
        left, right = (
            float(reference(one.person) @ embedded(run.path / file)) for file in (one.left_file, one.right_file)
        )
        choices[one.id] = UNDECIDED if abs(left - right) < threshold else LEFT if left > right else RIGHT
    return Answers(study.id, AUTOMATIC, choices, {"judge": Recogniser.kind, "threshold": threshold})


def _method(question: Question, choice: str) -> str:
    """The method that a choice stands for; undecided is none."""
    return {LEFT: question.left, RIGHT: question.right}.get(choice, UNDECIDED)


def _checked(path: str | Path, answer: Any, known: set[str]) -> tuple[str, str]:
    """Question and choice of one answer in a file."""
    question, choice = (answer.get(key) for key in ("question", "choice")) if isinstance(answer, dict) else (None, None)
    if not isinstance(question, str) or question not in known:
        raise UserError(f"{path} answers question {question!r}, which the study does not ask: leave the file out")
    if choice not in CHOICES:
        raise UserError(
            f"{path} answers question {question} with {choice!r}, expected {', '.join(CHOICES)}: correct it"
        )
    return question, str(choice)
