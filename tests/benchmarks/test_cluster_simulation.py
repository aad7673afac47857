"""The simulated schedule, against what can be written down in closed form."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cluster_simulation
from benchmarks.cluster_simulation import HOUR, Failures, Work, expected_lost, mean, simulate

EVEN = Work(people=1000, shard=32, seconds=100.0, spread=0.0)


@pytest.mark.parametrize("gpus", [1, 3, 8, 64])
def test_without_failures_it_takes_as_many_rounds_as_there_are_shards_for_each(gpus: int) -> None:
    outcome = simulate(EVEN, Failures(), gpus, np.random.RandomState(0))
    rounds = math.ceil(32 / gpus)  # 1000 / 32 is 31.25
    assert outcome.hours == pytest.approx(rounds * 100.0 / HOUR)
    assert (outcome.failures, outcome.lost, outcome.restarting) == (0, 0, 0)
    assert outcome.idle == pytest.approx(1 - 32 / (gpus * rounds))


@pytest.mark.parametrize("rate", [1.0, 10.0, 60.0])
def test_as_much_is_lost_as_is_expected(rate: float) -> None:
    work = Work(people=32 * 20_000, seconds=600.0, spread=0.0, checkpoint=60.0)
    outcome = simulate(work, Failures(rate, restart=0.0), 1, np.random.RandomState(0))
    assert outcome.lost == pytest.approx(expected_lost(60.0, rate), rel=0.06)
    assert outcome.hours == pytest.approx(20_000 * 600.0 / HOUR / (1 - outcome.lost))
    assert outcome.failures == pytest.approx(rate * outcome.hours, rel=0.05)
    slow = simulate(work, Failures(rate, restart=300.0), 1, np.random.RandomState(0))
    assert slow.hours == pytest.approx(outcome.hours + slow.failures * 300.0 / HOUR)
    assert slow.restarting == pytest.approx(slow.failures * 300.0 / HOUR / slow.hours)


class Scripted:
    """In the place of a random state: the first take of a shard fails after so many seconds, and no later one."""

    def __init__(self, first: float) -> None:
        self._untils = iter([first])

    def standard_normal(self) -> float:
        return 0.0

    def exponential(self, _mean: float) -> float:
        return next(self._untils, math.inf)


@pytest.mark.parametrize(
    ("shards", "restart", "ends", "restarting"),
    [
        (1, 1e6, 110.0, 40.0),  # the other one is idle, and takes it at once
        (2, 1e6, 140.0, 70.0),  # the other one takes it at 100
        (3, 50.0, 220.0, 50.0),  # before the third, which falls to the first at 120
        (2, 10.0, 120.0, 10.0),  # nobody else is free: the first takes it again at 80
    ],
)
def test_the_shard_of_a_gpu_that_fails_is_the_next_that_is_taken(
    shards: int, restart: float, ends: float, restarting: float
) -> None:
    """Of two GPUs the first fails after 70 s, 10 s after a checkpoint."""
    work = Work(people=32 * shards, seconds=100.0, spread=0.0)
    outcome = simulate(work, Failures(1.0, restart), 2, Scripted(70.0))  # type: ignore[arg-type]
    held = 2 * ends
    assert outcome.hours == pytest.approx(ends / HOUR) and outcome.failures == 1
    assert outcome.lost == pytest.approx(10 / held) and outcome.restarting == pytest.approx(restarting / held)
    assert outcome.idle == pytest.approx(1 - (100 * shards + 10 + restarting) / held)


def test_rare_failures_lose_half_a_checkpoint_each() -> None:
    """The first term of the series: rate * checkpoint / 2."""
    assert expected_lost(60.0, 0.01) == pytest.approx(0.01 / HOUR * 60 / 2, rel=1e-3)
    assert expected_lost(60.0, 0.0) == 0.0


def test_spread_changes_the_end_and_not_the_work() -> None:
    spread = Work(people=32 * 640, seconds=100.0, spread=0.2)
    random = np.random.RandomState(0)
    outcome = mean([simulate(spread, Failures(), 64, random) for _ in range(20)])
    held = outcome.hours * 64
    assert held * (1 - outcome.idle) == pytest.approx(640 * 100 / HOUR, rel=0.01)
    assert outcome.hours > 10 * 100 / HOUR


def test_the_table_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cluster.json"
    command = f"cluster_simulation --gpus 1 8 --failures 0 --people 64 --seconds 90 --spread 0 --runs 2 -o {output}"
    monkeypatch.setattr(sys, "argv", command.split())
    cluster_simulation.main()
    assert "| 8 | 0 | 0.03 | 0 | 0.00% | 0.00% | 75.00% |" in capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert [row["hours"] for row in rows] == pytest.approx([180 / HOUR, 90 / HOUR])
