"""The ladder of modes that trade time for memory, each with all that stand before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

from hyperdreambooth.errors import UserError

if TYPE_CHECKING:  # the command line names the modes without loading torch
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


def save_memory(base: Base, mode: LowMemory, recompute: Callable[..., Any]) -> None:
    """Put a base into a mode, for good.

    Args:
        base: on its device; changes in place, its numbers do not.
        mode: how far down the ladder.
        recompute: calls a block so that its insides are computed again when their gradient is due.

    Raises:
        UserError: there is no such mode.
    """
    if mode not in LADDER:
        raise UserError(f"got low-memory mode {mode!r}, expected one of {', '.join(LADDER)}")
    rung = LADDER.index(mode)
    if rung >= LADDER.index("checkpointing"):
        base.unet.enable_gradient_checkpointing(recompute)
    if rung >= LADDER.index("slicing"):
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
    if rung >= LADDER.index("offload"):
        base.offload()


def next_mode(mode: LowMemory) -> LowMemory | None:
    """The next mode down the ladder; None at its end."""
    return (*LADDER[1:], None)[LADDER.index(mode)]
