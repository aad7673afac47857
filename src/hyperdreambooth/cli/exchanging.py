"""The commands that carry people to and from other programs and the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hyperdreambooth.cli.console import Job
from hyperdreambooth.cli.options import (
    LOAD,
    SAVE,
    SPACE_ALONE,
    BaseOption,
    DTypeOption,
    IdentityArgument,
    IdentityOutput,
    JsonOption,
    Machine,
    check_outputs,
    load_booth,
)
from hyperdreambooth.errors import UserError

_FOLDERS = {  # what is written into one, to be found impossible before work starts
    "peft": tuple(
        f"{model}/adapter_{name}"
        for model in ("unet", "text_encoder", "text_encoder_2")
        for name in ("model.safetensors", "config.json")
    ),
    "model": ("model_index.json", "unet/config.json", "text_encoder/config.json", "vae/config.json"),
}

_MUCH = 0.5  # of a change lost by a projection; LoRAs that know nothing of the bases lose 0.95

RepositoryArgument = Annotated[
    str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hugging Face hub.", show_default=False)
]


def export(
    identity: IdentityArgument,
    layout: Annotated[
        Literal["kohya", "diffusers", "peft", "model"] | None,
        typer.Option("--format", help="See below.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; a folder for peft and model.", show_default=False)
    ] = None,
    to_folder: Annotated[
        Path | None, typer.Option("--to-folder", help="The same as --format model -o FOLDER.", metavar="FOLDER")
    ] = None,
    base: BaseOption = "embedded",
    dtype: Annotated[Literal["fp16", "fp32"], typer.Option(help="Of the numbers.")] = "fp32",
    as_json: JsonOption = False,
) -> None:
    """An identity to files that other programs read.

    kohya is a LoRA for A1111, ComfyUI and diffusers; diffusers one for
    load_lora_weights; peft a folder with one adapter for each network; model
    a folder of the whole base with the person merged into it, for
    StableDiffusionPipeline.from_pretrained. All are for this base alone.
    """
    if to_folder is not None:
        if layout is not None or output is not None:
            raise UserError(
                "got --to-folder with --format or --output, expected it alone: it stands for --format model --output"
            )
        layout, output = "model", to_folder
    if layout is None or output is None:
        raise UserError("got no --format or no --output, expected both, or --to-folder FOLDER: give what to write")
    written = [output / name for name in _FOLDERS[layout]] if layout in _FOLDERS else [output]
    check_outputs(*written, inputs=[identity])
    with Job(as_json) as job:
        machine = Machine("cpu", "fp32") if layout == "model" else SPACE_ALONE  # half precision would round the base
        booth = load_booth(job, base, machine=machine)
        person = booth.open(identity)
        import torch

        from hyperdreambooth import lidb
        from hyperdreambooth.exchange.cards import about
        from hyperdreambooth.exchange.merged import save_model

        numbers = {"fp16": torch.float16, "fp32": torch.float32}[dtype]
        before = _sizes(output)
        with job.phase(SAVE):
            if layout == "model":
                save_model(output, booth, person, output.name, numbers)
            else:
                save = {"kohya": lidb.save_kohya, "diffusers": lidb.save_diffusers, "peft": lidb.save_peft}[layout]
                title = output.stem if layout != "peft" else output.name
                save(output, booth.space, person.weights, person.lora, about(person, booth.base, title, numbers))
        job.finish(
            output=str(output),
            format=layout,
            bytes=sum(file.stat().st_size for file, changed in _sizes(output).items() if before.get(file) != changed),
            base=booth.base.name,
            sites=person.sites,
        )


def _sizes(output: Path) -> dict[Path, tuple[int, int]]:
    """The files at an output and which they are: what another call gives that differs was written between."""
    files = output.rglob("*") if output.is_dir() else [output]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files if file.is_file()}


def import_(
    lora: Annotated[
        Path, typer.Argument(metavar="LORA", help="A file; a folder of diffusers or PEFT; with --people, of files.")
    ],
    output: IdentityOutput,
    base: BaseOption = "embedded",
    project: Annotated[bool, typer.Option("--project", help="Into the LiDB bases: for one made in them.")] = False,
    ranks: Annotated[
        int | None, typer.Option("--rank", min=1, help="Of the projection.", show_default="the LoRA's")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out layers that a person here does not change.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option(help="That the person answers to.", show_default="the file's, or a [V] face")
    ] = None,
    people: Annotated[
        bool, typer.Option("--people", help="A LoRA of each person, PERSON.safetensors, to a folder for hdb train.")
    ] = False,
    dtype: DTypeOption = "fp16",
    as_json: JsonOption = False,
) -> None:
    """A LoRA of one person that other programs made, to an identity.

    Layouts of kohya, diffusers and PEFT, for the same base. Full-space
    factors stay as they are; --project finds the nearest person in the LiDB
    bases and says what share of the change is lost: nothing where the LoRA
    was made in them, nearly all where it was not.
    """
    if people:
        _import_people(lora, output, base, partial, as_json)
        return
    check_outputs(output, inputs=[lora])
    with Job(as_json) as job:
        booth = load_booth(job, base, machine=SPACE_ALONE)
        from hyperdreambooth.exchange.lora import IMPORT, import_lora

        with job.phase(IMPORT):
            got = import_lora(booth, lora, project=project, ranks=ranks, partial=partial, prompt=prompt)
        person, read = got.identity, got.read
        if read.left_out:
            share = 100 * sum(read.left_out.values())
            job.note(f"{len(read.left_out)} layers were left out, {share:.1f} % of the LoRA's change")
        if got.lost_in_all > _MUCH:
            job.note(f"the projection loses {100 * got.lost_in_all:.0f} % of the change, and so the person: see --help")
        if "[V]" not in person.prompt:
            job.note(f'it answers to "{person.prompt}": write that in prompts, not [V]')
        with job.phase(SAVE):
            size = person.save(output, dtype)
        job.finish(
            identity=str(output),
            bytes=size,
            base=booth.base.name,
            prompt=person.prompt,
            sites=read.sites,
            rank=read.rank,
            numbers=person.numbers,
            lost=round(got.lost_in_all, 6),
            lost_by_site=[{"site": name, "lost": round(lost, 6)} for name, lost in got.lost.items()],
            left_out_share=round(sum(read.left_out.values()), 6),
            left_out=[{"layer": name, "share": round(share, 6)} for name, share in read.left_out.items()],
        )


def _import_people(loras: Path, output: Path, base: str, partial: bool, as_json: bool) -> None:
    """A folder of LoRAs to the folder that `hdb preoptimize` would have made of these people."""
    check_outputs(output / "plan.json")
    with Job(as_json) as job:
        booth = load_booth(job, base, machine=SPACE_ALONE)
        from hyperdreambooth.exchange.lora import IMPORT, import_people
        from hyperdreambooth.fitting.preoptimize import write_people

        with job.phase(IMPORT):
            got = import_people(booth, loras, partial, job.report)
        lost = sum(got.lost.values()) / len(got.lost)
        if lost > _MUCH:
            job.note(f"the projection loses {100 * lost:.0f} % of the change, and so the people: see --help")
        with job.phase(SAVE):
            write_people(output, got.names, got.weights, booth.base, got.space, {"method": "import"})
        job.finish(
            folder=str(output),
            people=len(got.names),
            sites=len(got.space.sites),
            numbers=got.space.size(),
            lost=round(lost, 6),
            lost_by_person=[{"person": name, "lost": round(share, 6)} for name, share in got.lost.items()],
        )


def push(
    identity: IdentityArgument,
    repository: RepositoryArgument,
    public: Annotated[bool, typer.Option("--public", help="For everybody to see.")] = False,
    as_json: JsonOption = False,
) -> None:
    """An identity to the hub, private unless you say otherwise: it is a person's face."""
    with Job(as_json) as job:
        with job.phase(LOAD):
            from hyperdreambooth.exchange import hub
        with job.phase("push"):
            address, private = hub.push(identity, repository, public)
        job.finish(address=address, bytes=identity.stat().st_size, private=private)


def pull(repository: RepositoryArgument, output: IdentityOutput, as_json: JsonOption = False) -> None:
    """An identity from the hub, as `hdb push` sent it."""
    check_outputs(output)
    with Job(as_json) as job:
        with job.phase(LOAD):
            from hyperdreambooth.exchange import hub
        with job.phase("pull"):
            person = hub.pull(repository, output)
        job.finish(
            identity=str(output),
            bytes=output.stat().st_size,
            base=person.base_name,
            prompt=person.prompt,
            numbers=person.numbers,
        )
