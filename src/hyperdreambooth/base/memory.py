"""The ladder of modes that trade time for memory, each with all that stand before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from hyperdreambooth.errors import UserError

if TYPE_CHECKING:  # the command line names the modes without loading torch
    from torch import nn

    from hyperdreambooth.base.model import Base

LowMemory = Literal["off", "checkpointing", "slicing", "offload"]
"""From fast to small.

checkpointing: a fit keeps the inputs of the U-Net's blocks alone and computes the rest twice.
slicing: attention is computed head by head, the VAE works on one picture at a time, and in tiles where it is large, and
    pictures are drawn one by one.
offload: a network that is not at work waits in the CPU's memory.
"""
LARGEST_TILE = 512  # of a picture that the VAE reads or draws, in pixels
LADDER: tuple[LowMemory, ...] = get_args(LowMemory)


def reaches(mode: LowMemory, step: LowMemory) -> bool:
    """Whether a mode has what a step of the ladder brings. Raises UserError where there is no such mode."""
    if mode not in LADDER:
        raise UserError(f"got low-memory mode {mode!r}, expected one of {', '.join(LADDER)}")
    return LADDER.index(mode) >= LADDER.index(step)


def save_memory(base: Base, mode: LowMemory, recompute: Callable[..., Any]) -> None:
    """Put a base into a mode, for good.

    Args:
        base: on its device, or on the CPU where it is offloaded already; changes in place, its numbers do not.
        mode: how far down the ladder.
        recompute: calls a block so that its insides are computed again when their gradient is due.

    Raises:
        UserError: there is no such mode.
    """
    if reaches(mode, "checkpointing"):
        base.unet.enable_gradient_checkpointing(recompute)
    if reaches(mode, "slicing"):
        base.unet.set_attention_slice("max")
        base.vae.enable_slicing()
        base.vae.enable_tiling()
        side, factor = (
            min(LARGEST_TILE, base.vae.config.sample_size),
            2 ** (len(base.vae.config.block_out_channels) - 1),
        )
        base.vae.tile_sample_min_size, base.vae.tile_latent_min_size = (
            side,
            side // factor,
        )  # its own is a whole picture
        base.at_once = 1
    if reaches(mode, "offload"):
        base.offload()


@contextmanager
def hosting(base: Base, guest: nn.Module) -> Iterator[None]:
    """A network that is none of the base's at work on its device: offloaded, alone there, and on the CPU afterwards."""
    if base.home is None:
        yield
        return
    base.offload()
    guest.to(base.home)
    try:
        yield
    finally:
        guest.to("cpu")


def next_mode(mode: LowMemory) -> LowMemory | None:
    """The next mode down the ladder; None at its end."""
    return (*LADDER[1:], None)[LADDER.index(mode)]


def mode_that_fits(mode: LowMemory, needs: Mapping[LowMemory, int], room: int) -> LowMemory | None:
    """The first mode behind one that ran out which needs less than the room that there is; None where none does.

    Args:
        mode: what ran out, so that it needs more than there is: if its estimate says less, all are raised by as much.
        needs: estimated bytes of the modes from that one on.
        room: bytes of the device.
    """
    raised = max(1.0, room / needs[mode])
    return next((one for one in LADDER[LADDER.index(mode) + 1 :] if needs[one] * raised < room), None)
