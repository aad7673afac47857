"""User studies, as Tables 4 and 5 of the paper: which of two methods' pictures shows a person better?

    run -> make_study -> Study -> study_page.py -> a page -> files of answers -> study_scores.py -> shares

A study is its own key: what it saves says which method drew what, and is not for the eyes of those who answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from hyperdreambooth.errors import BadPicture, UserError
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.portraits.captions import parse

FORMAT = "hyperdreambooth-study-1"
MOST = 25  # people of a study where nobody says how many: the paper's of Table 4
Kind = Literal["identity", "style"]  # Table 4, Table 5
_Pair = tuple[str, str, str, str]  # person, prompt, our file, the other's
_T = TypeVar("_T")


@dataclass(frozen=True)
class Question:
    """Two pictures of one person in one prompt, drawn by two methods."""

    id: str  # a digest of the pictures
    person: str
    prompt: str
    style_of: str | None  # whose reference picture, in the prompt's style, shows the style
    left: str  # a method
    right: str
    left_file: str  # in the run's folder
    right_file: str


@dataclass(frozen=True)
class Study:
    """Questions of one kind on two methods."""

    kind: Kind
    ours: str
    other: str
    salt: str  # of the digests: without it nobody can tell a question's pictures from its id
    questions: tuple[Question, ...]

    @property
    def id(self) -> str:
        """A digest of everything: answers to one study are never taken for those to another."""
        return _digest(json.dumps(self._values(), sort_keys=True).encode())

    def _values(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        """The key, as `open` reads it."""
        return json.dumps({"study": self.id, **self._values()}, indent=1) + "\n"

    @classmethod
    def open(cls, path: str | Path) -> Study:
        """Read a key. Raises UserError for a file that is none."""
        remedy = "give the key.json that hdb study make wrote"
        values = read_json(path, "the key of a study", remedy)
        if values.get("format") != FORMAT:
            raise UserError(f"{path} is {values.get('format', 'foreign')}, expected {FORMAT}: {remedy}")
        try:
            plain = {field.name: values[field.name] for field in fields(cls)}
            study = cls(**{**plain, "questions": tuple(Question(**one) for one in values["questions"])})
            if study.id != values["study"]:
                raise ValueError("its digest is another")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} was changed ({error}), expected a key as it was written: {remedy}") from error
        return study

    def check_pictures(self, run: RunFolder) -> None:
        """Raise UserError where a run's pictures are not those of the questions."""
        for one in self.questions:
            if _question_id(run, self.salt, one.person, one.style_of, one.left_file, one.right_file) != one.id:
                raise UserError(
                    f"{run.path} holds another picture than the study's in {one.left_file}, {one.right_file} or the "
                    "references: give the run that the study was made from"
                )


def make_study(
    run: RunFolder, ours: str, other: str, kind: Kind, people: int | None, pairs: int, generator: torch.Generator
) -> Study:
    """Draw a study at random from what two methods drew of the same people in the same prompts.

    Every person has as many questions as any other, or one more, as far as there are pictures; no picture is in two
    of them; our pictures stand on the left in half of the questions.

    Args:
        run: the run's folder.
        ours, other: names of methods.
        kind: "identity" asks of all stylised prompts; "style" of those with a style that `stylize` knows, and shows
            that style on another person's reference picture.
        people: how many of them are asked about; None is all whom both methods drew, `MOST` at most.
        pairs: how many questions there are.
        generator: on the CPU; the same state draws the same study.

    Raises:
        UserError: the run has not so much to ask.
    """
    found = _pairs(run, ours, other, kind, generator)
    people = max(1, min(MOST, len(found))) if people is None else people
    asked = _chosen(run, found, kind, people, pairs, generator)
    salt = f"{_below(2**62, generator):016x}"
    start, questions = _below(2, generator), []
    turned = _shuffled([(start + number) % 2 == 1 for number in range(pairs)], generator)
    for (person, prompt, our_file, other_file), turn in zip(asked, turned, strict=True):
        others = [name for name in sorted(found) if name != person]
        style_of = others[_below(len(others), generator)] if kind == "style" else None
        sides = [(ours, our_file), (other, other_file)]
        (left, left_file), (right, right_file) = reversed(sides) if turn else sides
        name = _question_id(run, salt, person, style_of, left_file, right_file)
        questions.append(Question(name, person, prompt, style_of, left, right, left_file, right_file))
    return Study(kind, ours, other, salt, tuple(questions))


def read_json(path: str | Path, expected: str, remedy: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where there is none."""
    try:
        values = json.loads(Path(path).read_text("utf-8-sig"))  # editors on Windows begin a file with a mark
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}), expected {expected}: check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON, expected {expected}: {remedy}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is JSON but no object, expected {expected}: {remedy}")
    return values


def _pairs(run: RunFolder, ours: str, other: str, kind: Kind, generator: torch.Generator) -> dict[str, list[_Pair]]:
    """By person, pairs of pictures in one prompt; of several with different seeds, any of one with any of another."""
    if ours == other:
        raise UserError(f"got {ours} as both methods, expected two: choose another one to compare with")
    run.plan  # noqa: B018 - says what is wrong with a folder that is no run's
    drawn: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for picture in sorted(run.pictures(), key=lambda one: one.file):
        drawn[picture.method][picture.person, picture.prompt].append(picture.file)
    for method in (ours, other):
        if method not in drawn:
            known = ", ".join(sorted(drawn)) or "none that drew anything"
            raise UserError(f"got the method {method}, the run {run.path} has {known}: choose one of these")
    pairs: dict[str, list[_Pair]] = defaultdict(list)
    for person, prompt in sorted(drawn[ours].keys() & drawn[other].keys()):
        if _fits(prompt, kind):
            files = (_shuffled(drawn[method][person, prompt], generator) for method in (ours, other))
            pairs[person] += [(person, prompt, mine, theirs) for mine, theirs in zip(*files, strict=False)]
    return pairs


def _fits(prompt: str, kind: Kind) -> bool:
    """Whether a prompt is asked about: any stylised one, or one with a style that can be shown."""
    scene = parse(prompt)
    return scene.style != "plain" or (kind == "identity" and bool(scene.domain or scene.context or scene.edit))


def _chosen(
    run: RunFolder,
    found: Mapping[str, list[_Pair]],
    kind: Kind,
    people: int,
    pairs: int,
    generator: torch.Generator,
) -> list[_Pair]:
    """So many pairs of so many people, in random order. Raises UserError where there are fewer."""
    least = max(people, 2) if kind == "style" else people  # another person shows the style
    if len(found) < least:
        what = "a style of the grammar" if kind == "style" else "a stylised prompt"
        raise UserError(
            f"got {people} people to ask about, {run.path} has {len(found)} whom both methods drew in {what}, "
            f"expected at least {least}: ask about fewer, or draw more"
        )
    if pairs < people:
        raise UserError(f"got {pairs} pairs of {people} people, expected one of everybody: ask for more pairs")
    each = [_shuffled(found[person], generator) for person in _shuffled(sorted(found), generator)[:people]]
    in_turn = [pair for turn in zip_longest(*each) for pair in turn if pair is not None]
    if len(in_turn) < pairs:
        raise UserError(f"got {pairs} pairs to ask, expected at most the {len(in_turn)} of {people} people: ask fewer")
    return _shuffled(in_turn[:pairs], generator)


def _question_id(run: RunFolder, salt: str, person: str, style_of: str | None, *files: str) -> str:
    """A digest of a question's pictures and of the names of their files."""
    paths = [run.reference(name) for name in (person, style_of) if name is not None] + [run.path / one for one in files]
    try:
        return _digest(*(text.encode() for text in (salt, *files)), *(path.read_bytes() for path in paths))
    except OSError as error:
        raise BadPicture(
            f"cannot read {error.filename} ({error.strerror}), expected a picture of the run: finish the run first"
        ) from error


def _digest(*parts: bytes) -> str:
    """12 hexadecimal digits of a digest of digests: where one part ends and the next begins counts."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]


def _below(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))


def _shuffled(items: Sequence[_T], generator: torch.Generator) -> list[_T]:
    return [items[int(index)] for index in torch.randperm(len(items), generator=generator)]
