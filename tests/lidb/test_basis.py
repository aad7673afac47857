"""Bases: orthonormal, the same for every number of threads, different for every name, frozen for ever."""

import os
import subprocess
import sys

import numpy as np
import torch

from hyperdreambooth.lidb import BASIS_VERSION, basis, check_value
from hyperdreambooth.lidb.basis import random_state

_DRAW = """
import hashlib
from hyperdreambooth.lidb import basis
drawn = [basis("layer", n, a, 7).numpy().tobytes() for n, a in ((320, 100), (768, 50))]
print(hashlib.sha256(b"".join(drawn)).hexdigest())
"""


def test_columns_are_orthonormal() -> None:
    q = basis("layer", 320, 100, 0).double()
    assert torch.allclose(q.T @ q, torch.eye(100, dtype=torch.float64), atol=1e-6)


def test_bits_do_not_depend_on_threads() -> None:
    def start(threads: int) -> subprocess.Popen[str]:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, str(threads))
        return subprocess.Popen([sys.executable, "-c", _DRAW], env=environment, stdout=subprocess.PIPE, text=True)

    one, two = [process.communicate()[0] for process in [start(1), start(2)]]
    assert one == two != ""


def test_matches_gram_schmidt_of_the_same_stream() -> None:
    """Independent of LAPACK: Gram-Schmidt gives the QR factor with a positive diagonal."""
    columns = random_state("basis", BASIS_VERSION, 5, "layer", 12, 4).standard_normal((12, 4)).T
    rows: list[np.ndarray] = []
    for column in columns:
        rest = column - sum((row @ column * row for row in rows), np.zeros(12))
        rows.append(rest / np.linalg.norm(rest))
    assert np.allclose(basis("layer", 12, 4, 5).numpy(), np.stack(rows, axis=1), atol=1e-7)


def test_every_name_and_seed_has_its_own() -> None:
    drawn = [basis(name, 16, 4, seed) for name, seed in (("x", 0), ("y", 0), ("x", 1))]
    assert all(not torch.allclose(p, q, atol=0.1) for p, q in zip(drawn, drawn[1:] + drawn[:1], strict=True))


def test_check_value_is_frozen() -> None:
    """A change here makes every identity file ever written meaningless: raise BASIS_VERSION instead."""
    drawn = basis("unet.layer/A_aux", 64, 12, 0)
    assert check_value(drawn) == "ae618e22"
    assert check_value(drawn.double() + 1e-9) == check_value(drawn)
    assert check_value(basis("unet.layer/A_aux", 64, 12, 1)) != check_value(drawn)
