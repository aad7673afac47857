"""All layers' products at once against eq. 1 layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hyperdreambooth.hypernetwork.cost import shapes_alone
from hyperdreambooth.lidb import LiDBSpace, find_blocks, find_sites
from hyperdreambooth.lidb.bases import Bases
from tests.lidb.conftest import narrow_unet, tiny_text_encoder

if TYPE_CHECKING:
    from tests.lidb.conftest import World


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def space() -> LiDBSpace:
    """Every site of Stable Diffusion 1.5, forty times as narrow, with those of its residual blocks."""
    unet = narrow_unet()
    sites, blocks = find_sites(unet, tiny_text_encoder(12)), find_blocks(unet)
    return LiDBSpace((*sites, *blocks), a=6, b=3, scale=0.5, rule_sites=len(sites))


@pytest.mark.parametrize("people", [None, 3])
@pytest.mark.parametrize(("first", "count"), [(0, 192), (0, None), (192, None), (230, 4)])
def test_composed_factors_are_equation_1(space: LiDBSpace, people: int | None, first: int, count: int | None) -> None:
    layers = range(len(space.sites))[first : None if count is None else first + count]
    shape = (len(layers), 2, space.width)
    weights = torch.randn(shape if people is None else (people, *shape), generator=torch.Generator().manual_seed(1))
    factors = Bases(space, weights).compose(weights, first)
    assert len(factors) == len(layers) and len(space.rule.sites) == 192
    for index, (down, up) in zip(layers, factors, strict=True):
        own = weights.select(-3, index - first)
        for one in range(people or 1):
            person = torch.zeros(len(space.sites), *shape[1:])
            person[index] = own if people is None else own[one]
            dw = up @ down if people is None else up[one] @ down[one]
            assert torch.allclose(dw, space.delta(person, index), atol=1e-5)


def test_there_is_one_product_for_each_size(space: LiDBSpace) -> None:
    rule = space.rule
    bases = Bases(rule, torch.empty(0))
    weights = torch.randn(4, 192, 2, rule.width, requires_grad=True)
    sizes = len({site.n_in for site in rule.sites}) + len({site.n_out for site in rule.sites})
    with Products() as products:
        factors = bases.compose(weights)
    assert products.count == sizes < 12
    with Products() as products:  # the bases are frozen: one more for each in the backward pass
        torch.stack([down.square().sum() + up.square().sum() for down, up in factors]).sum().backward()
    assert products.count == sizes and weights.grad is not None and weights.grad.abs().min() > 0


def test_bases_go_where_people_are_worn(world: World) -> None:
    """Drawing moves them inside inference mode, and a fit goes on behind it."""
    weights = world.persons(2)
    bases = Bases(world.space, torch.empty(0))
    with torch.inference_mode():
        (down, up), *_ = bases.compose(weights.bfloat16())
    assert (down.dtype, up.dtype) == (torch.bfloat16, torch.bfloat16)
    assert {one.dtype for one in bases.tensors} == {torch.bfloat16}
    weights.requires_grad_()
    (down, up), *_ = bases.compose(weights.bfloat16())
    (down.sum() + up.sum()).backward()
    assert weights.grad is not None and weights.grad[:, 0].abs().max() > 0 and not weights.grad[:, 1:].any()


def test_counting_shapes_takes_no_numbers_away(world: World) -> None:
    bases, weights = Bases(world.space, torch.empty(0)), world.persons(1)[0]
    expected = bases.compose(weights)
    with shapes_alone():
        (down, _), *_ = bases.compose(torch.zeros_like(weights).double())
    assert down.shape == expected[0][0].shape and type(down) is not torch.Tensor
    (down, _), *_ = bases.compose(weights.to("meta"))
    assert down.is_meta
    for one, other in zip(bases.compose(weights), expected, strict=True):
        assert all(map(torch.equal, one, other))
