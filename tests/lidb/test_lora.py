"""Full-space factors of several people become those of one, compared with the SVD of whole matrices."""

import pytest
import torch
from torch import Tensor

from hyperdreambooth.lidb import LoRALayout, Site, combine_lora

SIZES = ((12, 9), (10, 14), (40, 3), (2, 30), (25, 25))
SITES = tuple(Site(f"unet.{index}", "unet", f"{index}", n, m) for index, (n, m) in enumerate(SIZES))


def factors(rank: int, seed: int, elsewhere: int = 0) -> Tensor:
    """(size,) flat factors, zero at so many of the first sites."""
    layout = LoRALayout(SITES, rank)
    flat = torch.randn(layout.size, generator=torch.Generator().manual_seed(seed))
    flat[: LoRALayout(SITES[:elsewhere], rank).size] = 0
    return flat


def deltas(flat: Tensor) -> list[Tensor]:
    """dW of each site, whole, in float64."""
    layout = LoRALayout(SITES, len(flat) // LoRALayout(SITES, 1).size)
    return [up.double() @ down.double() for down, up in layout.split(flat)]


@pytest.mark.parametrize(
    ("ranks", "amounts"),
    [
        ((4, 4), (0.5, 0.5)),
        ((4, 4), (0.7, 0.3)),
        ((4, 4), (1.6, -0.6)),
        ((4, 4), (0.0, 1.0)),
        ((2, 5), (0.5, 0.5)),
        ((3, 1, 2), (0.2, 0.3, 0.5)),
        ((4,) * 9, (1 / 9,) * 9),
        ((12, 12), (0.5, 0.5)),
        ((4, 4), (1e-4, 1e4)),
    ],
)
def test_no_change_of_that_rank_is_nearer_to_the_weighted_sum(
    ranks: tuple[int, ...], amounts: tuple[float, ...]
) -> None:
    flats, most = [factors(rank, seed) for seed, rank in enumerate(ranks)], max(ranks)
    combined = combine_lora(SITES, flats, amounts)
    assert combined.dtype == torch.float32 and combined.shape == (LoRALayout(SITES, most).size,)
    for index, got in enumerate(deltas(combined)):
        whole = torch.stack([amount * deltas(flat)[index] for flat, amount in zip(flats, amounts, strict=True)]).sum(0)
        u, s, vt = torch.linalg.svd(whole, full_matrices=False)
        best, tolerance = (u[:, :most] * s[:most]) @ vt[:most], 1e-5 * float(s[0])
        assert torch.linalg.matrix_norm(got - best) <= tolerance
        assert abs(torch.linalg.matrix_norm(got - whole) - torch.linalg.vector_norm(s[most:])) <= tolerance
    assert torch.equal(combined, combine_lora(SITES, flats, amounts))


def test_one_person_alone_is_scaled_to_the_bit() -> None:
    flat = factors(4, 0)
    for (down, up), (same, half) in zip(
        *(LoRALayout(SITES, 4).split(one) for one in (flat, combine_lora(SITES, [flat], [0.5]))), strict=True
    ):
        assert torch.equal(same, down) and torch.equal(half, 0.5 * up)


def test_sites_where_nobody_has_factors_have_none() -> None:
    """Nor does a zero become a rounding error, where one of two factors is."""
    first, second = factors(4, 0, elsewhere=2), factors(4, 1, elsewhere=3)
    LoRALayout(SITES, 4).split(second)[0][0].fill_(1)  # down alone changes nothing
    combined = combine_lora(SITES, [first, second], [0.5, 0.5])
    nothing = LoRALayout(SITES[:2], 4).size
    assert not combined[:nothing].any() and combined[nothing]
    assert torch.allclose(deltas(combined)[2], 0.5 * deltas(first)[2], atol=1e-5)


def test_down_and_up_are_of_one_size() -> None:
    """Else numbers of a small change would lie below those of half precision."""
    combined = combine_lora(SITES, [1e-3 * factors(4, 0), 1e-3 * factors(4, 1)], [0.5, 0.5])
    for down, up in LoRALayout(SITES, 4).split(combined):
        assert torch.allclose(down.norm(dim=1), up.norm(dim=0), rtol=1e-3, atol=1e-7)
