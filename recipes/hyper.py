"""Stages: the people of both worlds, pre-optimised some of them, and the hypernetwork that learns from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError
from hyperdreambooth.faces import face_masks
from hyperdreambooth.files import load_tensors, save_tensors, write_atomically
from hyperdreambooth.fitting.fit import Pictures
from hyperdreambooth.fitting.preoptimize import FittedPeople, PreoptimizeConfig, load_people, preoptimize
from hyperdreambooth.fitting.processes import ALONE, Processes
from hyperdreambooth.hypernetwork.curve import Curve
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.hypernetwork.training import CURVE_FILE, TrainConfig, train
from hyperdreambooth.people import LOOKALIKE, Crowd, People, encode_crowd, prompts_of, read_people, split_people
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.portraits.captions import STYLES
from recipes.photographs import Photographs, lookalike
from recipes.workshop import UNTIL_TIME_IS_UP

VIEWS = 4  # of a portrait; a photograph and its mirror image are two
WEIGHTS_SHARE = 0.05  # of the hypernetwork's time, for the weight loss alone
EVERY = 50  # steps of a fit between two lines
SECONDS_FILE = "seconds.json"
SHARD = 128  # people in a file
CROWD_STYLES = STYLES[1:]  # under whose filters they are shown too


def portraits(size: int) -> Callable[[int, int], People]:
    """Makes the people with the seeds from one up to another, all in the same `VIEWS` views."""
    return lambda first, last: read_people(f"portraits:{first}-{last - 1}", size, VIEWS, lambda _: None)


def photographed(photographs: Photographs, size: int) -> Callable[[int, int], People]:
    """Takes the people from one up to another, each as in the photograph and mirrored; behind all, their lookalikes."""
    everybody, plain = len(photographs.names), photographs.centre(size)

    def some(first: int, last: int) -> People:
        names, pictures = list[str](), list[Tensor]()
        for number in range(first, last):
            copy, row = divmod(number, everybody)
            names.append(photographs.names[row] + (f"{LOOKALIKE}{copy}" if copy else ""))
            generator = torch.Generator().manual_seed(number)
            pictures.append(lookalike(plain[row], generator) if copy else plain[row])
        stacked = torch.stack(pictures)  # (n, 3, S, S)
        return People(tuple(names), torch.stack([stacked, stacked.flip(-1)], dim=1))

    return some


def make_crowd(base: Base, folder: Path, world: str, count: int, people: Callable[[int, int], People]) -> Iterator[str]:
    """Write the shards that are missing of the first `count` people of a world, encoded; a line per shard."""
    for path, first, last in _shards(folder, world, count):
        if not path.exists():
            crowd = encode_crowd(base, people(first, last), CROWD_STYLES)
            tensors = {"pictures": crowd.pictures, "latents": crowd.latents.half()}
            save_tensors(path, tensors, {"names": json.dumps(crowd.names)})
            yield f"{world}: {last} of {count} people"


def load_crowd(base: Base, folder: Path, world: str, count: int) -> Crowd:
    """The first `count` people of a world, as `make_crowd` left them."""
    shards = [load_tensors(path) for path, _, _ in _shards(folder, world, count)]
    names = tuple(name for _, about in shards for name in json.loads(about["names"]))
    pictures, latents = (torch.cat([tensors[key] for tensors, _ in shards]) for key in ("pictures", "latents"))
    return Crowd(names, pictures, latents, face_masks(latents), prompts_of(CROWD_STYLES, base.class_noun))


def _shards(folder: Path, world: str, count: int) -> Iterator[tuple[Path, int, int]]:
    """File, first person and the one after the last of each shard."""
    for first in range(0, count, SHARD):
        last = min(first + SHARD, count)
        yield folder / f"crowd-{world}-{first}-{last}.safetensors", first, last


def is_fitted(folder: Path, count: int, minutes: float) -> bool:
    """Whether `count` people are fitted or left out there, or the time for it is spent."""
    fitted = _fitted(folder)
    settled = 0 if fitted is None else len(fitted.names) + len(fitted.left_out)
    return settled >= count or (settled > 0 and _spent(folder) >= 60 * minutes)


def people_fitted(folder: Path) -> int:
    """How many people are fitted there."""
    fitted = _fitted(folder)
    return 0 if fitted is None else len(fitted.names)


def _fitted(folder: Path) -> FittedPeople | None:
    """Who is fitted there; None where nobody is yet."""
    try:
        return load_people(folder)
    except UserError:
        return None


def fit_world(
    booth: HyperDreamBooth, crowd: Crowd, folder: Path, config: PreoptimizeConfig, minutes: float
) -> Iterator[str]:
    """Pre-optimise a crowd on its plain pictures into a folder, until the shard in which time is up is finished."""
    plain = crowd.pictures.shape[1]
    pictures = Pictures(crowd.latents[:, :plain].float(), crowd.masks[:, :plain])
    spent = _spent(folder)
    for report in preoptimize(booth.base, booth.adapters, crowd.names, pictures, folder, config):
        if spent >= 60 * minutes:
            return
        step, done = report.step, min(report.people + config.shard, report.total)
        if step.progress >= 1.0:
            spent += step.seconds
            _write_spent(folder, spent)
            yield f"{done} of {report.total} people fitted, denoising {step.metrics['denoising']:.4f}, {spent:.0f} s"
        elif step.step % EVERY == 0:
            yield f"people {report.people} to {done}: step {step.step} of {config.fit.steps}"


def train_network(
    network: HyperNetwork,
    booth: HyperDreamBooth,
    fitted: Mapping[str, tuple[Crowd, Path]],
    out: Path,
    config: TrainConfig,
    minutes: float,
    lr: float,
    processes: Processes = ALONE,
) -> Iterator[str]:
    """Train on the people of all worlds for so many minutes, some of the fitted ones held out; a line per curve's."""
    split = {world: split_people(booth.base, crowd, folder) for world, (crowd, folder) in fitted.items()}
    training = {world: some["people"] for world, (some, _) in split.items()}
    held_out = {world: some["people"] for world, (_, some) in split.items()}
    first = 60 * minutes * WEIGHTS_SHARE if config.weights is not None else 0.0
    seconds = {"weights": first, "both": 60 * minutes - first}
    phases = {
        name: replace(fit, steps=UNTIL_TIME_IS_UP, seconds=seconds[name], lr=lr)
        for name, fit in config.phases().items()
    }
    config = replace(config, **phases)
    for report in train(network, booth.base, booth.adapters, training, held_out, out, config, processes):
        if report.held_out:
            figures = " ".join(f"{name} {value:.4g}" for name, value in report.held_out.items())
            yield f"{report.phase} step {report.step.step} loss {report.step.loss:.4f} {figures}"


def last_of_curve(folder: Path) -> dict[str, dict[str, Any]]:
    """The last line of each phase in the curve of a training, by name of the phase; none without a curve."""
    return {str(line["phase"]): line for line in Curve(folder / CURVE_FILE).lines()}


def _spent(folder: Path) -> float:
    """Seconds that the finished shards took."""
    path = folder / SECONDS_FILE
    return float(json.loads(path.read_text())) if path.exists() else 0.0


def _write_spent(folder: Path, seconds: float) -> None:
    write_atomically(folder / SECONDS_FILE, lambda part: part.write_text(json.dumps(seconds)))
