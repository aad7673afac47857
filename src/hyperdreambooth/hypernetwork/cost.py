"""What a training would take, counted from shapes: no number is computed, and no weights are fetched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hyperdreambooth.base.diffusion import denoising_loss
from hyperdreambooth.base.model import Base
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.hypernetwork.loss import without_autocast
from hyperdreambooth.hypernetwork.model import HyperNetwork, HyperNetworkConfig, random_hypernetwork
from hyperdreambooth.hypernetwork.training import TrainConfig, set_trained
from hyperdreambooth.lidb import Adapters

_Shape = Sequence[int]


def _attention_flops(q: _Shape, k: _Shape, v: _Shape, *_: object, **__: object) -> int:
    """Of shapes (B, H, T, D)."""
    return int(sdpa_flop_count(q, k, v))


def _attention_backward_flops(_: _Shape, q: _Shape, k: _Shape, v: _Shape, *__: object, **___: object) -> int:
    """Two products, each with two gradients."""
    return 2 * _attention_flops(q, k, v)


def _convolution_backward_flops(
    grad: _Shape,
    x: _Shape,
    weight: _Shape,
    _b: object,
    _s: object,
    _p: object,
    _d: object,
    transposed: bool,
    *rest: Any,
    **__: object,
) -> int:
    """As much as forward for each gradient that is asked for; torch's own counts groups (a person each) too often."""
    _, _, wanted = rest  # output padding, groups, whether of x, of the weight, of the bias
    batch, _, *places = x if transposed else grad
    return 2 * batch * math.prod(places) * math.prod(weight) * (int(wanted[0]) + int(wanted[1]))


_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # of which torch has no formula
_BACKWARD = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_backward,
    torch.ops.aten._scaled_dot_product_efficient_attention_backward,
    torch.ops.aten._scaled_dot_product_cudnn_attention_backward,
)
_FORMULAS = {
    _FUSED: _attention_flops,
    **dict.fromkeys(_BACKWARD, _attention_backward_flops),
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
}


@dataclass(frozen=True)
class PhaseCost:
    """One phase of a training."""

    steps: int
    flops_per_step: int
    kept_bytes: int  # by a step for its backward pass, without low-memory modes


@dataclass(frozen=True)
class TrainingCost:
    """Bytes are of tensors, not of what libraries work in.

    A phase needs at once the bytes of network, training and base, and what a step of it keeps.
    """

    parameters: int
    parameters_trained: int
    parameters_of_encoder: int
    prediction_flops: int  # one picture to one person
    network_bytes: int  # parameters and buffers
    training_bytes: int  # gradients, the optimiser's moments and the average
    base_bytes: int
    phases: dict[str, PhaseCost]


def training_cost(
    sizes: HyperNetworkConfig,
    base: Base,
    adapters: Adapters,
    config: TrainConfig,
    shapes: FakeTensorMode | None = None,
) -> TrainingCost:
    """Count a training of a hypernetwork of these sizes on a base that has adapters in it, which stays as it is.

    The encoder is of the sizes that stand in the config: a pretrained one is not fetched.

    Args:
        shapes: the context of `shapes_alone` that a base without numbers was made in.
    """
    with shapes or shapes_alone() as mode:
        with base.device:
            network = random_hypernetwork(sizes, adapters.space, "")
            network.start = network.start.to(base.device)  # which is drawn on the CPU
        set_trained(network, config)
        trained = [p for p in network.parameters() if p.requires_grad]
        with torch.no_grad():
            prediction = count_flops(lambda: network(_pictures(network, 1)))
        held = [*tensors_of(network), *(of_base := held_by(base, adapters))]
        held += [mode.from_tensor(t) for t in of_base if not isinstance(t, FakeTensor)]  # autograd keeps either
        phases = {}
        for name, fit in config.phases().items():
            people = config.both_batch if name == "both" else config.weights_batch
            with torch.no_grad():  # looked at before, or in the step
                faces = network.encoder(_pictures(network, people)) if config.versions else _pictures(network, people)

            def step(fit: FitConfig = fit, name: str = name, faces: Tensor = faces) -> None:
                with torch.autocast(base.device.type, torch.bfloat16, enabled=fit.precision == "bf16"):
                    theta = network.decode(faces) if config.versions else network(faces)
                    noises = config.noises if name == "both" else 0
                    loss = _loss(network, base, adapters, theta, noises, config.prompt)
                loss.backward()

            kept = Kept(held)
            with kept:
                flops = count_flops(step)
            phases[name] = PhaseCost(fit.steps, fit.accumulate * flops, kept.bytes)
        return TrainingCost(
            parameters=numbers_of(network.parameters()),
            parameters_trained=numbers_of(trained),
            parameters_of_encoder=numbers_of(network.encoder.parameters()),
            prediction_flops=prediction,
            network_bytes=bytes_of(tensors_of(network)),
            training_bytes=max(map(_copies, config.phases().values()), default=0) * bytes_of(trained),
            base_bytes=bytes_of(of_base),
            phases=phases,
        )


def shapes_alone() -> FakeTensorMode:
    """A context in which operations give tensors of the right shape, dtype and device without numbers, in no memory.

    Tensors from outside may take part, and are not changed; if they require gradients, those they get have no numbers.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions of a piece of work, those of attention and of backward included.

    A multiply-add is two. What attention computes a second time, to save memory, is not counted.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a whole layer in one operation, which has no formula
    try:
        with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def _loss(network: HyperNetwork, base: Base, adapters: Adapters, theta: Tensor, noises: int, prompt: str) -> Tensor:
    """The loss of one step from theta (N, S, 1, a + b) on: that of weights alone, or with so many noises of each."""
    loss, people = theta.square().mean(), len(theta)
    if noises:
        latents = torch.zeros(people * noises, *base.latent_shape, device=base.device)
        timesteps = torch.zeros(len(latents), dtype=torch.long, device=base.device)
        with without_autocast(base), adapters.use(network.numbers(theta)):
            states = base.encode_prompts([prompt] * people).repeat(noises, 1, 1)  # (K * N, L, D)
            loss = loss + denoising_loss(base, latents, states, timesteps, latents).mean()
    return loss


def _pictures(network: HyperNetwork, count: int) -> Tensor:
    """(N, 3, S, S), of the size that the encoder works at."""
    side = network.config.encoder.picture_size
    return torch.zeros(count, 3, side, side, device=network.start.device)


class Kept(saved_tensors_hooks):
    """Inside, what autograd keeps is noted, each storage once, without those that are held anyway."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        self._held = set(map(_storage, held))
        self._kept: dict[int, torch.UntypedStorage] = {}
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    @property
    def bytes(self) -> int:
        """Of the storages noted so far."""
        return sum(storage.nbytes() for key, storage in self._kept.items() if key not in self._held)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def tensors_of(network: nn.Module) -> list[Tensor]:
    """What a network holds: its parameters and buffers."""
    return [*network.parameters(), *network.buffers()]


def held_by(base: Base, adapters: Adapters) -> list[Tensor]:
    """What a base holds with the adapters that are in it: its networks' tensors, and the bases."""
    return [t for one in (base.vae, *base.adapted.values()) for t in tensors_of(one)] + adapters.bases.tensors


def numbers_of(tensors: Iterable[Tensor]) -> int:
    """How many numbers some tensors have together."""
    return sum(tensor.numel() for tensor in tensors)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """How many bytes the numbers of some tensors take together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _copies(fit: FitConfig) -> int:
    """How often a trained parameter is there beside itself: gradient, two moments, and the average if there is one."""
    return 3 + (fit.ema is not None or fit.average_last is not None)
