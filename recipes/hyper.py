"""Stages: pre-optimised people of both worlds, and the hypernetwork that learns from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig, preoptimize
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.hypernetwork.training import TrainConfig, train
from hyperdreambooth.people import People, encode_people, read_people, split_people
from hyperdreambooth.pipeline import HyperDreamBooth
from recipes.photographs import load_photographs
from recipes.pictures import as_floats

VIEWS = 4  # of a portrait; a photograph and its mirror image are two
WEIGHTS_SHARE = 0.2  # of the hypernetwork's time, for the weight loss alone
FIT = PreoptimizeConfig()


def worlds(portraits: int, photographs: int, framed: Path, size: int) -> dict[str, People]:
    """The training people who are fitted: the first so many of each world, by name of the world."""
    held = load_photographs(framed).split("training")
    room = (held.pictures.shape[-1] - size) // 2
    plain = as_floats(held.pictures[:photographs, :, room : room + size, room : room + size])  # (N, 3, S, S)
    return {
        "portraits": read_people(f"portraits:0-{portraits - 1}", size, VIEWS, lambda _: None),
        "photographs": People(held.names[:photographs], torch.stack([plain, plain.flip(-1)], dim=1)),
    }


def fit_world(booth: HyperDreamBooth, people: People, folder: Path) -> Iterator[str]:
    """Pre-optimise everybody of a world into a folder; a line per shard."""
    pictures = encode_people(booth.base, people)
    for report in preoptimize(booth.base, booth.adapters, people.names, pictures, folder, FIT):
        if report.step.progress >= 1.0:
            done = min(report.people + FIT.shard, report.total)
            yield f"{done} of {report.total} people, denoising {report.step.metrics['denoising']:.4f}"


def train_network(
    network: HyperNetwork,
    booth: HyperDreamBooth,
    fitted: Mapping[str, tuple[People, Path]],
    out: Path,
    minutes: float,
) -> Iterator[str]:
    """Train on the fitted people of all worlds; a line where the curve gets one."""
    split = {world: split_people(booth.base, people, folder) for world, (people, folder) in fitted.items()}
    training = {world: some["people"] for world, (some, _) in split.items()}
    held_out = {world: some["people"] for world, (_, some) in split.items()}
    config = TrainConfig()
    seconds = {"weights": 60 * minutes * WEIGHTS_SHARE, "both": 60 * minutes * (1 - WEIGHTS_SHARE)}
    phases = {name: replace(fit, steps=10**9, seconds=seconds[name]) for name, fit in config.phases().items()}
    config = replace(config, **phases)
    for report in train(network, booth.base, booth.adapters, training, held_out, out, config):
        if report.held_out:
            figures = " ".join(f"{name} {value:.4g}" for name, value in report.held_out.items())
            yield f"{report.phase} step {report.step.step} loss {report.step.loss:.4f} {figures}"
