"""Arithmetic of persons on small cores against the same arithmetic on whole dW matrices."""

import itertools

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hyperdreambooth.lidb import LiDBSpace, LoRALayout, Site
from hyperdreambooth.personalization import mean_prediction

SITES = (Site("unet.wide", "unet", "wide", 12, 9), Site("unet.tall", "unet", "tall", 10, 14))


@pytest.fixture
def space() -> LiDBSpace:
    return LiDBSpace(SITES, a=5, b=4, seed=2, scale=0.5)


def persons(space: LiDBSpace, count: int, ranks: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, len(space.sites), ranks, space.width, generator=generator)


def deltas(space: LiDBSpace, weights: Tensor) -> list[Tensor]:
    return [space.delta(weights, index) for index in range(len(space.sites))]


def best_of_rank(matrix: Tensor, ranks: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix)
    return u[:, :ranks] * s[:ranks] @ vt[:ranks]


def test_delta_is_equation_1_transposed(space: LiDBSpace) -> None:
    weights = persons(space, 1, ranks=2)[0]
    for index, site in enumerate(SITES):
        a_aux, b_aux = space.bases(index)
        a_train, b_train = weights[index, :, :5].T, weights[index, :, 5:]  # (a, R), (R, b)
        x = torch.randn(3, site.n_in)
        expected = 0.5 * x @ a_aux @ a_train @ b_train @ b_aux
        assert torch.allclose(x @ space.delta(weights, index).T, expected, atol=1e-5)


def test_start_has_unit_columns_no_delta_and_a_gradient(space: LiDBSpace) -> None:
    start = space.start(ranks=3).requires_grad_()
    down, up = space.split(start)
    assert start.shape == (2, 3, 9)
    assert torch.allclose(down.norm(dim=-1), torch.ones(2, 3))
    assert not up.any()
    delta = space.delta(start, 1)
    assert not delta.any()
    delta.backward(torch.randn(14, 10))
    assert start.grad is not None
    assert start.grad[1, :, 5:].abs().min() > 0


def test_start_is_shared_and_every_rank_has_its_own(space: LiDBSpace) -> None:
    assert torch.equal(space.start(4)[:, 1:], space.start(3, first=1))
    assert torch.equal(space.start(2), LiDBSpace(SITES, 5, 4, seed=2).start(2))
    columns = LiDBSpace(SITES, 5, 4, seed=2).start(3)[0, :, :5]
    for i, j in itertools.combinations(range(3), 2):
        assert (columns[i] @ columns[j]).abs() < 0.99


def test_distance_is_that_of_the_whole_matrices(space: LiDBSpace) -> None:
    first, second = persons(space, 2, ranks=3)
    squares = [(p - q).square().sum() for p, q in zip(deltas(space, first), deltas(space, second), strict=True)]
    assert torch.allclose(space.distance(first, second), torch.stack(squares).sum().sqrt(), rtol=1e-5)
    one_by_one = torch.stack([space.distance(first, second), space.distance(second, second)])
    assert torch.allclose(space.distance(torch.stack([first, second]), second), one_by_one)


def test_strength_scales_delta(space: LiDBSpace) -> None:
    weights = persons(space, 1, ranks=2)[0]
    for scaled, plain in zip(deltas(space, space.strength(weights, -0.3)), deltas(space, weights), strict=True):
        assert torch.allclose(scaled, -0.3 * plain, atol=1e-6)


def test_stack_adds_deltas_exactly(space: LiDBSpace) -> None:
    prediction, fresh = persons(space, 1, 1)[0], persons(space, 1, 3, seed=1)[0]
    stacked = space.stack([prediction, fresh])
    assert stacked.shape == (2, 4, 9)
    for total, *parts in zip(*(deltas(space, one) for one in (stacked, prediction, fresh)), strict=True):
        assert torch.allclose(total, sum(parts, torch.tensor(0.0)), atol=1e-6)


def test_mix_is_the_nearest_of_its_rank_to_the_mixed_delta(space: LiDBSpace) -> None:
    first, second = persons(space, 2, ranks=2)
    mixed = space.mix(first, second, weight=0.3)
    assert mixed.shape == first.shape
    for got, p, q in zip(*(deltas(space, one) for one in (mixed, first, second)), strict=True):
        assert torch.allclose(got, best_of_rank(0.7 * p + 0.3 * q, 2), atol=1e-5)


def test_average_with_enough_ranks_is_exact(space: LiDBSpace) -> None:
    three = persons(space, 3, ranks=1)
    average = space.average(list(three), ranks=3)
    for got, *parts in zip(*(deltas(space, one) for one in (average, *three)), strict=True):
        assert torch.allclose(got, torch.stack(parts).mean(0), atol=1e-6)


def test_mixing_with_nobody_else_keeps_the_person(space: LiDBSpace) -> None:
    first, second = persons(space, 2, ranks=2)
    assert space.distance(space.mix(first, second, weight=0.0), first) < 1e-5
    assert space.distance(space.mix(first, second, weight=1.0), second) < 1e-5


def test_cut_keeps_small_persons_and_batches(space: LiDBSpace) -> None:
    three = persons(space, 3, ranks=2)
    assert space.cut(three, ranks=2) is three
    cut = space.cut(three, ranks=1)
    assert cut.shape == (3, 2, 1, 9)
    assert torch.allclose(space.split(cut)[0].norm(dim=-1), torch.ones(3, 2, 1), atol=1e-6)
    for got, whole in zip(deltas(space, cut[1]), deltas(space, three[1]), strict=True):
        assert torch.allclose(got, best_of_rank(whole, 1), atol=1e-5)


class NoFloat64(TorchDispatchMode):
    """As Apple's GPU: no float64 but on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float64 and tensor.device.type != "cpu":
                raise TypeError(f"{func} makes float64 on {tensor.device}")
        return made


def test_people_on_another_device_are_averaged_without_float64_there(space: LiDBSpace) -> None:
    with FakeTensorMode(), NoFloat64():  # tensors without numbers, which may go from any device to any other
        three = persons(space, 3, ranks=1).to("meta")
        with pytest.raises(TypeError, match="makes float64 on meta"):
            three.double()
        average = mean_prediction(three, space)
    assert average.shape == three.shape[1:]
    assert (average.device, average.dtype) == (three.device, torch.float32)


def test_digest_and_info_tell_spaces_apart(space: LiDBSpace) -> None:
    reordered = LiDBSpace(SITES[::-1], a=5, b=4, seed=2, scale=0.5)
    assert space.digest != reordered.digest
    assert space.info == LiDBSpace(SITES, a=5, b=4, seed=2, scale=0.5).info
    assert space.info.check != LiDBSpace(SITES, a=5, b=4, seed=3, scale=0.5).info.check


def test_lora_layout_round_trip_and_start() -> None:
    layout = LoRALayout(SITES, rank=2)
    flat = torch.arange(2.0 * layout.size).reshape(2, -1)
    factors = layout.split(flat)
    assert [down.shape for down, _ in factors] == [(2, 2, 12), (2, 2, 10)]
    assert [up.shape for _, up in factors] == [(2, 9, 2), (2, 14, 2)]
    assert torch.equal(layout.pack(factors), flat)
    for down, up in layout.split(layout.start()):
        assert not up.any()
        assert 0.4 < down.norm(dim=-1).mean() < 1.6
    assert torch.equal(LoRALayout(SITES[:1], 2).start(), layout.start()[: 2 * 21])  # by name, not by position
