"""FLOPs and parameters of a base and of the hypernetwork, counted from shapes; and what a device can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import random_base
from hyperdreambooth.base.diffusion import denoising_loss
from hyperdreambooth.base.hardware import processor
from hyperdreambooth.base.model import Base
from hyperdreambooth.fitting.finetune import PRESETS as FINETUNE
from hyperdreambooth.hypernetwork.cost import Kept, count_flops, held_by, numbers_of, shapes_alone, training_cost
from hyperdreambooth.hypernetwork.model import PRESETS, HyperNetworkConfig, random_hypernetwork
from hyperdreambooth.hypernetwork.training import TrainConfig
from hyperdreambooth.lidb import Adapters, LiDBSpace, LoRALayout, inject
from hyperdreambooth.lidb.injection import Outfit
from hyperdreambooth.lidb.linear import Worn
from hyperdreambooth.pipeline import space_of

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
    "a person, LiDB of one rank (numbers)": 28_800,
    "a person, rank-1 LoRA of the same layers (numbers)": 385_344,
    "the one of the other (%)": 7.5,
}
"""Of Stable Diffusion 1.5 at 512 pixels and ViT-H/14 at 224, one picture, products of attention in."""


_NONE = (torch.ops.aten.detach, torch.ops.aten._unsafe_view)  # they give no new numbers either


class Counted(NamedTuple):
    """A quantity as it is counted here, and as it was counted by hand before, or None."""

    name: str
    value: float
    published: float | None


def counts(layout: Path, size: int | None, a: int, b: int, preset: str) -> Iterator[Counted]:
    """Every quantity, one after the other, of one picture of a layout and of a hypernetwork; nothing is computed.

    size, a, b: as of `random_base`.
    """
    mode = shapes_alone()
    base = random_base(layout, size, a, b, mode)
    with mode:
        adapters = inject(base.adapted, space_of(base))
        latents, timestep = torch.zeros(1, *base.latent_shape), torch.zeros(1, dtype=torch.long)
        picture = torch.zeros(1, 3, base.picture_size, base.picture_size)
        held = held_by(base, adapters)
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
        rule = adapters.space.rule.start().unsqueeze(0).requires_grad_()  # (1, S, 1, a + b)
        yield _giga("U-Net, forward and backward of rank 1", count_flops(_step(base, adapters, rule, states, 1)))
        everywhere = adapters.space.start().unsqueeze(0).requires_grad_()
        for noises in (1, 4):
            step = _step(base, adapters, everywhere, None, noises)
            yield from _work_and_memory(f"a person's step of {noises} noise{'s' * (noises > 1)}", step, held)
        bases = FINETUNE["lidb"].config  # the prediction lies in the weights meanwhile
        first = bases.places_in(adapters.space).start
        fresh = adapters.space.start(bases.rank_in(adapters.space), 1, slice(first, None)).unsqueeze(0)
        for noises in (1, 2):
            step = _step(base, adapters, fresh.requires_grad_(), states, noises, first)
            yield from _work_and_memory(f"a step of fine-tuning, {noises} noise{'s' * (noises > 1)}", step, held)
        beside = _beside(adapters)
        step = _step(base, adapters, fresh, states, 1, first, beside)
        yield _operations("a step of fine-tuning, 1 noise, in half precision", step)
        for network, module in (("U-Net", base.unet), ("text encoder", base.text_encoder), ("VAE", base.vae)):
            yield _parameters(network, module)
        with torch.no_grad():
            network = random_hypernetwork(PRESETS[preset], adapters.space, "").eval()
            side = network.config.encoder.picture_size
            face = torch.zeros(1, 3, side, side)
            name = "ViT-H" if preset == "vit-h" else "encoder"
            yield _giga(name, count_flops(lambda: network.encoder(face)))
            yield _giga(f"prediction, {network.config.rounds} rounds", count_flops(lambda: network(face)))
            yield _parameters(name, network.encoder)
            yield _parameters("decoder", network, network.encoder)
        yield from _training(PRESETS[preset], base, adapters, mode)
        yield from _sizes(adapters.space, numbers_of(p for one in base.adapted.values() for p in one.parameters()))


def _training(sizes: HyperNetworkConfig, base: Base, adapters: Adapters, mode: FakeTensorMode) -> Iterator[Counted]:
    """What the training of a hypernetwork takes, with as many people and steps as it is preset."""
    cost = training_cost(sizes, base, adapters, TrainConfig(), mode)
    for name, phase in cost.phases.items():
        yield _giga(f"training on {name}, a step", phase.flops_per_step)
        yield _counted(f"training on {name} (steps)", phase.steps)
        yield _counted(f"training on {name}, kept in float32 (bytes)", phase.kept_bytes)
    yield _counted("trained of the hypernetwork (parameters)", cost.parameters_trained)
    yield _counted("gradient, moments and average of these (bytes)", cost.training_bytes)
    yield _counted("hypernetwork in float32 (bytes)", cost.network_bytes)
    yield _counted("base in float32, with the bases (bytes)", cost.base_bytes)


def _sizes(space: LiDBSpace, model: int) -> Iterator[Counted]:
    """What a person is, before and after either relaxation, beside a model of so many parameters."""
    lidb, bases, full = space.rule.size(), FINETUNE["lidb"].config, FINETUNE["lora"].config
    lora = LoRALayout(space.rule.sites, 1).size
    in_bases = len(space.sites[bases.places_in(space)]) * space.width * bases.rank_in(space)
    in_full = LoRALayout(space.sites[full.places_in(space)], full.rank_in(space)).size
    yield _counted("a person, LiDB of one rank (numbers)", lidb)
    yield _counted("a person, rank-1 LoRA of the same layers (numbers)", lora)
    yield _counted("the one of the other (%)", 100 * lidb / lora)
    yield _counted("U-Net and text encoder of a person (times)", model / lidb)
    yield _counted("a person, relaxed in the bases (numbers)", lidb + in_bases)
    yield _counted("a person, relaxed in full space (numbers)", space.size() + in_full)


def _work_and_memory(name: str, step: Callable[[], None], held: list[Tensor]) -> Iterator[Counted]:
    """FLOPs of a step, operations, and bytes that it keeps for its backward pass beside what is held anyway."""
    kept = Kept(held)
    with kept:
        flops = count_flops(step)
    yield _giga(name, flops)
    yield _counted(f"{name}, kept in float32 (bytes)", kept.bytes)
    yield _operations(name, step)


def _operations(name: str, step: Callable[[], None]) -> Counted:
    with Operations() as operations:
        step()
    return _counted(f"{name} (operations)", operations.count)


def _beside(adapters: Adapters) -> Outfit:
    """A prediction on the rule's sites as it is worn where it cannot lie in the weights."""
    rule = adapters.bases.compose(adapters.space.rule.start().unsqueeze(0))
    return [Worn(*one) for one in rule] + [Worn()] * adapters.space.blocks


def _step(
    base: Base,
    adapters: Adapters,
    worn: Tensor,
    states: Tensor | None,
    noises: int,
    first: int = 0,
    beside: Outfit | None = None,
) -> Callable[[], None]:
    """Forward and backward of one person who wears (1, S, R, a + b) on the sites from `first` on, and what is beside.

    states: None reads the prompt on the way.
    """

    def work() -> None:
        latents = torch.zeros(noises, *base.latent_shape)
        with adapters.use(worn, first=first, beside=beside):
            read = base.encode_prompts([""]) if states is None else states  # (1, L, D)
            timesteps = torch.zeros(noises, dtype=torch.long)
            denoising_loss(base, latents, read.repeat(noises, 1, 1), timesteps, latents).sum().backward()

    return work


class Operations(TorchDispatchMode):
    """Inside, operations that give new numbers are counted: what a GPU is told to do, one launch or a few for each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "aten" and not func.is_view and func.overloadpacket not in _NONE
        return func(*args, **(kwargs or {}))


def _giga(name: str, flops: int) -> Counted:
    return _counted(f"{name} (GFLOP)", flops / 1e9)


def _parameters(name: str, network: torch.nn.Module, without: torch.nn.Module | None = None) -> Counted:
    count = numbers_of(network.parameters()) - (numbers_of(without.parameters()) if without else 0)
    return _counted(f"{name} (parameters)", count)


def _counted(name: str, value: float) -> Counted:
    return Counted(name, value, PUBLISHED.get(name))


def peaks(device: torch.device, dtype: torch.dtype, side: int, times: int = 10) -> dict[str, float]:
    """FLOP/s of a large product of matrices and of a large convolution, the fastest of so many of each.

    The matrices are (side, side); the convolution is of 3 x 3 places, of
    side / 8 channels: on some CPUs the faster of the two.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    channels = side // 8
    x = torch.randn(1, channels, 64, 64, generator=generator).to(device, dtype)
    kernel = torch.randn(channels, channels, 3, 3, generator=generator).to(device, dtype)
    work = {"product": lambda: a @ b, "convolution": lambda: F.conv2d(x, kernel, padding=1)}
    return {name: count_flops(one) / min(seconds_of(one, device) for _ in range(times)) for name, one in work.items()}


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
    return f"{processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
