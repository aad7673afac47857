"""A person of the tiny base, and the program on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperdreambooth.cli import run
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import LoRALayout
from hyperdreambooth.pipeline import HyperDreamBooth


def person_of(booth: HyperDreamBooth, lora_rank: int = 0, ranks: int = 2) -> Identity:
    """Strong enough to change a picture by far more than rounding."""
    random = torch.Generator().manual_seed(1)
    weights = 0.6 * torch.randn(booth.space.start(ranks).shape, generator=random)
    size = LoRALayout(booth.space.sites, lora_rank).size
    lora = 0.2 * torch.randn(size, generator=random) if lora_rank else None
    return Identity(
        weights, booth.space.info, booth.fingerprint, booth.base.name,
        prompt="a photo of a [V] face", how={"method": "hyperdreambooth", "steps": 40}, lora=lora,
    )  # fmt: skip


@pytest.fixture
def alice(booth: HyperDreamBooth, tmp_path: Path) -> Path:
    """The file of a person after relaxation in full space."""
    path = tmp_path / "alice.safetensors"
    person_of(booth, lora_rank=2).save(path, "fp32")
    return path


Hdb = Callable[..., Any]


@pytest.fixture
def hdb(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> Hdb:
    """The program: its JSON object, or with a status its one line of error."""

    def call(*arguments: object, status: int = 0, base: bool = True) -> Any:
        capsys.readouterr()
        more = [*(("--base", base_folder) if base else ()), "--json"]
        got = run([str(argument) for argument in (*arguments, *more)])
        out, err = capsys.readouterr()
        assert got == status, err
        if status == 0:
            return json.loads(out)
        lines = [line for line in err.splitlines() if not line.startswith("note:")]
        assert out == "" and len(lines) == 1 and lines[0].startswith("error: "), err
        return lines[0]

    return call
