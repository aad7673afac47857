"""FLOPs and parameters of a base and of the hypernetwork, counted from shapes; and what a device can do."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hyperdreambooth.base.diffusion import denoising_loss
from hyperdreambooth.base.model import Base
from hyperdreambooth.hypernetwork.cost import count_flops, shapes_alone
from hyperdreambooth.hypernetwork.model import PRESETS, random_hypernetwork
from hyperdreambooth.lidb import Adapters

PUBLISHED = {
    "U-Net, forward (GFLOP)": 803.3,
    "guided step (GFLOP)": 1606.5,
    "U-Net, forward and backward of rank 1 (GFLOP)": 1712.0,
    "text encoder, 77 tokens (GFLOP)": 13.3,
    "VAE, encode (GFLOP)": 1116.7,
    "VAE, decode (GFLOP)": 2514.5,
    "ViT-H (GFLOP)": 334.6,
    "U-Net (parameters)": 859_520_964,
    "text encoder (parameters)": 123_060_480,
    "VAE (parameters)": 83_653_863,
    "ViT-H (parameters)": 630_764_800,
}
"""Of Stable Diffusion 1.5 at 512 pixels and ViT-H/14 at 224, one picture, products of attention in."""


class Counted(NamedTuple):
    """A quantity as it is counted here, and as it was counted by hand before, or None."""

    name: str
    value: float
    published: float | None


def counts(base: Base, adapters: Adapters, preset: str) -> Iterator[Counted]:
    """Every quantity, one after the other, of one picture of the base's size; nothing is computed."""
    device, first = base.device, torch.zeros((), device=base.device)
    latents, timestep = first.expand(1, *base.latent_shape), torch.zeros(1, dtype=torch.long, device=device)
    picture = first.expand(1, 3, base.picture_size, base.picture_size)
    with shapes_alone():
        with torch.no_grad():
            states = base.encode_prompts([""])

            def pass_of(rows: int) -> int:
                noisy, read = latents.expand(rows, *latents.shape[1:]), states.expand(rows, *states.shape[1:])
                return count_flops(lambda: base.predict(noisy, timestep.expand(rows), read))

            yield _giga("U-Net, forward", pass_of(1))
            yield _giga("guided step", pass_of(2))
            yield _giga("text encoder, 77 tokens", count_flops(lambda: base.encode_prompts([""])))
            yield _giga("VAE, encode", count_flops(lambda: base.encode_pictures(picture)))
            yield _giga("VAE, decode", count_flops(lambda: base.decode(latents)))
        for name, shape in _worn(adapters).items():
            worn = torch.zeros(1, *shape, device=device, requires_grad=True)

            def step(worn: Tensor = worn) -> None:
                with adapters.use(worn):
                    denoising_loss(base, latents, states, timestep, latents).sum().backward()

            yield _giga(f"U-Net, forward and backward of {name}", count_flops(step))
        for network, module in (("U-Net", base.unet), ("text encoder", base.text_encoder), ("VAE", base.vae)):
            yield _parameters(network, module)
        with device, torch.no_grad():
            network = random_hypernetwork(PRESETS[preset], adapters.space, "").eval()
            side = network.config.encoder.picture_size
            face = torch.zeros(1, 3, side, side)
            name = "ViT-H" if preset == "vit-h" else "encoder"
            yield _giga(name, count_flops(lambda: network.encoder(face)))
            features = network.encoder(face)
            sites = len(network.space.sites)
            yield _giga(f"decoder, one round of {sites} sites", count_flops(lambda: network.decode(features, 1)))
            yield _parameters(name, network.encoder)
            yield _parameters("decoder", network, network.encoder)


def _worn(adapters: Adapters) -> dict[str, tuple[int, int, int]]:
    """What is trained, (S, R, a + b), by name."""
    space = adapters.space
    return {
        "rank 1": (len(space.spoken.sites), 1, space.width),
        "6 ranks on all sites": (len(space.sites), 6, space.width),
    }


def _giga(name: str, flops: int) -> Counted:
    return _counted(f"{name} (GFLOP)", flops / 1e9)


def _parameters(name: str, network: torch.nn.Module, without: torch.nn.Module | None = None) -> Counted:
    count = sum(p.numel() for p in network.parameters())
    return _counted(f"{name} (parameters)", count - sum(p.numel() for p in without.parameters()) if without else count)


def _counted(name: str, value: float) -> Counted:
    return Counted(name, value, PUBLISHED.get(name))


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int, times: int = 10) -> float:
    """FLOP/s of the product of two matrices (side, side), the fastest of so many."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: a @ b, device) for _ in range(times))


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until a device has done a piece of work; of a CPU's single thread, those that it spent on it."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def device_name(device: torch.device) -> str:
    """What the device calls itself; of a CPU with the number of threads at work."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def _processor() -> str:
    """The name of a CPU; on Linux, as the kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
