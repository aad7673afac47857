"""What does a setting of fine-tuning or drawing give? Every combination of some values, on tuning people.

    python -m benchmarks.tune lr=2e-2,3e-2,5e-2 guidance=2,3 --people 32 --out runs/tune

Figures as in first light, of tuning people alone; what is finished lies in the output folder, and is not done again.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.first_light import Way, drawn_people
from benchmarks.judges import Judges
from benchmarks.score import Score, score
from benchmarks.subjects import both_worlds, galleries_of
from hyperdreambooth import HyperDreamBooth, PersonalizeConfig
from hyperdreambooth.base.diffusion import Weighting
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.embedded import JUDGES
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.subjects import Subjects
from hyperdreambooth.files import write_text
from hyperdreambooth.fitting.finetune import FinetuneConfig, Relax
from hyperdreambooth.lidb import LiDBSpace
from hyperdreambooth.portraits.captions import STYLES
from hyperdreambooth.progress import log

PERSONALIZE = ("steps", "noises", "rank")
TUNING = ("lr", "low", "high", "pull", "fade")  # low, high: the window of the noise schedule
DRAWING = ("guidance", "likeness", "strength", "rescale")
KNOBS = (*PERSONALIZE, *TUNING, *DRAWING)

Values = dict[str, float]


@dataclass(frozen=True)
class Trial(PersonalizeConfig):
    """How people are made, with numbers that are no user's to set."""

    low: float = 0.0
    high: float = 1.0
    pull: float = 0.0
    fade: float | None = None

    def finetune_in(self, space: LiDBSpace) -> FinetuneConfig:
        """The preset, with this trial's numbers in it."""
        config = super().finetune_in(space)
        objective = replace(config.objective, window=(self.low, self.high), pull=self.pull)
        if self.fade is not None:
            objective = replace(objective, weighting=Weighting(fade=self.fade))
        return replace(config, objective=objective)


def combinations(settings: Sequence[str]) -> list[Values]:
    """Every combination of the values of settings such as "lr=2e-2,3e-2"; one empty one of no settings.

    Raises:
        UserError: another name, or a value that is no number.
    """
    axes = []
    for setting in settings:
        name, _, values = setting.partition("=")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise UserError(f"got {setting!r}, expected NAME=NUMBER,NUMBER...") from error
        if name not in KNOBS:
            raise UserError(f"got {name!r}, expected one of {', '.join(KNOBS)}")
        axes.append([(name, number) for number in numbers])
    return [dict(chosen) for chosen in itertools.product(*axes)]


def way(booth: HyperDreamBooth, values: Values, alone: bool, relax: Relax | None = None) -> Way:
    """People made and drawn with these values; alone: without the hypernetwork."""
    whole = {name: int(value) for name, value in values.items() if name in PERSONALIZE}
    trial = Trial(relax=relax, **whole, **{name: value for name, value in values.items() if name in TUNING})
    drawing = DrawConfig(**{name: value for name, value in values.items() if name in DRAWING})
    return Way(None if alone else booth.hypernetwork, trial, drawing)


def table(world: str, rows: Sequence[tuple[Values, Score]]) -> Table:
    """A row for each combination."""
    count = rows[0][1].people
    result = Table(title=f"{world}: {count} tuning people, chance {1 / count:.0%}")
    for column in ("setting", "all", *STYLES, "style kept", "attribute error"):
        result.add_column(column)
    for values, value in rows:
        name = " ".join(f"{knob} {number:g}" for knob, number in values.items()) or "as it is"
        kept = "" if value.style is None else f"{value.style.share:.0%}"
        error = "" if value.attributes is None else f"{value.attributes:.2f}"
        result.add_row(name, f"{value.share:.1%}", *(f"{share:.0%}" for share in value.by_style.values()), kept, error)
    return result


def tune(
    booth: HyperDreamBooth,
    subjects: Subjects,
    judges: Judges,
    tried: list[Values],
    out: Path,
    alone: bool,
    relax: Relax | None = None,
) -> None:
    """Judge every combination and print the table; the figures also lie in `out`/WORLD.json."""
    galleries = galleries_of(subjects, judges.recogniser)
    rows = list[tuple[Values, Score]]()
    for values in tried:
        name = "-".join(f"{knob}{number:g}" for knob, number in values.items()) or "as-it-is"
        marked = "-".join(["alone"] * alone + [relax] * (relax is not None) + [name])
        pictures = drawn_people(booth, name, way(booth, values, alone, relax), subjects, out / subjects.world / marked)
        rows.append((values, score(subjects, pictures, judges, galleries)))
        figures = [values | {"identification": value.share} | value.by_style for values, value in rows]
        text = json.dumps(figures, indent=1) + "\n"
        write_text(out / f"{subjects.world}.json", text)
    Console(width=160).print(table(subjects.world, rows))


def main(
    settings: Annotated[list[str] | None, typer.Argument(help=f"NAME=VALUE,VALUE of {', '.join(KNOBS)}.")] = None,
    people: Annotated[int, typer.Option(help="Tuning people of each world, at most.")] = 32,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/tune"),
    photos: Annotated[Path | None, typer.Option(help="The recipe's photographs.safetensors: photographs too.")] = None,
    alone: Annotated[bool, typer.Option(help="Without the hypernetwork.")] = False,
    relax: Annotated[Relax | None, typer.Option(help="Where fresh ranks live; what a base takes by itself.")] = None,
    base: Annotated[str, typer.Option(help="The base to tune on.")] = "embedded",
    hypernetwork: Annotated[str, typer.Option(help="A file or a folder.")] = "embedded",
    judges: Annotated[Path, typer.Option(help="Folder of the judges.")] = JUDGES,
) -> None:
    """Print a table of every combination of the settings."""
    torch.set_flush_denormal(True)
    log.setLevel(logging.ERROR)
    try:
        tried = combinations(settings or [])
    except UserError as error:
        raise typer.BadParameter(str(error)) from error
    booth = HyperDreamBooth.load(base, hypernetwork=hypernetwork)
    worlds = both_worlds("tuning", people, booth.base.picture_size, photos)
    panel = Judges.load(judges)
    for subjects in worlds:
        tune(booth, subjects, panel, tried, out, alone or booth.hypernetwork is None, relax)


if __name__ == "__main__":
    typer.run(main)
