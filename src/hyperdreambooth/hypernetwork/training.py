"""Training the hypernetwork by eq. 2, over people x with pre-optimised weights theta:

    L(x) = alpha * || D_theta_hat(x + eps, c) - x ||^2  +  beta * || theta_hat - theta ||^2

in two phases: the weight loss alone, which costs no U-Net, then both. A step of the second wears as many predicted
identities as the batch holds, each under several noises. A folder holds the checkpoints, the curve and the result:
stop at any moment, run the same again to go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hyperdreambooth.base.diffusion import Weighting
from hyperdreambooth.base.model import Base
from hyperdreambooth.fitting.plan import digest, keep_plan, plan_digest
from hyperdreambooth.fitting.processes import ALONE, Processes
from hyperdreambooth.fitting.steps import ONE_DISK, Checkpoint, FitConfig, Run, StepReport, steps
from hyperdreambooth.hypernetwork.curve import Curve
from hyperdreambooth.hypernetwork.features import Features
from hyperdreambooth.hypernetwork.jitter import Jitter
from hyperdreambooth.hypernetwork.loss import People, denoising_together, worn_loss
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.lidb import Adapters

CURVE_FILE = "curve.jsonl"
RESULT_FILE = "hypernetwork.safetensors"
_FORMAT = "hyperdreambooth-training-1"
HELD_OUT_NOISES = 4


def _phase(steps: int, lr: float) -> FitConfig:
    return FitConfig(steps, lr=lr, warmup=100, schedule="cosine", weight_decay=0.01, grad_clip=1.0, ema=0.998)


@dataclass(frozen=True)
class TrainConfig:
    """How a hypernetwork is trained. A phase that is None is left out; batches are shared evenly by the worlds."""

    weights: FitConfig | None = field(default_factory=lambda: _phase(3000, 5e-4))  # beta's term alone
    both: FitConfig | None = field(default_factory=lambda: _phase(3000, 5e-4))
    alpha: float = 1.0
    beta: float = 0.02  # theta has unit spread: its loss starts at 1, where people differ by hundredths in the other
    weights_batch: int = 128  # people
    both_batch: int = 32  # people
    noises: int = 3  # K, samples through the U-Net per person and step
    common: float = 0.25  # how much of the gradient that the people of a batch share is kept, see `_Loss`
    prompt: str = "a [V] face"
    weighting: Weighting = Weighting(fade=0.3)  # noqa: RUF009  # frozen; of the noise levels, in training
    jitter: Jitter = field(default_factory=Jitter)  # of the pictures that the encoder sees
    freeze_encoder: bool = False
    versions: int = 0  # of each picture, at which a frozen encoder looked before (`features`); 0 is a new one always
    evaluate_every: int = 200  # steps between two lines of the curve
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.common <= 1.0:
            raise ValueError(f"got common={self.common}, expected 0 to 1")

    def phases(self) -> dict[str, FitConfig]:
        """The phases to run, by name, in order."""
        named = {"weights": self.weights, "both": self.both}
        return {name: config for name, config in named.items() if config is not None}


@dataclass(frozen=True)
class TrainReport:
    """One step of a phase. At the steps of the curve, `held_out` has each world's figures, as "world/figure"."""

    phase: str
    step: StepReport
    held_out: dict[str, float] = field(default_factory=dict)


def train(
    network: HyperNetwork,
    base: Base,
    adapters: Adapters,
    worlds: Mapping[str, People],
    held_out: Mapping[str, People],
    folder: Path | str,
    config: TrainConfig,
    processes: Processes = ALONE,
    features: Mapping[str, Features] | None = None,
) -> Iterator[TrainReport]:
    """Train `network` in place, a report per step; at the end it holds, as `RESULT_FILE` does, the averaged iterates.

    Args:
        network: on the base's device, random or with an encoder that can see (`FaceEncoder.load`).
        base, adapters: the frozen base, with adapters of the network's space in it.
        worlds: the people to learn from, by name of their world; tensors may stay on the CPU.
        held_out: people who are not among them; measured on as it goes, and written to `CURVE_FILE`.
        folder: made if absent. Where it holds a run of the same network, people and settings, that goes on.
        processes: those that train together, all called with the same arguments; each takes its share of the people in
            every batch, the main one measures and writes.
        features: by world, what the network's encoder, frozen, has seen in `config.versions` versions of all pictures:
            given, it is not asked again.

    Raises:
        UserError: the folder holds a run, or a checkpoint, of another network, base, space, of other people or
            settings; processes that cannot share the people of a world in a batch evenly, or find the folder at
            different steps.
    """
    folder = Path(folder)
    for batch in (config.weights_batch, config.both_batch):
        processes.check_share(batch // len(worlds), "people of each world")
    if processes.main:
        _keep_plan(folder, network, worlds, held_out, config)
    processes.wait()
    if not network.has_statistics:  # a network that was trained before means its own by its theta
        network.set_statistics(torch.cat([people.numbers for people in worlds.values()]).to(base.device))
    set_trained(network, config)
    seen = [None if features is None else features[name] for name in worlds]
    if features is not None and any(p.requires_grad for p in network.encoder.parameters()):
        raise ValueError("got features of an encoder that is trained, expected a frozen one's")
    left = _after_finished(folder, network, config)
    processes.check_same(len(left), f"number of phases to do in {folder}", ONE_DISK)
    measured = held_out if processes.main else {}
    measures = [_HeldOut(name, people, network, base, adapters, config) for name, people in measured.items()]
    for number, phase, fit in left:
        generator = torch.Generator().manual_seed(config.seed + number)
        loss = _Loss(network, base, adapters, list(worlds.values()), config, phase, generator, processes, seen)
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        checkpoint = _checkpoint(folder, phase)
        run = steps(
            parameters,
            loss,
            fit,
            checkpoint=checkpoint,
            generators={"training": generator},
            samples=loss.samples,
            processes=processes,
            scaled=base.dtype == torch.float16,
        )
        curve = Curve(folder / CURVE_FILE) if processes.main else None
        yield from _followed(run, phase, network, measures, curve, config.evaluate_every)
        network.load_state_dict({**network.state_dict(), **run.averages})
        processes.wait()  # until all have read what is removed now
        if processes.main:
            network.save(_result(folder, phase), torch.float32)
            Path(checkpoint.path).unlink(missing_ok=True)
    network.eval()
    if processes.main:
        network.save(folder / RESULT_FILE)
    processes.wait()


def set_trained(network: HyperNetwork, config: TrainConfig) -> None:
    """Mark the parameters that are trained: all, or all but a frozen or pretrained encoder's."""
    network.requires_grad_(True)
    network.encoder.requires_grad_(not (config.freeze_encoder or network.config.encoder.frozen))


def _keep_plan(
    folder: Path,
    network: HyperNetwork,
    worlds: Mapping[str, People],
    held_out: Mapping[str, People],
    config: TrainConfig,
) -> None:
    """Raise UserError if the folder was begun with anything else that decides the result."""
    plan = {
        "format": _FORMAT,
        "base": network.base,
        "space": asdict(network.space.info),
        "network": network.config.values,
        "config": asdict(config),
    }
    data = dict[str, Tensor]()
    for use, group in (("training", worlds), ("held out", held_out)):
        plan[f"{use} numbers"] = {name: digest(people.numbers) for name, people in group.items()}
        for name, people in group.items():
            data |= {f"{use} {name} pictures": people.pictures, f"{use} {name} latents": people.latents}
            data |= {} if people.masks is None else {f"{use} {name} masks": people.masks}
            plan |= {f"{use} {name} prompts": list(people.prompts)} if people.prompts else {}
    begun = any(_result(folder, phase).exists() or _checkpoint(folder, phase).exists() for phase in config.phases())
    keep_plan(folder, plan, data, begun=begun)


def _after_finished(folder: Path, network: HyperNetwork, config: TrainConfig) -> list[tuple[int, str, FitConfig]]:
    """Load the last phase that is finished into the network; the number, name and settings of those to do yet."""
    left = [(number, phase, fit) for number, (phase, fit) in enumerate(config.phases().items())]
    while left and _result(folder, left[0][1]).exists():
        _, phase, _ = left.pop(0)
        done = HyperNetwork.load(_result(folder, phase), network.space, network.base, network.base_name)
        network.load_state_dict(done.state_dict())
        Path(_checkpoint(folder, phase).path).unlink(missing_ok=True)  # of a process that died in between
    return left


def _result(folder: Path, phase: str) -> Path:
    return folder / f"{phase}.safetensors"


def _checkpoint(folder: Path, phase: str) -> Checkpoint:
    return Checkpoint(folder / f"{phase}.run.safetensors", of=plan_digest(folder))


class _Loss:
    """Eq. 2, or its second term alone, on people drawn anew at every call.

    The people of a world meet the same noises, timesteps and views at the same step. Then a part of the gradient (two
    fifths, measured on 32 portraits: see docs/notes.md) is the same for all of them. It tells nobody from anybody else,
    and taking most of it away takes noise from what does; with many people in a batch, little else goes with it.

    Of several processes each draws everything, and keeps its share of the people with all that is theirs.
    """

    def __init__(
        self,
        network: HyperNetwork,
        base: Base,
        adapters: Adapters,
        worlds: list[People],
        config: TrainConfig,
        phase: str,
        generator: torch.Generator,
        processes: Processes = ALONE,
        features: Sequence[Features | None] = (),
    ) -> None:
        self.features = list(features) or [None] * len(worlds)
        self.network, self.base, self.adapters, self.worlds = network, base, adapters, worlds
        self.config, self.generator, self.processes = config, generator, processes
        self.denoises = phase == "both"
        self.people = (config.both_batch if self.denoises else config.weights_batch) // len(worlds)  # of each world
        self.samples = self.people * len(worlds) * config.noises if self.denoises else 0

    def __call__(self, _step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and its terms as they are without alpha and beta."""
        config = self.config
        drawn = [self._draw(people) for people in self.worlds]
        seen = [self._seen(*some, own) for some, own in zip(drawn, self.features, strict=True)]
        theta = self.network.decode(torch.cat(seen))  # (N, S, 1, a + b)
        weight = self._weight_loss(theta, drawn)
        if not self.denoises:
            return weight, {"weight": weight.item()}
        numbers = self.network.numbers(theta)
        if numbers.requires_grad:
            numbers.register_hook(self._less_in_common)
        parts = zip(drawn, numbers.split(len(numbers) // len(drawn)), strict=True)
        denoising = torch.stack([self._denoising(*some, worn) for some, worn in parts]).mean()
        metrics = {"weight": weight.item(), "denoising": denoising.item()}
        return config.alpha * denoising + config.beta * weight, metrics

    def _draw(self, world: People) -> tuple[People, Tensor]:
        """A world and the rows of the people drawn from it; where only numbers are learnt, of those who have some."""
        among = len(world.pictures) if self.denoises else len(world.numbers)
        return world, torch.randint(among, (self.people,), generator=self.generator)

    def _seen(self, world: People, rows: Tensor, features: Features | None) -> Tensor:
        """Features (n, F, D) of one view, a little changed, of each of these people who are this process's share."""
        views = torch.randint(world.pictures.shape[1], rows.shape, generator=self.generator)
        if features is not None:
            versions = torch.randint(features.versions, rows.shape, generator=self.generator)
            rows, views, versions = (self.processes.share(places) for places in (rows, views, versions))
            return features(rows, views, versions).to(self.base.device)
        pictures = world.pictures[rows, views].to(self.base.device).float() / 255
        found: Tensor = self.network.encoder(self.processes.share(self.config.jitter(pictures, self.generator)))
        return found

    def _weight_loss(self, theta: Tensor, drawn: list[tuple[People, Tensor]]) -> Tensor:
        """Mean of (theta_hat - theta)^2 over all numbers of the people who have some."""
        everybody = torch.cat([rows < len(world.numbers) for world, rows in drawn]).sum().clamp(min=1)
        drawn = [(world, self.processes.share(rows)) for world, rows in drawn]
        fitted = [world.numbers[rows.clamp(max=len(world.numbers) - 1)] for world, rows in drawn]
        known = torch.cat([rows < len(world.numbers) for world, rows in drawn]).to(theta.device)  # (N,)
        target = self.network.theta(torch.cat(fitted).to(theta.device))
        apart = (theta - target).square().mean(dim=(1, 2, 3))  # (N,)
        return (apart * known).sum() * self.processes.count / everybody.to(theta.device)

    def _denoising(self, world: People, rows: Tensor, worn: Tensor) -> Tensor:
        """Mean denoising loss of people who wear `worn` (n, S, 1, a + b), all in the same K views and noises."""
        config, rows = self.config, self.processes.share(rows)
        losses = denoising_together(
            self.base,
            self.adapters,
            worn,
            world,
            rows,
            config.noises,
            config.prompt,
            self.generator,
            config.weighting,
        )
        return losses.mean()

    def _less_in_common(self, gradient: Tensor) -> Tensor:
        """A gradient of N people (N, S, 1, a + b), less of its mean over each world's people of all processes."""
        worlds = gradient.unflatten(0, (len(self.worlds), -1))  # (worlds, n, S, 1, a + b)
        mean = worlds.mean(dim=1, keepdim=True)
        self.processes.average_([mean])
        return (worlds - (1.0 - self.config.common) * mean).flatten(0, 1)


class _HeldOut:
    """People nobody learnt from, under noises that never change, and what does not depend on the network."""

    def __init__(
        self, name: str, people: People, network: HyperNetwork, base: Base, adapters: Adapters, config: TrainConfig
    ) -> None:
        self.name, self.people, self.base, self.adapters, self.config = name, people, base, adapters, config
        generator = torch.Generator().manual_seed(config.seed)
        count = len(people.pictures) * HELD_OUT_NOISES
        self.noise = torch.randn((count, *people.latents.shape[2:]), generator=generator)
        self.levels = (torch.randperm(count, generator=generator) + 0.5) / count
        numbers = people.numbers.to(base.device)
        self.theta = network.theta(numbers)  # (M, S, 1, a + b)
        mean = numbers.mean(dim=0, keepdim=True).expand(len(people.pictures), -1, -1, -1)
        self.constant = self._denoising("nobody", None) | self._denoising("mean person", mean)
        if len(numbers) == len(people.pictures):
            self.constant |= self._denoising("fitted", numbers)

    def __call__(self, network: HyperNetwork) -> dict[str, float]:
        """By figure: R2 of predicted theta between these people, and denoising losses, predicted and for scale.

        "denoising" is of plain pictures, "styled denoising" of those under other prompts. "nobody", "mean person" and
        "fitted" (where all have numbers) are what the base reaches on the same noises with other things on than the
        predicted persons.
        """
        device = self.base.device
        parts = [network.predict(some[:, 0].to(device).float() / 255) for some in self.people.pictures.split(64)]
        numbers = torch.cat(parts)
        missed = (network.theta(numbers[: len(self.theta)]) - self.theta).square().sum()
        spread = (self.theta - self.theta.mean(dim=0)).square().sum()
        figures = {"r2": 1.0 - float(missed / spread)} | self._denoising("denoising", numbers) | self.constant
        return {f"{self.name}/{figure}": value for figure, value in figures.items()}

    def _denoising(self, figure: str, worn: Tensor | None) -> dict[str, float]:
        """Mean losses on the last plain picture of everybody (the encoder sees the first), and on one in a style."""
        count, plain = len(self.people.pictures), self.people.plain
        figures = {figure: self._mean_loss(worn, torch.full((count,), plain - 1))}
        if self.people.prompts:
            dealt = plain + torch.arange(count) % len(self.people.prompts)
            figures[f"styled {figure}"] = self._mean_loss(worn, dealt)
        return figures

    @torch.no_grad()
    def _mean_loss(self, worn: Tensor | None, views: Tensor) -> float:
        """Mean loss on these views (N,), one noise after the other, of as many people at once as a batch has."""
        parts = zip(self.levels.split(len(views)), self.noise.split(len(views)), strict=True)
        losses = [
            worn_loss(
                self.base,
                self.adapters,
                None if worn is None else worn[rows],
                self.people,
                (rows, views[rows]),
                levels[rows],
                noise[rows],
                self.config.prompt,
            )
            for levels, noise in parts
            for rows in torch.arange(len(views)).split(self.config.both_batch)
        ]
        return float(torch.cat(losses).mean())


def _followed(
    run: Run, phase: str, network: HyperNetwork, measures: list[_HeldOut], curve: Curve | None, every: int
) -> Iterator[TrainReport]:
    """The run's reports; every so many steps, and at the end, the averaged network is measured and the curve grows."""
    if curve is not None:
        curve.forget_after(phase, run.step)
    for step in run:
        held_out = dict[str, float]()
        if curve is not None and (step.step % every == 0 or step.progress >= 1.0):
            with run.averaged():
                network.eval()
                for measure in measures:
                    held_out |= measure(network)
                network.train()
            curve.add({"phase": phase, **asdict(step), "held_out": held_out})
        yield TrainReport(phase, step, held_out)
