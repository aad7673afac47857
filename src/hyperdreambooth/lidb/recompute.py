"""Gradients in less memory: blocks that are computed again, wearing the same persons, when their gradient is due."""

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from hyperdreambooth.lidb.linear import LiDBConv2d, LiDBLinear, Worn


def recompute(module: nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)`, of which nothing but the inputs is kept until the backward pass computes it again.

    By then `Adapters.use` is long left, so the second time the layers wear what they wear now, and only then.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, LiDBLinear | LiDBConv2d)]
    now = [layer.worn for layer in layers]

    def again(*inputs: Any) -> Any:
        before = [layer.worn for layer in layers]
        _wear(layers, now)
        try:
            return module(*inputs)
        finally:
            _wear(layers, before)

    return checkpoint(again, *inputs, use_reentrant=False)


def _wear(layers: list[LiDBLinear | LiDBConv2d], worn: list[Worn]) -> None:
    for layer, one in zip(layers, worn, strict=True):
        layer.worn = one
