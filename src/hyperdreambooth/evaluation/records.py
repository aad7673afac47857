"""The folder of an evaluation run: its plan, what was drawn and what it took, one JSON line each, and the pictures.

    RUN/plan.json                   what decides the result: methods, people, prompts, seeds, settings, the base
    RUN/methods/METHOD/plan.json    the settings of each method
    RUN/references/PERSON.png       the one picture that everybody is made from
    RUN/pictures/METHOD/PERSON/PROMPT-SEED.png
    RUN/records/SHARD.jsonl         a line per person who was made, per one who could not be, and per picture drawn

A line is written when what it tells of lies on the disk, so a run that is killed at any moment knows what it has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from hyperdreambooth.errors import UserError
from hyperdreambooth.files import append
from hyperdreambooth.fitting.plan import PLAN_FILE, read_plan
from hyperdreambooth.progress import log

FORMAT = "hyperdreambooth-evaluation-2"  # of a run's plan
RECORDS, REFERENCES, PICTURES, METHODS = "records", "references", "pictures", "methods"


@dataclass(frozen=True)
class PersonRecord:
    """One person as one method made them, and what it took."""

    kind: ClassVar[str] = "person"
    method: str
    person: str
    iterations: int  # steps of the optimiser
    samples: int  # through the U-Net, prior pictures included
    seconds: float  # reading, encoding, predicting and fitting; no drawing
    together: int  # people who were made at once, and shared the seconds evenly
    bytes: int  # of what has to be kept of the person
    machine: str  # where the seconds were taken, as `hardware.name_of_machine` says it


@dataclass(frozen=True)
class PictureRecord:
    """One picture of one person, as one method drew it."""

    kind: ClassVar[str] = "picture"
    method: str
    person: str
    prompt: str  # as it was asked, "[V]" for the person
    seed: int
    file: str  # in the run's folder
    seconds: float | None = None  # of drawing and writing it, shared evenly by all that were drawn at once


@dataclass(frozen=True)
class FailureRecord:
    """One person whom one method could not make, or not draw, for numbers that are not finite; nor will it, if asked
    again."""

    kind: ClassVar[str] = "failure"
    method: str
    person: str
    reason: str


Record = PersonRecord | PictureRecord | FailureRecord
_KINDS: dict[str, type[Record]] = {kind.kind: kind for kind in (PersonRecord, PictureRecord, FailureRecord)}


@dataclass(frozen=True)
class RunFolder:
    """An evaluation run on the disk."""

    path: Path

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What `plan.json` says. Raises UserError where there is none, or none of ours."""
        if not (self.path / PLAN_FILE).is_file():
            raise UserError(f"{self.path} holds no run, expected {PLAN_FILE} in it: name a folder of hdb evaluate")
        return read_plan(self.path, FORMAT)

    def reference(self, person: str) -> Path:
        """The picture that a person is made from."""
        return self.path / REFERENCES / f"{person}.png"

    def records(self) -> Iterator[Record]:
        """All that is there, shard after shard; half a line at the end of a killed shard's is left out."""
        for shard in sorted((self.path / RECORDS).glob("*.jsonl")):
            for number, line in enumerate(shard.read_text().splitlines(keepends=True), start=1):
                if line.endswith("\n"):
                    yield _parsed(shard, number, line)

    def people(self) -> list[PersonRecord]:
        """Everybody who was made; each once per method."""
        found = {(one.method, one.person): one for one in self.records() if isinstance(one, PersonRecord)}
        return list(found.values())

    def pictures(self) -> list[PictureRecord]:
        """Every picture that was drawn; each once."""
        return list({one.file: one for one in self.records() if isinstance(one, PictureRecord)}.values())

    def failures(self) -> list[FailureRecord]:
        """Everybody who could not be made or drawn."""
        return [one for one in self.records() if isinstance(one, FailureRecord)]


class Writer:
    """Appends records to one shard of a run; what a kill left half-written is cut off first.

    Raises:
        UserError: another process writes this shard, still after `patience` seconds.
    """

    def __init__(self, folder: RunFolder, shard: int = 0, patience: float = 0.0) -> None:
        self.path = folder.path / RECORDS / f"{shard:03d}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_suffix(".lock"))  # the system lets go of it when the process ends
        try:
            self._lock.acquire(timeout=patience)
        except Timeout as error:
            raise UserError(
                f"another process does this share of {folder.path}, expected one: wait for it, or choose another share"
            ) from error
        self._repair()

    def close(self) -> None:
        """Let another process have the shard."""
        self._lock.release()

    def _repair(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            log.warning("%s ended in half a line: that work is done again", self.path)
            os.truncate(self.path, whole)

    def write(self, *records: Record) -> None:
        """Append lines, all of them on the disk when this returns, or none. Raises DiskFull or WorkError."""
        append(self.path, "".join(json.dumps({"kind": one.kind, **asdict(one)}) + "\n" for one in records).encode())


def _parsed(shard: Path, number: int, line: str) -> Record:
    try:
        values = json.loads(line)
        kind = _KINDS[values.pop("kind")]
        return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{shard}, line {number}, is no record of a run: remove the line, or the run") from error
