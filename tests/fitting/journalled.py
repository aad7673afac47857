"""What tests have Ray workers do with people: fit them, and note each step and each finished shard in a journal."""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperdreambooth.fitting.fit import Objective, Pictures
from hyperdreambooth.fitting.preoptimize import FitShard, PreoptimizeConfig, fit_shard
from hyperdreambooth.fitting.shards import Shard, ShardEntry
from hyperdreambooth.fitting.steps import FitConfig
from tests.fitting.conftest import World, make_world

NAMES = ["ann", "ben", "cem", "dia", "eva"]
CONFIG = PreoptimizeConfig(
    fit=FitConfig(steps=3, lr=1e-2, average_last=0.5, checkpoint_every_seconds=0.0),
    objective=Objective(noises=2, pull=1e-3),
    shard=2,
)
SECOND_STEP, END = (1, "2"), "end"
_LONGEST = 240.0  # seconds of any waiting


def damaged(world: World, *names: str) -> Pictures:
    """Two pictures of everybody, of which those of some hold an infinity."""
    pictures = world.pictures(len(NAMES), views=2)
    for name in names:
        pictures.latents[NAMES.index(name), 0, 0, 0, 0] = float("inf")
    return pictures


def open_journalled(folder: Path, after: Callable[[Path, int, str], None] = lambda *_: None) -> FitShard:
    """`fit_shard` on a world of this process's own; `after` is called between a step and its report."""
    world = make_world()

    def work(shard: Shard) -> Iterator[Any]:
        for number, news in fit_shard(world.base, world.adapters, CONFIG, shard):
            what = END if isinstance(news, ShardEntry) else str(news.step)
            with (folder / "journal").open("a") as journal:
                journal.write(f"{number} {what} {os.getpid()}\n")
            after(folder, number, what)
            yield number, news

    return work


def wait_to_be_killed(folder: Path, number: int, what: str) -> None:
    """After the second step of the second shard, unless somebody has been killed already."""
    deadline = time.monotonic() + _LONGEST
    while (number, what) == SECOND_STEP and not (folder / "go on").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def open_on_a_full_disk(folder: Path) -> FitShard:
    """As `open_journalled`, but the first worker may write no file larger than a journal: the system's own error."""
    work = open_journalled(folder)

    def limited(shard: Shard) -> Iterator[Any]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if not (folder / "taken").exists():
            (folder / "taken").touch()
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield from work(shard)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def journal(folder: Path) -> list[tuple[int, str, int]]:
    """Shard, step or "end", and process of everything that was done."""
    path = folder / "journal"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(shard), what, int(pid)) for shard, what, pid in lines]


def times(folder: Path) -> Counter[tuple[int, str]]:
    """How often each step was taken, and each shard finished."""
    return Counter((shard, what) for shard, what, _ in journal(folder))


def wait_for_second_step(folder: Path) -> int:
    """The process that takes it."""
    deadline = time.monotonic() + _LONGEST
    while time.monotonic() < deadline:
        for shard, what, pid in journal(folder):
            if (shard, what) == SECOND_STEP:
                return pid
        time.sleep(0.05)
    raise AssertionError(f"nobody came to the second step of the second shard in {_LONGEST} seconds")
