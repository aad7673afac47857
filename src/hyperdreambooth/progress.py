"""What long work says of itself while it goes on: progress reports, and notes that a user should read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger("hyperdreambooth")
"""Notes on what is odd but no reason to stop; unless told otherwise, Python prints them on standard error."""


@dataclass(frozen=True)
class Progress:
    """How far a job is: `done` of `total` in a phase; `loss` while something is fitted."""

    phase: str
    done: int
    total: int
    loss: float | None = None


@dataclass
class Stopwatch:
    """Seconds of each phase of a job; what is done between two of them is not counted."""

    settle: Callable[[], object] = lambda: None  # waits until a device has done what it was given
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, phase: str, work: Callable[[], T]) -> T:
        """Do a piece of work and add its seconds to the phase."""
        began = time.perf_counter()
        result = work()
        self.settle()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began
        return result
