"""Methods x people x prompts x seeds -> pictures: one run folder (`records.py`) that goes on wherever it was stopped.

Everybody's fit is timed apart from the drawing and kept, so that nothing is fitted twice. A picture depends on its
method, person, prompt and seed alone. Every person has other seeds, so that intervals over people are over noises too;
those of one person are the same for every method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperdreambooth.base.hardware import name_of_machine
from hyperdreambooth.baselines.work import Method
from hyperdreambooth.drawing import DrawConfig, Person, draw
from hyperdreambooth.errors import NotFinite, UserError
from hyperdreambooth.evaluation.prompts import NOBODY, PLAIN, PROMPTS, EvaluationSet
from hyperdreambooth.evaluation.records import (
    FORMAT,
    METHODS,
    PICTURES,
    FailureRecord,
    PersonRecord,
    PictureRecord,
    RunFolder,
    Writer,
)
from hyperdreambooth.faces import FaceCrop
from hyperdreambooth.fitting.plan import digest, keep_plan
from hyperdreambooth.people import People
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.progress import Progress, log
from hyperdreambooth.sheet import save_png, to_image

METHOD_FORMAT = "hyperdreambooth-evaluated-method-1"
AT_ONCE = 20  # people drawn together
_SEEDS_PER_PROMPT = 1000
_SEEDS_PER_PERSON = 1_000_000


@dataclass(frozen=True)
class Asked:
    """One prompt of a run, and how many pictures of each person there are to be."""

    prompt: str
    count: int
    seed: int  # of the first person's first picture; the others follow

    def seed_of(self, row: int, k: int = 0) -> int:
        """Of the k-th picture of the person of this number."""
        return row * _SEEDS_PER_PERSON + self.seed + k

    def drawing(self, method: DrawConfig) -> DrawConfig:
        """How it is drawn by a method. Without a [V] nobody is meant, so that no likeness is asked for."""
        config = replace(method, count=self.count)
        return config if "[V]" in self.prompt else replace(config, likeness=None)


def asked(sets: EvaluationSet) -> tuple[Asked, ...]:
    """All prompts of a set, with the plain one often enough, and the one that names nobody."""
    prompts = [*PROMPTS[: sets.prompts], NOBODY]
    least = {PLAIN: sets.plain, NOBODY: sets.nobody}
    return tuple(
        Asked(prompt, max(least.get(prompt, 0), 0 if prompt == NOBODY else sets.pictures), number * _SEEDS_PER_PROMPT)
        for number, prompt in enumerate(prompts)
    )


@dataclass(frozen=True)
class Share:
    """Which people of a run this process does: those whose number leaves `index` when divided by `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"got share {self.index} of {self.count}, expected 0 to {self.count - 1}")


class Evaluation:
    """One run, or one process's share of it: iterate to do what is missing.

    Args:
        booth: base and hypernetwork.
        people: with one picture each, N.
        sets: how much is drawn.
        folder: of the run; one that was begun goes on.
        share: of several processes.
        together: how many people are made at once, at most; None is as many as a method can. More are sooner done, one
            at a time shows what a single person takes; the pictures are the same but for rounding.
        patience: seconds that another process has to leave this share.

    Raises:
        UserError: the folder's run is of another base, other people, prompts or settings (what differs is named).
    """

    def __init__(
        self,
        booth: HyperDreamBooth,
        people: People,
        sets: EvaluationSet,
        folder: Path,
        share: Share = Share(),
        together: int | None = None,
        patience: float = 0.0,
    ) -> None:
        self.booth, self.people, self.run, self.share = booth, people, RunFolder(folder), share
        self.asked = asked(sets)
        network = booth.hypernetwork
        plan = {
            "format": FORMAT,
            "base": booth.fingerprint,
            "hypernetwork": "none" if network is None else digest(*network.state_dict().values()),
            "people": list(people.names),
            "prompts": [[one.prompt, one.count, one.seed] for one in self.asked],
        }
        keep_plan(folder, plan, {"references": people.pictures[:, 0]})
        for name, picture in zip(people.names, people.pictures[:, 0], strict=True):
            if not self.run.reference(name).exists():
                save_png(self.run.reference(name), to_image(picture))
        self.writer, self._together = Writer(self.run, share.index, patience), together

    def of(
        self, name: str, method: Method, people: int, progress: Callable[[Progress], None] = lambda _: None
    ) -> Iterator[Progress]:
        """Make and draw the first so many people by one method.

        Whoever cannot be made or drawn, for numbers that are not finite, is noted and left out.

        Args:
            progress: also hears how far the drawing of one prompt is, between two reports.

        Raises:
            UserError: the folder has the method of that name with other settings.
            WorkError: a file cannot be written; what is missing then is done when asked again.
        """
        settings = method.settings_on(self.booth)
        keep_plan(self.run.path / METHODS / name, {"format": METHOD_FORMAT, "method": settings}, {})
        rows = [row for row in range(min(people, len(self.people.names))) if row % self.share.count == self.share.index]
        total = len(rows) * (1 + sum(one.count for one in self.asked))
        whole = Progress(name, 0, total)
        at_once = 1 if method.at_once == 1 else AT_ONCE  # those with weights of their own are large: one by one
        for first in range(0, len(rows), at_once):
            for done in self._some(name, method, rows[first : first + at_once], progress):
                if isinstance(done, int):
                    whole = replace(whole, done=whole.done + done)
                yield whole if isinstance(done, int) else done

    def _some(
        self, name: str, method: Method, rows: Sequence[int], progress: Callable[[Progress], None]
    ) -> Iterator[int | Progress]:
        """Yields how much more is done, people and pictures, and between that what a fit says of itself."""
        made = {one.person for one in self.run.people() if one.method == name} | self._failed(name)
        missing = [row for row in rows if self.people.names[row] not in made]
        yield len(rows) - len(missing)
        together = min(method.at_once, self._together or method.at_once)
        for first in range(0, len(missing), together):
            yield from self._make(name, method, missing[first : first + together])
        failed, drawn = self._failed(name), {one.file for one in self.run.pictures()}
        people = dict[int, Person]()
        for one in self.asked:
            left = [
                row
                for row in rows
                if self.people.names[row] not in failed and self._files(name, row, one)[-1] not in drawn
            ]
            yield one.count * (len(rows) - len(left))
            people |= {row: self.booth.open_person(self._person_file(name, row)) for row in left if row not in people}
            if left:
                failed |= self._draw(name, method, one, {row: people[row] for row in left}, progress)
                yield one.count * len(left)

    def _failed(self, name: str) -> set[str]:
        return {one.person for one in self.run.failures() if one.method == name}

    def _make(self, name: str, method: Method, rows: Sequence[int]) -> Iterator[int | Progress]:
        """Make people together, where the method can, and keep them; their time is shared evenly among them.

        One who cannot be made is found by making each alone.
        """
        faces = [FaceCrop.framed(self.people.pictures[row, 0]) for row in rows]  # as they are judged
        work = method.personalizing(self.booth, faces)
        sizes = []
        try:
            yield from work
            for row, person in zip(rows, work.people, strict=True):
                sizes.append(method.save(person, self._person_file(name, row)))
        except NotFinite as error:
            if len(rows) > 1:
                for row in rows:
                    yield from self._make(name, method, [row])
                return
            self._leave_out(name, "make", rows[0], error)
            yield 1
            return
        machine = name_of_machine(self.booth.base)
        seconds, samples = round(sum(work.seconds.values()) / len(rows), 4), work.samples // len(rows)
        took = method.iterations, samples, seconds, len(rows)
        made = zip((self.people.names[row] for row in rows), sizes, strict=True)
        self.writer.write(*(PersonRecord(name, who, *took, size, machine) for who, size in made))
        yield len(rows)

    def _draw(
        self,
        name: str,
        method: Method,
        one: Asked,
        people: Mapping[int, Person],
        progress: Callable[[Progress], None],
    ) -> set[str]:
        """Draw people, by their rows, for one prompt; the names of those who cannot be, found by drawing each alone."""
        booth, prompts, drawing = self.booth, [one.prompt] * len(people), one.drawing(method.drawing)
        seeds, persons = [one.seed_of(row) for row in people], list(people.values())
        began = time.perf_counter()
        try:
            pictures = draw(booth.base, booth.adapters, persons, prompts, drawing, progress, seeds)  # (N * count, ...)
        except NotFinite as error:
            if len(people) > 1:
                each = [self._draw(name, method, one, {row: person}, progress) for row, person in people.items()]
                return set().union(*each)
            return {self._leave_out(name, "draw", row, error) for row in people}
        places = [(row, k, file) for row in people for k, file in enumerate(self._files(name, row, one))]
        for (_, _, file), picture in zip(places, pictures, strict=True):
            save_png(self.run.path / file, to_image(picture))
        took, names = round((time.perf_counter() - began) / len(places), 4), self.people.names
        drawn = ((names[row], one.prompt, one.seed_of(row, k), file, took) for row, k, file in places)
        self.writer.write(*(PictureRecord(name, *about) for about in drawn))
        return set()

    def _leave_out(self, name: str, what: str, row: int, error: NotFinite) -> str:
        """Note somebody who cannot be made or drawn; their name."""
        who = self.people.names[row]
        log.warning("%s cannot %s %s, and goes on without: %s", name, what, who, error)
        self.writer.write(FailureRecord(name, who, str(error)))
        return who

    def _files(self, name: str, row: int, one: Asked) -> list[str]:
        """The files of one person's pictures for one prompt."""
        number = self.asked.index(one)
        folder = f"{PICTURES}/{name}/{self.people.names[row]}"
        return [f"{folder}/{number:02d}-{one.seed_of(row, k)}.png" for k in range(one.count)]

    def _person_file(self, name: str, row: int) -> Path:
        return self.run.path / "people" / name / f"{self.people.names[row]}.safetensors"
