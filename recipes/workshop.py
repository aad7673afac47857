"""Where the recipe works: the cache that its stages share, and how any of them trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hyperdreambooth.base.build import PRESETS, BasePreset, build_base
from hyperdreambooth.base.model import Base
from hyperdreambooth.embedded import BASE, FOLDER, HYPERNETWORK
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.judges import JudgeConfig
from hyperdreambooth.files import load_tensors
from hyperdreambooth.fitting.processes import ALONE, Processes
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run
from hyperdreambooth.hypernetwork.model import PRESETS as HYPERNETWORK_PRESETS
from hyperdreambooth.hypernetwork.model import HyperNetworkConfig
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.portraits.captions import vocabulary
from recipes import denoiser
from recipes.budget import Budget
from recipes.photographs import Photographs, load_photographs
from recipes.pictures import SHARD, Pictures, load_shards

UNTIL_TIME_IS_UP = 10**9  # steps
WORLDS = ("portraits", "photographs")


@dataclass(frozen=True)
class Sizes:
    """What is built: sizes of the networks, and pictures per file."""

    base: BasePreset = PRESETS["small"]
    hypernetwork: HyperNetworkConfig = HYPERNETWORK_PRESETS["embedded"]
    judge: JudgeConfig = JudgeConfig()  # noqa: RUF009  # frozen
    shard: int = SHARD


@dataclass(frozen=True)
class Workshop:
    """Everything that a stage needs.

    Attributes:
        photographs: folder of face photographs.
        cache: folder in which every stage keeps its state.
        budget: what the stages may spend.
        device: where the networks train.
        out: folder that receives what is shipped.
        sizes: what is built.
        processes: those that run a stage together.
    """

    photographs: Path
    cache: Path
    budget: Budget
    device: torch.device
    out: Path = FOLDER
    sizes: Sizes = Sizes()
    processes: Processes = ALONE

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.sizes.base.picture_size

    @property
    def framed(self) -> Path:
        """The file of framed photographs."""
        return self.cache / "photographs.safetensors"

    @property
    def drawn(self) -> Path:
        """The folder of training pictures."""
        return self.cache / "pictures"

    def weights(self, stage: str) -> Path:
        """The file of what a training has made."""
        return self.cache / f"{stage}.safetensors"

    def start(self, stage: str) -> Path:
        """The file of what a training goes on from, in the place of nothing."""
        return self.cache / f"{stage}-start.safetensors"

    def checkpoint(self, stage: str) -> Checkpoint:
        """Where a training keeps itself; it stays there when the training is over."""
        return Checkpoint(self.cache / f"{stage}.run.safetensors")

    def fitted(self, world: str) -> Path:
        """The folder of a world's pre-optimised people."""
        return self.cache / f"fitted-{world}"

    def crowd(self, world: str) -> int:
        """How many people of a world the hypernetwork learns from."""
        if world == "portraits":
            return max(self.budget.fitted_portraits, self.budget.hypernetwork_portraits)
        return len(self.split("training").names) * (1 + self.budget.lookalikes)

    def split(self, name: str) -> Photographs:
        """The framed photographs of one of `photographs.SPLITS`."""
        return load_photographs(self.framed).split(name)

    def pictures(self, kind: str) -> Pictures:
        """The training pictures of a world, or of "lookalikes"."""
        return load_shards(self.drawn, kind, self.budget.shards[kind])

    def people(self) -> Pictures:
        """Several portraits of each of many people, in all styles."""
        return load_shards(self.drawn, "people", self.budget.people_pictures)

    def faces(self) -> Pictures:
        """Several plain portraits of each of many people."""
        return load_shards(self.drawn, "faces", self.budget.face_pictures)

    def latents_file(self, kind: str) -> Path:
        """The file of the latents of `pictures(kind)`."""
        return self.cache / f"latents-{kind}.safetensors"

    def latents(self, kind: str) -> denoiser.Latents:
        """The latents of `pictures(kind)`. Raises UserError where they are of another number of pictures."""
        path, pictures = self.latents_file(kind), self.pictures(kind)
        latents = load_tensors(path)[0]["latents"]
        if len(latents) != len(pictures):
            raise UserError(
                f"{path} is of {len(latents)} pictures, expected the {len(pictures)} of the budget: "
                "remove it and run the stage latents again, or give the budget that it was made with"
            )
        return denoiser.Latents(latents, pictures.scenes, pictures.people)

    def fresh_base(self) -> Base:
        """The base with random weights, on the device."""
        return build_base(self.sizes.base, vocabulary()).to(self.device)

    def seeing_base(self) -> Base:
        """The base with the trained VAE."""
        base = self.fresh_base()
        weights, about = load_tensors(self.weights("vae"))
        base.vae.load_state_dict(weights)
        base.vae.register_to_config(scaling_factor=1 / float(about["spread"]))
        return base

    def trained_base(self) -> Base:
        """The base with all that was trained."""
        base = self.seeing_base()
        denoiser.load(base, load_tensors(self.weights("denoiser"))[0])
        return base

    def shipped_booth(self) -> HyperDreamBooth:
        """The base that ships from `out`, with its hypernetwork: what is compared is what people get."""
        base, network = (self.out / path.relative_to(FOLDER) for path in (BASE, HYPERNETWORK))
        return HyperDreamBooth.load(base, self.device, hypernetwork=network)

    def train(
        self,
        stage: str,
        begin: Callable[[torch.Generator, Checkpoint], Run],
        save: Callable[[Path], object],
        every: int = 100,
    ) -> Iterator[str]:
        """Train unless that is done: go on where the checkpoint stands, save the averaged iterates.

        Args:
            stage: names the files.
            begin: makes the run that draws from a generator and keeps itself in a checkpoint.
            save: writes the networks, which hold the averages then, into the file.
            every: steps between two lines.
        """
        if self.weights(stage).exists():
            return
        run = begin(torch.Generator().manual_seed(0), self.checkpoint(stage))
        yield from lines(run, every)
        if self.processes.main:
            with run.averaged():
                save(self.weights(stage))


def schedule(
    minutes: float, lr: float, warmup: int, ema: float, weight_decay: float = 0.0, grad_clip: float | None = None
) -> FitConfig:
    """A training of so many minutes: a cosine to 0, and a moving average of the iterates."""
    return FitConfig(
        steps=UNTIL_TIME_IS_UP,
        seconds=60 * minutes,
        lr=lr,
        warmup=warmup,
        schedule="cosine",
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        ema=ema,
    )


def lines(run: Run, every: int) -> Iterator[str]:
    """A line per `every` steps of a run and at its end: mean loss, metrics, pace, what is left."""
    losses = list[float]()
    for report in run:
        losses.append(report.loss)
        if report.step % every == 0 or report.progress >= 1.0:
            mean, left = sum(losses) / len(losses), report.seconds * (1 / report.progress - 1)
            details = "".join(f" {name} {value:.4g}" for name, value in report.metrics.items())
            yield f"step {report.step} loss {mean:.4f}{details}, {report.seconds:.0f} s, {left:.0f} s left"
            losses.clear()
