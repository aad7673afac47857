"""What tests have Ray workers do where only the scheduling counts: nothing heavy is imported."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hyperdreambooth.errors import DiskFull


def open_counting() -> Callable[[int], Iterator[tuple[int, int, int]]]:
    """Task, part and process, three times."""
    return lambda task: ((task, part, os.getpid()) for part in range(3))


def open_meeting(folder: Path, others: int) -> Callable[[int], Iterator[tuple[int, int, int]]]:
    """The same, when so many other processes have come to the folder: a fast one cannot take all tasks."""
    (folder / str(os.getpid())).touch()

    def work(task: int) -> Iterator[tuple[int, int, int]]:
        late = time.monotonic() + 120.0  # a worker's start takes some seconds, many on a busy machine
        while len(list(folder.iterdir())) <= others and time.monotonic() < late:
            time.sleep(0.05)
        yield from open_counting()(task)

    return work


def open_deadly() -> Callable[[int], Iterator[int]]:
    """Task 1 kills whoever tries it."""

    def work(task: int) -> Iterator[int]:
        if task == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield task

    return work


def open_full() -> Callable[[int], Iterator[int]]:
    """Every worker comes as far as its first report."""

    def work(task: int) -> Iterator[int]:
        yield task
        raise DiskFull("no room to write a shard: free some space and run again")

    return work


def open_failing_once(folder: Path) -> Callable[[int], Iterator[int]]:
    """Task 1 fails whoever tries it first, in the way of a GPU that is broken."""

    def work(task: int) -> Iterator[int]:
        if task == 1 and not (folder / "failed").exists():
            (folder / "failed").touch()
            raise RuntimeError("CUDA error: unspecified launch failure")
        yield task

    return work


def open_wrong() -> Callable[[int], Iterator[int]]:
    raise LookupError("nothing can be opened")
