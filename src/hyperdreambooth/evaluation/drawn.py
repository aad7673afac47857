"""What a run folder holds of what its plan asks for: which people are whole, and what each took."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.records import METHODS, PersonRecord, PictureRecord, RunFolder
from hyperdreambooth.fitting.plan import PLAN_FILE


class Drawn:
    """What a run holds of what its plan asks for. A person's pictures for a prompt count when all of them are there.

    Attributes:
        names: of the people.
        counts: by prompt, pictures of each person.
        made: by method, those whom it made.
        failed: by method, names of those whom it could not make or draw.

    Raises:
        UserError: the folder is no run, its plan is damaged or another work's, or a record is not of that plan.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.names, self.counts = _planned(run)
        self.made: dict[str, list[PersonRecord]] = {}
        self.failed: dict[str, set[str]] = {}
        self._pictures: dict[str, dict[tuple[str, str], list[PictureRecord]]] = {}
        for person in run.people():
            self.made.setdefault(person.method, []).append(person)
        for failure in run.failures():
            self.failed.setdefault(failure.method, set()).add(failure.person)
        people = set(self.names)
        for one in run.pictures():
            if one.person not in people or one.prompt not in self.counts:
                raise UserError(
                    f"{run.path} holds a picture of {one.person} for {one.prompt!r}, which its {PLAN_FILE} does not "
                    "ask for: remove the record, or the run"
                )
            self._pictures.setdefault(one.method, {}).setdefault((one.person, one.prompt), []).append(one)

    @property
    def methods(self) -> list[str]:
        """Those that have all pictures of somebody in some prompt that names them."""
        return [name for name in self._pictures if any("[V]" in one.prompt for one in self.whole(name))]

    @property
    def begun(self) -> list[str]:
        """All that have done anything."""
        return list(dict.fromkeys([*self._pictures, *self.made, *self.failed]))

    def whole(self, method: str) -> list[PictureRecord]:
        """The pictures of one method, of those people and prompts of whom all are there."""
        cells = self._pictures.get(method, {})
        return [one for (_, prompt), own in cells.items() if len(own) >= self.counts[prompt] for one in own]

    def incomplete(self, method: str) -> tuple[int, int]:
        """How many of the people whom a method has begun lack pictures, and how many it has begun."""
        cells = self._pictures.get(method, {})
        begun = {person for person, _ in cells} | {one.person for one in self.made.get(method, [])}
        lacking = sum(
            any(len(cells.get((person, prompt), [])) < count for prompt, count in self.counts.items())
            for person in begun
        )
        return lacking, len(begun)


class Alone(NamedTuple):
    """What one person takes alone by some method, the mean of how many, and on which machine (None: on several)."""

    seconds: float
    machine: str | None
    people: int = 1


def check_same(other: RunFolder, run: RunFolder, methods: Iterable[str] = ()) -> None:
    """Whether the times of another run speak of this one's methods.

    Raises:
        UserError: it is a run of another base, another hypernetwork or a method of other settings.
    """
    for what in ("base", "hypernetwork"):
        if other.plan.get(what) != run.plan.get(what):
            raise UserError(
                f"got times of {what} {other.plan.get(what)} in {other.path}, expected {run.plan.get(what)} as in "
                f"{run.path}: time the same methods on the same base"
            )
    for name in methods:
        plans = [(of.path / METHODS / name / PLAN_FILE) for of in (other, run)]
        if all(plan.is_file() for plan in plans) and len({plan.read_bytes() for plan in plans}) > 1:
            raise UserError(
                f"got times of {name} in {other.path} with other settings than in {run.path} (compare {plans[0]} with "
                f"{plans[1]}), expected the same: time it anew"
            )


def alone_seconds(times: RunFolder, run: RunFolder) -> dict[str, Alone]:
    """By method, the mean seconds of those people in `times` who were made one at a time.

    Raises:
        UserError: nobody there was made alone, or as `check_same`.
    """
    found: dict[str, list[PersonRecord]] = {}
    for one in times.people():
        if one.together == 1:
            found.setdefault(one.method, []).append(one)
    check_same(times, run, found)
    if not found:
        raise UserError(
            f"{times.path} holds nobody who was made alone, expected a run of hdb evaluate --together 1: make one"
        )
    alone = dict[str, Alone]()
    for name, made in found.items():
        machines = {one.machine for one in made}
        machine = machines.pop() if len(machines) == 1 else None
        alone[name] = Alone(sum(one.seconds for one in made) / len(made), machine, len(made))
    return alone


def _planned(run: RunFolder) -> tuple[list[str], dict[str, int]]:
    """Names of the people, and pictures of each person by prompt."""
    plan = run.plan
    try:
        people, counts = plan["people"], {str(prompt): int(count) for prompt, count, _ in plan["prompts"]}
        sound = isinstance(people, list) and all(isinstance(name, str) for name in people) and len(people) > 0
        if not (sound and any("[V]" in prompt for prompt in counts) and {"base", "hypernetwork"} <= plan.keys()):
            raise ValueError("people, prompts, base or hypernetwork")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.path / PLAN_FILE} is damaged ({' '.join(str(error).split())[:80]}), expected the plan of a run: "
            "name a folder of hdb evaluate"
        ) from error
    return people, counts
