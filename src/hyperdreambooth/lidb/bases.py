"""The frozen bases of all layers: eq. 1 for every layer at once, in one batched product for each of few sizes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperdreambooth.lidb.lora import Factors
from hyperdreambooth.lidb.space import LiDBSpace


class Bases:
    """A space's bases, those of layers with as many inputs (outputs) in one tensor.

    Layers are many and small, of a few sizes: on Stable Diffusion 1.5 384 products become eleven. A person's few
    columns are composed with the bases first, which is cheaper than to project every row of a layer's inputs on them.

    Args:
        space: whose bases.
        like: a tensor of the device and precision that they are kept in until they are needed elsewhere.
    """

    def __init__(self, space: LiDBSpace, like: Tensor) -> None:
        self._space = space
        self._down = _Side([site.n_in for site in space.sites], space.a, like)
        self._up = _Side([site.n_out for site in space.sites], space.b, like)
        for index in range(len(space.sites)):  # one at a time: all at once are as much memory again
            a_aux, b_aux = space.bases(index)
            self._down.keep(index, a_aux.T)
            self._up.keep(index, b_aux)

    @property
    def tensors(self) -> list[Tensor]:
        """All that is kept, wherever it is now."""
        return [*self._down.stacks, *self._up.stacks]

    def to(self, device: torch.device | str) -> None:
        """To a device, until they are needed elsewhere."""
        for side in (self._down, self._up):
            side.stacks = [one.to(device) for one in side.stacks]

    def compose(self, weights: Tensor, first: int = 0) -> list[Factors]:
        """People's numbers as one LoRA of each layer: down (N?, R, n) and up (N?, m, R), dW = up @ down.

        Args:
            weights: (N?, S', R, a + b) of S' layers, on the device and in the precision of the work and its result.
            first: number of the first of them.
        """
        a_train, b_train = self._space.split(weights)
        downs = self._down.times(a_train, first)
        ups = self._up.times(self._space.scale * b_train, first)
        return [(down, up.mT) for down, up in zip(downs, ups, strict=True)]


class _Side:
    """All A_aux transposed, or all B_aux: a tensor (L, w, n) for the L layers of each size n, in their order."""

    def __init__(self, sizes: Sequence[int], width: int, like: Tensor) -> None:
        groups = {size: [index for index, one in enumerate(sizes) if one == size] for size in sizes}
        self._layers = list(groups.values())
        self.stacks = [like.new_empty(len(layers), width, size) for size, layers in groups.items()]

    def keep(self, index: int, basis: Tensor) -> None:
        """That of one layer, (w, n)."""
        for layers, stack in zip(self._layers, self.stacks, strict=True):
            if index in layers:
                stack[layers.index(index)].copy_(basis)

    def times(self, numbers: Tensor, first: int) -> list[Tensor]:
        """Numbers (N?, S', R, w) by the bases of these layers: S' times (N?, R, n)."""
        each = numbers.unbind(dim=-3)
        products = dict[int, Tensor]()
        for layers, stack in zip(self._layers, self._at(numbers), strict=True):
            here = [index for index in layers if first <= index < first + len(each)]
            if here:
                own, begin = torch.stack([each[index - first] for index in here]), layers.index(here[0])
                product = own.flatten(1, -2) @ stack[begin : begin + len(here)]  # (L, N? * R, n)
                products |= zip(here, product.unflatten(1, own.shape[1:-1]), strict=True)
        return [products[first + place] for place in range(len(each))]

    def _at(self, to: Tensor) -> list[Tensor]:
        """The stacks where and in the precision that they are needed, and so from now on, but for mere shapes."""
        stacks = self.stacks  # another thread may have them elsewhere in a moment
        if (stacks[0].device, stacks[0].dtype) == (to.device, to.dtype):
            return stacks
        with torch.inference_mode(False):  # what is made inside could never be trained with again
            moved = [one.to(to) for one in stacks]
        if type(moved[0]) is Tensor and not moved[0].is_meta:
            self.stacks = moved
        return moved
