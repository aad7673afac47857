"""The training loop against torch's own optimisers, and against itself, interrupted."""

from __future__ import annotations

import itertools
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hyperdreambooth.errors import BadFile, UserError, WorkError
from hyperdreambooth.fitting.processes import ALONE, Processes
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run, steps


def make_run(
    config: FitConfig, checkpoint: Path | None = None, pause: float = 0.0, processes: Processes = ALONE
) -> Run:
    """A noisy regression on two tensors: what it draws comes from a generator whose state travels along."""
    start = torch.Generator().manual_seed(1)
    weights = {
        "w": torch.randn(5, 3, generator=start).requires_grad_(),
        "b": torch.zeros(3, requires_grad=True),
    }
    noise = torch.Generator().manual_seed(2)

    def loss(index: int) -> tuple[Tensor, dict[str, float]]:
        time.sleep(pause)
        x = torch.randn(8, 5, generator=noise)
        error = x @ weights["w"] + weights["b"] - x[:, :3].sin() - 1.0
        return error.square().mean(), {"index": float(index)}

    kept = Checkpoint(checkpoint) if checkpoint is not None else None
    return steps(weights, loss, config, checkpoint=kept, generators={"noise": noise}, samples=8, processes=processes)


def state(run: Run) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": tensor.detach().clone()
        for kind, tensors in (("last", run.parameters), ("average", run.averages))
        for name, tensor in tensors.items()
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


CONFIGS = [
    FitConfig(steps=12, lr=0.05, ema=0.9, schedule="cosine", warmup=3, grad_clip=0.5, weight_decay=0.1),
    FitConfig(steps=12, lr=0.05, average_last=0.5, schedule="linear", accumulate=2),
]


@pytest.mark.parametrize(
    ("every", "writing", "expected"),
    [
        (60.0, 1.0, [60, 120, 180, 240, 300, 360, 400]),
        (60.0, 6.0, [60, 180, 300, 400]),  # 120 seconds apart: a 20th of them is spent on writing
        (0.0, 6.0, list(range(1, 401))),
    ],
)
def test_checkpoints_that_take_long_are_written_more_seldom(
    every: float, writing: float, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of a second a step."""
    now, written = 0.0, list[int]()

    def write(_: Checkpoint, _tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        nonlocal now
        now += writing
        written.append(int(numbers["step"]))

    monkeypatch.setattr(Checkpoint, "write", write)
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr("hyperdreambooth.fitting.steps.time", clock)
    run = make_run(FitConfig(steps=400, checkpoint_every_seconds=every), tmp_path / "run.safetensors")
    for _ in run:
        now += 1.0
    assert written == expected


@pytest.mark.parametrize("config", CONFIGS, ids=["ema", "average_last"])
@pytest.mark.parametrize("stops", [(1,), (5,), (7, 2), (11,), (12,)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    config: FitConfig, stops: tuple[int, ...], tmp_path: Path
) -> None:
    whole = make_run(config)
    expected = list(whole)
    got = []
    for count in stops:
        got += islice(make_run(config, tmp_path / "run.safetensors"), count)
    last = make_run(config, tmp_path / "run.safetensors")
    got += last
    assert_same(state(whole), state(last))
    assert [(r.step, r.loss, r.lr, r.samples, r.metrics) for r in got] == [
        (r.step, r.loss, r.lr, r.samples, r.metrics) for r in expected
    ]


KILLED = """
import sys
sys.path[:0] = [{root!r}]
from dataclasses import replace
from pathlib import Path
from tests.fitting.test_steps import CONFIGS, make_run
for report in make_run(replace(CONFIGS[0], checkpoint_every_seconds=0.0), Path({path!r}), pause=0.02):
    print(report.step, flush=True)
"""


def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    code = KILLED.format(root=str(Path(__file__).parents[2]), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "5":
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    resumed = make_run(CONFIGS[0], path)
    assert 4 <= resumed.step < 12
    list(resumed)
    whole = make_run(CONFIGS[0])
    list(whole)
    assert_same(state(whole), state(resumed))


def test_the_steps_are_those_of_torchs_adam_under_its_cosine_schedule() -> None:
    run = make_run(FitConfig(steps=10, lr=0.05, schedule="cosine", grad_clip=0.3))
    list(run)
    other = make_run(FitConfig(steps=10))  # its parameters and its loss; the loop is torch's
    optimizer = torch.optim.Adam(other.parameters.values(), lr=0.05, foreach=False)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for index in range(10):
        optimizer.zero_grad()
        value, _ = other.loss(index)
        value.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters.values(), 0.3)
        optimizer.step()
        scheduler.step()
    for name in run.parameters:
        torch.testing.assert_close(run.parameters[name], other.parameters[name])


def test_accumulated_gradients_are_the_mean_over_the_calls() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    one, three = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    list(steps({"w": one}, lambda _: (x @ one - 1).square().mean(), FitConfig(steps=5, lr=0.1)))
    accumulating = FitConfig(steps=5, lr=0.1, accumulate=3)
    report = list(steps({"w": three}, lambda i: (x[i % 3] @ three - 1).square(), accumulating, samples=2))[-1]
    torch.testing.assert_close(one, three)
    assert report.samples == 5 * 3 * 2


def test_average_last_is_the_mean_of_the_last_iterates() -> None:
    run = make_run(FitConfig(steps=10, lr=0.05, average_last=0.3))
    iterates = [run.parameters["w"].detach().clone() for _ in run]
    torch.testing.assert_close(run.averages["w"], torch.stack(iterates[-3:]).mean(0))


def test_ema_is_the_weighted_mean_of_the_iterates_and_forgets_the_start() -> None:
    run = make_run(FitConfig(steps=30, lr=0.05, ema=0.8))
    expected = run.parameters["w"].detach().clone()
    for count, _ in enumerate(run):
        decay = min(0.8, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * run.parameters["w"].detach()
    torch.testing.assert_close(run.averages["w"], expected)


def test_averaged_gives_the_parameters_back_bit_for_bit() -> None:
    run = make_run(FitConfig(steps=4, lr=0.05, ema=0.9))
    list(run)
    last, average = run.parameters["w"].detach().clone(), run.averages["w"].clone()
    assert not torch.equal(last, average)
    with pytest.raises(KeyError), run.averaged():
        assert torch.equal(run.parameters["w"], average)
        raise KeyError
    assert torch.equal(run.parameters["w"], last)


def test_a_budget_in_seconds_ends_the_run_with_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # by which every step takes a second
    monkeypatch.setattr("hyperdreambooth.fitting.steps.time.perf_counter", lambda: next(clock))
    config = FitConfig(steps=10**6, seconds=20.0, lr=0.05, schedule="cosine")
    reports = list(make_run(config))
    assert len(reports) == 20 and reports[-1].progress == 1.0
    assert reports[-1].seconds == 20
    assert reports[-1].lr < 0.1 * config.lr < 0.9 * config.lr < reports[0].lr


def test_the_schedule_rises_then_falls() -> None:
    config = FitConfig(steps=100, lr=2.0, warmup=4, schedule="linear")
    rates = [config.lr_at(step, config.progress(step, 0.0)) for step in range(100)]
    assert rates[0] == 0.5 and max(rates) == rates[3] and math.isclose(rates[99], 0.02)


def test_bf16_trains_float32_parameters() -> None:
    weight = torch.zeros(4, 4, requires_grad=True)
    seen = []

    def loss(_: int) -> Tensor:
        product = torch.eye(4) @ weight
        seen.append(product.dtype)
        return (product.float() - 1).square().mean()

    reports = list(steps({"w": weight}, loss, FitConfig(steps=20, lr=0.1, precision="bf16")))
    assert set(seen) == {torch.bfloat16} and weight.dtype == torch.float32
    assert reports[-1].loss < 0.1 * reports[0].loss


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    list(make_run(FitConfig(steps=1), path))
    weight = torch.zeros(2, requires_grad=True)
    with pytest.raises(UserError, match="saved by another run"):
        steps({"w": weight}, lambda _: weight.sum(), FitConfig(steps=1), checkpoint=Checkpoint(path))
    with pytest.raises(UserError, match="saved by another run"):
        make_run(FitConfig(steps=1, ema=0.9), path)


def test_a_checkpoint_cut_short_may_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    list(make_run(FitConfig(steps=1), path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadFile, match=r"run\.safetensors is truncated .*, or remove it to begin this phase anew"):
        make_run(FitConfig(steps=1), path)
    path.unlink()
    assert make_run(FitConfig(steps=1), path).step == 0


def test_a_loss_that_is_not_finite_is_an_error_of_work() -> None:
    weight = torch.zeros(2, requires_grad=True)
    with pytest.raises(WorkError, match="loss of step 0 is nan"):
        list(steps({"w": weight}, lambda _: (weight / weight).sum(), FitConfig(steps=3)))


def test_tensors_that_cannot_learn_are_refused() -> None:
    with pytest.raises(ValueError, match="'frozen'"):
        steps({"frozen": torch.zeros(2)}, lambda _: torch.zeros(()), FitConfig(steps=1))
