"""The commands that measure, and what they need first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperdreambooth.cli.console import Job
from hyperdreambooth.cli.options import LOAD, SAVE, JsonOption, check_outputs


def convert(
    facenet: Annotated[
        Path, typer.Argument(metavar="FACENET_PT", help="20180402-114759-vggface2.pt.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """FaceNet's weights, as facenet-pytorch publishes them, to safetensors.

    Once, before faces are compared on photographs. The file given is read as
    tensors alone: one that holds anything else is refused, and never run.
    """
    check_outputs(output, inputs=[facenet])
    with Job(as_json) as job:
        with job.phase(LOAD):
            from hyperdreambooth.evaluation import facenet as weights
        with job.phase(SAVE):
            numbers = weights.convert(facenet, output)
        job.finish(output=str(output), format=weights.FORMAT, numbers=numbers, bytes=output.stat().st_size)
