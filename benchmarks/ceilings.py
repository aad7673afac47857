"""Where is a person lost between the picture and the numbers? What each part of the hypernetwork could hold at best.

    python -m benchmarks.ceilings --people 10 --among 20 --out runs/ceilings

Tuning portraits, drawn in every style: as predicted; then with one part after the other fitted to true pictures of them
in all styles, which no single photograph tells. The features alone: what the decoder can say, if the encoder sees all.
The predicted numbers: what one rank can hold. The same with fresh ranks: what the weight space can. Last, the people
that the hypernetwork learnt from. What is finished lies in the output folder, and is not done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.first_light import PROMPTS, Way, digest_of, drawn_people
from benchmarks.judges import Judges
from benchmarks.kept import kept
from benchmarks.score import HYPER_ALONE, Score, score, table
from benchmarks.subjects import PORTRAITS, galleries_of, portraits
from hyperdreambooth import HyperDreamBooth, Identity, PersonalizeConfig
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.embedded import JUDGES
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.subjects import Subjects
from hyperdreambooth.fitting.plan import keep_plan
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, steps
from hyperdreambooth.hypernetwork.loss import People, denoising_together
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.people import encode_crowd, read_people
from hyperdreambooth.portraits.captions import STYLES
from hyperdreambooth.progress import log

LEARNT_FROM = "alone, people it learnt from"
PLAIN_VIEWS = 4
PROMPT = "a [V] face"
console = Console(stderr=True)


@dataclass(frozen=True)
class Part:
    """Something that is fitted, and the numbers (N, S, R, a + b) that it stands for."""

    parameters: Mapping[str, Tensor]
    numbers: Callable[[], Tensor]


def parts(network: HyperNetwork, pictures: Tensor, ranks: int) -> dict[str, Part]:
    """What can be fitted, by name, each beginning where pictures (N, 3, H, W) in [0, 1] of the people lead to."""
    with torch.no_grad():
        features = network.encoder(pictures)  # (N, F, D)
        predicted = network.numbers(network.decode(features))  # (N, S, 1, a + b)
    fresh = network.space.start(ranks, first=1).expand(len(pictures), -1, -1, -1)
    seen, one, several, beside = (_leaf(tensor) for tensor in (features, predicted, predicted, fresh))
    return {
        "features fitted": Part({"features": seen}, lambda: network.numbers(network.decode(seen))),
        "one rank fitted": Part({"numbers": one}, lambda: one),
        f"{1 + ranks} ranks fitted": Part(
            {"numbers": several, "fresh": beside}, lambda: torch.cat([several, beside.to(several)], dim=2)
        ),
    }


def fit_part(booth: HyperDreamBooth, part: Part, people: People, config: FitConfig, noises: int, path: Path) -> Tensor:
    """Fit a part to all pictures of N people, everybody under the same noises; the numbers (N, S, R, a + b)."""
    generator, rows = torch.Generator().manual_seed(0), torch.arange(len(people.pictures))

    def loss(_step: int) -> Tensor:
        worn = part.numbers()
        losses = denoising_together(booth.base, booth.adapters, worn, people, rows, noises, PROMPT, generator)
        return losses.sum() / noises  # of each person by itself, however many there are

    checkpoint = Checkpoint(path)
    for report in steps(part.parameters, loss, config, checkpoint=checkpoint, generators={"draws": generator}):
        if report.step % 20 == 0:
            console.print(f"    step {report.step} of {config.steps}, loss {report.loss / len(rows):.4f}")
    return part.numbers().detach()


def ceilings(
    booth: HyperDreamBooth,
    judges: Judges,
    people: int,
    among: int,
    config: FitConfig,
    noises: int,
    ranks: int,
    out: Path,
    drawing: DrawConfig | None = None,
) -> dict[str, Score]:
    """The first `people` tuning portraits, told apart among the first `among`: a score for every row of the table.

    Raises:
        UserError: there is no hypernetwork, or fewer are told apart than are judged; or the folder holds results of
            another base, hypernetwork or other settings.
    """
    network, drawing = booth.hypernetwork, drawing or DrawConfig()
    if network is None or among < people:
        raise UserError(
            f"got {'no' if network is None else 'a'} hypernetwork, {people} people among {among}: expected one, and no "
            "more people than they are told apart from"
        )
    alone, size = Way(network, PersonalizeConfig(steps=0), drawing), booth.base.picture_size
    subjects, galleries = (
        portraits("tuning", people, size),
        galleries_of(portraits("tuning", among, size), judges.recogniser),
    )
    scores = {HYPER_ALONE: score(subjects, _drawn(booth, HYPER_ALONE, alone, subjects, out), judges, galleries)}
    seeds = PORTRAITS["tuning"]
    views = read_people(f"portraits:{seeds[0]}-{seeds[people - 1]}", size, PLAIN_VIEWS, lambda _: None)
    crowd = encode_crowd(booth.base, views, STYLES[1:])
    learnt = People(crowd.pictures, crowd.latents, network.predict(subjects.references), crowd.masks, crowd.prompts)
    about = {"base": booth.fingerprint, "hypernetwork": digest_of(network), "people": repr((people, noises, config))}
    about |= {"drawing": repr(drawing), "prompts": repr(PROMPTS)}
    keep_plan(out, {"format": "hyperdreambooth-ceilings-1", **about}, {})  # fits that were interrupted are of no other
    for name, part in parts(network, subjects.references.to(booth.base.device), ranks).items():
        folder = out / name.replace(" ", "-")

        def make(name: str = name, part: Part = part, folder: Path = folder) -> Tensor:
            console.print(f"  {name}")
            weights = fit_part(booth, part, learnt, config, noises, folder / "fit.run.safetensors").cpu()
            space = booth.space.of(weights)
            persons = [Identity(own, space.info, booth.fingerprint, blocks=space.blocks) for own in weights]
            return torch.stack([booth.draw(persons, prompt, drawing) for prompt in PROMPTS])

        drawn = kept(folder / "pictures.safetensors", about, make)
        scores[name] = score(subjects, drawn, judges, galleries)
    known = portraits("training", people, size)
    galleries = galleries_of(portraits("training", among, size), judges.recogniser)
    scores[LEARNT_FROM] = score(known, _drawn(booth, LEARNT_FROM, alone, known, out), judges, galleries)
    return scores


def _drawn(booth: HyperDreamBooth, name: str, way: Way, subjects: Subjects, out: Path) -> Tensor:
    return drawn_people(booth, name, way, subjects, out / name.replace(" ", "-").replace(",", ""))


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def main(
    people: Annotated[int, typer.Option(help="Tuning portraits who are fitted.")] = 10,
    among: Annotated[int, typer.Option(help="Portraits whom they are told apart from, themselves among them.")] = 20,
    fit_steps: Annotated[int, typer.Option("--steps", help="Of every fit.")] = 160,
    noises: Annotated[int, typer.Option(help="Samples through the U-Net per person and step.")] = 8,
    lr: Annotated[float, typer.Option(help="Learning rate, falling to 0.")] = 3e-2,
    ranks: Annotated[int, typer.Option(help="Fresh ranks of the last fit.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/ceilings"),
    hypernetwork: Annotated[str, typer.Option(help="A file or a folder.")] = "embedded",
    judges: Annotated[Path, typer.Option(help="Folder of the judges.")] = JUDGES,
) -> None:
    """Print the table."""
    torch.set_flush_denormal(True)
    log.setLevel(logging.ERROR)
    booth = HyperDreamBooth.load("embedded", hypernetwork=hypernetwork)
    config = FitConfig(fit_steps, lr=lr, schedule="cosine")
    try:
        scores = ceilings(booth, Judges.load(judges), people, among, config, noises, ranks, out)
    except UserError as error:
        raise typer.BadParameter(str(error)) from error
    Console(width=160).print(table("portraits", scores, among))


if __name__ == "__main__":
    typer.run(main)
