"""Everything in `src/hyperdreambooth/embedded/`, from nothing, by one command that can be stopped and repeated:

    python -m recipes.embedded --photographs PHOTOS --cache CACHE

Each stage keeps its state in the cache folder: what is finished is skipped, what was interrupted goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from hyperdreambooth.base.build import PRESETS, build_base
from hyperdreambooth.base.model import Base
from hyperdreambooth.embedded import BASE, DEMO_PHOTO, HYPERNETWORK, JUDGES
from hyperdreambooth.evaluation.judges import AttributeReader, Judge, Recogniser, SceneClassifier
from hyperdreambooth.files import load_tensors, save_tensors, write_atomically
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run, StepReport, steps
from hyperdreambooth.hypernetwork.model import PRESETS as HYPERNETWORK_PRESETS
from hyperdreambooth.hypernetwork.model import HyperNetwork, build_hypernetwork
from hyperdreambooth.hypernetwork.training import RESULT_FILE
from hyperdreambooth.people import People
from hyperdreambooth.pipeline import HyperDreamBooth, space_of
from hyperdreambooth.portraits.captions import vocabulary
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.view import View
from hyperdreambooth.sheet import to_image
from recipes import cards, denoiser, hyper, judges, vae
from recipes.photographs import frame_photographs, load_photographs
from recipes.pictures import Pictures, load_shards, make_shards, random_photographs, random_portraits

DEMO_SEED = 15_005  # a tuning person: the training never saw them
ROOM = 8  # pixels that a photograph may be shifted by
console = Console(stderr=True)


@dataclass(frozen=True)
class Budget:
    """How much each stage may spend. The defaults are for two CPU cores; measured seconds are in the model cards."""

    people: int = 15_000  # portraits are drawn of the seeds below this
    portraits: int = 24  # thousand pictures
    photographs: int = 16  # thousand pictures
    vae_minutes: float = 40
    vae_batch: int = 8
    denoiser_minutes: float = 120
    denoiser_batch: int = 24
    people_pictures: int = 16  # thousand portraits, eight of each person, that judges and encoder learn from
    judge_minutes: float = 12  # each of the three judges
    encoder_minutes: float = 12  # learning to see
    fitted_portraits: int = 1024  # people who are pre-optimised
    fitted_photographs: int = 1024
    hypernetwork_minutes: float = 45  # of both losses; the weight loss alone gets a fifth of that


@dataclass(frozen=True)
class Workshop:
    """Where the recipe works: the folder of photographs, the cache of all stages, the budget, the device."""

    photographs: Path
    cache: Path
    budget: Budget
    device: torch.device
    size: int = PRESETS["small"].picture_size

    def fresh_base(self) -> Base:
        """The base with random weights, on the device."""
        return build_base(PRESETS["small"], vocabulary()).to(self.device)

    def pictures(self) -> tuple[Pictures, Pictures]:
        """The training pictures: portraits and photographs."""
        folder = self.cache / "pictures"
        return (
            load_shards(folder, "portraits", self.budget.portraits),
            load_shards(folder, "photographs", self.budget.photographs),
        )

    def people(self) -> Pictures:
        """Several portraits of each of many people."""
        return load_shards(self.cache / "pictures", "people", self.budget.people_pictures)

    def fitted_worlds(self) -> dict[str, People]:
        """The people who are pre-optimised."""
        budget, framed = self.budget, self.cache / "photographs.safetensors"
        return hyper.worlds(budget.fitted_portraits, budget.fitted_photographs, framed, self.size)


def frame(shop: Workshop) -> Iterator[str]:
    """Photographs to framed faces, a little larger than the pictures."""
    yield from frame_photographs(shop.photographs, shop.cache / "photographs.safetensors", shop.size + ROOM)


def draw_pictures(shop: Workshop) -> Iterator[str]:
    """The training pictures of both worlds."""
    folder, budget = shop.cache / "pictures", shop.budget
    photographs = load_photographs(shop.cache / "photographs.safetensors").split("training")
    make = partial(random_portraits, people=budget.people, size=shop.size)
    yield from make_shards(folder, "portraits", budget.portraits, make, seed=1_000)
    make = partial(random_photographs, photographs=photographs, size=shop.size)
    yield from make_shards(folder, "photographs", budget.photographs, make, seed=2_000)


def train_vae(shop: Workshop) -> Iterator[str]:
    """The VAE, on both worlds; its latents get unit spread."""
    base, result = shop.fresh_base(), shop.cache / "vae.safetensors"
    if result.exists():
        return
    portraits, photographs = shop.pictures()
    pictures = torch.cat([portraits.pictures, photographs.pictures])
    model = base.vae.requires_grad_(True).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)

    def loss(_step: int) -> tuple[torch.Tensor, dict[str, float]]:
        return vae.reconstruction_loss(
            model, vae.batch_of(pictures, shop.budget.vae_batch, generator, shop.device), generator
        )

    vae.quiet_residuals(model)
    config = FitConfig(
        steps=10**9,
        seconds=60 * shop.budget.vae_minutes,
        lr=2e-3,
        warmup=100,
        schedule="cosine",
        grad_clip=1.0,
        ema=0.999,
    )
    run = steps(
        dict(model.named_parameters()),
        loss,
        config,
        checkpoint=Checkpoint(shop.cache / "vae.run.safetensors"),
        generators={"pictures": generator},
    )
    yield from _lines(run, 100)
    with run.averaged():
        spread = vae.latent_spread(model, vae.batch_of(pictures, 500, generator, shop.device))
        save_tensors(result, model.state_dict(), {"spread": str(spread)})


def encode_pictures(shop: Workshop) -> Iterator[str]:
    """The latents of all training pictures."""
    base = _with_vae(shop)
    for name, pictures in zip(("portraits", "photographs"), shop.pictures(), strict=True):
        path = shop.cache / f"latents-{name}.safetensors"
        if not path.exists():
            save_tensors(path, {"latents": denoiser.encode(base, pictures).latents})
            yield f"{name} encoded"


def train_denoiser(shop: Workshop) -> Iterator[str]:
    """U-Net and text encoder."""
    result = shop.cache / "denoiser.safetensors"
    if result.exists():
        return
    base = _with_vae(shop)
    for network in (base.unet, base.text_encoder):
        network.train().requires_grad_(True)
    base.unet.to(memory_format=torch.channels_last)
    parameters = {f"unet.{name}": p for name, p in base.unet.named_parameters()}
    parameters |= {f"text_encoder.{name}": p for name, p in base.text_encoder.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    loss = denoiser.training_loss(base, _latents(shop), shop.budget.denoiser_batch, generator)
    config = FitConfig(
        steps=10**9, seconds=60 * shop.budget.denoiser_minutes, lr=1e-3, warmup=200, schedule="cosine",
        weight_decay=0.01, grad_clip=1.0, ema=0.999,
    )  # fmt: skip
    checkpoint = Checkpoint(shop.cache / "denoiser.run.safetensors")
    run = steps(parameters, loss, config, checkpoint=checkpoint, generators={"training": generator})
    yield from _lines(run, 100)
    with run.averaged():
        save_tensors(result, parameters)


def draw_people(shop: Workshop) -> Iterator[str]:
    """Several pictures of each of many people, for the judges."""
    make = partial(judges.random_people, people=shop.budget.people, per_person=8, size=shop.size)
    yield from make_shards(shop.cache / "pictures", "people", shop.budget.people_pictures, make, seed=3_000)


def train_judges(shop: Workshop) -> Iterator[str]:
    """Recogniser, scene classifier and attribute reader: each by itself, on true pictures."""
    people, (portraits, photographs) = shop.people(), shop.pictures()

    def run(judge: Judge, train: Callable[..., Run], *data: object) -> Iterator[str]:
        name = judge.kind.replace(" ", "-")
        result = shop.cache / f"{name}.safetensors"
        if result.exists():
            return
        config = _schedule(shop.budget.judge_minutes, lr=2e-3)
        generator, checkpoint = torch.Generator().manual_seed(0), Checkpoint(shop.cache / f"{name}.run.safetensors")
        training = train(judge.to(shop.device), *data, config, generator, checkpoint)
        yield from (f"{name}: {line}" for line in _lines(training, 100))
        with training.averaged():
            judge.save(result)

    yield from run(
        judges.fresh(Recogniser), judges.train_recogniser, [(people, judges.Batch()), (photographs, judges.Batch())]
    )
    yield from run(judges.fresh(SceneClassifier), judges.train_scene_classifier, portraits, photographs, 64)
    yield from run(judges.fresh(AttributeReader), judges.train_attribute_reader, people, 64)


def train_encoder(shop: Workshop) -> Iterator[str]:
    """The encoder that the hypernetwork starts from: a network apart from all judges."""
    result = shop.cache / "encoder.safetensors"
    if result.exists():
        return
    people, (_, photographs) = shop.people(), shop.pictures()
    task = judges.fresh_encoder(HYPERNETWORK_PRESETS["embedded"].encoder).to(shop.device)
    generator, checkpoint = torch.Generator().manual_seed(0), Checkpoint(shop.cache / "encoder.run.safetensors")
    config = _schedule(shop.budget.encoder_minutes, lr=1e-3)
    run = judges.train_encoder(task, people, photographs, 64, judges.Batch(16, 4), config, generator, checkpoint)
    yield from _lines(run, 100)
    with run.averaged():
        task.encoder.save(result)


def fit_people(shop: Workshop) -> Iterator[str]:
    """Pre-optimised people of both worlds."""
    booth = HyperDreamBooth(trained_base(shop))
    for world, people in shop.fitted_worlds().items():
        yield from (f"{world}: {line}" for line in hyper.fit_world(booth, people, shop.cache / f"fitted-{world}"))


def train_hypernetwork(shop: Workshop) -> Iterator[str]:
    """The hypernetwork, by eq. 2."""
    if (shop.cache / "hypernetwork" / RESULT_FILE).exists():
        return
    booth = HyperDreamBooth(trained_base(shop))
    network = build_hypernetwork(HYPERNETWORK_PRESETS["embedded"], booth.space, booth.fingerprint, booth.base.name)
    network.encoder.load(shop.cache / "encoder.safetensors")
    fitted = {world: (people, shop.cache / f"fitted-{world}") for world, people in shop.fitted_worlds().items()}
    minutes = shop.budget.hypernetwork_minutes
    yield from hyper.train_network(network.to(shop.device), booth, fitted, shop.cache / "hypernetwork", minutes)


def ship(shop: Workshop) -> Iterator[str]:
    """Write the trained networks, their cards and the demo's picture into the package."""
    base = trained_base(shop)
    base.save(BASE)
    cards.write_card(
        BASE,
        "The embedded base",
        "A latent diffusion model of faces, 64 x 64 pixels, in Stable Diffusion's layout.",
        _seconds(shop, "vae", "denoiser"),
        _scores(shop.cache / "quality.json"),
        _text(shop.cache / "looks.txt"),
    )
    for judge in (Recogniser, SceneClassifier, AttributeReader):
        name = judge.kind.replace(" ", "-")
        if (shop.cache / f"{name}.safetensors").exists():
            judge.load(shop.cache / f"{name}.safetensors").save(JUDGES / f"{name}.safetensors")
    cards.write_card(
        JUDGES,
        "The judges",
        "Who is it, which scene is it, what do they look like: three convolutional networks for 64 x 64 pictures.",
        _seconds(shop, "recogniser", "scene-classifier", "attribute-reader"),
        {},
    )
    if (trained := shop.cache / "hypernetwork" / RESULT_FILE).exists():
        HyperNetwork.load(trained, space_of(base), base.fingerprint, base.name).save(HYPERNETWORK)
    view = View.reference(np.random.RandomState(5))
    picture = to_image(render([Person(DEMO_SEED)], [view], 256)[0])
    write_atomically(DEMO_PHOTO, lambda part: picture.save(part, format="PNG"))
    yield f"shipped the base {base.fingerprint}"


STAGES: dict[str, Callable[[Workshop], Iterable[str]]] = {
    "frame": frame,
    "pictures": draw_pictures,
    "vae": train_vae,
    "latents": encode_pictures,
    "denoiser": train_denoiser,
    "people": draw_people,
    "judges": train_judges,
    "encoder": train_encoder,
    "fit": fit_people,
    "hypernetwork": train_hypernetwork,
    "ship": ship,
}


def main(
    photographs: Annotated[Path, typer.Option(help="Folder of face photographs.")],
    cache: Annotated[Path, typer.Option(help="Where all stages keep their state.")],
    only: Annotated[str, typer.Option(help="One stage instead of all.")] = "",
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    vae_minutes: float = Budget.vae_minutes,
    denoiser_minutes: float = Budget.denoiser_minutes,
    judge_minutes: float = Budget.judge_minutes,
    portraits: Annotated[int, typer.Option(help="Thousands of pictures.")] = Budget.portraits,
    photograph_pictures: Annotated[int, typer.Option(help="Thousands of pictures.")] = Budget.photographs,
) -> None:
    """Train all that the package ships."""
    torch.set_flush_denormal(True)  # tiny numbers in dark pictures make a CPU four times as slow
    budget = Budget(
        portraits=portraits,
        photographs=photograph_pictures,
        vae_minutes=vae_minutes,
        denoiser_minutes=denoiser_minutes,
        judge_minutes=judge_minutes,
    )
    shop = Workshop(photographs, cache, budget, torch.device(device))
    for name in [only] if only else STAGES:
        console.print(f"[bold]{name}")
        for line in STAGES[name](shop):
            console.print(f"  {line}")


def trained_base(shop: Workshop) -> Base:
    """The base with all that was trained."""
    base = _with_vae(shop)
    weights, _ = load_tensors(shop.cache / "denoiser.safetensors")
    for name, network in (("unet", base.unet), ("text_encoder", base.text_encoder)):
        network.load_state_dict({key.removeprefix(f"{name}."): t for key, t in weights.items() if key.startswith(name)})
    return base


def _schedule(minutes: float, lr: float) -> FitConfig:
    """How judges and encoder learn."""
    return FitConfig(
        steps=10**9, seconds=60 * minutes, lr=lr, warmup=50, schedule="cosine", weight_decay=0.02, ema=0.998
    )


def _seconds(shop: Workshop, *stages: str) -> dict[str, float]:
    """What trainings took, read from their last checkpoints."""
    paths = {stage: shop.cache / f"{stage}.run.safetensors" for stage in stages}
    return {stage: Checkpoint(path).read()[1]["seconds"] for stage, path in paths.items() if path.exists()}


def _scores(path: Path) -> dict[str, object]:
    return json.loads(_text(path) or "{}")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _with_vae(shop: Workshop) -> Base:
    base = shop.fresh_base()
    weights, about = load_tensors(shop.cache / "vae.safetensors")
    base.vae.load_state_dict(weights)
    base.vae.register_to_config(scaling_factor=1 / float(about["spread"]))
    return base


def _latents(shop: Workshop) -> tuple[denoiser.Latents, ...]:
    return tuple(
        denoiser.Latents(
            load_tensors(shop.cache / f"latents-{name}.safetensors")[0]["latents"], pictures.scenes, pictures.people
        )
        for name, pictures in zip(("portraits", "photographs"), shop.pictures(), strict=True)
    )


def _lines(run: Run, every: int) -> Iterator[str]:
    """A line per `every` steps of a run: mean loss, pace, what is left."""
    losses = list[float]()
    report: StepReport
    for report in run:
        losses.append(report.loss)
        if report.step % every == 0:
            mean, left = sum(losses) / len(losses), report.seconds * (1 / max(report.progress, 1e-9) - 1)
            details = " ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
            yield f"step {report.step} loss {mean:.4f} {details} {report.seconds:.0f} s, {left:.0f} s left"
            losses.clear()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    typer.run(main)
