"""The U-Net through torch.compile, and on CUDA through CUDA graphs: the same answers with fewer launches."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError


def compile_unet(base: Base, backend: str = "inductor") -> None:
    """Compile a base's U-Net for good, for drawing and for fitting; its first pass of each shape takes a minute or two.

    On CUDA it is replayed as CUDA graphs, forward and backward: what people wear are inputs, copied into the graph's
    own memory, so that the next person with as many ranks needs no new one. On a CPU there are no launches to save
    (docs/notes.md).

    Args:
        base: where it will work; changes in place, its numbers and their names do not.
        backend: of torch.compile.

    Raises:
        UserError: the U-Net recomputes its blocks, or its networks come and go.
    """
    if base.unet.is_gradient_checkpointing or base.home is not None:
        raise UserError("got a base that saves memory, expected one in mode 'off' to compile: leave one of them out")
    mode = "reduce-overhead" if base.device.type == "cuda" and backend == "inductor" else None
    base.unet.compile(backend=backend, mode=mode)  # in place: copies of it are not compiled
    predict = base.predict

    def replayed(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """A graph's output lies where the next replay writes: it is taken out.

        What a replay keeps for a backward pass must stay until then: of two passes before it, the second begins no
        step of its own, which torch does by itself behind the backward pass.
        """
        if not torch.is_grad_enabled():
            torch.compiler.cudagraph_mark_step_begin()
        return predict(latents, timesteps, states).clone()

    setattr(base, "predict", replayed)  # noqa: B010  # of this base, not of those that share its networks
