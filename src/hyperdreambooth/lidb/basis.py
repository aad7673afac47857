"""The frozen orthogonal bases of eq. 1: incomplete bases that a seed and a layer's name fix on every machine.

NumPy's legacy ``RandomState`` stream is frozen by policy, unlike torch's and NumPy's newer generators. QR in float64,
the signs of the columns fixed, rounded to float32 at the end, gives the same numbers whatever the number of threads;
QR in float32 does not.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

BASIS_VERSION = 1


def random_state(*keys: object) -> np.random.RandomState:
    """A RandomState seeded by SHA-256 of the keys' texts: the same stream wherever the same keys are used."""
    digest = hashlib.sha256("\0".join(map(str, keys)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4").astype(np.uint32))


def basis(name: str, n: int, a: int, seed: int) -> Tensor:
    """(n, a) float32, a < n: orthonormal columns that span a random a-dimensional subspace of R^n.

    Args:
        name: what the basis is for, a layer's canonical name and side; never its position.
        seed: the seed of the whole space.
    """
    gaussian = random_state("basis", BASIS_VERSION, seed, name, n, a).standard_normal((n, a))
    q, r = np.linalg.qr(gaussian)  # (n, a), (a, a), float64
    signs = np.where(np.diag(r) < 0, -1.0, 1.0)  # QR is unique once the diagonal of r is positive
    return torch.from_numpy((q * signs).astype(np.float32))


def check_value(*bases: Tensor) -> str:
    """Eight hexadecimal digits of a hash of the entries rounded to 4 decimals: equal where the bases are equal."""
    digest = hashlib.sha256()
    for entries in bases:
        digest.update(np.rint(entries.double().cpu().numpy() * 1e4).astype("<i4").tobytes())
    return digest.hexdigest()[:8]
