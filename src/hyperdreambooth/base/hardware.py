"""Where a base works and in which precision: what the hardware does well, unless something else is asked for."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SMALL = 100_000_000  # numbers of a U-Net: below, half precision gains nothing, and float32 is what was measured
_ROOM = 8 * 2**30  # bytes of a GPU that holds the pictures which any machine draws at once


def choose(
    base: Base, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> tuple[torch.device, torch.dtype]:
    """The device and the precision for a base; what is given stays as it is.

    A GPU of CUDA where there is one; else Apple's for a base of real size; else the CPU. Float32 on a CPU, on Apple's
    GPU and for small bases; on CUDA bfloat16 where the chip computes in it, else float16.

    Raises:
        UserError: there is no such device here.
    """
    large = is_large(base)
    chosen = _device(large) if device is None else _named(device)
    if dtype is not None:
        return chosen, dtype
    if chosen.type != "cuda" or not large:
        return chosen, torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return chosen, torch.bfloat16 if native else torch.float16


def settle(
    base: Base, device: torch.device | str | None = None, dtype: torch.dtype | None = None, offload: bool = False
) -> Base:
    """Move a base from the CPU to where it works, in the precision, by `choose`; returns it.

    On a GPU of CUDA with much memory it then draws more pictures at once.

    offload: its networks stay on the CPU until they are at work, see `Base.offload`.
    """
    place, kind = choose(base, device, dtype)
    if offload:
        base.offload(place)
    base.to(place, kind)
    if (room := room_on(place)) is not None:
        base.at_once *= max(1, room // _ROOM)
    return base


def is_large(base: Base) -> bool:
    """Whether a base is of real size, so that it matters where it works."""
    return bool(sum(p.numel() for p in base.unet.parameters()) >= _SMALL)


def holds_people(base: Base) -> bool:
    """Whether a person may be added to the layers' weights: not in half precision, where what is small beside a weight
    is lost in it, nor where layers come and go."""
    return base.unet.dtype == torch.float32 and base.home is None


def _device(large: bool) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if large and torch.backends.mps.is_available() else "cpu")


def _named(name: torch.device | str) -> torch.device:
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    try:
        device = torch.device(name)
        if not there.get(device.type, lambda: True)() or (device.index or 0) >= max(1, torch.cuda.device_count()):
            raise UserError(f"got device {name}, which torch does not find here: leave it out, or give cpu")
    except RuntimeError as error:  # no such word
        raise UserError(f"got device {name!r}, expected cpu, cuda, cuda:1 or mps") from error
    return device


def room_on(device: torch.device) -> int | None:
    """Bytes of a device that this process could have: what is free and what torch holds; None where nobody says."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device))


def name_of_machine(base: Base) -> str:
    """Where a base works, for comparing seconds: "cpu fp32, 1 thread (AMD EPYC 7B13)", "NVIDIA H100 bf16"."""
    if base.device.type == "cuda":
        where = torch.cuda.get_device_name(base.device)
        return f"{where} {name_of(base.dtype)}"
    threads = torch.get_num_threads()
    told = f"{base.device.type} {name_of(base.dtype)}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{told} ({processor()})"


def processor() -> str:
    """The name of this machine's CPU; on Linux, as the kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def name_of(dtype: torch.dtype) -> str:
    """The short name of a precision, such as "bf16"."""
    return next((name for name, kind in PRECISIONS.items() if kind == dtype), str(dtype).removeprefix("torch."))
