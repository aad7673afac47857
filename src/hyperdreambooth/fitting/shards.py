"""The folder of pre-optimised people, shard by shard: what is finished, what is missing, and who works there.

    FOLDER/plan.json                    what decides the numbers, and everybody's names
    FOLDER/start.safetensors            the common start
    FOLDER/shard-00000.safetensors      the finished people of one shard
    FOLDER/shard-00000.run.safetensors  the checkpoint of a shard in progress
    FOLDER/shard-00000.left-out.json    who was found, on the way, to have no finite fit, and why
    FOLDER/manifest.json                file, people, bytes and hash of each finished shard, and who is left out

A shard's file appears whole, or not at all, and says of which plan it is. Lock files are there while somebody works:
on the folder who deals the shards out, on a shard who fits it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hyperdreambooth.errors import BadFile, UserError, WorkError
from hyperdreambooth.files import load_metadata, load_tensors, locked, save_tensors, write_text
from hyperdreambooth.fitting.fit import Pictures
from hyperdreambooth.fitting.plan import PLAN_FILE, plan_digest
from hyperdreambooth.fitting.steps import Checkpoint
from hyperdreambooth.progress import log

MANIFEST_FILE = "manifest.json"
_FORMAT = "hyperdreambooth-people-manifest-1"
_SHARD = re.compile(r"shard-(\d{5,})\.safetensors")
_LEFT_OUT, _PLAN = "left out", "plan"
_PATIENCE = 120.0  # seconds for a worker whose driver was killed to end too, and let go of its shard


def shard_file(folder: Path, number: int) -> Path:
    """The file of the finished people of a shard."""
    return folder / f"shard-{number:05d}.safetensors"


def finished_in(folder: Path) -> list[Path]:
    """The files of all finished shards, in order."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))}
    return [found[number] for number in sorted(found)]


def save_people(path: Path, names: Sequence[str], weights: Tensor, left_out: Mapping[str, str], plan: str) -> None:
    """Write the finished people of a shard, (N, S, 1, a + b), of those who are left out why, and the plan's digest."""
    about = {_LEFT_OUT: json.dumps(dict(left_out))} if left_out else {}
    save_tensors(path, {"weights": weights}, {"people": json.dumps(list(names)), _PLAN: plan, **about})


def left_out_in(folder: Path) -> dict[str, str]:
    """Everybody who is left out of the finished shards, by name, and why."""
    return {name: reason for path in finished_in(folder) for name, reason in left_out_of(load_metadata(path)).items()}


def left_out_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Who is left out of one shard, as its file says, by name, and why."""
    return dict(json.loads(metadata.get(_LEFT_OUT, "{}")))


@dataclass(frozen=True)
class ShardEntry:
    """One finished shard, as the manifest has it."""

    file: str  # in the folder
    people: int  # fitted
    bytes: int
    sha256: str
    left_out: dict[str, str] = field(default_factory=dict)  # whose fit is not finite, and why

    @property
    def settled(self) -> int:
        """How many people are fitted or left out."""
        return self.people + len(self.left_out)

    @classmethod
    def of(cls, path: Path, people: int) -> ShardEntry:
        """The entry of a file of so many people, those that are left out among them, as it is now."""
        data = path.read_bytes()
        try:
            left_out = left_out_of(load_metadata(path))
        except (BadFile, ValueError):
            left_out = {}
        return cls(path.name, people - len(left_out), len(data), hashlib.sha256(data).hexdigest(), left_out)


@dataclass(frozen=True)
class Shard:
    """People who are fitted in one batch, as whoever fits them is told of them; it may be another machine."""

    folder: Path  # on a disk that all machines share
    number: int
    names: tuple[str, ...]
    pictures: Pictures  # of N people
    base: str  # fingerprint of the base that they are to be fitted on
    plan: str  # digest of the folder's plan

    def __getstate__(self) -> dict[str, object]:
        # A slice of a tensor is pickled with everybody's numbers, unless it is copied; a mask that all share goes once.
        masks, shape = self.pictures.masks, None
        if masks is not None:
            shape = tuple(masks.shape)
            masks = masks[tuple(slice(None if stride else 1) for stride in masks.stride())].clone()
        return self.__dict__ | {"pictures": (self.pictures.latents.clone(), masks, shape)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        latents, masks, shape = state["pictures"]
        self.__dict__.update(state, pictures=Pictures(latents, None if masks is None else masks.expand(shape)))

    @property
    def output(self) -> Path:
        """The file of the finished people."""
        return shard_file(self.folder, self.number)

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the fit keeps itself; of the folder's plan alone."""
        return Checkpoint(self.folder / f"shard-{self.number:05d}.run.safetensors", self.plan)

    @property
    def _record(self) -> Path:
        return self.folder / f"shard-{self.number:05d}.left-out.json"

    def left_out(self) -> dict[str, str]:
        """Who has been found to have no finite fit, and why. Raises BadFile."""
        try:
            return dict(json.loads(self._record.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise BadFile(
                f"{self._record} cannot be read ({type(error).__name__}), expected names and reasons in JSON: remove it"
            ) from error

    def leave_out(self, people: Mapping[str, str]) -> None:
        """Note people whose fit is not finite, by name, and why: the others of the shard begin anew, without them."""
        Path(self.checkpoint.path).unlink(missing_ok=True)  # first: a checkpoint is always of those who are left
        write_text(self._record, json.dumps({**self.left_out(), **people}) + "\n")

    def clear(self) -> None:
        """Remove what is kept of a fit on its way: its end is written."""
        Path(self.checkpoint.path).unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Be the only one who fits them. Raises WorkError where another does not end, UserError in no such folder."""
        if not (self.folder / PLAN_FILE).is_file():
            raise UserError(
                f"{self.folder} has no {PLAN_FILE} on {platform.node()}, expected the folder that the command writes: "
                "put it on a disk that all machines share, under the same path"
            )
        taken = WorkError(f"another process has been fitting {self.output} for long: end it, and run again")
        with locked(self.output.with_suffix(".lock"), taken, _PATIENCE):
            yield

    def save(self, weights: Tensor) -> None:
        """Write the finished people (N, S, 1, a + b), all but those who are left out."""
        left_out = self.left_out()
        save_people(self.output, [name for name in self.names if name not in left_out], weights, left_out, self.plan)

    def check(self) -> None:
        """Raise UserError where there is a finished file, and it is of another plan."""
        if self.output.exists():
            _check_plan(self.output, self.plan)

    def fault(self, shape: Sequence[int]) -> str | None:
        """What is wrong with the finished file, where the people's numbers should be (N, *shape); None is nothing."""
        try:
            tensors, metadata = load_tensors(self.output)
            weights, left_out = tensors.get("weights"), left_out_of(metadata)
        except (BadFile, ValueError):
            return "is cut short or damaged"
        people = [name for name in self.names if name not in left_out]
        if weights is None or weights.shape != (len(people), *shape):
            return "holds numbers of another shape"
        if metadata.get("people") != json.dumps(people) or not left_out.keys() <= set(self.names):
            return "holds other people"
        return None if weights.isfinite().all() else "holds numbers that are not finite"


def deal(folder: Path, names: Sequence[str], pictures: Pictures, size: int, base: str) -> list[Shard]:
    """Everybody in shards of so many, in the order of the plan, which the folder has already."""
    plan, shards = plan_digest(folder), []
    for number, first in enumerate(range(0, len(names), size)):
        people = slice(first, first + size)
        masks = None if pictures.masks is None else pictures.masks[people]
        own = Pictures(pictures.latents[people], masks)
        shards.append(Shard(folder.resolve(), number, tuple(names[people]), own, base, plan))
    return shards


class Manifest:
    """What is finished in a folder. It follows from the shards themselves: a manifest that is lost is made again.

    Attributes:
        entries: by file.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / MANIFEST_FILE
        self.entries = _read(self._path)

    def check(self, shards: Sequence[Shard], shape: Sequence[int]) -> list[Shard]:
        """The shards that are still to be fitted. Files that are not what they were are removed, with a note.

        Raises:
            UserError: a finished shard (before anything is removed) or a checkpoint is of other settings.
        """
        for shard in shards:
            shard.check()
        before, self.entries, missing = self.entries, {}, []
        for shard in shards:
            if shard.output.exists():
                entry = ShardEntry.of(shard.output, len(shard.names))
                known = before.get(entry.file)
                fault = None if known == entry else shard.fault(shape)
                if fault is None and known not in (None, entry):
                    fault = "is not what was written"
                if fault is None:
                    self.entries[entry.file] = entry
                    shard.clear()
                    continue
                log.warning("%s %s: its %d people are fitted again", shard.output, fault, len(shard.names))
                shard.output.unlink()
            missing.append(shard)
            _check_checkpoint(shard.checkpoint)
        if self.entries != before:
            self._write()
        return missing

    def add(self, entry: ShardEntry) -> None:
        """Note a shard as finished. Raises DiskFull or WorkError."""
        self.entries[entry.file] = entry
        self._write()

    def _write(self) -> None:
        shards = [asdict(self.entries[file]) for file in sorted(self.entries)]
        shards = [{key: value for key, value in one.items() if value != {}} for one in shards]
        write_text(self._path, json.dumps({"format": _FORMAT, "shards": shards}, indent=1) + "\n")


def _read(path: Path) -> dict[str, ShardEntry]:
    try:
        return {one["file"]: ShardEntry(**one) for one in json.loads(path.read_text())["shards"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s cannot be read (%s): it is made again", path, type(error).__name__)
        return {}


def check_unchanged(folder: Path) -> None:
    """Raise BadFile for a finished shard that is not what the manifest says; UserError for one that it does not know
    and that is of other settings."""
    known = _read(folder / MANIFEST_FILE)
    for path in finished_in(folder):
        if path.name not in known:
            _check_plan(path, plan_digest(folder))
    for name, entry in known.items():
        path = folder / name
        if path.exists() and ShardEntry.of(path, entry.settled) != entry:
            raise BadFile(f"{path} has changed since it was finished: run hdb preoptimize again, which fits it anew")


def _check_plan(path: Path, plan: str) -> None:
    """Raise UserError for a finished shard of another plan; one that does not say, or is damaged, is not checked."""
    try:
        of = load_metadata(path).get(_PLAN, plan)
    except BadFile:
        return
    if of != plan:
        raise UserError(
            f"{path} is of a run with other settings ({of}, expected {plan}): "
            "remove it, or run with the settings that it was fitted with"
        )


def _check_checkpoint(checkpoint: Checkpoint) -> None:
    try:
        if checkpoint.exists():
            checkpoint.check()
    except BadFile:
        log.warning("%s is cut short or damaged: that shard begins anew", checkpoint.path)
        Path(checkpoint.path).unlink()


def tidy(folder: Path) -> None:
    """Remove what killed processes left in a folder in which everybody is finished: halves of files, and locks."""
    for pattern in (".*.part.*", "shard-*.lock"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
