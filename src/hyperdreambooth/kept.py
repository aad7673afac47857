"""What was made of each person's photographs, kept in a folder so that it is made once.

    FOLDER/people-3f9c….safetensors     a tensor for each of some people, and in its metadata what is known of them

People are found by a key, a digest of all that their tensor was made of: whoever has changed has another key. A file
appears whole, or not at all; one that is damaged since is removed, and its people are made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

from hyperdreambooth.errors import BadFile, UserError
from hyperdreambooth.files import load_metadata, load_row, load_tensors, locked, save_tensors
from hyperdreambooth.fitting.plan import digest
from hyperdreambooth.fitting.processes import ALONE, Processes
from hyperdreambooth.progress import log

_FORMAT = "hyperdreambooth-kept-1"
_SHARD = 32  # people in a file: 100 MB of faces of 512 pixels
_COURTESY = 2.0  # seconds that the others of several processes let the main one go first, which shows how far it is


@dataclass(frozen=True)
class Made:
    """One person's tensor (V, ...) as it was made, and how many photographs were tried for it."""

    key: str
    tensor: Tensor
    tried: int


@dataclass(frozen=True)
class Entry:
    """What a file says of one person in it: V, how many photographs were tried, and a digest of the tensor."""

    views: int
    tried: int
    digest: str


Make = Callable[[Collection[str]], Iterable[Made]]
"""Makes the people of these keys, one after the other, in any order."""


def key_of(*parts: object) -> str:
    """A digest of the texts of all that something is made of."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


class Kept:
    """Tensors of many people in a folder.

    Args:
        folder: where they are kept; made when the first are.
        others: folders where some may be too, which are left as they are.
        processes: those that want them together: one of each machine makes them, and the others wait. A process alone
            does not wait for others.

    Attributes:
        entries: of all people who are there, by key.
    """

    def __init__(self, folder: Path, others: Sequence[Path] = (), processes: Processes = ALONE) -> None:
        self.entries: dict[str, Entry] = {}
        self._folder, self._others, self._processes = folder, tuple(others), processes
        self._files: dict[str, Path] = {}  # by key
        self._seen = set[Path]()
        self._look()

    def ensure(self, keys: Collection[str], make: Make) -> None:
        """Have everybody of these keys there: whoever is missing is made, and written a file at a time.

        Raises:
            UserError: another process is at it. DiskFull, WorkError: what is written stays.
        """
        if all(key in self.entries for key in keys):
            return
        with self._alone():
            self._look()
            missing = dict.fromkeys(key for key in keys if key not in self.entries)
            made = iter(make(missing.keys()) if missing else ())
            while some := list(islice(made, _SHARD)):
                self._write(some)

    def each(self, keys: Collection[str], make: Make) -> Iterator[tuple[str, Tensor]]:
        """Everybody's tensor (V, ...) who has one, file by file; whoever is missing or damaged is made first.

        Raises as `ensure`.
        """
        left = dict.fromkeys(keys)
        while left:
            self.ensure(left, make)
            left = {key: None for key in left if self.entries[key].views}
            for key, tensor in self._read(list(left)):
                del left[key]
                yield key, tensor

    def row(self, key: str, row: int) -> Tensor:
        """One row (...) of the tensor of somebody who is there. Raises BadFile for a file that was damaged since."""
        return load_row(self._files[key], key, row)

    def _look(self) -> None:
        """Take in the files that are new."""
        for folder in (*self._others, self._folder):
            for path in sorted(folder.glob("people-*.safetensors")):
                if path not in self._seen:
                    self._seen.add(path)
                    self._take(path)

    def _take(self, path: Path) -> None:
        try:
            people = json.loads(load_metadata(path)[_FORMAT])
            entries = {key: Entry(**one) for key, one in people.items()}
        except (BadFile, ValueError, TypeError, KeyError, AttributeError):
            self._drop(path)
            return
        self._add(entries, path)

    def _add(self, entries: dict[str, Entry], path: Path) -> None:
        self._seen.add(path)
        self.entries |= entries
        self._files |= dict.fromkeys(entries, path)

    def _read(self, keys: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """The sound ones of these; a file that is not is dropped."""
        by_file = defaultdict[Path, list[str]](list)
        for key in keys:
            by_file[self._files[key]].append(key)
        for path, own in by_file.items():
            try:
                tensors, _ = load_tensors(path)
            except BadFile:
                tensors = {}
            if any(key not in tensors or digest(tensors[key]) != self.entries[key].digest for key in own):
                self._drop(path)
                continue
            for key in own:
                yield key, tensors[key]

    def _drop(self, path: Path) -> None:
        log.warning("%s is cut short or damaged: what it held is made again", path)
        for key in [key for key, file in self._files.items() if file == path]:
            del self._files[key], self.entries[key]
        if path.parent == self._folder:
            path.unlink(missing_ok=True)
            self._seen.discard(path)

    def _write(self, some: Sequence[Made]) -> None:
        entries = {one.key: Entry(len(one.tensor), one.tried, digest(one.tensor)) for one in some}
        path = self._folder / f"people-{key_of(*entries)[:16]}.safetensors"
        people = json.dumps({key: asdict(entry) for key, entry in entries.items()})
        save_tensors(path, {one.key: one.tensor for one in some if len(one.tensor)}, {_FORMAT: people})
        self._add(entries, path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only one who makes some here."""
        busy = UserError(
            f"another process reads people into {self._folder}, expected one at a time: wait for it, or choose another "
            "output folder"
        )
        if not self._processes.main:
            time.sleep(_COURTESY)
        with locked(self._folder / "people.lock", busy, 0.0 if self._processes.count == 1 else -1.0):
            for path in self._folder.glob(".*.part.safetensors"):  # of a process that died
                path.unlink(missing_ok=True)
            yield
