"""LiDB, the weight space a person lives in (eq. 1), and the arithmetic of persons in it.

    dW x = A_aux A_train B_train B_aux     A_aux (n, a), A_train (a, R), B_train (R, b), B_aux (b, m)

A_aux and B_aux are frozen and the same for everybody; A_train and B_train are the person. Packed, a person is one
tensor ``(S, R, a + b)`` over S sites and R ranks: first the a numbers of a column of A_train, then the b numbers of a
row of B_train. Because the bases are orthonormal, arithmetic acts on the small cores A_train B_train, not on dW itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hyperdreambooth.errors import SiteTooNarrow
from hyperdreambooth.lidb.basis import BASIS_VERSION, basis, check_value, random_state
from hyperdreambooth.lidb.lora import Factors
from hyperdreambooth.lidb.sites import Site, total_width


@dataclass(frozen=True)
class SpaceInfo:
    """What two spaces must share for a person's numbers to mean the same in both.

    Attributes:
        a: dimensions of each layer's input basis.
        b: dimensions of each layer's output basis.
        seed: seed of the bases.
        scale: factor of dW.
        basis_version: version of the recipe that draws the bases.
        check: hash of drawn entries, so that a machine that draws other bases is found out.
        digest: hash of the sites' names, sizes and order.
    """

    a: int
    b: int
    seed: int
    scale: float
    basis_version: int
    check: str
    digest: str


@dataclass(frozen=True)
class LiDBSpace:
    """The weight space of one base model: its sites, the sizes of the bases, their seed and the scale of dW.

    Args:
        sites: the adapted layers in order of execution, S of them.
        a: dimensions of the basis on each layer's input, below every n.
        b: dimensions of the basis on each layer's output, below every m.
        seed: seed of the bases and of the start.
        scale: factor of dW.
        rule_sites: how many of the first sites are of the paper's 192-layer rule, of which the paper's hypernetwork
            speaks; those behind are the residual blocks'. 0 is all of them.

    Raises:
        SiteTooNarrow: a >= n or b >= m at some layer.
    """

    sites: tuple[Site, ...]
    a: int
    b: int
    seed: int = 0
    scale: float = 1.0
    rule_sites: int = 0

    def __post_init__(self) -> None:
        for site in self.sites:
            if self.a >= site.n_in or self.b >= site.n_out:
                raise SiteTooNarrow(
                    f"{site.name} has {site.n_in} inputs and {site.n_out} outputs, but the bases have a = {self.a} and "
                    f"b = {self.b}: choose a < {site.n_in} and b < {site.n_out}"
                )

    @cached_property
    def rule(self) -> "LiDBSpace":
        """The space of the 192-layer rule's sites alone, which is the paper's."""
        return replace(self, sites=self.sites[: self.rule_sites], rule_sites=0) if self.rule_sites else self

    @property
    def blocks(self) -> int:
        """How many of the sites are the residual blocks', behind those of the 192-layer rule."""
        return len(self.sites) - len(self.rule.sites)

    @property
    def way_up(self) -> int:
        """How many of these, the last ones, lie on the U-Net's way up: behind all that takes the picture apart."""
        behind = takewhile(lambda site: site.path.startswith("up_blocks."), reversed(self.sites))
        return min(sum(1 for _ in behind), self.blocks)

    def of(self, *persons: Tensor) -> "LiDBSpace":
        """The space of people's numbers (..., S, R, a + b), by their sites: this one if any has all, or `rule`."""
        return self if any(one.shape[-3] == len(self.sites) for one in persons) else self.rule

    def fill(self, weights: Tensor, ranks: int = 0) -> Tensor:
        """The same person on all sites, and in at least so many ranks: (..., S, R, a + b); what is added is zero."""
        missing = len(self.sites) - weights.shape[-3]
        return F.pad(weights, (0, 0, 0, max(ranks - weights.shape[-2], 0), 0, missing))

    def fill_lora(self, lora: Tensor, space: "LiDBSpace") -> Tensor:
        """Flat full-space factors on these sites as flat factors on those of a space that has more behind them."""
        width = total_width(self.sites)
        return F.pad(lora, (0, lora.shape[-1] // width * (total_width(space.sites) - width)))

    @property
    def width(self) -> int:
        """Numbers per site and rank: a + b."""
        return self.a + self.b

    def size(self, ranks: int = 1) -> int:
        """The numbers of a person of that many ranks: S * R * (a + b)."""
        return len(self.sites) * ranks * self.width

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of a hash of the sites' canonical names and sizes, in order."""
        lines = "\n".join(f"{site.name} {site.n_in} {site.n_out}" for site in self.sites)
        return hashlib.sha256(lines.encode()).hexdigest()[:16]

    @cached_property
    def info(self) -> SpaceInfo:
        """What identifies this space in a file; the check value is taken on the first site's bases."""
        check = check_value(*self.bases(0))
        return SpaceInfo(self.a, self.b, self.seed, self.scale, BASIS_VERSION, check, self.digest)

    def bases(self, index: int) -> tuple[Tensor, Tensor]:
        """The frozen bases of one site, drawn anew: A_aux (n, a) and B_aux (b, m), float32."""
        site = self.sites[index]
        down = basis(f"{site.name}/A_aux", site.n_in, self.a, self.seed)  # (n, a)
        up = basis(f"{site.name}/B_aux", site.n_out, self.b, self.seed)  # (m, b)
        return down, up.T.contiguous()

    def start(self, ranks: int = 1, first: int = 0, sites: slice = slice(None)) -> Tensor:
        """(S, R, a + b) float32: where every person's fit begins, A_train of fixed unit columns, B_train zero.

        dW is zero, its gradient is not. Unit columns make x A_aux A_train of the order of x's entries, which suits
        Adam at a learning rate of about 1e-2.

        Args:
            ranks: R.
            first: number of the first rank: ranks added beside a person of ``first`` ranks start elsewhere than its.
            sites: of which, where not of all S.
        """
        numbers = range(first, first + ranks)
        columns = np.array(
            [
                [random_state("start", self.seed, site.name, rank).standard_normal(self.a) for rank in numbers]
                for site in self.sites[sites]
            ]
        )
        columns /= np.linalg.norm(columns, axis=-1, keepdims=True)
        down = torch.from_numpy(columns).float()  # (S, R, a)
        return self.pack(down, down.new_zeros(*down.shape[:-1], self.b))

    def pack(self, down: Tensor, up: Tensor) -> Tensor:
        """A_train transposed (..., S, R, a) and B_train (..., S, R, b) -> packed (..., S, R, a + b)."""
        return torch.cat([down, up], dim=-1)

    def split(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Packed (..., R, a + b) -> A_train transposed (..., R, a) and B_train (..., R, b)."""
        return weights[..., : self.a], weights[..., self.a :]

    def delta(self, weights: Tensor, index: int) -> Tensor:
        """(m, n): dW of one site's torch weight (out, in) for a person (S, R, a + b); eq. 1 transposed and scaled."""
        a_aux, b_aux = (side.to(weights) for side in self.bases(index))
        return self.scale * (b_aux.T @ self.cores(weights[index]) @ a_aux.T)  # (m, b) (b, a) (a, n)

    def cores(self, weights: Tensor) -> Tensor:
        """(..., b, a): B_train^T A_train^T of each site; dW = scale * B_aux^T core A_aux^T, norms agree up to scale."""
        down, up = self.split(weights)
        return up.mT @ down

    def strength(self, weights: Tensor, factor: float) -> Tensor:
        """The person with dW multiplied by ``factor``: B_train is scaled."""
        down, up = self.split(weights)
        return self.pack(down, factor * up)

    def stack(self, persons: Sequence[Tensor]) -> Tensor:
        """(..., S, sum of R, a + b): the person whose dW is the sum of the persons' dW, exactly."""
        return torch.cat(list(persons), dim=-2)

    def cut(self, weights: Tensor, ranks: int) -> Tensor:
        """(..., S, at most ranks, a + b): the person of that many ranks whose dW is nearest, by the SVD of the cores.

        Columns of A_train come out with norm 1, as in the start. A person of no more ranks is returned as is. It is
        worked out on the CPU, as Apple's GPU has no float64.
        """
        if weights.shape[-2] <= ranks:
            return weights
        return self._of_cores(self.cores(weights.cpu().double()), ranks).to(weights)

    def project(self, factors: Sequence[Factors], ranks: int) -> Tensor:
        """(S, R, a + b) float32: the person of at most R ranks whose dW is nearest to full-space changes of the layers.

        The bases are orthonormal, so the nearest core is B_aux dW A_aux / scale, cut to R ranks by its SVD. Of the two
        signs of each rank, that which is nearer to the common start: so people from elsewhere can be compared.

        Args:
            factors: each site's down (r, n) and up (m, r), dW = up @ down.
            ranks: R.
        """
        cores = []
        for index, (down, up) in enumerate(factors):
            a_aux, b_aux = (side.double() for side in self.bases(index))  # (n, a), (b, m)
            cores.append((b_aux @ up.double()) @ (down.double() @ a_aux) / self.scale)  # (b, a)
        nearest = self._of_cores(torch.stack(cores), ranks)
        down, _ = self.split(nearest)
        begin, _ = self.split(self.start(down.shape[-2]).double())
        return torch.where((down * begin).sum(dim=-1, keepdim=True) < 0, -nearest, nearest).float()

    def _of_cores(self, cores: Tensor, ranks: int) -> Tensor:
        """(..., at most R, a + b): the person nearest to cores (..., b, a)."""
        u, s, vt = torch.linalg.svd(cores, full_matrices=False)  # (..., b, k), (..., k), (..., k, a)
        return self.pack(vt[..., :ranks, :], (u * s.unsqueeze(-2))[..., :ranks].mT)

    def combine(self, persons: Sequence[Tensor], amounts: Sequence[float], ranks: int | None = None) -> Tensor:
        """(S, R, a + b): the person of R ranks (default: the most of any) nearest in dW to sum of amounts[i] * dW_i."""
        scaled = [self.strength(person, amount) for person, amount in zip(persons, amounts, strict=True)]
        return self.cut(self.stack(scaled), ranks or max(person.shape[-2] for person in persons))

    def mix(self, first: Tensor, second: Tensor, weight: float = 0.5, ranks: int | None = None) -> Tensor:
        """(S, R, a + b): a person on the way from ``first`` (weight 0) to ``second`` (weight 1), in dW."""
        return self.combine([first, second], [1.0 - weight, weight], ranks)

    def average(self, persons: Sequence[Tensor], ranks: int | None = None) -> Tensor:
        """(S, R, a + b): the person whose dW is nearest to the mean of the persons' dW."""
        return self.combine(persons, [1.0 / len(persons)] * len(persons), ranks)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """(...): the Frobenius distance of two persons' dW over all sites, for persons (..., S, R, a + b)."""
        apart: Tensor = torch.linalg.vector_norm(self.cores(first) - self.cores(second), dim=(-3, -2, -1))
        return self.scale * apart
