"""What several commands share: options, loading, and the check of outputs before work starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from hyperdreambooth.base.memory import LowMemory
from hyperdreambooth.base.samplers import Sampler
from hyperdreambooth.cli.console import Job
from hyperdreambooth.errors import NotWritable, UserError
from hyperdreambooth.files import check_writable
from hyperdreambooth.progress import log

if TYPE_CHECKING:
    from hyperdreambooth.cluster import Cluster
    from hyperdreambooth.pipeline import HyperDreamBooth

LOAD, SAVE = "load", "save"

IdentityArgument = Annotated[Path, typer.Argument(metavar="IDENTITY", help="An identity file.", show_default=False)]
IdentityOutput = Annotated[Path, typer.Option("--output", "-o", help="The identity file to write.", show_default=False)]
FolderOutput = Annotated[Path, typer.Option("--output", "-o", help="The folder to write into.", show_default=False)]
BaseOption = Annotated[
    str,
    typer.Option(
        "--base", help='"embedded", a folder in diffusers\' layout, an id of the hub (org/name@revision), or a file.'
    ),
]
PeopleArgument = Annotated[
    str,
    typer.Argument(
        metavar="PEOPLE",
        help="portraits:0-999; a folder of person/photo.jpg or of photo.jpg, or FFHQ, CelebA-HQ or SFHQ as they come; "
        "or dataset:NAME of Hugging Face, an id or a folder.",
        show_default=False,
    ),
]
BlocksOption = Annotated[
    bool,
    typer.Option(
        "--blocks/--no-blocks",
        help="Fit the residual blocks' layers too, or those of the paper's 192-layer rule alone; train does as here.",
    ),
]
FittedBlocksOption = Annotated[
    bool | None,
    typer.Option(
        "--blocks/--no-blocks",
        help="Predict the residual blocks' layers too, or not; only a dry run before anybody is fitted asks for it.",
        show_default="as they are fitted",
    ),
]
OnlyOption = Annotated[
    Path | None, typer.Option(help="A file of names, one a line, such as hdb split writes.", show_default="everybody")
]
ViewsOption = Annotated[
    int, typer.Option(min=1, help="Pictures of each synthetic person; photographs of a person, at most.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="a GPU where there is one")
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option(help="Of the base at work.", show_default="what the hardware does well"),
]
LowMemoryOption = Annotated[
    LowMemory, typer.Option(help="Time for memory; each with those before it.", show_default=True)
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the U-Net, on CUDA into graphs: takes minutes first, and pays for much work of a kind.",
    ),
]
SamplerOption = Annotated[
    Sampler,
    typer.Option(help="As other programs call it; lcm and tcd are for bases taught to draw in a few steps."),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the noises.")]
DTypeOption = Annotated[Literal["fp16", "fp32", "int8"], typer.Option(help="Of the numbers in the file.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Ray workers that share the people: a CPU each, or a GPU where there is one.",
        show_default="this process alone",
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        help='Where they are: "auto", the Ray cluster of this machine, or HOST:PORT of its head. The output folder '
        "must be on a disk that all its machines share, under the same path.",
        show_default="here",
    ),
]
DetectorOption = Annotated[
    str | None,
    typer.Option(
        help="A YuNet model (.onnx) to find faces, or an id of the hub: opencv/face_detection_yunet.",
        show_default="OpenCV's cascades",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def check_outputs(*paths: Path | None, inputs: Sequence[Path] = ()) -> None:
    """Raise NotWritable for a path that could not be written, that is given twice or is an input; None is no output."""
    outputs = [path for path in paths if path is not None]
    for path in outputs:
        check_writable(path)
        if any(_same_file(path, read) for read in inputs):
            raise NotWritable(f"got {path} as input and as output, expected two files: choose another output path")
    for first, second in combinations(outputs, 2):
        if _same_file(first, second):
            raise NotWritable(f"got {second} as two outputs, expected two files: choose another path for one of them")


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.resolve() == second.resolve() or (second.exists() and first.exists() and first.samefile(second))
    except (OSError, RuntimeError, ValueError):  # a path that cannot be: found where it is read
        return False


class Machine(NamedTuple):
    """Where a base works, in which precision, and how sparing with memory; None chooses."""

    device: str | None = None
    precision: str | None = None
    low_memory: LowMemory = "off"
    compiled: bool = False
    sampler: Sampler = "own"


SPACE_ALONE = Machine("cpu", "fp16")
"""For commands that read a base's space and run none of its networks."""


def load_booth(job: Job, base: str, hypernetwork: str = "none", machine: Machine | None = None) -> HyperDreamBooth:
    """Open the base, and the hypernetwork where a command needs one; the summary will say where it works."""
    machine = machine or Machine()
    with job.phase(LOAD):
        import torch

        from hyperdreambooth.base.hardware import PRECISIONS, is_large, name_of
        from hyperdreambooth.pipeline import HyperDreamBooth

        torch.set_flush_denormal(True)  # tiny numbers in dark pictures make a CPU four times as slow
        job.low_memory, job.opening = machine.low_memory, True
        dtype = None if machine.precision is None else PRECISIONS[machine.precision]
        network = None if hypernetwork == "none" else hypernetwork
        where = machine.device, dtype, network, machine.low_memory, machine.compiled, machine.sampler
        booth = HyperDreamBooth.load(base, *where)
        job.opening = False
    if machine != SPACE_ALONE:
        job.about |= {"device": str(booth.base.device), "precision": name_of(booth.base.dtype)}
        job.about |= {} if machine.low_memory == "off" else {"low_memory": machine.low_memory}
        if is_large(booth.base):
            job.say(f"{booth.base.name} on {booth.base.device} in {name_of(booth.base.dtype)}")
    return booth


@contextmanager
def crew_of(workers: int | None, address: str | None, device: str | None) -> Iterator[Cluster | None]:
    """The workers that are asked for, joined; None is this process alone, as it is, with a note, without Ray.

    Raises UserError for options without sense together, or no cluster there.
    """
    from hyperdreambooth.cluster import LOCAL, Cluster, is_installed, joined

    if workers is None and address is not None:
        raise UserError(f"got --cluster {address} alone, expected --workers too: say how many")
    if workers is not None and device not in (None, "cpu", "cuda"):
        raise UserError(f"got --device {device} with --workers, expected cpu or cuda: each worker has its own GPU")
    if workers is not None and address is None and not is_installed():
        log.warning("Ray is not installed: this process does everything (pip install 'hyperdreambooth[cluster]')")
        workers = None
    if workers is None:
        yield None
        return
    crew = Cluster(workers, LOCAL if address is None else address, None if device is None else device == "cuda")
    with joined(crew):
        yield crew


def leave_to_workers(booth: HyperDreamBooth) -> None:
    """Move a command's own networks to the CPU: its workers open theirs, on the same GPU where there is but one."""
    import torch

    booth.base.to("cpu")
    booth.adapters.bases.to("cpu")
    if booth.hypernetwork is not None:
        booth.hypernetwork.to("cpu")
    torch.cuda.empty_cache()  # nothing where there is none


def whole_path(name_or_path: str) -> str:
    """A base or a hypernetwork as a process that works in another folder finds it."""
    there = Path(name_or_path)
    return str(there.resolve()) if name_or_path not in ("embedded", "none") and there.exists() else name_or_path
