"""Hours of a pre-optimisation on many GPUs that fail now and then, simulated event by event.

    python -m benchmarks.cluster_simulation --gpus 1 8 64

Shards wait in one queue, and whoever is free takes the next. The shard of a GPU that fails is the next to be taken, and
goes on at its last checkpoint, as in `hyperdreambooth.cluster`; the GPU starts again after a while, and takes what is
next then. Nothing here is measured: `docs/scale.md` says where the seconds of a shard come from.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from hyperdreambooth.evaluation.tables import rows as table
from hyperdreambooth.files import write_text

HOUR = 3600.0

_Event = tuple[float, int, tuple[float, float] | None]  # when, in what order, and what a GPU that fails gives back


@dataclass(frozen=True)
class Work:
    """People to fit, a shard of them at a time."""

    people: int = 15_000
    shard: int = 32  # people in one batch
    seconds: float = 71.0  # of a shard of that many, nothing failing
    spread: float = 0.05  # standard deviation of a shard's seconds, as a share of them
    checkpoint: float = 60.0  # seconds of work between two of them

    @property
    def shards(self) -> int:
        """How many there are; the last may be smaller, and is counted as whole."""
        return math.ceil(self.people / self.shard)


@dataclass(frozen=True)
class Failures:
    """How GPUs fail: each by itself, equally likely at any moment of its work, and never while it starts again."""

    per_hour: float = 0.0  # of one GPU
    restart: float = 300.0  # seconds until it works again


@dataclass(frozen=True)
class Outcome:
    """One run: `hours` from the first shard to the last, the rest in shares of the GPUs' time until then."""

    hours: float
    failures: int
    lost: float  # work done since a checkpoint when a failure came
    restarting: float  # until the last shard is done
    idle: float  # at the end, when no shard waits


def simulate(work: Work, failures: Failures, gpus: int, random: np.random.RandomState) -> Outcome:
    """One run of all shards on so many GPUs."""
    all_needed = [work.seconds * max(0.0, 1.0 + work.spread * random.standard_normal()) for _ in range(work.shards)]
    waiting = deque((needed, 0.0) for needed in all_needed)  # seconds of a shard, and those of them that are kept
    order = count()  # of what happens at the same moment
    events: list[_Event] = [(0.0, next(order), None) for _ in range(gpus)]  # a heap
    lost, ends, idle, failed = 0.0, 0.0, 0, list[float]()
    while events:
        now, _, given_back = heapq.heappop(events)
        if given_back is not None:
            failed.append(now)
            waiting.appendleft(given_back)
            heapq.heappush(events, (now + failures.restart, next(order), None))
            if idle:
                idle -= 1
                heapq.heappush(events, (now, next(order), None))
        elif not waiting:
            idle += 1
        else:
            needed, done = waiting.popleft()
            until = random.exponential(HOUR / failures.per_hour) if failures.per_hour else math.inf
            if until >= needed - done:
                ends = max(ends, now + needed - done)
                heapq.heappush(events, (now + needed - done, next(order), None))
            else:
                kept = (done + until) // work.checkpoint * work.checkpoint
                lost += done + until - kept
                heapq.heappush(events, (now + until, next(order), (needed, kept)))
    held = gpus * ends
    restarting = sum(min(failures.restart, ends - moment) for moment in failed)
    return Outcome(
        hours=ends / HOUR,
        failures=len(failed),
        lost=lost / held,
        restarting=restarting / held,
        idle=max(0.0, held - sum(all_needed) - lost - restarting) / held,
    )


def expected_lost(checkpoint: float, per_hour: float) -> float:
    """The share of work that is lost in the long run, 1 - x / (e^x - 1) with x = checkpoint * rate.

    To get through a stretch of c seconds without a failure takes (e^(rate c) - 1) / rate seconds of work on average.
    """
    x = checkpoint * per_hour / HOUR
    return 1.0 - x / math.expm1(x) if x else 0.0


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several runs, figure by figure; failures are rounded."""
    rows = [asdict(outcome) for outcome in outcomes]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return Outcome(**means | {"failures": round(means["failures"])})


def main() -> None:
    """Simulate, print a table in Markdown, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--failures", type=float, nargs="+", default=[0.0, 0.001, 0.1, 1.0], help="of a GPU, an hour")
    parser.add_argument("--people", type=int, default=Work.people)
    parser.add_argument("--shard", type=int, default=Work.shard, help="people in one batch")
    parser.add_argument("--seconds", type=float, default=Work.seconds, help="of a shard")
    parser.add_argument("--spread", type=float, default=Work.spread, help="of these seconds, as a share")
    parser.add_argument("--checkpoint", type=float, default=Work.checkpoint, help="seconds between two of them")
    parser.add_argument("--restart", type=float, default=Failures.restart, help="seconds after a failure")
    parser.add_argument("--runs", type=int, default=20, help="whose mean is printed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", "-o", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    work = Work(options.people, options.shard, options.seconds, options.spread, options.checkpoint)
    cases = [(gpus, rate) for gpus in options.gpus for rate in options.failures]
    rows = []
    for gpus, rate in track(cases, "simulating", console=Console(stderr=True), transient=True):
        random = np.random.RandomState(options.seed)
        failures = Failures(rate, options.restart)
        outcome = mean([simulate(work, failures, gpus, random) for _ in range(options.runs)])
        rows.append({"gpus": gpus, "failures an hour": rate, **asdict(outcome)})
    print(f"{work.shards} shards of {work.shard} people, {work.seconds:g} s each, mean of {options.runs} runs\n")
    header = ["GPUs", "failures of one, an hour", "hours", "failures", "work lost", "restarting", "idle at the end"]
    body = []
    for row in rows:
        shares = [f"{row[name]:.2%}" for name in ("lost", "restarting", "idle")]
        facts = [str(row["gpus"]), f"{row['failures an hour']:g}", f"{row['hours']:.2f}", str(row["failures"])]
        body.append([*facts, *shares])
    print("\n".join(table(header, body)))
    if options.output:
        write_text(options.output, json.dumps({"work": asdict(work), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
