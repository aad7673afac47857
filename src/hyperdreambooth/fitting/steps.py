"""The training loop: gradient steps on named tensors, as a generator that can be stopped at any moment and resumed.

Everything that learns in this project (VAE, base, judges, hypernetwork, every fit of a person) is a loss under this
loop:

    run = steps(dict(model.named_parameters()), loss, FitConfig(steps=1000, lr=1e-3), checkpoint=Checkpoint("vae.ckpt"))
    for report in run:
        print(report.step, report.loss)
    with run.averaged():
        save(model)

To resume, build the same run again: it continues after the last step that the checkpoint holds.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hyperdreambooth.errors import BadFile, NotFinite, UserError
from hyperdreambooth.files import load_metadata, load_tensors, save_tensors
from hyperdreambooth.fitting.processes import ALONE, Processes
from hyperdreambooth.fitting.scaling import LossScale

Loss = Callable[[int], Tensor | tuple[Tensor, Mapping[str, float | Tensor]]]

ONE_DISK = "put the folder on a disk that all machines share, or copy the first machine's to the others"
"""What to do about processes that find different things in the folder that they go on in."""

_FORMAT = "hyperdreambooth-run-1"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class FitConfig:
    """How to take the steps. The optimiser is AdamW, which is Adam where `weight_decay` is 0.

    `steps` and `seconds` are both budgets: the run ends at the first that is spent, and the schedule follows the one
    that is further along, so that the learning rate reaches its end under either. Seconds count the steps themselves,
    not what the caller does between them, and add up over resumed runs.
    """

    steps: int
    seconds: float | None = None
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 0  # steps of linear rise of the learning rate
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # the last two fall to 0 at the end of the budget
    grad_clip: float | None = None  # largest norm of the whole gradient
    accumulate: int = 1  # calls of the loss per step, whose gradients are averaged
    ema: float | None = None  # decay of an exponential moving average of the parameters, e.g. 0.999
    average_last: float | None = None  # share (0, 1] of the run, at its end, whose iterates are averaged
    precision: Literal["bf16"] | None = None  # autocast of the loss; parameters and moments keep their own type
    checkpoint_every_seconds: float = 60.0  # 0 is after every step; else writing takes at most a 20th of the time

    def on(self, dtype: torch.dtype) -> FitConfig:
        """The same with its passes in bfloat16 where a base works in it; parameters and moments keep their own type."""
        return replace(self, precision="bf16") if dtype == torch.bfloat16 else self

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1:
            raise ValueError(f"steps={self.steps}, accumulate={self.accumulate}: both must be 1 or more")
        if self.ema is not None and self.average_last is not None:
            raise ValueError("ema and average_last are both given: choose the average that you want")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent after `step` steps and `seconds` seconds, 0 to 1."""
        by_time = seconds / self.seconds if self.seconds is not None else 0.0
        return min(1.0, max(step / self.steps, by_time))

    def lr_at(self, step: int, progress: float) -> float:
        """The learning rate of step `step` (from 0) at `progress` (0 to 1)."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
        return self.lr * rise * fall[self.schedule]


@dataclass(frozen=True)
class StepReport:
    """What one step did. `step`, `seconds`, `samples` and `progress` are totals after it, resumed runs included."""

    step: int  # steps done, 1 at the first report
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    lr: float = 0.0
    samples: int = 0  # samples through the U-Net
    progress: float = 0.0  # 0 to 1, of whichever budget is further along


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps itself: one safetensors file, replaced whole, never half-written.

    `of` says what it is a run of, such as a digest of all settings: the state of another one is refused. Where either
    side says nothing, the shapes of the tensors decide alone.
    """

    path: Path | str
    of: str = ""

    def exists(self) -> bool:
        """Whether there is a state to resume from."""
        return Path(self.path).exists()

    def write(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Replace the file by this state. Raises DiskFull or WorkError; the previous state then stays."""
        about = {"format": _FORMAT, "run": json.dumps(dict(numbers))} | ({"of": self.of} if self.of else {})
        save_tensors(self.path, tensors, about)

    def read(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The state that was last written. Raises UserError where the file is no checkpoint of a run."""
        self.check()
        tensors, metadata = load_tensors(self.path)
        return tensors, json.loads(metadata["run"])

    def check(self) -> None:
        """Raise BadFile where the file is not whole, UserError where it is no checkpoint, or one of another run."""
        metadata = load_metadata(self.path)
        if metadata.get("format") != _FORMAT:
            got = metadata.get("format", "no format")
            raise UserError(f"{self.path} holds {got}, expected {_FORMAT}: choose another path for the checkpoint")
        if self.of and metadata.get("of", self.of) != self.of:
            raise UserError(
                f"{self.path} is of a run with other settings ({metadata['of']}, expected {self.of}): "
                "remove it, or run with the settings that it was saved with"
            )


class _Average:
    """A running average of the parameters: exponential, or the plain mean of the last iterates."""

    def __init__(self, parameters: Mapping[str, Tensor], config: FitConfig) -> None:
        self.config = config
        self.count = 0
        kept = config.ema is not None or config.average_last is not None
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()} if kept else {}

    def update(self, parameters: Mapping[str, Tensor], progress: float) -> None:
        """Take the parameters as they stand at `progress` (0 to 1) into the average."""
        if self.config.ema is not None:
            # The decay warms up, so that a short run does not average over its random start.
            weight = 1.0 - min(self.config.ema, (1 + self.count) / (10 + self.count))
        elif self.config.average_last is not None and progress > 1.0 - self.config.average_last:
            weight = 1.0 / (self.count + 1)
        else:
            return
        self.count += 1
        torch._foreach_lerp_(list(self.tensors.values()), [parameters[name].detach() for name in self.tensors], weight)


class Run:
    """A training run: iterate over it to take its steps. Made by `steps`, which documents the arguments."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        loss: Loss,
        config: FitConfig,
        checkpoint: Checkpoint | None,
        generators: Mapping[str, torch.Generator],
        samples: int,
        processes: Processes,
        scaled: bool,
    ) -> None:
        fixed = [name for name, p in parameters.items() if not (p.requires_grad and p.is_leaf)]
        if fixed or not parameters:
            raise ValueError(f"cannot train {fixed or 'nothing'}: expected leaf tensors that require gradients")
        self.parameters, self.loss, self.config = dict(parameters), loss, config
        self.checkpoint, self.generators = checkpoint, dict(generators)
        self.samples_per_call, self.processes = samples, processes
        self.step, self.seconds = 0, 0.0
        self._average = _Average(self.parameters, config)
        self._scale = LossScale(scaled)
        self._optimizer = torch.optim.AdamW(
            list(self.parameters.values()), config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self._saved_step, self._saved_at, self._writing = -1, time.monotonic(), 0.0  # the last in seconds
        if checkpoint is not None:
            if checkpoint.exists():
                self._restore(checkpoint)
            processes.check_same(self.step, f"step to go on from in {checkpoint.path}", ONE_DISK)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1; the run is over at 1."""
        return self.config.progress(self.step, self.seconds)

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averaged parameters by name; the parameters themselves where none are averaged (yet)."""
        return self._average.tensors if self._average.count else self.parameters

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages in the place of the parameters, and the parameters back at the end, bit for bit."""
        last = {name: p.detach().clone() for name, p in self.parameters.items()}
        _copy(self.averages, self.parameters)
        try:
            yield
        finally:
            _copy(last, self.parameters)

    def __iter__(self) -> Iterator[StepReport]:
        while self.progress < 1.0:
            report = self._advance()
            try:
                yield report
            except GeneratorExit:  # the caller stops here: leave nothing undone
                self.save()
                raise
            if self.progress >= 1.0 or time.monotonic() - self._saved_at >= self._apart:
                self.save()

    @property
    def _apart(self) -> float:
        """Seconds from the end of one checkpoint to the next: a large one, or a slow disk, must not hold up the run."""
        every = self.config.checkpoint_every_seconds
        return max(every, 20.0 * self._writing) if every else 0.0

    def is_finite(self) -> bool:
        """Whether the parameters, the loss of the step that is next and its gradients, unscaled, all are finite."""
        self._optimizer.zero_grad(set_to_none=True)
        scale, self._scale = self._scale, LossScale(False)
        try:
            self._gradients()
        except NotFinite:
            return False
        finally:
            self._scale = scale
        found = [*self.parameters.values(), *(p.grad for p in self.parameters.values() if p.grad is not None)]
        return all(bool(tensor.isfinite().all()) for tensor in found)

    def save(self) -> None:
        """Write the checkpoint, if the run has one and has moved since; of several processes, the main one's does."""
        if self.checkpoint is None or self._saved_step == self.step or not self.processes.main:
            return
        began = time.monotonic()
        tensors = {f"parameter/{name}": p for name, p in self.parameters.items()}
        tensors |= {f"average/{name}": p for name, p in self._average.tensors.items()}
        tensors |= {f"generator/{name}": g.get_state() for name, g in self.generators.items()}
        for name, p in self.parameters.items():
            tensors |= {f"{key}/{name}": self._optimizer.state[p][key] for key in self._optimizer.state[p]}
        numbers = {"step": self.step, "seconds": self.seconds, "averaged": self._average.count} | self._scale.numbers
        self.checkpoint.write(tensors, numbers)
        self._saved_step, self._saved_at = self.step, time.monotonic()
        self._writing = self._saved_at - began

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            tensors, numbers = checkpoint.read()
        except BadFile as error:
            raise BadFile(f"{error}, or remove it to begin this phase anew") from error
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, name = key.split("/", 1)
            groups.setdefault(kind, {})[name] = tensor
        _check_same(checkpoint.path, groups.get("parameter", {}), self.parameters)
        _check_same(checkpoint.path, groups.get("average", {}), self._average.tensors)
        _copy(groups["parameter"], self.parameters)
        _copy(groups.get("average", {}), self._average.tensors)
        for name, p in self.parameters.items():
            moments = {key: groups[key][name].to(p.device) for key in _MOMENTS if name in groups.get(key, {})}
            if moments:  # a parameter that never had a gradient has none
                self._optimizer.state[p] = moments
        for name, generator in self.generators.items():
            generator.set_state(groups["generator"][name])
        self.step, self.seconds = int(numbers["step"]), numbers["seconds"]
        self._average.count = int(numbers["averaged"])
        self._scale.restore(numbers)
        self._saved_step = self.step

    def _advance(self) -> StepReport:
        """Take one step."""
        began = time.perf_counter()
        lr = self.config.lr_at(self.step, self.progress)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        loss, metrics = self._gradients()
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self._scale.unscale_(gradients, self.step):
            if self.config.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.grad_clip)
            self._optimizer.step()
        self.step += 1
        self.seconds = self.processes.agree(self.seconds + time.perf_counter() - began)
        self._average.update(self.parameters, self.progress)
        samples = self.step * self.config.accumulate * self.samples_per_call
        return StepReport(self.step, loss, metrics, self.seconds, lr, samples, self.progress)

    def _gradients(self) -> tuple[float, dict[str, float]]:
        """Accumulate the scaled gradients of one step; the loss and metrics, averaged over calls and processes."""
        share = 1.0 / self.config.accumulate
        device = next(iter(self.parameters.values())).device
        total, metrics = 0.0, dict[str, float]()
        for call in range(self.config.accumulate):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                result = self.loss(self.step * self.config.accumulate + call)
            loss, extra = result if isinstance(result, tuple) else (result, {})
            (loss * (share * self._scale.factor)).backward()
            total += share * loss.item()
            for name, value in extra.items():
                metrics[name] = metrics.get(name, 0.0) + share * float(value)
        self.processes.average_([p.grad for p in self.parameters.values() if p.grad is not None])
        total, *means = self.processes.mean([total, *metrics.values()])
        metrics = dict(zip(metrics, means, strict=True))
        if not math.isfinite(total):
            raise NotFinite(
                f"the loss of step {self.step} is {total}, expected a finite number: --precision fp32 on a GPU in half "
                f"precision, else a learning rate below {self.config.lr}"
            )
        return total, metrics


def steps(
    parameters: Mapping[str, Tensor],
    loss: Loss,
    config: FitConfig,
    *,
    checkpoint: Checkpoint | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    samples: int = 0,
    processes: Processes = ALONE,
    scaled: bool = False,
) -> Run:
    """Minimise `loss` over `parameters`: an iterable of one StepReport per step.

    Args:
        parameters: leaf tensors that require gradients, by name (`dict(model.named_parameters())`); changed in place.
        loss: called with 0, 1, 2, ... (steps * accumulate calls in all); returns a scalar, or a scalar and metrics by
            name. Whatever it draws must come from its argument or from one of `generators`.
        checkpoint: where the run keeps itself: written every `checkpoint_every_seconds` (or more seldom, if that takes
            long), at the end, and when the caller stops iterating. If the file exists, the run continues from it; the
            result is the uninterrupted run's, bit for bit (with a budget in steps).
        generators: the random generators that `loss` draws from; their states travel in the checkpoint.
        samples: samples through the U-Net of one call of the loss, in all processes, for the reports.
        processes: those that take the steps together. Each calls `loss`, which takes its share of the batch from
            generators in the same state; its mean over the processes must be the loss of the whole.
        scaled: whether the loss is scaled for the backward pass, as one through a network in float16 needs. A step
            whose gradients overflow changes no parameters, and counts.

    Raises:
        UserError: the checkpoint is of another model or no checkpoint, or not the same for all processes (at once).
        NotFinite: the loss, or the gradients at every scale (while iterating). DiskFull, WorkError: the checkpoint
            cannot be written (the same).
    """
    return Run(parameters, loss, config, checkpoint, generators or {}, samples, processes, scaled)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)


def _check_same(path: Path | str, saved: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """Raise UserError unless both have the same names and shapes."""
    wrong = [name for name in sorted({*saved, *now}) if name not in saved or name not in now]
    wrong += [name for name in saved if name in now and saved[name].shape != now[name].shape]
    if wrong:
        raise UserError(
            f"{path} was saved by another run ({len(wrong)} of {len(now)} tensors differ, first {wrong[0]!r}): "
            "remove it, or run with the settings that it was saved with"
        )
