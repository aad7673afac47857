"""Loss scaling against torch's own, against runs without it, and on a base in float16."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyperdreambooth.base.diffusion import Weighting
from hyperdreambooth.errors import NotFinite
from hyperdreambooth.fitting.fit import Objective, fit
from hyperdreambooth.fitting.scaling import LossScale
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run, steps
from tests.fitting.conftest import World

CONFIG = FitConfig(steps=8, lr=0.05, ema=0.9, grad_clip=0.5, accumulate=3)


def in_half(weight: Tensor, index: int, size: float = 1.0) -> Tensor:
    """A loss whose gradient passes through float16, where it is `size` times one of order 1."""
    x = torch.linspace(-1, 1, 12).view(4, 3) * (1 + index / 10)
    return ((x.half() @ weight.half()).float() - 1.0).square().mean() * size


def make_run(size: float, scaled: bool = True, config: FitConfig = CONFIG, path: Path | None = None) -> Run:
    weight = torch.linspace(-0.1, 0.2, 6).view(3, 2).requires_grad_()
    kept = None if path is None else Checkpoint(path)
    return steps({"w": weight}, lambda i: in_half(weight, i, size), config, checkpoint=kept, scaled=scaled)


def test_in_float32_a_scaled_run_is_the_plain_one_bit_for_bit() -> None:
    runs = []
    for scaled in (False, True):
        weight = torch.linspace(-1, 1, 6).requires_grad_()
        runs.append(steps({"w": weight}, lambda i, w=weight: (w - i).square().mean(), CONFIG, scaled=scaled))  # type: ignore[misc]
        reports = [(report.loss, report.lr) for report in runs[-1]]
        assert len(reports) == 8
    for one, other in zip(runs[0].averages.values(), runs[1].averages.values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(runs[0].parameters["w"], runs[1].parameters["w"])


def test_gradients_that_float16_cannot_hold_are_kept() -> None:
    config = FitConfig(steps=1, lr=0.0)
    runs = {scaled: make_run(1e-8, scaled, config) for scaled in (False, True)}
    for run in runs.values():
        list(run)
    lost, kept = (runs[scaled].parameters["w"].grad for scaled in (False, True))
    weight = runs[True].parameters["w"].detach().double().requires_grad_()
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
    ((x @ weight - 1.0).square().mean() * 1e-8).backward()
    assert lost is not None and kept is not None and weight.grad is not None
    assert not lost.any()
    assert (kept - weight.grad).norm() < 1e-3 * weight.grad.norm()


def test_steps_that_overflow_are_skipped_as_by_torchs_scaler() -> None:
    """The first ones overflow at 2 ** 16, until the scale is low enough."""
    run = make_run(30.0, config=FitConfig(steps=8, lr=0.05, grad_clip=0.5))
    weight = run.parameters["w"].detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=0.05, weight_decay=0.0, foreach=False)
    scaler = torch.amp.GradScaler("cpu")
    moved = []
    for index, _ in enumerate(run):
        before = weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(in_half(weight, index, 30.0)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([weight], 0.5)
        scaler.step(optimizer)
        scaler.update()
        moved.append(not torch.equal(before, weight))
        torch.testing.assert_close(run.parameters["w"], weight)
    assert moved[:2] == [False, False] and moved[-1]  # or the test says nothing


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_resumed_run_goes_on_at_its_scale(stop: int, tmp_path: Path) -> None:
    whole = make_run(30.0)
    expected = [report.loss for report in whole]
    got = [report.loss for report in islice(make_run(30.0, path=tmp_path / "run"), stop)]
    last = make_run(30.0, path=tmp_path / "run")
    got += [report.loss for report in last]
    assert got == expected
    assert torch.equal(whole.parameters["w"], last.parameters["w"])
    assert torch.equal(whole.averages["w"], last.averages["w"])


def test_the_scale_rises_again_as_torchs_does() -> None:
    ours, theirs = LossScale(active=True), torch.amp.GradScaler("cpu")
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for step in range(4100):
        weight.grad = torch.full((1,), float("inf") if step in (0, 3, 1500) else 1.0)
        ours.unscale_([weight.grad.clone()], step)
        theirs.scale(torch.zeros(1))  # makes its scale
        theirs.step(optimizer)
        theirs.update()
        assert ours.factor == theirs.get_scale()
    assert ours.factor == 2.0**14


def test_gradients_that_overflow_at_any_scale_are_an_error_of_work() -> None:
    with pytest.raises(NotFinite, match=r"gradients of step 16 are not finite in float16.*--precision fp32"):
        list(make_run(1e6, config=FitConfig(steps=100)))


@dataclass(frozen=True)
class Small(Weighting):
    """Gradients as small as those of pictures of many more numbers."""

    def of(self, prediction_type: str, signal: Tensor, sigma: Tensor) -> Tensor | float:
        return 1e-5


def test_a_base_in_float16_has_the_gradients_of_float32(fresh_world: World) -> None:
    gradients = []
    for dtype in (torch.float32, torch.float16):
        fresh_world.base.to(dtype=dtype)
        worn = fresh_world.people(2).requires_grad_()
        objective = Objective(weighting=Small())
        wear = lambda worn=worn: fresh_world.adapters.use(worn)  # type: ignore[misc]  # noqa: E731
        list(fit(fresh_world.base, {"worn": worn}, wear, fresh_world.pictures(2), objective, FitConfig(1, lr=0.0)))
        assert worn.grad is not None and worn.grad.dtype == torch.float32
        gradients.append(worn.grad)
    whole, half = gradients
    assert (half - whole).norm() < 0.02 * whole.norm()
