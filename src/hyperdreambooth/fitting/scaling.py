"""Loss scaling, so that gradients that pass through a network in float16 are not lost in it.

The gradient of a mean over a picture's numbers is small: much of it lies below 6e-8, the least that float16 holds. So
the loss is multiplied before the backward pass, and the gradients, which are float32 as the parameters are, divided.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperdreambooth.errors import NotFinite

_FIRST, _LAST = 2.0**16, 2.0**24  # powers of 2, by which nothing is rounded; torch.amp.GradScaler begins so too
_CALM = 2000  # steps with finite gradients before the factor is doubled, as GradScaler's


class LossScale:
    """The factor of a run's loss: halved where gradients overflow, doubled after many steps where none did.

    Attributes:
        factor: by which the loss is multiplied now; 1 for good where it is not active.
        calm: steps since it was changed.
    """

    def __init__(self, active: bool) -> None:
        self.active = active
        self.factor, self.calm = (_FIRST if active else 1.0), 0

    def unscale_(self, gradients: Sequence[Tensor], step: int) -> bool:
        """Divide the gradients of a step, in place, and choose the next factor; whether the step may be taken.

        Raises:
            NotFinite: they are not finite, and not for the factor's sake.
        """
        if not self.active or not gradients:
            return True
        torch._foreach_mul_(gradients, 1.0 / self.factor)
        if not torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            self.factor, self.calm = self.factor / 2, 0
            if self.factor < 1.0:
                raise NotFinite(
                    f"the gradients of step {step} are not finite in float16, expected finite ones: --precision fp32, "
                    "or bf16 where the GPU has it"
                )
            return False
        self.calm += 1
        if self.calm == _CALM:
            self.factor, self.calm = min(2 * self.factor, _LAST), 0
        return True

    @property
    def numbers(self) -> dict[str, float]:
        """Where it stands, for a checkpoint; nothing where it is not active."""
        return {"scale": self.factor, "calm": self.calm} if self.active else {}

    def restore(self, numbers: dict[str, float]) -> None:
        """Go on from the `numbers` of another; from the start, where there are none."""
        if self.active and "scale" in numbers:
            self.factor, self.calm = numbers["scale"], int(numbers["calm"])
