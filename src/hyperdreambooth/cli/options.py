"""What several commands share: options, loading, and the check of outputs before work starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hyperdreambooth.cli.console import Job
from hyperdreambooth.files import check_writable

if TYPE_CHECKING:
    from hyperdreambooth.pipeline import HyperDreamBooth

LOAD, SAVE = "load", "save"

IdentityArgument = Annotated[Path, typer.Argument(metavar="IDENTITY", help="An identity file.", show_default=False)]
IdentityOutput = Annotated[Path, typer.Option("--output", "-o", help="The identity file to write.", show_default=False)]
FolderOutput = Annotated[Path, typer.Option("--output", "-o", help="The folder to write into.", show_default=False)]
BaseOption = Annotated[str, typer.Option("--base", help='"embedded", or a folder in diffusers\' layout.')]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the noises.")]
DTypeOption = Annotated[Literal["fp16", "fp32", "int8"], typer.Option(help="Of the numbers in the file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def check_outputs(*paths: Path | None) -> None:
    """Raise NotWritable for the first path that could not be written; None is no output."""
    for path in paths:
        if path is not None:
            check_writable(path)


def load_booth(job: Job, base: str, hypernetwork: str = "none") -> HyperDreamBooth:
    """Open the base, and the hypernetwork where a command needs one."""
    with job.phase(LOAD):
        from hyperdreambooth.pipeline import HyperDreamBooth

        return HyperDreamBooth.load(base, hypernetwork=None if hypernetwork == "none" else hypernetwork)
