"""What long work says of itself while it goes on: progress reports, and notes that a user should read."""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger("hyperdreambooth")
"""Notes on what is odd but no reason to stop; unless told otherwise, Python prints them on standard error."""


@dataclass(frozen=True)
class Progress:
    """How far a job is: `done` of `total` in a phase; `loss` while something is fitted."""

    phase: str
    done: int
    total: int
    loss: float | None = None
