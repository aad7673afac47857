"""The commands that compare methods: draw with all of them, and report what they are worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperdreambooth.cli.console import Job
from hyperdreambooth.cli.options import (
    LOAD,
    BaseOption,
    DeviceOption,
    FolderOutput,
    JsonOption,
    LowMemoryOption,
    Machine,
    PrecisionOption,
    check_outputs,
    load_booth,
)
from hyperdreambooth.errors import UserError
from hyperdreambooth.folders import read_names

if TYPE_CHECKING:
    from hyperdreambooth.evaluation.protocol import Share
    from hyperdreambooth.people import People

EVERYBODY = "portraits:15900-15999"


def evaluate(
    output: FolderOutput,
    people: Annotated[
        str, typer.Argument(metavar="[PEOPLE]", help="portraits:FIRST-LAST, or a folder of photographs.")
    ] = EVERYBODY,
    sets: Annotated[str, typer.Option("--set", help="quick, standard or paper: how much is drawn.")] = "quick",
    methods: Annotated[
        str | None, typer.Option(help="Names, with commas between.", show_default="those of the paper's tables")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--people", min=1, help="Of these, the first so many.", show_default="the set's")
    ] = None,
    only: Annotated[Path | None, typer.Option(help="File of picture names, one a line, to take of a folder.")] = None,
    together: Annotated[
        int | None,
        typer.Option(min=1, help="People made at once; 1 times each alone.", show_default="what methods can"),
    ] = None,
    share: Annotated[str, typer.Option(help="Which of several processes this is: 0/2, 1/2.")] = "0/1",
    base: BaseOption = "embedded",
    hypernetwork: Annotated[str, typer.Option(help='"embedded", a file, or "none".')] = "embedded",
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    low_memory: LowMemoryOption = "off",
    as_json: JsonOption = False,
) -> None:
    """Make and draw people by many methods: a run folder, which goes on wherever it was stopped.

    quick is 10 people in 8 prompts; standard 100 in 16, of costly methods 16;
    paper 100 in 30, ten pictures of each. hdb report makes tables of it.
    """
    check_outputs(output / "plan.json")
    with Job(as_json) as job:
        from hyperdreambooth.baselines.methods import TABLES, costly, method_of
        from hyperdreambooth.evaluation.prompts import set_of

        chosen = {name: method_of(name) for name in (methods.split(",") if methods else TABLES)}
        size = set_of(sets)
        part = _share(share)
        booth = load_booth(job, base, hypernetwork, Machine(device, precision, low_memory))
        for method in chosen.values():
            method.check(booth)
        everybody = _people(job, people, booth.base.picture_size, only, max(size.people, count or 0))
        from hyperdreambooth.evaluation.protocol import Evaluation

        evaluation = Evaluation(booth, everybody, size, output, part, together)
        for name, method in chosen.items():
            most = size.costly_people if costly(name) else size.people
            for progress in evaluation.of(name, method, count or most, job.report):
                job.report(progress)
        run = evaluation.run
        job.finish(
            run=str(output),
            people=len(everybody.names),
            made=len(run.people()),
            failed=len(run.failures()),
            pictures=len(run.pictures()),
        )


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that hdb evaluate made.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write into.", show_default="RUN/report")
    ] = None,
    encoders: Annotated[
        Path | None,
        typer.Option(help="Folder of facenet.safetensors, dino/ and clip/: for photographs at full size."),
    ] = None,
    times: Annotated[
        Path | None,
        typer.Option(help="A run made with --together 1, of few people: its seconds stand for those of RUN."),
    ] = None,
    title: Annotated[str, typer.Option(help="Above everything.")] = "Results",
    as_json: JsonOption = False,
) -> None:
    """Tables, plots and galleries of a run, beside the paper's figures: results.md, and results.html, one file."""
    folder = run / "report" if output is None else output
    check_outputs(folder / "results.md", folder / "results.html")
    with Job(as_json) as job:
        from hyperdreambooth.evaluation.drawn import alone_seconds
        from hyperdreambooth.evaluation.encoders import Panel
        from hyperdreambooth.evaluation.records import RunFolder
        from hyperdreambooth.evaluation.report import check_report, write_report
        from hyperdreambooth.evaluation.scores import Scoring

        with job.phase(LOAD):
            folder_of_run = RunFolder(run)
            check_report(folder_of_run)  # before anything slow
            alone = {} if times is None else alone_seconds(RunFolder(times), folder_of_run)
            panel = Panel.load()
            if encoders is not None:
                from hyperdreambooth.evaluation.pretrained import load_pretrained

                panel = replace(panel, encoders=load_pretrained(encoders))
        with job.phase("judge"):
            scoring = Scoring(folder_of_run, panel, alone)
            scores = list(scoring.all(job.report))
        with job.phase("write"):
            bytes_written = write_report(scoring, scores, folder, title)
        job.finish(report=str(folder / "results.html"), methods=len(scores) - 1, bytes=bytes_written)


def _people(job: Job, people: str, size: int, only: Path | None, most: int) -> People:
    """The people of a run, one picture each."""
    from hyperdreambooth.evaluation.subjects import check_photographs, portraits_of
    from hyperdreambooth.people import People, read_people, seeds_of

    names = None if only is None else _names(only, Path(people).name)
    if (seeds := seeds_of(people)) is not None:
        chosen = portraits_of(seeds[:most], size)
        return People(tuple(f"portrait-{seed}" for seed in seeds[:most]), chosen.references.unsqueeze(1))
    with job.phase(LOAD):
        everybody = read_people(people, size, 1, job.report, names, most)
    check_photographs(everybody.names)
    return People(everybody.names, everybody.pictures[:, :1])


def _names(path: Path, folder: str) -> set[str]:
    """The names of a list, of people or pictures: "photo.jpg", or "folder/photo.jpg", which no other folder heeds."""
    names = [Path(name) for name in read_names(path)]
    return {name.name for name in names if name.parent.name in ("", folder)}


def _share(text: str) -> Share:
    from hyperdreambooth.evaluation.protocol import Share

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(count)):
        raise UserError(f"got --share {text}, expected INDEX/COUNT such as 0/2")
    return Share(int(index), int(count))
