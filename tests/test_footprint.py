"""What modes need, estimated from shapes, against what is allocated and kept when the numbers are there."""

from pathlib import Path

import pytest
import torch

from hyperdreambooth import footprint, personalization
from hyperdreambooth.base import hardware
from hyperdreambooth.base.build import PRESETS, build_base
from hyperdreambooth.base.diffusion import denoising_loss
from hyperdreambooth.base.hardware import room_on
from hyperdreambooth.base.memory import LADDER, LowMemory, mode_that_fits, save_memory
from hyperdreambooth.cli import run
from hyperdreambooth.errors import OutOfMemory
from hyperdreambooth.footprint import Peak, needs_of_drawing, needs_of_fit
from hyperdreambooth.hypernetwork.cost import Kept, bytes_of, tensors_of
from hyperdreambooth.lidb.recompute import recompute
from hyperdreambooth.pipeline import HyperDreamBooth

GB = 10**9


def test_the_peak_is_of_what_is_there_at_once() -> None:
    held = torch.zeros(1000)
    with Peak([held]) as peak:
        first = held + 1  # 4,000 bytes
        second = first.view(10, 100) * 2  # 4,000 more; a view is nothing
        del first
        second = torch.cat([second, second])  # 8,000 beside the 4,000
        del second
        torch.ones(2000)
    assert peak.most == 12_000


def kept_by_a_fit(mode: LowMemory, noises: int) -> tuple[int, int]:
    """Bytes that autograd keeps of a true step, and bytes of the networks and bases."""
    base = build_base(PRESETS["tiny"], ["a", "face"])
    adapters = HyperDreamBooth(base).adapters
    save_memory(base, mode, recompute)
    networks = base.vae, *base.adapted.values()
    held = [one for network in networks for one in tensors_of(network)] + adapters.bases.tensors
    kept = Kept(held)
    with kept:
        latents = torch.zeros(noises, *base.latent_shape)
        with adapters.use(adapters.space.start().unsqueeze(0).requires_grad_()):
            states = base.encode_prompts([""]).repeat(noises, 1, 1)
            denoising_loss(base, latents, states, torch.zeros(noises, dtype=torch.long), latents).sum()
    return kept.bytes, bytes_of(held)


def test_a_fit_needs_what_it_keeps_and_a_little_more() -> None:
    booth = HyperDreamBooth(build_base(PRESETS["tiny"], ["a", "face"]))
    needs = needs_of_fit(booth, "off", noises=32)
    assert list(needs) == list(LADDER)
    kept, networks = kept_by_a_fit("off", 32)
    assert kept + networks < needs["off"] < 1.2 * kept + networks
    kept, _ = kept_by_a_fit("checkpointing", 32)
    assert kept + networks < needs["checkpointing"] < needs["off"] / 2
    assert needs["offload"] == needs["slicing"] - bytes_of(tensors_of(booth.base.vae))
    assert not booth.base.unet.is_gradient_checkpointing and not booth.base.unet.conv_in.weight.is_meta


def test_drawing_needs_less_picture_by_picture_and_least_network_by_network() -> None:
    booth = HyperDreamBooth(build_base(PRESETS["tiny"], ["a", "face"]))
    few, many = (needs_of_drawing(booth, "off", pictures, 3) for pictures in (4, 16))
    networks = [booth.base.vae, *booth.base.adapted.values()]
    resident = sum(bytes_of(tensors_of(network)) for network in networks) + bytes_of(booth.adapters.bases.tensors)
    assert 3.9 < (many["off"] - resident) / (few["off"] - resident) < 4.1
    assert (
        many["checkpointing"] == many["off"] > 2 * many["slicing"] > 2 * many["offload"]
        and few["slicing"] == many["slicing"]
    )


@pytest.mark.parametrize(
    ("mode", "needs", "room", "expected"),
    [
        ("off", (9, 6, 7, 5), 8, "checkpointing"),
        ("off", (9, 9, 7, 5), 8, "slicing"),
        ("off", (9, 8, 8, 7), 8, "offload"),  # as much as there is would not do
        ("off", (9, 8, 8, 8), 8, None),
        ("checkpointing", (6, 7, 5), 5.5, "offload"),
        ("off", (4, 4, 3, 2), 8, "slicing"),  # it ran out, so it needs 8, not 4, and the others twice as much
        ("off", (8, 7.9, 7, 6), 16, "checkpointing"),
    ],
)
def test_the_first_mode_that_fits(
    mode: LowMemory, needs: tuple[float, ...], room: float, expected: LowMemory | None
) -> None:
    known = {one: int(need * GB) for one, need in zip(LADDER[LADDER.index(mode) :], needs, strict=True)}
    assert mode_that_fits(mode, known, int(room * GB)) == expected


def test_room_is_what_is_free_and_what_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * GB, 24 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5 * GB)
    assert room_on(torch.device("cuda")) == 8 * GB
    assert room_on(torch.device("cpu")) is None


def test_the_sizes_are_said() -> None:
    needs = {"off": 9 * GB, "checkpointing": 6 * GB, "slicing": 7 * GB, "offload": 5 * GB}
    fits = str(OutOfMemory.of("cuda", "off", "checkpointing", needs, 8 * GB))
    assert "(checkpointing needs about 6.0 GB, there are 8.0 GB): run again with --low-memory checkpointing" in fits
    none = str(OutOfMemory.of("cuda", "off", None, needs, 4 * GB))
    assert "(offload needs about 5.0 GB, there are 4.0 GB): no mode fits, a smaller base" in none


@pytest.mark.parametrize(("room", "words"), [(800, "again with --low-memory slicing"), (400, "no mode fits")])
def test_a_command_that_ran_out_names_what_fits(
    room: int,
    words: str,
    base_folder: Path,
    portrait_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")

    def estimated(booth: HyperDreamBooth, mode: LowMemory, noises: int) -> dict[LowMemory, int]:
        assert booth.base.name == "tiny" and (mode, noises) == ("off", 8)
        return {"off": 900, "checkpointing": 850, "slicing": 700, "offload": 500}

    monkeypatch.setattr(personalization, "finetune", fail)
    monkeypatch.setattr(hardware, "room_on", lambda _: room)
    monkeypatch.setattr(footprint, "needs_of_fit", estimated)
    command = ["personalize", portrait_file, "-o", tmp_path / "alice", "--base", base_folder, "--noises", 8]
    assert run([*map(str, command), "--hypernetwork", "none"]) == 1
    assert words in capsys.readouterr().err.splitlines()[-1]
