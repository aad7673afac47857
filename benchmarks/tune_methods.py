"""Which settings does a method want? One search for all, on tuning people, scored as in reports.

    python -m benchmarks.tune_methods                          # `SEARCH`: six settings of each method, for hours
    python -m benchmarks.tune_methods dreambooth@400,lr=3e-5/1e-4,prior=0/0.1 e4t,lr=1e-4,likeness=none --people 6
    python -m benchmarks.tune_methods lidb-dreambooth@200,lr=3e-3/1e-2 --bases 6x3,12x6,24x12,48x24

What is finished lies in the output folder, and is not done again.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from rich.console import Console
from rich.table import Table

from hyperdreambooth import HyperDreamBooth
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.baselines.methods import LiDB, method_of
from hyperdreambooth.baselines.work import Method
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.encoders import Panel
from hyperdreambooth.evaluation.prompts import SETS
from hyperdreambooth.evaluation.protocol import Evaluation
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.scores import MEASURES, Scoring
from hyperdreambooth.evaluation.subjects import portraits_of
from hyperdreambooth.fitting.finetune import Where
from hyperdreambooth.people import People
from hyperdreambooth.portraits.splits import TUNING
from hyperdreambooth.progress import log

SET = replace(SETS["quick"], plain=2, nobody=1)
SEARCH = (  # as many of each: three rates, and two schedules where the method has one, else two likenesses
    "hyperdreambooth,lr=7e-3/1e-2/1.4e-2,likeness=1.5/3",
    "no-hyper,lr=7e-3/1e-2/1.4e-2,likeness=1.5/3",
    "fixed-rank,lr=1e-2/2e-2/4e-2,likeness=1.5/3",
    "dreambooth,lr=1e-5/2e-5/5e-5,schedule=constant/cosine",
    "dreambooth-agg-1,lr=2e-5/5e-5/1e-4,schedule=constant/cosine",
    "dreambooth-agg-2,lr=5e-5/1e-4/2e-4,schedule=constant/cosine",
    "lora-dreambooth,lr=5e-4/1e-3/2e-3,likeness=1.5/3",
    "lidb-dreambooth,lr=1e-3/3e-3/1e-2,likeness=1.5/3",
    "textual-inversion,lr=5e-4/2e-3/5e-3,schedule=constant/cosine",
    "e4t,lr=5e-5/1e-4/2e-4,schedule=constant/cosine",
)
CHOSEN_BY = ("face", "clip_t", "scene")  # the person once, the prompt as two judges see it
console = Console(stderr=True, width=140)


def variants(settings: list[str]) -> dict[str, Method]:
    """Methods with other settings, by a name that says which, of "METHOD[@STEPS],KEY=VALUE[/VALUE]...,...".

    Keys: lr; likeness ("none" for no such direction); noises; of identities relax, rank and where; of the others
    schedule (constant or cosine, which falls to 0); of DreamBooth prior, the weight of the class's pictures (0 for
    none), class, their prompt, and text-encoder (yes or no). Values in a row are tried one by one, with every value of
    the others.

    Raises:
        UserError: another method or key, a key that the method has not, a value that is none.
    """
    found = dict[str, Method]()
    for setting in settings:
        name, *pairs = setting.split(",")
        keys = [pair.partition("=")[0] for pair in pairs]
        for values in product(*(pair.partition("=")[2].split("/") for pair in pairs)):
            method: Any = method_of(name)
            for key, value in zip(keys, values, strict=True):
                try:
                    method = _with(method, key, value)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(f"got {key}={value} for {name}, expected a setting that it has") from error
            found["-".join([name, *(f"{key}{value}" for key, value in zip(keys, values, strict=True))])] = method
    return {name.replace(" ", "_"): method for name, method in found.items()}


def _with(method: Any, key: str, value: str) -> Any:
    """A method with one other setting. Raises whatever it does for one that it cannot have."""
    number = None if value == "none" else value
    if key == "likeness":
        return replace(method, drawing=replace(method.drawing, likeness=number and float(number)))
    if isinstance(method, LiDB):
        places = {one: one for one in get_args(Where)}
        kinds: dict[str, Any] = {"lr": float, "noises": int, "relax": str, "rank": int, "where": places.__getitem__}
        return replace(method, config=replace(method.config, **{key: kinds[key](value)}))
    if key == "lr":
        return replace(method, fit=replace(method.fit, lr=float(value)))
    if key == "schedule":
        return replace(method, fit=replace(method.fit, schedule={one: one for one in ("constant", "cosine")}[value]))
    if key == "noises":
        return replace(method, objective=replace(method.objective, noises=int(value)))
    if key == "text-encoder":
        return replace(method, text_encoder={"yes": True, "no": False}[value])
    if key == "prior" and not float(value):
        return replace(method, prior=None)
    field, kind = {"prior": ("weight", float), "class": ("prompt", str)}[key]
    return replace(method, prior=replace(method.prior, **{field: kind(value)}))


def booth_of(bases: str | None) -> HyperDreamBooth:
    """The embedded base, or that with LiDB bases of other sizes, "AxB", for which there is no hypernetwork.

    Raises:
        UserError: sizes without sense. SiteTooNarrow: a layer has no room for such bases.
    """
    if bases is None:
        return HyperDreamBooth.load("embedded")
    a, mark, b = bases.partition("x")
    if not (mark and a.isdecimal() and b.isdecimal() and int(a) and int(b)):
        raise UserError(f"got bases of {bases!r}, expected AxB, such as 48x24")
    base = load_base("embedded")
    base.card = replace(base.card, a=int(a), b=int(b))
    return HyperDreamBooth(base)


def people_of(count: int, size: int) -> People:
    """The first tuning portraits, each as in its reference of `size` pixels."""
    seeds = TUNING[:count]
    references = portraits_of(seeds, size).references
    return People(tuple(f"portrait-{seed}" for seed in seeds), references.unsqueeze(1))


def main(
    settings: Annotated[
        list[str] | None,
        typer.Argument(help=r"METHOD\[@STEPS],KEY=VALUE\[/VALUE]...,...", show_default="those of SEARCH"),
    ] = None,
    people: Annotated[int, typer.Option(help="Tuning portraits.")] = 6,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/tune-methods"),
    bases: Annotated[
        str | None, typer.Option(help="Sizes of LiDB's bases, AxB,AxB,...: a table of each.", show_default="the base's")
    ] = None,
    floor: Annotated[float, typer.Option(help="Face Rec. below which there is no sum: nobody has been drawn.")] = 0.3,
) -> None:
    """Print a table of every method and setting."""
    torch.set_flush_denormal(True)
    log.setLevel(logging.ERROR)
    try:
        tried = variants(settings or list(SEARCH))
        booths = {name: booth_of(name) for name in (bases.split(",") if bases else [None])}
        folders = {name: out if name is None else out / name for name in booths}
        everybody = people_of(people, next(iter(booths.values())).base.picture_size)  # bases do not change it
        evaluations = {name: Evaluation(booth, everybody, SET, folders[name]) for name, booth in booths.items()}
    except UserError as error:
        raise typer.BadParameter(str(error)) from error
    for name, evaluation in evaluations.items():
        for method_name, method in tried.items():
            for _ in evaluation.of(method_name, method, people):
                pass
            console.print(f"{method_name}: done")
        console.print(_table(folders[name], list(tried), floor, name))


def _table(out: Path, names: list[str], floor: float, bases: str | None) -> Table:
    """A row for each, by `scores.MEASURES`; the sum of those in `CHOSEN_BY` decides, where the person can be seen."""
    scoring = Scoring(RunFolder(out), Panel.load())
    title = f"{len(scoring.names)} tuning portraits" + (f", bases {bases}" if bases else "")
    table = Table("", *MEASURES.values(), "sum", title=title)
    for scores in (scoring.true(), *(scoring.of(name) for name in names)):
        means = {name: float(scores.measures[name].nanmean()) for name in MEASURES}
        total = f"{sum(means[name] for name in CHOSEN_BY):.3f}" if means["face"] >= floor else "nobody"
        table.add_row(scores.method, *(f"{mean:.3f}" for mean in means.values()), total)
    return table


if __name__ == "__main__":
    typer.run(main)
