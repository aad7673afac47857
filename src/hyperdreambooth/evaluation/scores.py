"""A run folder's pictures to what each method is worth, per person and prompt: methods are compared cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperdreambooth.baselines.nobody import BASE
from hyperdreambooth.errors import BadPicture, UserError
from hyperdreambooth.evaluation import metrics
from hyperdreambooth.evaluation.attributes import attribute_error
from hyperdreambooth.evaluation.drawn import Alone, Drawn
from hyperdreambooth.evaluation.encoders import Panel
from hyperdreambooth.evaluation.identification import identified, scene_recognised
from hyperdreambooth.evaluation.prompts import PLAIN
from hyperdreambooth.evaluation.records import PictureRecord, RunFolder
from hyperdreambooth.evaluation.subjects import VIEWS, Subjects, subjects_of
from hyperdreambooth.faces import read_picture
from hyperdreambooth.portraits.captions import Scene, parse
from hyperdreambooth.progress import Progress

TRUE, JUDGE = "true pictures", "judge"
BASE_METHOD = BASE  # people who are nobody: the floor, no method to compare with
# What is measured of every person in every prompt, and how a table calls it; then what is measured of a person.
CELLS: Mapping[str, str] = {
    "face": "Face Rec.",
    "dino": "DINO",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "identified": "identified",
    "scene": "prompt recognised",
    "prompt_first": "prompt ranked first",
}
ONCE: Mapping[str, str] = {
    "diversity": "diversity",
    "framing": "pose and framing",
    "copied": "the photograph itself",
    "drift": "face of nobody",
}
MEASURES: Mapping[str, str] = {**CELLS, **ONCE}
_GREY = 64  # pixels a side at which pose and framing are compared
_BATCH = 32  # pictures in memory: about half a second of judging on one core
_Batch = tuple[Tensor, Tensor, Tensor]  # pictures (B, 3, S, S), people (B,), prompts (B,)
_Seen = Callable[[int], None]  # hears of so many pictures more


@dataclass(frozen=True)
class Scores:
    """What one method is worth.

    Attributes:
        method: its name.
        people: (P,) int64, the run's numbers of those whom it drew.
        cells: (P, Q) float64 by name, as in `CELLS`, of each person in each of the run's prompts that name somebody;
            NaN where a picture is missing, or nothing measures it.
        own: (P,) float64 by name: what of `MEASURES` is no mean over prompts.
        attributes: error of the attributes read back in the plain prompt; None for photographs, and of one person.
        iterations, samples, bytes: per person, means; None for true pictures.
        seconds, together: the same, of people who were made so many at once and shared the seconds evenly.
        machine: where the seconds were taken; None for several.
    """

    method: str
    people: Tensor
    cells: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    attributes: float | None = None
    iterations: float | None = None
    samples: float | None = None
    seconds: float | None = None
    together: float | None = None
    bytes: float | None = None
    machine: str | None = None

    @cached_property
    def measures(self) -> dict[str, Tensor]:
        """(P,) float64 by name, as in `MEASURES`; every prompt weighs alike."""
        return {**{name: metrics.over_prompts(cells) for name, cells in self.cells.items()}, **self.own}


class _Looks(NamedTuple):
    """What the judges see in M pictures."""

    people: Tensor  # (M,)
    prompts: Tensor  # (M,)
    face: Tensor  # (M, E), as the others, each with a width of its own
    dino: Tensor
    clip: Tensor
    scene: Tensor  # (M,) 1 where everything that was prompted is read, NaN where nothing measures it
    attributes: Tensor  # (M, T) in the plain prompt, NaN in others; T = 0 for photographs
    grey: Tensor  # (M, h, w) in [0, 1]


class Scoring:
    """Judges a run: `methods` are the names that it holds, `of` scores one.

    Args:
        run: the run's folder.
        panel: the judges.
        alone: by method, seconds of one person made alone, and where, in the place of those of the run.

    Raises:
        UserError: as `Drawn`. BadPicture: a reference cannot be read.
    """

    def __init__(self, run: RunFolder, panel: Panel, alone: Mapping[str, Alone] | None = None) -> None:
        self.run, self.panel, self.drawn = run, panel, Drawn(run)
        self.names, self.methods = self.drawn.names, self.drawn.methods
        self.prompts = [prompt for prompt in self.drawn.counts if "[V]" in prompt]
        self.subjects: Subjects = subjects_of(self.names, load_pictures([run.reference(name) for name in self.names]))
        self.alone, self._truth = dict(alone or {}), self.subjects.truth
        self._scenes = [parse(prompt) for prompt in self.prompts]
        self._row = {prompt: row for row, prompt in enumerate(self.prompts)}
        self._person = {name: row for row, name in enumerate(self.names)}
        self._galleries: dict[Scene, Tensor] = {}

    def all(self, progress: Callable[[Progress], None] = lambda _: None) -> Iterator[Scores]:
        """True pictures, then every method, in the order in which they were drawn; `progress` counts pictures."""
        total = len(self.names) * sum(map(self.has_truth, self._scenes))
        now = Progress(JUDGE, 0, total + sum(len(self.drawn.whole(method)) for method in self.methods))
        progress(now)

        def seen(more: int) -> None:
            nonlocal now
            now = Progress(JUDGE, now.done + more, now.total)
            progress(now)

        yield self.true(seen)
        for method in self.methods:
            yield self.of(method, seen)

    def of(self, method: str, seen: _Seen = lambda _: None) -> Scores:
        """One method's scores. Raises UserError for a method that has no whole person and prompt.

        Args:
            method: its name.
            seen: hears of so many pictures more.
        """
        if method not in self.methods:
            raise UserError(
                f"{self.run.path} holds no whole set of pictures of {method}, expected one of "
                f"{', '.join(self.methods)}: go on with the run, or choose one of these"
            )
        records = self.drawn.whole(method)
        somebody = [one for one in records if "[V]" in one.prompt]
        nobody = [one for one in records if "[V]" not in one.prompt]
        people = torch.tensor(sorted({self._person[one.person] for one in records}))
        looks = self._look(self._batches(somebody), seen)
        return self._scores(method, people, looks, self._drift(nobody, seen), seen, **self._costs(method))

    def true(self, seen: _Seen = lambda _: None) -> Scores:
        """True pictures of everybody in every prompt, in place of drawn ones: what a perfect method would get.

        Of photographs there are none but in styles: all else is NaN.
        """
        nothing = torch.full((len(self.names),), torch.nan, dtype=torch.float64)
        scores = self._scores(TRUE, self.subjects.labels, self._look(self._true_batches(), seen), nothing, seen)
        return scores if self.subjects.seeds is None else replace(scores, own={**scores.own, **self._true_views()})

    def _true_views(self) -> dict[str, Tensor]:
        """(N,) how much plain pictures of everybody differ that show them as they truly look, in several views."""
        views = self.subjects.true_views(Scene("portrait"), count=VIEWS + 1)  # (V, N, 3, S, S)
        people, count = self.subjects.labels.repeat(len(views)), len(self.names)
        dino = torch.cat([self.panel.encoders.dino.embed(some) for one in views for some in one.split(_BATCH)])
        grey = torch.cat([_grey(one) for one in views])
        return {
            "diversity": metrics.diversity(dino, people, count),
            "framing": metrics.framing(grey, people, count),
        }

    def _costs(self, method: str) -> dict[str, Any]:
        """Means over the people whom a method made."""
        made = self.drawn.made.get(method)
        if not made:
            return {}
        names = ("iterations", "samples", "seconds", "together", "bytes")
        means = {name: float(sum(getattr(one, name) for one in made)) / len(made) for name in names}
        if (alone := self.alone.get(method)) is not None:
            return means | {"seconds": alone.seconds, "together": 1.0, "machine": alone.machine}
        machines = {one.machine for one in made}
        return means | {"machine": machines.pop() if len(machines) == 1 else None}

    def _batches(self, records: Sequence[PictureRecord]) -> Iterator[_Batch]:
        """Drawn pictures, a few at a time; the prompt that names nobody is in no row."""
        for first in range(0, len(records), _BATCH):
            some = records[first : first + _BATCH]
            people = torch.tensor([self._person[one.person] for one in some])
            prompts = torch.tensor([self._row.get(one.prompt, -1) for one in some])
            yield load_pictures([self.run.path / one.file for one in some]), people, prompts

    def _true_batches(self) -> Iterator[_Batch]:
        """True pictures of everybody, scene by scene, a few at a time."""
        for row, scene in enumerate(self._scenes):
            if self.has_truth(scene):
                pictures = self.another(scene)
                for some in self.subjects.labels.split(_BATCH):
                    yield pictures[some], some, torch.full_like(some, row)

    def another(self, scene: Scene) -> Tensor:
        """A true picture of everybody in a scene that is not in the gallery, (N, 3, S, S)."""
        if self.subjects.seeds is None:
            return self.subjects.another_picture(scene.style)
        return self.subjects.true_views(scene, count=4)[-1]

    def has_truth(self, scene: Scene) -> bool:
        """Whether there are true pictures in a scene: of photographs, in styles alone."""
        return self.subjects.seeds is not None or not changes_more_than_style(scene)

    def _look(self, batches: Iterable[_Batch], seen: _Seen) -> _Looks:
        """All that is kept of pictures."""
        encoders, found = self.panel.encoders, list[_Looks]()
        for pictures, people, prompts in batches:
            face, dino, clip = (one.embed(pictures) for one in (encoders.face, encoders.dino, encoders.clip))
            scene, attributes = self._recognised(pictures, prompts), self._attributes_read(pictures, prompts)
            found.append(_Looks(people, prompts, face, dino, clip, scene, attributes, _grey(pictures)))
            seen(len(pictures))
        return _Looks(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    @cached_property
    def _references(self) -> dict[str, Tensor]:
        """(N, E) of each encoder."""
        encoders = {name: getattr(self.panel.encoders, name) for name in ("face", "dino", "clip")}
        some = self.subjects.references.split(_BATCH)
        return {name: torch.cat([one.embed(few) for few in some]) for name, one in encoders.items()}

    @cached_property
    def _grey_references(self) -> Tensor:
        """(N, h, w)."""
        return _grey(self.subjects.references)

    def _scores(self, method: str, people: Tensor, looks: _Looks, drift: Tensor, seen: _Seen, **costs: Any) -> Scores:
        """Scores of those people; drift (N,) is of everybody in the run."""
        whose, own, count = looks.people, self._references, len(self.names)
        texts = self.panel.encoders.clip.embed_text([metrics.prompt_text(prompt) for prompt in self.prompts])  # (Q, E)
        values = {
            "face": metrics.likeness(looks.face, own["face"][whose]),
            "dino": metrics.likeness(looks.dino, own["dino"][whose]),
            "clip_i": metrics.likeness(looks.clip, own["clip"][whose]),
            "clip_t": metrics.likeness(looks.clip, texts[looks.prompts]),
            "identified": self._identified(looks, seen),
            "scene": looks.scene,
            "prompt_first": metrics.ranked_first(looks.clip, texts, looks.prompts),
        }
        shape = (count, len(self.prompts))
        cells = {name: metrics.per_cell(value, whose, looks.prompts, shape)[people] for name, value in values.items()}
        plain = looks.prompts == self._row.get(PLAIN)
        here, grey = whose[plain], looks.grey[plain]
        once = {
            "diversity": metrics.diversity(looks.dino[plain], here, count)[people],
            "framing": metrics.framing(grey, here, count)[people],
            "copied": metrics.per_person(metrics.ssim(grey, self._grey_references[here]), here, count)[people],
            "drift": drift[people],
        }
        error = None
        if self._truth is not None and len(here.unique()) > 1:  # of one person, nobody can guess worse
            error = attribute_error(looks.attributes[plain], self._truth[here], self._truth)
        return Scores(method, people, cells, once, error, **costs)

    def _drift(self, nobody: Sequence[PictureRecord], seen: _Seen) -> Tensor:
        """(N,) how much of each person is in pictures for the prompt that names nobody."""
        likenesses, people = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
        for pictures, whose, _ in self._batches(nobody):
            faces = self.panel.encoders.face.embed(pictures)
            likenesses.append(metrics.likeness(faces, self._references["face"][whose]))
            people.append(whose)
            seen(len(pictures))
        return metrics.per_person(torch.cat(likenesses), torch.cat(people), len(self.names))

    def _identified(self, looks: _Looks, seen: _Seen) -> Tensor:
        """(M,) 1 where the nearest of all people of the run, as they truly look in that scene, is the right one.

        NaN where nobody knows how they look.
        """
        hits = torch.full((len(looks.people),), torch.nan)
        for row, scene in enumerate(self._scenes):
            rows = looks.prompts == row
            if rows.any() and self.has_truth(scene):
                hits[rows] = identified(self._gallery(scene), looks.face[rows], looks.people[rows]).float()
                seen(0)
        return hits

    def _gallery(self, scene: Scene) -> Tensor:
        """(N, E), seen by the same network as the drawn faces."""
        if scene not in self._galleries:
            self._galleries[scene] = self.subjects.gallery(self.panel.encoders.face, scene)
        return self._galleries[scene]

    def _recognised(self, pictures: Tensor, prompts: Tensor) -> Tensor:
        """(B,) 1 where everything that was prompted is read.

        Of photographs, only the style is meant, and nothing measures a prompt that asks for something else alone.
        """
        asked = [self._scenes[row] for row in prompts.tolist()]
        free = torch.zeros(len(asked), dtype=torch.bool)
        if self.subjects.seeds is None:
            free = torch.tensor([one.style == "plain" and changes_more_than_style(one) for one in asked])
            asked = [Scene(style=scene.style) for scene in asked]
        read = self.panel.scenes.read(pictures)
        values = torch.tensor([scene_recognised([one], [scene]).share for one, scene in zip(read, asked, strict=True)])
        return values.masked_fill(free, torch.nan)

    def _attributes_read(self, pictures: Tensor, prompts: Tensor) -> Tensor:
        """(B, T) of portraits in the plain prompt, NaN for others; (B, 0) of photographs."""
        if self._truth is None:
            return torch.empty(len(pictures), 0)
        read = torch.full((len(pictures), self._truth.shape[1]), torch.nan)
        plain = prompts == self._row.get(PLAIN)
        if plain.any():
            read[plain] = self.panel.attributes.read(pictures[plain])
        return read


def load_pictures(files: Sequence[Path]) -> Tensor:
    """Picture files of one size as (N, 3, H, W) float32 in [0, 1]. Raises BadPicture for one that cannot be read."""
    pictures = [read_picture(file) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            got, expected = (f"{one.shape[2]} x {one.shape[1]}" for one in (picture, pictures[0]))
            raise BadPicture(f"{file} is {got} pixels, expected {expected} as {files[0]}: draw it again")
    return torch.stack(pictures)


def _grey(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, S, S) in grey, no larger than there is something to compare: (N, h, w)."""
    return F.adaptive_avg_pool2d(pictures.mean(dim=1), min(_GREY, pictures.shape[-1]))


def changes_more_than_style(scene: Scene) -> bool:
    """Whether a scene asks for more than a style: of photographs, nobody knows how that looks."""
    return bool(scene.domain or scene.context or scene.edit)
