"""How much of the numbers of pre-optimised portraits is the person? A hypernetwork can learn that share and no more.

    python -m benchmarks.explained CACHE/fitted-portraits --again 32

Prints the share of the fitted numbers that the attributes of people who were left out explain, and how well the
numbers come back when some of the people are fitted once more under other noises.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from hyperdreambooth import HyperDreamBooth
from hyperdreambooth.base.diffusion import Weighting
from hyperdreambooth.errors import UserError
from hyperdreambooth.fitting.explained import Repeatability, explained_share, repeatability
from hyperdreambooth.fitting.fit import Objective
from hyperdreambooth.fitting.plan import PLAN_FILE
from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig, fit_people, load_people
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.people import People, encode_people, read_people
from hyperdreambooth.portraits.person import truth_matrix

console = Console(stderr=True)


def seeds_of(names: Sequence[str]) -> list[int]:
    """The seeds of "portrait-7", ... Raises UserError for anybody else, of whom no truth is known."""
    try:
        return [int(name.removeprefix("portrait-")) for name in names]
    except ValueError as error:
        raise UserError(f"got people such as {names[0]}, expected portraits: only their truth is known") from error


def config_of(plan: dict[str, Any]) -> PreoptimizeConfig:
    """How the people of a plan were fitted."""
    made = plan["config"]
    fit = {name: tuple(value) if isinstance(value, list) else value for name, value in made["fit"].items()}
    objective = {**made["objective"], "window": tuple(made["objective"]["window"])}
    objective["weighting"] = Weighting(**objective["weighting"])
    return PreoptimizeConfig(FitConfig(**fit), Objective(**objective), made["shard"])


def fitted_again(booth: HyperDreamBooth, folder: Path, count: int) -> Repeatability:
    """Fit the first `count` people of a folder once more, everything as it was but the seed of the noises."""
    plan, fitted = json.loads((folder / PLAN_FILE).read_text()), load_people(folder)
    if plan["base"] != booth.fingerprint:
        raise UserError(f"{folder} was fitted on base {plan['base'][:8]}..., this is {booth.fingerprint[:8]}...")
    seeds = seeds_of(fitted.names[:count])
    views = plan["data"]["latents"]["shape"][1]
    parts = [read_people(f"portraits:{seed}", booth.base.picture_size, views, lambda _: None) for seed in seeds]
    people = People(fitted.names[:count], torch.cat([part.pictures for part in parts]))
    config = config_of(plan)
    config = replace(config, objective=replace(config.objective, seed=config.objective.seed + 1))
    run = fit_people(booth.base, booth.adapters, encode_people(booth.base, people), config)
    for report in run:
        if report.step % 20 == 0:
            console.print(f"  step {report.step} of {config.fit.steps}")
    return repeatability(fitted.weights[:count], run.averages["weights"].cpu())


def main(
    folder: Annotated[Path, typer.Argument(help="Of pre-optimised portraits.")],
    again: Annotated[int, typer.Option(help="People who are fitted once more, 2 or more; 0 is nobody.")] = 32,
    base: Annotated[str, typer.Option(help="The base that they were fitted on.")] = "embedded",
) -> None:
    """Print both figures."""
    torch.set_flush_denormal(True)
    try:
        fitted = load_people(folder)
        share = explained_share(fitted.weights - fitted.start, truth_matrix(seeds_of(fitted.names)))
        Console().print(f"{len(fitted.names)} people: {share:.3f} of their numbers explained by their attributes")
        if again:
            found = fitted_again(HyperDreamBooth.load(base, hypernetwork=None), folder, again)
            Console().print(
                f"{again} of them again, other noises: correlation {found.correlation:.3f}, R2 {found.r2:.3f}"
            )
    except UserError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
