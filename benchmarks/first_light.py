"""Are they the right people in the right style? Identification among N people, with every ceiling, and speed.

    python -m benchmarks.first_light --people 100 --photos CACHE/photographs.safetensors --out runs/first-light

Every result lies in the output folder as soon as it is there: the same command again goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.judges import Judges
from benchmarks.kept import kept
from benchmarks.score import HYPER_ALONE, LONG_FIT, OURS, ROUND_TRIP, TRUE, TUNED_ALONE, Score, as_json, score, table
from benchmarks.speed import measure_speed
from benchmarks.subjects import both_worlds, galleries_of
from hyperdreambooth import HyperDreamBooth, Personalization, PersonalizeConfig
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.embedded import JUDGES
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.subjects import Subjects
from hyperdreambooth.files import write_text
from hyperdreambooth.fitting.plan import digest
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.portraits.captions import STYLE_SCENES, STYLES, caption
from hyperdreambooth.progress import log

BATCH = 20  # people made at once
PROMPTS = tuple(caption(scene, "[V] face") for scene in STYLE_SCENES)
console = Console(stderr=True)


@dataclass(frozen=True)
class Way:
    """How people are made and drawn: who predicts them, if anybody, and how they are fine-tuned."""

    hypernetwork: HyperNetwork | None
    config: PersonalizeConfig
    drawing: DrawConfig = DrawConfig()  # noqa: RUF009  # frozen

    def about(self, booth: HyperDreamBooth) -> dict[str, str]:
        """All of it, for a file's metadata."""
        tuning = repr(self.config.finetune_in(booth.space)) if self.config.steps else "none"
        return {
            "hypernetwork": digest_of(self.hypernetwork),
            "config": repr(self.config),
            "tuning": tuning,
            "drawing": repr(self.drawing),
        }


def ways(hypernetwork: HyperNetwork | None, long_fit: bool) -> dict[str, Way]:
    """What is compared, by name; without a hypernetwork, fine-tuning alone."""
    alone = {TUNED_ALONE: Way(None, PersonalizeConfig())}
    if long_fit:
        alone = {LONG_FIT: Way(None, PersonalizeConfig(steps=200))} | alone
    if hypernetwork is None:
        return alone
    predicted = Way(hypernetwork, PersonalizeConfig(steps=0))
    return alone | {HYPER_ALONE: predicted, OURS: Way(hypernetwork, PersonalizeConfig())}


@torch.no_grad()
def round_trip(booth: HyperDreamBooth, pictures: Tensor) -> Tensor:
    """Pictures (styles, N, 3, S, S) through the VAE and back."""
    parts = [booth.base.decode(booth.base.encode_pictures(some)).cpu() for some in pictures.flatten(0, 1).split(100)]
    return torch.cat(parts).view_as(pictures)


def drawn_people(booth: HyperDreamBooth, name: str, way: Way, subjects: Subjects, folder: Path) -> Tensor:
    """Everybody made this way, one picture in each style: (styles, N, 3, S, S); a batch of people per file."""
    parts = []
    for first in range(0, len(subjects.references), BATCH):
        references = subjects.references[first : first + BATCH]

        def make(first: int = first, references: Tensor = references) -> Tensor:
            console.print(f"  {subjects.world}, {name}: people {first + 1} to {first + len(references)}")
            return _draw(booth, way, references, first)

        about = way.about(booth) | {"base": booth.fingerprint, "people": digest(references), "prompts": repr(PROMPTS)}
        parts.append(kept(folder / f"people-{first:04d}.safetensors", about, make))
    return torch.cat(parts, dim=1)


def _draw(booth: HyperDreamBooth, way: Way, references: Tensor, seed: int) -> Tensor:
    """Make the people of references (n, 3, S, S) in one batch and draw them: (styles, n, 3, S, S)."""
    work = Personalization(booth.base, booth.adapters, way.hypernetwork, list(references), way.config)
    for report in work:
        if report.done and report.done % 20 == 0:
            console.print(f"    {report.phase} {report.done} of {report.total}")
    drawing = replace(way.drawing, seed=seed)
    return torch.stack([booth.draw(work.identities, prompt, drawing) for prompt in PROMPTS])


def digest_of(hypernetwork: HyperNetwork | None) -> str:
    """What tells a hypernetwork from any other; "none" of None."""
    return "none" if hypernetwork is None else digest(*hypernetwork.state_dict().values())


def evaluate(
    booth: HyperDreamBooth, subjects: Subjects, judges: Judges, compared: Mapping[str, Way], folder: Path
) -> Iterator[tuple[str, Score]]:
    """Every row of a world's table, ceilings first."""
    galleries = galleries_of(subjects, judges.recogniser)
    true = torch.stack([subjects.another_picture(style) for style in STYLES])  # (styles, N, 3, S, S)
    yield TRUE, score(subjects, true, judges, galleries)
    yield ROUND_TRIP, score(subjects, round_trip(booth, true), judges, galleries)
    for name, way in compared.items():
        pictures = drawn_people(booth, name, way, subjects, folder / name.replace(" ", "-"))
        yield name, score(subjects, pictures, judges, galleries)


def first_light(
    booth: HyperDreamBooth,
    judges: Judges,
    worlds: Iterable[Subjects],
    out: Path,
    split: str,
    long_fit: bool = False,
    speed: Callable[[HyperDreamBooth], Mapping[str, float]] | None = measure_speed,
) -> dict[str, object]:
    """All figures, which also lie in `out`/SPLIT.json from the first row on; prints the tables.

    Args:
        booth: base and hypernetwork to be judged; without a hypernetwork, its rows are left out.
        judges: see `Judges`.
        worlds: the people of each world, all of `split`.
        out: folder of the results; pictures that are there are not made again.
        split: "tuning" or "reporting".
        long_fit: with the ceiling of 200 steps.
        speed: what measures seconds and memory; None leaves them out.
    """
    results: dict[str, object] = {
        "split": split,
        "base": booth.fingerprint,
        "hypernetwork": digest_of(booth.hypernetwork),
    }

    def write() -> None:
        text = json.dumps(results, indent=1) + "\n"
        write_text(out / f"{split}.json", text)

    for subjects in worlds:
        scores = dict[str, Score]()
        for name, value in evaluate(
            booth, subjects, judges, ways(booth.hypernetwork, long_fit), out / split / subjects.world
        ):
            scores[name] = value
            results[subjects.world] = as_json(scores)
            write()
        Console().print(table(subjects.world, scores))
    if speed is not None:
        results["speed"] = dict(speed(booth))
        write()
    return results


def main(
    people: Annotated[int, typer.Option(help="Of each world, at most.")] = 100,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/first-light"),
    split: Annotated[
        Literal["tuning", "reporting"], typer.Option(help="tuning, or reporting: looked at only to report.")
    ] = "tuning",
    photos: Annotated[
        Path | None, typer.Option(help="The recipe's photographs.safetensors, for the second world.")
    ] = None,
    long_fit: Annotated[bool, typer.Option(help="With the ceiling of 200 steps.")] = False,
    speed: Annotated[bool, typer.Option(help="With seconds, memory and ratios.")] = True,
    base: Annotated[str, typer.Option(help="The base to judge.")] = "embedded",
    hypernetwork: Annotated[str, typer.Option(help="The hypernetwork to judge, a file or a folder.")] = "embedded",
    judges: Annotated[Path, typer.Option(help="Folder of the judges.")] = JUDGES,
) -> None:
    """Print the figures of the README and leave them as JSON."""
    torch.set_flush_denormal(True)
    log.setLevel(logging.ERROR)  # pictures of 64 pixels are framed already: that no face is found says nothing
    booth = HyperDreamBooth.load(base, hypernetwork=hypernetwork)
    try:
        worlds = both_worlds(split, people, booth.base.picture_size, photos)
    except UserError as error:
        raise typer.BadParameter(str(error)) from error
    first_light(booth, Judges.load(judges), worlds, out, split, long_fit, measure_speed if speed else None)


if __name__ == "__main__":
    typer.run(main)
