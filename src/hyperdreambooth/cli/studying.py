"""The commands of user studies: `hdb study make`, `score` and `judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hyperdreambooth.cli.console import Job
from hyperdreambooth.cli.options import LOAD, SAVE, FolderOutput, JsonOption, check_outputs

study_app = typer.Typer(help="User studies: which of two methods' pictures shows a person better?")

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of an evaluation.", show_default=False)]
KeyArgument = Annotated[Path, typer.Argument(metavar="KEY", help="The study's key.json.", show_default=False)]


@study_app.command()
def make(
    run: RunArgument,
    output: FolderOutput,
    ours: Annotated[str, typer.Option(help="A method of the run.", show_default=False)],
    other: Annotated[str, typer.Option(help="The one to compare it with.", show_default=False)],
    kind: Annotated[Literal["identity", "style"], typer.Option(help="Is a reference style shown too?")] = "identity",
    people: Annotated[
        int | None, typer.Option(min=1, help="Of the run, at random.", show_default="whom both drew, 25 at most")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Questions in all.")] = 50,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of who, what and which side.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """A run to a page of questions, and the key to their answers.

    page.html is one file that asks and keeps the answers by itself.
    key.json says which method drew what: nobody who answers may see it.
    """
    page, key = output / "page.html", output / "key.json"
    check_outputs(page, key)
    with Job(as_json) as job:
        with job.phase(LOAD):
            import torch

            from hyperdreambooth.evaluation.records import RunFolder
            from hyperdreambooth.evaluation.study import make_study
            from hyperdreambooth.evaluation.study_page import write_study
        folder = RunFolder(run)
        study = make_study(folder, ours, other, kind, people, pairs, torch.Generator().manual_seed(seed))
        with job.phase(SAVE):
            size = write_study(output, study, folder)
        job.note(f"{key} says which method drew what: show {page.name} alone to those who answer, and keep the key")
        asked = len({one.person for one in study.questions})
        job.finish(
            study=study.id, page=str(page), key=str(key), bytes=size, kind=kind, people=asked, pairs=pairs, seed=seed
        )


@study_app.command()
def score(
    key: KeyArgument,
    answers: Annotated[list[Path], typer.Argument(metavar="ANSWERS", help="Files of answers.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Files of answers to shares, the majority's interval and agreement.

    An automatic judge's are told apart, and never counted as people's.
    """
    with Job(as_json) as job:
        with job.phase(LOAD):
            from hyperdreambooth.evaluation import study_scores as scores
            from hyperdreambooth.evaluation.study import Study
        study = Study.open(key)
        result = scores.score(study, answers)
        if result.automatic:
            job.note(f"some of these answers are of the {scores.AUTOMATIC}: they stand by themselves")
        job.finish(
            study=study.id,
            kind=study.kind,
            ours=study.ours,
            other=study.other,
            questions=len(study.questions),
            people=result.people and result.people.facts(),
            automatic_judge_not_human=result.automatic and result.automatic.facts(),
        )


@study_app.command()
def judge(
    key: KeyArgument,
    run: RunArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file of answers to write.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """A study answered by the shipped recogniser: quick, and no human.

    It takes the picture that is more like the reference; it knows no style.
    """
    check_outputs(output, inputs=[key])
    with Job(as_json) as job:
        with job.phase(LOAD):
            from hyperdreambooth.embedded import JUDGES
            from hyperdreambooth.evaluation import study_scores as scores
            from hyperdreambooth.evaluation.judges import Recogniser
            from hyperdreambooth.evaluation.records import RunFolder
            from hyperdreambooth.evaluation.study import Study
            from hyperdreambooth.files import write_atomically

            study = Study.open(key)
            recogniser = Recogniser.load(JUDGES / "recogniser.safetensors")
        with job.phase("judge"):
            given = scores.automatic_answers(study, RunFolder(run), recogniser)
        with job.phase(SAVE):
            write_atomically(output, lambda part: part.write_text(given.to_json(), "utf-8"))
        job.finish(
            answers=str(output),
            bytes=output.stat().st_size,
            study=study.id,
            participant=given.participant,
            questions=len(given.choices),
            threshold=scores.THRESHOLD,
        )
