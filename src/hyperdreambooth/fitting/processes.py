"""Processes that take the steps of one training together, each on its share of every batch.

    torchrun --standalone --nproc-per-node 2 --no-python hdb train ...

All draw the same batch from generators in the same state and keep every n-th row of it; gradients are averaged, so that
the parameters stay the same everywhere and are those that one process would have reached, but for rounding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from hyperdreambooth.errors import UserError

Batch = TypeVar("Batch", Tensor, list[str])


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; by default alone."""

    index: int = 0
    count: int = 1

    @classmethod
    def started(cls) -> Processes:
        """Those that a launcher such as `torchrun` or `accelerate launch` started; this one alone where none did."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState  # joins the others, once

        # Gradients are exchanged where they are, numbers between the CPUs.
        given = {"backend": "cuda:nccl,cpu:gloo"} if torch.cuda.is_available() else {"cpu": True}
        state = PartialState(**given)
        return cls(state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.index == 0

    def check_share(self, batch: int, what: str) -> None:
        """Raise UserError unless so many of something can be shared evenly."""
        if batch % self.count:
            raise UserError(
                f"got {batch} {what} in a batch and {self.count} processes, expected a multiple: "
                "start as many processes as divide the batch"
            )

    def share(self, batch: Batch) -> Batch:
        """This process's rows of a batch, every `count`-th of them."""
        return batch[self.index :: self.count]

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype and device by their means over all processes, in one exchange."""
        if self.count == 1 or not tensors:
            return
        from accelerate.utils import reduce

        together: Tensor = reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]), "mean")
        for tensor, mean in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def mean(self, values: Sequence[float]) -> list[float]:
        """The means of some numbers over all processes."""
        if self.count == 1:
            return list(values)
        numbers = [torch.tensor(value, dtype=torch.float64) for value in values]
        self.average_(numbers)
        return [number.item() for number in numbers]

    def agree(self, value: float) -> float:
        """The first process's value of a number."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast

        return float(broadcast(torch.tensor([value], dtype=torch.float64)))

    def check_same(self, value: float, what: str, remedy: str) -> None:
        """Raise UserError, in all processes, unless they have the same number; all come here."""
        first = self.agree(value)
        (apart,) = self.mean([float(value != first)])
        if apart:
            raise UserError(
                f"{round(apart * self.count)} of {self.count} processes have another {what} than the first, whose is "
                f"{first:g}: {remedy}"
            )

    def wait(self) -> None:
        """Go on when all have come here."""
        self.agree(0.0)


ALONE = Processes()
