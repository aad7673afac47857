"""Which device and which precision are chosen: by a table, as no test machine has all of them."""

import pytest
import torch
from torch import nn

from hyperdreambooth.base import hardware
from hyperdreambooth.base.hardware import choose, name_of
from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


class Sized:
    """As much of a base as is looked at."""

    def __init__(self, numbers: int) -> None:
        self.unet = nn.Linear(numbers, 1, bias=False, device="meta")


LARGE, SMALL = Sized(860_000_000), Sized(4_000_000)


@pytest.mark.parametrize(
    ("base", "there", "expected"),
    [
        (LARGE, (), (CPU, FP32)),
        (LARGE, ("cuda", "bf16"), (CUDA, BF16)),
        (LARGE, ("cuda",), (CUDA, FP16)),
        (LARGE, ("mps",), (MPS, FP32)),
        (SMALL, ("cuda", "bf16"), (CUDA, FP32)),
        (SMALL, ("mps",), (CPU, FP32)),
    ],
)
def test_what_the_hardware_does_well(
    base: Base, there: tuple[str, ...], expected: tuple[object, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: "bf16" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    assert choose(base) == expected


def test_what_is_asked_for_is_taken() -> None:
    assert choose(LARGE, "cpu", BF16) == (CPU, BF16)  # type: ignore[arg-type]
    assert [name_of(dtype) for dtype in (FP32, BF16, FP16, torch.float64)] == ["fp32", "bf16", "fp16", "float64"]


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "toaster"])
def test_a_device_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware.torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=name):
        choose(LARGE, name)  # type: ignore[arg-type]


@pytest.mark.parametrize(("room", "times"), [(None, 1), (6, 1), (24, 3), (80, 10)])
def test_a_large_gpu_draws_more_at_once(
    fresh_base: Base, room: int | None, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "room_on", lambda _: None if room is None else room * 2**30)
    before = fresh_base.at_once
    assert hardware.settle(fresh_base, "cpu").at_once == before * times
