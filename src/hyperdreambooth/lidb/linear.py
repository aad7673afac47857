"""Layers that wear persons: the plain layer plus eq. 1, one person for the batch or one per sample."""

from functools import reduce
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Worn(NamedTuple):
    """What one layer wears; each tensor is of one person, or has a leading N for one person per sample.

    Attributes:
        a_train: (N?, R, a) A_train transposed, or None.
        b_train: (N?, R, b) B_train, or None exactly when a_train is.
        down: (N?, r, n) a full-space LoRA's down factor, or None.
        up: (N?, m, r) its up factor, or None exactly when down is.
        weight: in the place of the layer's own, of the same shape, or None.
    """

    a_train: Tensor | None = None
    b_train: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    weight: Tensor | None = None


class LiDBLinear(nn.Linear):
    """y = W x + bias + dW x, with the very parameters of the layer that it replaces, so state-dict keys stay the same.

    The bases are non-persistent buffers: they follow ``.to()`` and are never saved. dW is never formed.

    Args:
        original: the layer to stand in for; its parameters are shared, not copied.
        a_aux: (n, a) frozen basis of the inputs.
        b_aux: (b, m) frozen basis of the outputs.
        scale: factor of dW.
    """

    a_aux: Tensor
    b_aux: Tensor

    def __init__(self, original: nn.Linear, a_aux: Tensor, b_aux: Tensor, scale: float) -> None:
        nn.Module.__init__(self)  # nn.Linear's would draw new parameters
        self.in_features, self.out_features = original.in_features, original.out_features
        _adopt(self, original, a_aux, b_aux)
        self.scale, self.worn = scale, Worn()

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., n) -> (B, ..., m). With N persons B = c * N: the rows are the N persons, tiled c times."""
        y = F.linear(x, _weight(self), self.bias)
        factors = self.factors()
        return y if factors is None else y + residual(x, *factors).to(y.dtype)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """What is worn as one LoRA, (N?, n, R + r) and (N?, R + r, m), in the dtype of the layer; None if nothing is.

        Composing the bases with a person's few columns first is cheaper than projecting every row of x on the bases.
        """
        return _factors(self, self.worn)


class LiDBConv2d(nn.Conv2d):
    """The same of a convolution, a linear layer on the patches x of n = channels * kernel^2 numbers.

    Args:
        original: the layer to stand in for, of one group; its parameters are shared, not copied.
        a_aux: (n, a) frozen basis of the patches.
        b_aux: (b, m) frozen basis of the outputs.
        scale: factor of dW.
    """

    a_aux: Tensor
    b_aux: Tensor

    def __init__(self, original: nn.Conv2d, a_aux: Tensor, b_aux: Tensor, scale: float) -> None:
        nn.Module.__init__(self)  # nn.Conv2d's would draw new parameters
        for name in nn.Conv2d.__constants__:
            setattr(self, name, getattr(original, name))
        self._reversed_padding_repeated_twice = original._reversed_padding_repeated_twice
        _adopt(self, original, a_aux, b_aux)
        self.scale, self.worn = scale, Worn()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, m, H', W'). With N persons B = c * N: the rows are the N persons, tiled c times."""
        y = self._conv_forward(x, _weight(self), self.bias)
        factors = self.factors()
        return y if factors is None else y + self._residual(x, *factors).to(y.dtype)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """What is worn as one LoRA, as of `LiDBLinear`."""
        return _factors(self, self.worn)

    def _residual(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """x (B, C, H, W) through down (N?, n, k) and up (N?, k, m) -> (B, m, H', W')."""
        persons = 1 if down.dim() == 2 else len(down)
        inner = self._inner_of_one(x, down.reshape(down.shape[-2:])) if persons == 1 else self._inner(x, down)
        tiled = inner.reshape(_tiles(len(x), persons), persons, inner.shape[1], -1)  # (c, N, k, H' * W')
        return (up.mT @ tiled).reshape(len(x), up.shape[-1], *inner.shape[2:])

    def _inner_of_one(self, x: Tensor, down: Tensor) -> Tensor:
        """x (B, C, H, W) through down (n, k) of one person -> (B, k, H', W'): a convolution."""
        kernels = down.T.reshape(-1, x.shape[1], *self.kernel_size)  # (k, C, K, K)
        return F.conv2d(x, kernels, None, self.stride, self.padding, self.dilation)

    def _inner(self, x: Tensor, down: Tensor) -> Tensor:
        """The same of N persons, down (N, n, k), the rows of x being these, tiled c times.

        Each place of the kernel is a product of matrices over the channels, all of them one batched product, and their
        results are shifted and added: several times as fast as a convolution of N groups that give a few channels each.
        """
        persons, (rows, columns) = len(down), self.kernel_size
        channels, height, width = x.shape[1:]
        places = down.mT.reshape(persons, -1, channels, rows * columns).mT  # (N, k, K * K, C)
        tiled = x.reshape(_tiles(len(x), persons), persons, channels, height * width)
        products = (places.flatten(1, 2) @ tiled).reshape(len(x), -1, rows * columns, height, width)
        padded = F.pad(products, self._reversed_padding_repeated_twice)  # (B, k, K * K, H + 2 p, W + 2 p)
        down_to, right_to = (
            [slice(at * apart, size - (steps - 1 - at) * apart, stride) for at in range(steps)]
            for steps, apart, stride, size in zip(
                self.kernel_size, self.dilation, self.stride, padded.shape[-2:], strict=True
            )
        )
        windows = product(down_to, right_to)
        return reduce(torch.add, (padded[:, :, place, top, left] for place, (top, left) in enumerate(windows)))


def _adopt(layer: nn.Module, original: nn.Linear | nn.Conv2d, a_aux: Tensor, b_aux: Tensor) -> None:
    """Give a layer the original's parameters, and the bases beside them."""
    layer.weight, layer.bias = original.weight, original.bias
    layer.register_buffer("a_aux", a_aux.to(original.weight), persistent=False)
    layer.register_buffer("b_aux", b_aux.to(original.weight), persistent=False)
    layer.train(original.training)


def _weight(layer: LiDBLinear | LiDBConv2d) -> Tensor:
    """What a layer multiplies by: the weight that it wears, or its own."""
    return layer.weight if layer.worn.weight is None else layer.worn.weight


def composed(layer: LiDBLinear | LiDBConv2d, worn: Worn) -> Worn:
    """The same dW on this layer as full-space factors alone, without ranks that change nothing in anybody."""
    factors = _factors(layer, worn)
    if factors is None:
        return worn
    down, up = factors[0].mT, factors[1].mT  # (N?, k, n), (N?, m, k)
    used = up.ne(0).flatten(0, -2).any(dim=0)  # (k,)
    if not used.any():
        return Worn(weight=worn.weight)
    return Worn(down=down[..., used, :].contiguous(), up=up[..., used].contiguous(), weight=worn.weight)


def placed(worn: Worn, device: torch.device) -> Worn:
    """The same on a device, but for the weight, which is large."""
    factors = {name: one.to(device) for name, one in worn._asdict().items() if one is not None and name != "weight"}
    return worn._replace(**factors)


def together(worn: Worn, other: Worn) -> Worn:
    """Both at once, where the other is `composed`: the sum of their dW."""
    if other.down is None or other.up is None:
        return worn
    if worn.down is None or worn.up is None:
        return worn._replace(down=other.down, up=other.up)
    return worn._replace(down=_concatenate([other.down, worn.down], -2), up=_concatenate([other.up, worn.up], -1))


def _factors(layer: LiDBLinear | LiDBConv2d, worn: Worn) -> tuple[Tensor, Tensor] | None:
    """What is worn on a layer as one LoRA, (N?, n, R + r) and (N?, R + r, m)."""
    a_train, b_train, down, up, _ = worn
    downs, ups = [], []
    if a_train is not None and b_train is not None:
        downs.append(layer.a_aux @ a_train.to(layer.a_aux).mT)  # (n, a) (N?, a, R)
        ups.append(layer.scale * b_train.to(layer.b_aux) @ layer.b_aux)  # (N?, R, b) (b, m)
    if down is not None and up is not None:
        downs.append(down.to(layer.a_aux).mT)  # (N?, n, r)
        ups.append(up.to(layer.b_aux).mT)  # (N?, r, m)
    if not downs:
        return None
    return _concatenate(downs, -1), _concatenate(ups, -2)


def _tiles(rows: int, persons: int) -> int:
    """How often a batch of so many rows holds all persons. Raises ValueError where it is no whole number."""
    if rows % persons:
        raise ValueError(f"a batch of {rows} rows cannot wear {persons} persons: expected a multiple of {persons}")
    return rows // persons


def residual(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """x (B, ..., n) through down (N?, n, k) and up (N?, k, m) -> (B, ..., m), row i of x by person i mod N.

    Raises:
        ValueError: B is not a multiple of N.
    """
    if down.dim() == 2:
        return x @ down @ up
    persons = len(down)
    tiled = x.reshape(_tiles(len(x), persons), persons, -1, x.shape[-1])  # (c, N, T, n)
    return (tiled @ down @ up).reshape(*x.shape[:-1], up.shape[-1])


def _concatenate(parts: list[Tensor], dim: int) -> Tensor:
    """Concatenate along ``dim`` tensors of which some have a leading N and some are the same for all N."""
    if len(parts) == 1:
        return parts[0]
    batch = max((part.shape[:-2] for part in parts), key=len)  # () or (N,)
    return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], dim=dim)
