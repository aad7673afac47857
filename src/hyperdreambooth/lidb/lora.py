"""Full-space LoRA factors on the same sites: one flat tensor, and how it falls into layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperdreambooth.lidb.basis import random_state
from hyperdreambooth.lidb.sites import Site, total_width

Factors = tuple[Tensor, Tensor]  # down (..., r, n) and up (..., m, r): dW = up @ down


@dataclass(frozen=True)
class LoRALayout:
    """How a flat tensor of ``size`` numbers holds the LoRA factors of every site.

    Args:
        sites: the adapted layers in order of execution.
        rank: r; each site takes first down (r, n), then up (m, r).
    """

    sites: tuple[Site, ...]
    rank: int

    @cached_property
    def size(self) -> int:
        """The numbers of all factors: r times the sum of n + m."""
        return self.rank * total_width(self.sites)

    def split(self, flat: Tensor) -> list[Factors]:
        """Flat (..., size) -> each site's down (..., r, n) and up (..., m, r)."""
        lengths = [self.rank * width for site in self.sites for width in (site.n_in, site.n_out)]
        parts = iter(torch.split(flat, lengths, dim=-1))
        batch = flat.shape[:-1]
        return [
            (
                next(parts).reshape(*batch, self.rank, site.n_in),  # (..., r, n)
                next(parts).reshape(*batch, site.n_out, self.rank),  # (..., m, r)
            )
            for site in self.sites
        ]

    def pack(self, factors: list[Factors]) -> Tensor:
        """Each site's down (..., r, n) and up (..., m, r) -> flat (..., size)."""
        return torch.cat([part.flatten(-2) for pair in factors for part in pair], dim=-1)

    def start(self, seed: int = 0) -> Tensor:
        """(size,) float32: random down with rows of about norm 1, drawn by seed and site name, and zero up."""
        factors = []
        for site in self.sites:
            down = random_state("lora", seed, site.name).standard_normal((self.rank, site.n_in)) / site.n_in**0.5
            factors.append((torch.from_numpy(down).float(), torch.zeros(site.n_out, self.rank)))
        return self.pack(factors)


def combine_lora(sites: tuple[Site, ...], flats: Sequence[Tensor], amounts: Sequence[float]) -> Tensor:
    """Flat factors, of the most ranks of any, whose dW is nearest to the sum of amounts[i] * dW_i at each site.

    Those of one person alone are scaled, exactly. A site where nobody has factors has none afterwards: zeros.

    Args:
        sites: the adapted layers in order of execution.
        flats: N flat tensors (size_i,) as in LoRALayout, of any ranks.
        amounts: N factors of dW.
    """
    width = total_width(sites)
    layouts = [LoRALayout(sites, flat.shape[-1] // width) for flat in flats]
    split = [layout.split(flat) for layout, flat in zip(layouts, flats, strict=True)]
    most = max(layouts, key=lambda layout: layout.rank)
    nearest = []
    for factors in zip(*split, strict=True):  # of one site
        down = torch.cat([down for down, _ in factors], dim=-2)
        up = torch.cat([amount * up for amount, (_, up) in zip(amounts, factors, strict=True)], dim=-1)
        nearest.append(_cut(down, up, most.rank))
    return most.pack(nearest)


def _cut(down: Tensor, up: Tensor, rank: int) -> Factors:
    """Down (k, n) and up (m, k) -> down (rank, n) and up (m, rank) whose dW is nearest, by the SVD of a k x k core.

    Of each singular value, down and up take the root; ranks beyond those of dW are zeros. Factors of no more ranks are
    returned as they are.
    """
    if len(down) <= rank:
        return down, up
    basis_in, core_in = torch.linalg.qr(down.mT)  # (n, i), (i, k): i = min(n, k)
    basis_out, core_out = torch.linalg.qr(up)  # (m, j), (j, k): j = min(m, k)
    u, s, vt = torch.linalg.svd(core_out @ core_in.mT, full_matrices=False)  # (j, l), (l,), (l, i)
    root = s[:rank].sqrt()
    down, up = (root.unsqueeze(-1) * vt[:rank]) @ basis_in.mT, basis_out @ (u[:, :rank] * root)
    missing = rank - len(root)
    return F.pad(down, (0, 0, 0, missing)), F.pad(up, (0, missing))


def squared_norm(down: Tensor, up: Tensor) -> Tensor:
    """||up @ down||^2 in float64, without making the product: down (..., r, n), up (..., m, r) -> (...)."""
    down, up = down.double(), up.double()
    inner: Tensor = ((down @ down.mT) * (up.mT @ up)).sum(dim=(-2, -1))  # (..., r, r) twice
    return inner.clamp(min=0)


def squared_distance(first: Factors, second: Factors) -> Tensor:
    """||dW_1 - dW_2||^2 in float64, of the factors of one layer, of any ranks."""
    down = torch.cat([first[0].double(), second[0].double()], dim=-2)
    return squared_norm(down, torch.cat([first[1].double(), -second[1].double()], dim=-1))
