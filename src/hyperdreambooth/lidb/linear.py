"""Layers that wear persons: the plain layer plus eq. 1, one person for the batch or one per sample."""

from functools import reduce
from itertools import product
from typing import NamedTuple
from weakref import finalize

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Worn(NamedTuple):
    """What one layer wears; the factors are of one person, or have a leading N for one person per sample.

    Attributes:
        down: (N?, k, n) all that is worn as one LoRA, its down factor, or None.
        up: (N?, m, k) its up factor, or None exactly when down is.
        weight: in the place of the layer's own, of the same shape, or None.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    weight: Tensor | None = None


# By the id of the layer, of those that wear something. It lies beside the layers: what torch.compile finds in a module
# it takes for fixed to its place in memory, and its CUDA graphs would be recorded anew for each person and step.
_WORN: dict[int, Worn] = {}
_NOTHING = Worn()


class _Wearing:
    """A layer that wears people; its copies wear nobody."""

    @property
    def worn(self) -> Worn:
        """What it wears, which does not change its own parameters."""
        return _WORN.get(id(self), _NOTHING)

    @worn.setter
    def worn(self, worn: Worn) -> None:
        if id(self) not in _WORN:
            finalize(self, _WORN.pop, id(self), None).atexit = False  # its id may be another's then
        _WORN[id(self)] = worn


class LiDBLinear(_Wearing, nn.Linear):
    """y = W x + bias + dW x, with the very parameters of the layer that it replaces, so state-dict keys stay the same.

    dW is never formed; its factors are composed for all layers at once, by `Bases`.

    Args:
        original: the layer to stand in for; its parameters are shared, not copied.
    """

    def __init__(self, original: nn.Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear's would draw new parameters
        self.in_features, self.out_features = original.in_features, original.out_features
        _adopt(self, original)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., n) -> (B, ..., m). With N persons B = c * N: the rows are the N persons, tiled c times."""
        y = F.linear(x, _weight(self), self.bias)
        factors = _factors(self.worn, x)
        return y if factors is None else y + residual(x, *factors).to(y.dtype)


class LiDBConv2d(_Wearing, nn.Conv2d):
    """The same of a convolution, a linear layer on the patches x of n = channels * kernel^2 numbers.

    Args:
        original: the layer to stand in for, of one group; its parameters are shared, not copied.
    """

    def __init__(self, original: nn.Conv2d) -> None:
        nn.Module.__init__(self)  # nn.Conv2d's would draw new parameters
        for name in nn.Conv2d.__constants__:
            setattr(self, name, getattr(original, name))
        self._reversed_padding_repeated_twice = original._reversed_padding_repeated_twice
        _adopt(self, original)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, m, H', W'). With N persons B = c * N: the rows are the N persons, tiled c times."""
        y = self._conv_forward(x, _weight(self), self.bias)
        factors = _factors(self.worn, x)
        return y if factors is None else y + self._residual(x, *factors).to(y.dtype)

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


def _adopt(layer: nn.Module, original: nn.Linear | nn.Conv2d) -> None:
    """Give a layer the original's parameters."""
    layer.weight, layer.bias = original.weight, original.bias
    layer.train(original.training)


def _weight(layer: LiDBLinear | LiDBConv2d) -> Tensor:
    """What a layer multiplies by: the weight that it wears, or its own."""
    return layer.weight if layer.worn.weight is None else layer.worn.weight


def _factors(worn: Worn, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """What is worn, as it is multiplied by: (N?, n, k) and (N?, k, m), where and in the precision that x is."""
    if worn.down is None or worn.up is None:
        return None
    return worn.down.to(x).mT, worn.up.to(x).mT


def merged(layer: LiDBLinear | LiDBConv2d) -> Tensor:
    """A layer's weight with the dW of the one person that it wears in it."""
    weight, factors = layer.weight, _factors(layer.worn, layer.weight)
    if factors is None:
        return weight.detach()
    down, up = factors  # (n, k) (k, m)
    return (weight + (down @ up).T.reshape(weight.shape)).detach()


def trimmed(worn: Worn) -> Worn:
    """The same dW without ranks that change nothing in anybody."""
    if worn.down is None or worn.up is None:
        return worn
    used = worn.up.ne(0).flatten(0, -2).any(dim=0)  # (k,)
    if not used.any():
        return Worn(weight=worn.weight)
    return worn._replace(down=worn.down[..., used, :].contiguous(), up=worn.up[..., used].contiguous())


def together(worn: Worn, other: Worn) -> Worn:
    """Both at once: the sum of their dW, the other's ranks first; the weight is the first's."""
    if other.down is None or other.up is None:
        return worn
    if worn.down is None or worn.up is None:
        return worn._replace(down=other.down, up=other.up)
    return worn._replace(down=_concatenate([other.down, worn.down], -2), up=_concatenate([other.up, worn.up], -1))


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
    persons = 1 if down.dim() == 2 else len(down)
    if persons == 1:  # whose gradient then is one product over all rows
        return x @ down.reshape(down.shape[-2:]) @ up.reshape(up.shape[-2:])
    tiles = _tiles(len(x), persons)
    tiled = x.reshape(*([tiles] if tiles > 1 else []), persons, -1, x.shape[-1])  # (c?, N, T, n)
    return (tiled @ down @ up).reshape(*x.shape[:-1], up.shape[-1])


def _concatenate(parts: list[Tensor], dim: int) -> Tensor:
    """Concatenate along ``dim`` tensors of which some have a leading N and some are the same for all N."""
    if len(parts) == 1:
        return parts[0]
    batch = max((part.shape[:-2] for part in parts), key=len)  # () or (N,)
    return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], dim=dim)
