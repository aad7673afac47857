"""The sheets of a report, after the paper's Figures 1, 5, 6 and 7: the first picture of each, nothing is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from PIL import Image

from hyperdreambooth.baselines.methods import OURS
from hyperdreambooth.baselines.nobody import BASE
from hyperdreambooth.evaluation.prompts import NOBODY, PLAIN
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.scores import TRUE, Scoring, changes_more_than_style
from hyperdreambooth.faces import read_picture
from hyperdreambooth.portraits.captions import parse
from hyperdreambooth.sheet import contact_sheet, to_image

_PEOPLE, _STYLES, _ROWS = 2, 5, 4  # at most: on sheets of their own, in columns of these, on the one of the stages
_ACROSS = 6  # pictures in a line of the gallery
_FIRST = (OURS, "dreambooth", "textual-inversion", "e4t", "only-hyper", "no-hyper")  # of a sheet, if they are there
_STAGES: Mapping[str, str] = {  # what shows which method, in the order of Figure 5
    "initial": BASE,
    "predicted": "only-hyper",
    "predicted, then fine-tuned": OURS,
    "without a hypernetwork: initial": BASE,
    "without: fine-tuned": "no-hyper",
}
_First: TypeAlias = "dict[tuple[str, str, str], str]"  # by method, person and prompt: the file of the first picture


class Sheet(NamedTuple):
    """A picture of pictures."""

    file: str  # its name
    title: str
    image: Image.Image


def sheets(scoring: Scoring) -> Iterator[Sheet]:
    """All of a run, as far as there is something to show: gallery, stages, and the first people by every method."""
    first: _First = {}
    for one in scoring.run.pictures():
        first.setdefault((one.method, one.person, one.prompt), one.file)
    prompts = [prompt for prompt, _, _ in scoring.run.plan["prompts"] if prompt != NOBODY]
    yield from _gallery(scoring, first, prompts)
    yield from _people(scoring, first, prompts)
    yield from _stages(scoring, first, PLAIN if PLAIN in prompts else prompts[0])
    styles = sorted(prompts, key=lambda prompt: not _is_style(prompt))[:_STYLES]  # others fill up
    methods = [name for name in scoring.methods if "@" not in name and name != BASE]
    methods.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    for number, person in enumerate(scoring.names[:_PEOPLE], start=1):
        found = {
            method: _pictures(scoring.run, first, [(method, person, prompt) for prompt in styles]) for method in methods
        }
        if rows := {method: pictures for method, pictures in found.items() if len(pictures) == len(styles)}:
            if all(scoring.has_truth(parse(prompt)) for prompt in styles):
                rows[TRUE] = [to_image(scoring.another(parse(prompt))[number - 1]) for prompt in styles]
            image = contact_sheet(
                styles, rows, reference=_reference(scoring.run, person), captions=[person], across=_STYLES
            )
            yield Sheet(f"sheet-{number}.jpg", f"{person} by every method", image)


def _gallery(scoring: Scoring, first: _First, prompts: Sequence[str]) -> Iterator[Sheet]:
    """The first person by our method in all prompts, as Figure 1."""
    for person in scoring.names[:1]:
        there = [prompt for prompt in prompts if (OURS, person, prompt) in first]
        if there:
            pictures = _pictures(scoring.run, first, [(OURS, person, prompt) for prompt in there])
            reference = _reference(scoring.run, person)
            image = contact_sheet(there, {"": pictures}, reference=reference, captions=[person], across=_ACROSS)
            yield Sheet("gallery.jpg", f"{person} in all prompts, by {OURS}", image)


def _people(scoring: Scoring, first: _First, prompts: Sequence[str]) -> Iterator[Sheet]:
    """The next people by our method in the first prompts, as Figure 6."""
    columns, rows = list(prompts[:_ACROSS]), dict[str, list[Image.Image]]()
    for person in scoring.names[1:]:
        pictures = _pictures(scoring.run, first, [(OURS, person, prompt) for prompt in columns])
        if len(pictures) == len(columns) and len(rows) < _ROWS:
            rows[person] = [_reference(scoring.run, person), *pictures]
    if rows:
        image = contact_sheet(["the photograph", *columns], rows, across=1 + _ACROSS)
        yield Sheet("people.jpg", f"others, by {OURS}", image)


def _stages(scoring: Scoring, first: _First, prompt: str) -> Iterator[Sheet]:
    """The first people in one prompt from the bare base to the end, with a hypernetwork and without, as Figure 5."""
    there = {stage: method for stage, method in _STAGES.items() if method in scoring.methods}
    if not {OURS, "no-hyper"} <= set(there.values()):
        return
    rows = dict[str, list[Image.Image]]()
    for person in scoring.names:
        pictures = _pictures(scoring.run, first, [(method, person, prompt) for method in there.values()])
        if len(pictures) == len(there) and len(rows) < _ROWS:
            rows[person] = [_reference(scoring.run, person), *pictures]
    if rows:
        columns = ["the photograph", *there]
        yield Sheet("stages.jpg", f"{prompt}, stage by stage", contact_sheet(columns, rows, across=len(columns)))


def _pictures(run: RunFolder, first: _First, wanted: Sequence[tuple[str, str, str]]) -> list[Image.Image]:
    """Those that are there."""
    return [to_image(read_picture(run.path / first[one])) for one in wanted if one in first]


def _reference(run: RunFolder, person: str) -> Image.Image:
    return to_image(read_picture(run.reference(person)))


def _is_style(prompt: str) -> bool:
    """Whether a prompt asks for a style and nothing else."""
    scene = parse(prompt)
    return scene.style != "plain" and not changes_more_than_style(scene)
