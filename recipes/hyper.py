"""Stages: pre-optimised people of both worlds, and the hypernetwork that learns from them."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError
from hyperdreambooth.files import write_atomically
from hyperdreambooth.fitting.fit import Pictures as Encoded
from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig, load_people, preoptimize
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.hypernetwork.training import CURVE_FILE, TrainConfig, train
from hyperdreambooth.people import People, encode_people, read_people, split_people
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.portraits.captions import STYLES
from recipes.photographs import Photographs
from recipes.workshop import UNTIL_TIME_IS_UP

VIEWS = 4  # of a portrait; a photograph and its mirror image are two
WEIGHTS_SHARE = 0.2  # of the hypernetwork's time, for the weight loss alone
EVERY = 50  # steps of a fit between two lines
SECONDS_FILE = "seconds.json"
_AT_ONCE = 128  # people drawn or encoded between two lines


def portraits(count: int, size: int) -> Generator[str, None, People]:
    """Draw the people with the seeds below `count`, all in the same `VIEWS` views; a line per 128 of them."""
    parts = []
    for first in range(0, count, _AT_ONCE):
        last = min(first + _AT_ONCE, count) - 1
        parts.append(read_people(f"portraits:{first}-{last}", size, VIEWS, lambda _: None))
        yield f"{last + 1} of {count} people drawn"
    names = tuple(name for part in parts for name in part.names)
    return People(names, torch.cat([part.pictures for part in parts]))  # (N, V, 3, S, S)


def photographed(photographs: Photographs, count: int, size: int) -> People:
    """The first `count` photographs, each as it is and mirrored."""
    plain = photographs.centre(size)[:count]  # (N, 3, S, S)
    return People(photographs.names[:count], torch.stack([plain, plain.flip(-1)], dim=1))


def is_fitted(folder: Path, count: int, minutes: float) -> bool:
    """Whether `count` people are fitted there, or the time for it is spent."""
    try:
        return len(load_people(folder).names) >= count or _spent(folder) >= 60 * minutes
    except UserError:  # nobody yet
        return False


def fit_world(
    booth: HyperDreamBooth, people: People, folder: Path, config: PreoptimizeConfig, minutes: float
) -> Iterator[str]:
    """Pre-optimise the people of a world into a folder, until the shard in which time is up is finished."""
    pictures = yield from _encode(booth.base, people)
    spent = _spent(folder)
    for report in preoptimize(booth.base, booth.adapters, people.names, pictures, folder, config):
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
    fitted: Mapping[str, tuple[People, Path]],
    out: Path,
    config: TrainConfig,
    minutes: float,
) -> Iterator[str]:
    """Train on the people of all worlds for so many minutes, some of the fitted ones held out; a line per curve's."""
    split = {}
    for world, (people, folder) in fitted.items():
        split[world] = split_people(booth.base, people, folder, styles=STYLES[1:])
        yield f"{world}: {len(people.names)} people encoded in all styles"
    training = {world: some["people"] for world, (some, _) in split.items()}
    held_out = {world: some["people"] for world, (_, some) in split.items()}
    seconds = {"weights": 60 * minutes * WEIGHTS_SHARE, "both": 60 * minutes * (1 - WEIGHTS_SHARE)}
    phases = {
        name: replace(fit, steps=UNTIL_TIME_IS_UP, seconds=seconds[name]) for name, fit in config.phases().items()
    }
    config = replace(config, **phases)
    for report in train(network, booth.base, booth.adapters, training, held_out, out, config):
        if report.held_out:
            figures = " ".join(f"{name} {value:.4g}" for name, value in report.held_out.items())
            yield f"{report.phase} step {report.step.step} loss {report.step.loss:.4f} {figures}"


def last_of_curve(folder: Path) -> dict[str, dict[str, Any]]:
    """The last line of each phase in the curve of a training, by name of the phase."""
    lines = [json.loads(line) for line in (folder / CURVE_FILE).read_text().splitlines()]
    return {str(line["phase"]): line for line in lines}


def _encode(base: Base, people: People) -> Generator[str, None, Encoded]:
    """`encode_people`, a line per 128 of them."""
    parts = []
    for first in range(0, len(people.names), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        parts.append(encode_people(base, People(people.names[some], people.pictures[some])))
        yield f"{first + len(parts[-1].latents)} of {len(people.names)} people encoded"
    masks = [part.masks for part in parts if part.masks is not None]
    return Encoded(torch.cat([part.latents for part in parts]), torch.cat(masks) if masks else None)


def _spent(folder: Path) -> float:
    """Seconds that the finished shards took."""
    path = folder / SECONDS_FILE
    return float(json.loads(path.read_text())) if path.exists() else 0.0


def _write_spent(folder: Path, seconds: float) -> None:
    write_atomically(folder / SECONDS_FILE, lambda part: part.write_text(json.dumps(seconds)))
