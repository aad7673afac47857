"""Which learning rate and likeness does a method want? One search for all, on tuning people, scored as in reports.

    python -m benchmarks.tune_methods dreambooth=3e-5,1e-4,1e-4:none textual-inversion=5e-3:3 --people 6 --out runs/tune

What is finished lies in the output folder, and is not done again.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from hyperdreambooth import HyperDreamBooth
from hyperdreambooth.baselines.methods import LiDB, method_of
from hyperdreambooth.baselines.work import Method
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.encoders import Panel
from hyperdreambooth.evaluation.prompts import SETS
from hyperdreambooth.evaluation.protocol import Evaluation
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.scores import MEASURES, Scoring
from hyperdreambooth.evaluation.subjects import portraits_of
from hyperdreambooth.people import People
from hyperdreambooth.portraits.splits import TUNING
from hyperdreambooth.progress import log

SET = replace(SETS["quick"], plain=2, nobody=1)
CHOSEN_BY = ("face", "clip_t", "scene")  # the person once, the prompt as two judges see it
console = Console(stderr=True, width=140)


def variants(settings: list[str]) -> dict[str, Method]:
    """Methods with other learning rates and likenesses, by name and both, of settings "METHOD=RATE[:LIKENESS],...".

    Raises:
        UserError: another method, a rate or a likeness that is no number.
    """
    found = dict[str, Method]()
    for setting in settings:
        name, _, choices = setting.partition("=")
        for choice in choices.split(","):
            try:
                rate, drawing = _numbers(choice)
            except ValueError as error:
                raise UserError(f"got {setting!r}, expected METHOD=RATE[:LIKENESS],...") from error
            method: Any = method_of(name)
            method = (
                replace(method, config=replace(method.config, lr=rate))
                if isinstance(method, LiDB)
                else replace(method, fit=replace(method.fit, lr=rate))
            )
            found[f"{name}-{choice.replace(':', '-l')}"] = replace(method, drawing=replace(method.drawing, **drawing))
    return found


def _numbers(choice: str) -> tuple[float, dict[str, float | None]]:
    """The learning rate, and what is other in the drawing: nothing where no likeness is given."""
    rate, _, likeness = choice.partition(":")
    return float(rate), {"likeness": None if likeness == "none" else float(likeness)} if likeness else {}


def main(
    settings: Annotated[list[str], typer.Argument(help="METHOD=RATE[:LIKENESS],...")],
    people: Annotated[int, typer.Option(help="Tuning portraits.")] = 6,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/tune-methods"),
) -> None:
    """Print a table of every method and learning rate."""
    torch.set_flush_denormal(True)
    log.setLevel(logging.ERROR)
    try:
        tried = variants(settings)
    except UserError as error:
        raise typer.BadParameter(str(error)) from error
    booth = HyperDreamBooth.load("embedded")
    seeds = TUNING[:people]
    references = portraits_of(seeds, booth.base.picture_size).references
    everybody = People(tuple(f"portrait-{seed}" for seed in seeds), references.unsqueeze(1))
    evaluation = Evaluation(booth, everybody, SET, out)
    for name, method in tried.items():
        for _ in evaluation.of(name, method, people):
            pass
        console.print(f"{name}: done")
    console.print(_table(out, list(tried)))


def _table(out: Path, names: list[str]) -> Table:
    """A row for each, by `scores.MEASURES`; the sum of those in `CHOSEN_BY` decides."""
    scoring = Scoring(RunFolder(out), Panel.load())
    table = Table("", *MEASURES.values(), "sum", title=f"{len(scoring.names)} tuning portraits")
    for scores in (scoring.true(), *(scoring.of(name) for name in names)):
        means = {name: float(scores.measures[name].nanmean()) for name in MEASURES}
        total = sum(means[name] for name in CHOSEN_BY)
        table.add_row(scores.method, *(f"{mean:.3f}" for mean in means.values()), f"{total:.3f}")
    return table


if __name__ == "__main__":
    typer.run(main)
