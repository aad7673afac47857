"""What a command shows: progress, notes and a summary on standard error, one JSON object on standard output."""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hyperdreambooth.base.memory import LADDER, LowMemory, mode_that_fits, next_mode
from hyperdreambooth.errors import OutOfMemory, is_out_of_memory
from hyperdreambooth.progress import Progress, log

_LIBRARIES = ("hyperdreambooth", "torch", "diffusers", "transformers")
SECONDS_BETWEEN_LINES = 60.0  # of progress, where there is no terminal
_UNITS = {"samples": "through the U-Net", "sheet_samples": "through the U-Net"}


class Job:
    """One command at work: enter it, say what goes on, and `finish` with the facts.

    Args:
        as_json: the facts as JSON on standard output, instead of a table.
        quiet: say nothing: another process of the same command does.

    Attributes:
        seconds: of each phase so far.
        notes: what was logged so far.
        about: facts that the summary adds to its own, such as the device.
        low_memory: the mode of the base, for the remedy if memory runs out.
        needs: estimates, for that remedy, what the work needs in each mode from this one on; None where nothing can.
        fewer: options of the command that do less at once, for that remedy too.
        opening: whether the base is being opened, when no other mode than the last leaves it out of the memory.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.about: dict[str, object] = {}
        self.low_memory: LowMemory = "off"
        self.needs: Callable[[], Mapping[LowMemory, int]] | None = None
        self.fewer, self.opening = "", False
        self._as_json, self._quiet = as_json, quiet
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = bars.Progress(
            bars.TextColumn("{task.description:<12}"),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[loss]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, bars.TaskID] = {}
        self._current = ""
        self._handler = _Notes(self)
        self._began = self._said = time.perf_counter()

    def __enter__(self) -> Job:
        log.addHandler(self._handler)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        log.removeHandler(self._handler)
        if error is not None and is_out_of_memory(error):
            raise self._out_of_memory() from error

    def _out_of_memory(self) -> OutOfMemory:
        """With the mode to take instead: the next one, or by an estimate the first that fits."""
        device, mode = str(self.about.get("device", "the device")), self.low_memory
        if self.opening:
            return OutOfMemory.of(device, mode, None if mode == LADDER[-1] else LADDER[-1])
        try:
            if self.needs is not None and next_mode(mode) and (room := _room_on(device)) is not None:
                needs = self.needs()
                sizes = {str(one): size for one, size in needs.items()}
                return OutOfMemory.of(device, mode, mode_that_fits(mode, needs, room), sizes, room, self.fewer)
        except Exception:  # an estimate that fails must not hide what happened
            pass
        return OutOfMemory.of(device, mode, next_mode(mode), fewer=self.fewer)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show a phase and add the seconds spent inside to it."""
        self.report(Progress(name, 0, 0))
        began = time.perf_counter()
        yield
        self.add_seconds({name: time.perf_counter() - began})
        self._complete(name)

    def report(self, now: Progress) -> None:
        """Show how far a phase is; a total of 0 is not known. The phase before, if another, is over.

        Where there is no terminal, and so no bar, a line now and then goes into whatever keeps the words.
        """
        if self._current not in ("", now.phase):
            self._complete(self._current)
        self._current = now.phase
        loss = "" if now.loss is None else f"loss {now.loss:.4f}"
        if now.phase not in self._tasks:
            self._tasks[now.phase] = self._bar.add_task(now.phase, total=None, loss=loss)
        self._bar.update(self._tasks[now.phase], total=now.total or None, completed=now.done, loss=loss)
        if not self._console.is_terminal and time.perf_counter() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.perf_counter()
            so_far = f"{now.phase}: {now.done}" + (f" of {now.total}" if now.total else "")
            self._console.print(f"{so_far} {loss}".rstrip(), markup=False, highlight=False, soft_wrap=True)

    def _complete(self, phase: str) -> None:
        self._bar.update(self._tasks[phase], total=1, completed=1)

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Count seconds that were measured elsewhere."""
        for phase, more in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + more

    def say(self, text: str) -> None:
        """Show a line that the summary says again."""
        self._console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Show a note and keep it for the JSON object."""
        self.notes.append(text)
        self._console.print(f"note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def finish(self, **facts: object) -> None:
        """Print the summary: facts, seconds by phase and in total; as JSON with notes and versions too."""
        self._bar.stop()
        facts = {**facts, **self.about}
        seconds = {phase: round(spent, 3) for phase, spent in self.seconds.items()}
        seconds["total"] = round(time.perf_counter() - self._began, 3)
        if self._quiet:
            return
        if self._as_json:
            everything = {**facts, "seconds": seconds, "notes": self.notes, "versions": _versions()}
            print(json.dumps(everything, default=str))
        else:
            self._console.print(_table(facts, seconds))


class _Notes(logging.Handler):
    """Hands what the library logs to a job."""

    def __init__(self, job: Job) -> None:
        super().__init__(logging.WARNING)
        self._job = job

    def emit(self, record: logging.LogRecord) -> None:
        self._job.note(record.getMessage())


def _room_on(device: str) -> int | None:
    import torch

    from hyperdreambooth.base import hardware

    return hardware.room_on(torch.device(device))


def print_error(text: str) -> None:
    """One line on standard error, whatever the text holds."""
    print("error:", " ".join(text.split()), file=sys.stderr)


def _table(facts: Mapping[str, object], seconds: Mapping[str, float]) -> Table:
    """What people read at the end."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right", overflow="fold")
    for name, value in _flat(facts):
        text = f"{value:,}" if isinstance(value, int) and name != "seed" else str(value)
        # As it is: brackets in a prompt or a path are no markup.
        table.add_row(*map(Text, (name.replace("_", " "), f"{text} {_UNITS.get(name, '')}".rstrip())))
    for phase, spent in seconds.items():
        table.add_row(phase, f"{spent:.2f} s", style="bold" if phase == "total" else None)
    return table


def _flat(facts: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Facts, and those inside facts, each with its whole name; lists are for the JSON object alone."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat({f"{name} {inner}": fact for inner, fact in value.items()})
        elif value is not None and not isinstance(value, list):
            yield name, value


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:  # run from a checkout
            versions[library] = "unknown"
    return versions
