"""A run folder's pictures to what each method is worth: per person, so that methods are compared person by person."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.attributes import attribute_error
from hyperdreambooth.evaluation.encoders import Panel
from hyperdreambooth.evaluation.identification import identified, scene_recognised
from hyperdreambooth.evaluation.metrics import diversity, likeness, per_person, prompt_text
from hyperdreambooth.evaluation.prompts import NOBODY, PLAIN
from hyperdreambooth.evaluation.records import PictureRecord, RunFolder
from hyperdreambooth.evaluation.subjects import Subjects, subjects_of
from hyperdreambooth.faces import read_picture
from hyperdreambooth.portraits.captions import Scene, parse
from hyperdreambooth.progress import Progress

TRUE, JUDGE = "true pictures", "judge"
# What is measured of every person, and how a table calls it.
MEASURES = {
    "face": "Face Rec.",
    "dino": "DINO",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "identified": "identified",
    "scene": "prompt recognised",
    "diversity": "diversity",
    "drift": "face of nobody",
}


@dataclass(frozen=True)
class Scores:
    """What one method is worth, person by person.

    Attributes:
        method: its name.
        people: (P,) int64, the run's numbers of those whom it made.
        measures: (P,) float64 by name, as in `MEASURES`; NaN where nothing was drawn for it.
        attributes: error of the attributes read back in the plain prompt; None for photographs.
        iterations, samples, seconds, together, bytes: per person, means; None for true pictures.
    """

    method: str
    people: Tensor
    measures: dict[str, Tensor]
    attributes: float | None = None
    iterations: float | None = None
    samples: float | None = None
    seconds: float | None = None
    together: float | None = None
    bytes: float | None = None


def families(scores: Mapping[str, Scores]) -> dict[str, list[Scores]]:
    """Methods by their names, each with all its numbers of steps ("dreambooth", "dreambooth@40"); no true pictures."""
    found: dict[str, list[Scores]] = {}
    for name, one in scores.items():
        if name != TRUE:
            found.setdefault(name.partition("@")[0], []).append(one)
    return found


@dataclass(frozen=True)
class _Drawn:
    """Pictures to be judged: (M, 3, S, S) in [0, 1], the prompt of each, whose each is (M,)."""

    pictures: Tensor
    prompts: list[str]
    people: Tensor

    def of(self, keep: Sequence[bool]) -> _Drawn:
        rows = [row for row, kept in enumerate(keep) if kept]
        return _Drawn(self.pictures[rows], [self.prompts[row] for row in rows], self.people[rows])


class Scoring:
    """Judges a run: `methods` are the names that it holds, `of` scores one."""

    def __init__(self, run: RunFolder, panel: Panel) -> None:
        self.run, self.panel = run, panel
        self.names: list[str] = list(run.plan["people"])
        self.subjects: Subjects = subjects_of(self.names, load_pictures([run.reference(name) for name in self.names]))
        self._galleries: dict[Scene, Tensor] = {}

    @cached_property
    def _records(self) -> dict[str, list[PictureRecord]]:
        found: dict[str, list[PictureRecord]] = {}
        for record in self.run.pictures():
            found.setdefault(record.method, []).append(record)
        return found

    @property
    def methods(self) -> list[str]:
        """Those that have drawn anything."""
        return list(self._records)

    def all(self, progress: Callable[[Progress], None] = lambda _: None) -> Iterator[Scores]:
        """True pictures, then every method, in the order in which they were drawn."""
        total = 1 + len(self.methods)
        progress(Progress(JUDGE, 0, total))
        yield self.true()
        for done, method in enumerate(self.methods, start=1):
            progress(Progress(JUDGE, done, total))
            yield self.of(method)

    def of(self, method: str) -> Scores:
        """One method's scores. Raises UserError for a method that drew nothing."""
        records = self._records.get(method)
        if not records:
            raise UserError(f"{self.run.path} holds no pictures of {method}, expected one of {', '.join(self.methods)}")
        pictures = load_pictures([self.run.path / record.file for record in records])
        people = torch.tensor([self.names.index(record.person) for record in records])
        drawn = _Drawn(pictures, [record.prompt for record in records], people)
        made = [one for one in self.run.people() if one.method == method]

        def mean(name: str) -> float:
            return float(sum(getattr(one, name) for one in made)) / len(made)

        costs = {name: mean(name) for name in ("iterations", "samples", "seconds", "together", "bytes")}
        return Scores(method, people.unique(), self._measures(drawn), self._attributes(drawn), **costs)

    def true(self) -> Scores:
        """True pictures of everybody in every prompt, in place of drawn ones: what a perfect method would get."""
        prompts = [prompt for prompt, _, _ in self.run.plan["prompts"] if prompt != NOBODY]
        pictures = torch.cat([self._another(parse(prompt)) for prompt in prompts])
        texts = [prompt for prompt in prompts for _ in self.names]
        drawn = _Drawn(pictures, texts, self.subjects.labels.repeat(len(prompts)))
        return Scores(TRUE, self.subjects.labels, self._measures(drawn), self._attributes(drawn))

    def _another(self, scene: Scene) -> Tensor:
        """A true picture of everybody in a scene that is not in the gallery, (N, 3, S, S)."""
        if self.subjects.seeds is None:
            return self.subjects.another_picture(scene.style)
        return self.subjects.true_views(scene, count=4)[-1]

    def _measures(self, drawn: _Drawn) -> dict[str, Tensor]:
        """(P,) of each measure, of those people who are in the pictures."""
        somebody = drawn.of(["[V]" in prompt for prompt in drawn.prompts])
        nobody = drawn.of(["[V]" not in prompt for prompt in drawn.prompts])
        count, encoders = len(self.names), self.panel.encoders
        whose, references = somebody.people, self.subjects.references
        faces, dino, clip = (one.embed(somebody.pictures) for one in (encoders.face, encoders.dino, encoders.clip))
        own = {name: getattr(encoders, name).embed(references) for name in ("face", "dino", "clip")}
        texts = encoders.clip.embed_text([prompt_text(prompt) for prompt in somebody.prompts])
        plain = [prompt == PLAIN for prompt in somebody.prompts]
        values = {
            "face": likeness(faces, own["face"][whose]),
            "dino": likeness(dino, own["dino"][whose]),
            "clip_i": likeness(clip, own["clip"][whose]),
            "clip_t": likeness(clip, texts),
            "identified": self._identified(somebody, faces),
            "scene": self._recognised(somebody),
        }
        measures = {name: per_person(value, whose, count) for name, value in values.items()}
        measures["diversity"] = diversity(dino[plain], whose[plain], count)
        drift = likeness(encoders.face.embed(nobody.pictures), own["face"][nobody.people]) if nobody.prompts else None
        measures["drift"] = (
            torch.full((count,), torch.nan) if drift is None else per_person(drift, nobody.people, count)
        )
        return {name: value[drawn.people.unique()] for name, value in measures.items()}

    def _identified(self, drawn: _Drawn, faces: Tensor) -> Tensor:
        """(M,) 1 where the nearest of all people of the run, as they truly look in that scene, is the right one."""
        hits = torch.zeros(len(faces))
        for prompt in dict.fromkeys(drawn.prompts):
            rows = torch.tensor([text == prompt for text in drawn.prompts])
            hits[rows] = identified(self._gallery(parse(prompt)), faces[rows], drawn.people[rows]).float()
        return hits

    def _gallery(self, scene: Scene) -> Tensor:
        if scene not in self._galleries:
            self._galleries[scene] = self.subjects.gallery(self.panel.recogniser, scene)
        return self._galleries[scene]

    def _recognised(self, drawn: _Drawn) -> Tensor:
        """(M,) 1 where everything that was prompted is read; of photographs, only the style is meant."""
        read = self.panel.scenes.read(drawn.pictures)
        asked = [parse(prompt) for prompt in drawn.prompts]
        if self.subjects.seeds is None:
            asked = [Scene(style=scene.style) for scene in asked]
        return torch.tensor([scene_recognised([one], [scene]).share for one, scene in zip(read, asked, strict=True)])

    def _attributes(self, drawn: _Drawn) -> float | None:
        """Of portraits in the plain prompt."""
        plain = drawn.of([prompt == PLAIN for prompt in drawn.prompts])
        if self.subjects.truth is None or not plain.prompts:
            return None
        return attribute_error(self.panel.attributes.read(plain.pictures), self.subjects.truth[plain.people])


def load_pictures(files: Sequence[Path]) -> Tensor:
    """Picture files of one size as (N, 3, H, W) float32 in [0, 1]. Raises BadPicture for one that cannot be read."""
    return torch.stack([read_picture(file) for file in files])
