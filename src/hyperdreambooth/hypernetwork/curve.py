"""The curve of a training: a line of JSON for each time that it was measured, whole at any moment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperdreambooth.files import write_atomically


@dataclass(frozen=True)
class Curve:
    """The lines in a file. Each has at least "phase" and "step"."""

    path: Path

    def lines(self) -> list[dict[str, Any]]:
        """All lines, oldest first; none without a file."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def add(self, line: Mapping[str, object]) -> None:
        """Write one more line."""
        self._write([*self.lines(), line])

    def forget_after(self, phase: str, step: int) -> None:
        """Drop the lines of steps that were lost with a process that died, and will be taken again."""
        self._write([line for line in self.lines() if line["phase"] != phase or line["step"] <= step])

    def _write(self, lines: list[Mapping[str, object]]) -> None:
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        write_atomically(self.path, lambda part: part.write_text(text))
