"""Are they the right people in the right style? Identification among N people, with every ceiling, and speed.

    python -m benchmarks.first_light --people 100 --out runs/first-light

Every result lies in the output folder as soon as it is there: the same command again goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.judges import Judges
from benchmarks.speed import measure_speed
from benchmarks.subjects import Subjects, photographs, portraits
from hyperdreambooth import HyperDreamBooth, Personalization, PersonalizeConfig
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.evaluation.attributes import attribute_error
from hyperdreambooth.evaluation.identification import Rate, identified, paired_difference, scene_recognised
from hyperdreambooth.files import load_tensors, save_tensors, write_atomically
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.portraits.captions import STYLE_SCENES, STYLES, caption

BATCH = 20  # people fitted at once
OURS, TUNED_ALONE, HYPER_ALONE = "ours", "fine-tuning alone", "hypernetwork alone"
LONG_FIT = "200 steps alone"
console = Console(stderr=True)


@dataclass(frozen=True)
class Score:
    """How one way of making pictures did: per style and overall."""

    hits: Tensor  # (styles, N) bool, the right one of the N was nearest
    style: Rate
    attributes: float | None  # 0 all read back, 1 no better than a guess; plain style, portraits

    @property
    def identification(self) -> Rate:
        """Over all styles."""
        return Rate(int(self.hits.sum()), self.hits.numel())


def score(subjects: Subjects, pictures: Tensor, judges: Judges, galleries: dict[str, Tensor]) -> Score:
    """Judge pictures (styles, N, 3, S, S), one of each person in each style."""
    hits = torch.stack(
        [
            identified(galleries[style], judges.recogniser.embed(drawn), subjects.labels)
            for style, drawn in zip(STYLES, pictures, strict=True)
        ]
    )
    prompted = [scene for scene in STYLE_SCENES for _ in subjects.labels]
    style = scene_recognised(judges.scenes.read(pictures.flatten(0, 1)), prompted)
    truth = subjects.truth
    error = None if truth is None else attribute_error(judges.attributes.read(pictures[0]), truth)
    return Score(hits, style, error)


def true_pictures(subjects: Subjects) -> Tensor:
    """The references under every style's filter, (styles, N, 3, S, S)."""
    return torch.stack([subjects.true_picture(style) for style in STYLES])


@torch.no_grad()
def round_trip(booth: HyperDreamBooth, pictures: Tensor) -> Tensor:
    """Pictures (styles, N, 3, S, S) through the VAE and back."""
    parts = [booth.base.decode(booth.base.encode_pictures(some)) for some in pictures.flatten(0, 1).split(100)]
    return torch.cat(parts).view_as(pictures)


def drawn_people(
    booth: HyperDreamBooth,
    hypernetwork: HyperNetwork | None,
    subjects: Subjects,
    config: PersonalizeConfig,
    folder: Path,
) -> Iterator[str | Tensor]:
    """Personalise everybody, draw each in every style, a batch of people per file: yields lines, then the pictures."""
    prompts, parts = [caption(scene, "[V] face") for scene in STYLE_SCENES], []
    for first in range(0, len(subjects.references), BATCH):
        path = folder / f"people-{first:04d}.safetensors"
        if not path.exists():
            photos = list(subjects.references[first : first + BATCH])
            work = Personalization(booth.base, booth.adapters, hypernetwork, photos, config)
            for report in work:
                if report.done and report.done % 20 == 0:
                    yield f"people {first} to {first + BATCH}: {report.phase} {report.done} of {report.total}"
            pictures = [
                booth.draw(work.identities, prompt, DrawConfig(seed=first)).mul(255).round().byte()
                for prompt in prompts
            ]
            save_tensors(path, {"pictures": torch.stack(pictures)})  # (styles, batch, 3, S, S)
        parts.append(load_tensors(path)[0]["pictures"])
    yield torch.cat(parts, dim=1).float() / 255


def ways(booth: HyperDreamBooth, long_fit: bool) -> Iterator[tuple[str, HyperNetwork | None, PersonalizeConfig]]:
    """What is compared: name, who predicts, how people are made."""
    if long_fit:
        yield LONG_FIT, None, PersonalizeConfig(steps=200)
    yield TUNED_ALONE, None, PersonalizeConfig()
    if booth.hypernetwork is not None:
        yield HYPER_ALONE, booth.hypernetwork, PersonalizeConfig(steps=0)
        yield OURS, booth.hypernetwork, PersonalizeConfig()


def evaluate(booth: HyperDreamBooth, subjects: Subjects, judges: Judges, out: Path, long_fit: bool) -> dict[str, Score]:
    """Every row of the table, ceilings first."""
    galleries = {style: subjects.gallery(judges.recogniser, style) for style in STYLES}
    true = true_pictures(subjects)
    scores = {"true pictures": score(subjects, true, judges, galleries)}
    scores["VAE round trip"] = score(subjects, round_trip(booth, true), judges, galleries)
    for name, hypernetwork, config in ways(booth, long_fit):
        folder = out / subjects.world / name.replace(" ", "-")
        for result in drawn_people(booth, hypernetwork, subjects, config, folder):
            if isinstance(result, Tensor):
                scores[name] = score(subjects, result, judges, galleries)
            else:
                console.print(f"  {name}: {result}")
    return scores


def table(world: str, people: int, scores: dict[str, Score]) -> Table:
    """The scores for people to read."""
    result = Table(title=f"{world}: identification of {people}, chance {1 / people:.0%}")
    for column in ("", "all styles", *STYLES, "style recognised", "attribute error"):
        result.add_column(column)
    for name, value in scores.items():
        per_style = [f"{share:.0%}" for share in value.hits.float().mean(dim=1).tolist()]
        error = "" if value.attributes is None else f"{value.attributes:.2f}"
        result.add_row(name, str(value.identification), *per_style, f"{value.style.share:.1%}", error)
    return result


def as_json(scores: dict[str, Score], people: Tensor) -> dict[str, object]:
    """The scores for programs; with the paired difference of ours to fine-tuning alone where both are there."""
    result: dict[str, object] = {
        name: {
            "identification": value.identification.share,
            "interval": value.identification.interval,
            "by_style": dict(zip(STYLES, value.hits.float().mean(dim=1).tolist(), strict=True)),
            "style_recognised": value.style.share,
            "attribute_error": value.attributes,
        }
        for name, value in scores.items()
    }
    if OURS in scores:
        ours, others = scores[OURS].hits, scores[TUNED_ALONE].hits
        labels = people.expand(len(STYLES), -1).flatten()
        result["ours minus fine-tuning alone"] = paired_difference(ours.flatten(), others.flatten(), labels)
    return result


def main(
    people: Annotated[int, typer.Option(help="Of each world.")] = 100,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/first-light"),
    split: Annotated[str, typer.Option(help="tuning, or reporting: looked at only to report.")] = "tuning",
    photos: Annotated[
        Path | None, typer.Option(help="The recipe's photographs.safetensors, for the second world.")
    ] = None,
    long_fit: Annotated[bool, typer.Option(help="With the ceiling of 200 steps.")] = False,
    speed: Annotated[bool, typer.Option(help="With seconds, memory and ratios.")] = True,
) -> None:
    """Print the figures of the README and leave them as JSON."""
    torch.set_flush_denormal(True)
    booth, judges = HyperDreamBooth.load(), Judges.load()
    size = booth.base.picture_size
    worlds: list[Callable[[], Subjects]] = [lambda: portraits(split, people, size)]
    if photos is not None:
        worlds.append(lambda: photographs(photos, split, people, size))
    results: dict[str, object] = {"split": split, "people": people, "base": booth.fingerprint}
    for make in worlds:
        subjects = make()
        scores = evaluate(booth, subjects, judges, out / split, long_fit)
        Console().print(table(subjects.world, len(subjects.references), scores))
        results[subjects.world] = as_json(scores, subjects.labels)
    if speed:
        results["speed"] = measure_speed(booth)
    write_atomically(out / f"{split}.json", lambda part: part.write_text(json.dumps(results, indent=1) + "\n"))


if __name__ == "__main__":
    typer.run(main)
