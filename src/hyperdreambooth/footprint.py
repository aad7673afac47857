"""How much memory the low-memory modes would need, estimated from shapes: nothing is computed, and none is taken.

Counted are the networks that are on the device and, at their worst moment, the tensors of the work on them. What
libraries work in, and what is lost between tensors, comes on top: the figures are to choose a mode by. Of Stable
Diffusion 1.5 at 256 pixels on a CPU they were 0.8 GB below the whole process, python in it, and right to 0.03 GB from
mode to mode.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from hyperdreambooth.base.diffusion import denoising_loss
from hyperdreambooth.base.memory import LADDER, LowMemory, save_memory
from hyperdreambooth.base.model import Base
from hyperdreambooth.hypernetwork.cost import bytes_of, held_by, tensors_of
from hyperdreambooth.lidb import Adapters, inject
from hyperdreambooth.lidb.recompute import recompute
from hyperdreambooth.pipeline import HyperDreamBooth, space_of

Piece = tuple[Sequence[nn.Module], Callable[[], object]]
"""Networks that are on the device together, where the others can wait, and their work."""


class Peak(TorchDispatchMode):
    """Inside, the bytes of all tensors that come and go are followed; those that are held anyway do not count.

    Attributes:
        most: the most bytes that were there at once.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known = {one.untyped_storage()._cdata for one in held}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_iter(out):
            if isinstance(one, Tensor):
                self._note(one.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) not in self._known:
            self._known.add(key)
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


class _Fused(TorchFunctionMode):
    """Inside, attention is that of torch's kernels, which do not hold its whole matrix, as it would without numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention and given.get("attn_mask") is None and not given.get("is_causal"):
            query, key, value = (*args, *(given[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]
        return func(*args, **given)


def needs_of_fit(booth: HyperDreamBooth, mode: LowMemory, noises: int) -> dict[LowMemory, int]:
    """Bytes that each mode from this one on needs to make one person, with so many noises a step."""

    def pieces(base: Base, adapters: Adapters) -> list[Piece]:
        def encode() -> None:
            base.encode_pictures(torch.zeros(1, 3, base.picture_size, base.picture_size, device="meta"))

        def step() -> None:
            latents = torch.zeros(noises, *base.latent_shape, device="meta")
            worn = adapters.space.start().to("meta").unsqueeze(0).requires_grad_()  # (1, S, 1, a + b)
            with torch.enable_grad(), adapters.use(worn):
                states = base.encode_prompts([""]).repeat(noises, 1, 1)  # (K, L, D)
                timesteps = torch.zeros(noises, dtype=torch.long, device="meta")
                denoising_loss(base, latents, states, timesteps, latents).sum().backward()

        return [((base.vae,), encode), (tuple(base.adapted.values()), step)]

    return _needs(booth, mode, pieces)


def needs_of_drawing(booth: HyperDreamBooth, mode: LowMemory, pictures: int, answers: int) -> dict[LowMemory, int]:
    """Bytes that each mode from this one on needs to draw so many pictures of people, of so many answers a step."""

    def pieces(base: Base, adapters: Adapters) -> list[Piece]:
        count = min(pictures, base.at_once)
        rows = answers * count
        worn = adapters.space.start().to("meta").expand(rows, -1, -1, -1)

        def read() -> Tensor:
            with adapters.use(worn):
                return base.encode_prompts([""] * rows)

        def predict() -> None:
            states = base.encode_prompts([""]).expand(rows, -1, -1)
            with adapters.use(worn):
                base.predict(
                    torch.zeros(rows, *base.latent_shape, device="meta"),
                    torch.zeros((), dtype=torch.long, device="meta"),
                    states,
                )

        def decode() -> None:
            base.decode(torch.zeros(count, *base.latent_shape, device="meta"))

        texts = tuple(network for network in base.adapted.values() if network is not base.unet)
        return [(texts, read), ((base.unet,), predict), ((base.vae,), decode)]

    return _needs(booth, mode, pieces)


def _needs(
    booth: HyperDreamBooth, mode: LowMemory, pieces: Callable[[Base, Adapters], list[Piece]]
) -> dict[LowMemory, int]:
    """The worst piece of a work in each mode from this one on, `offload` last: its pieces as before it, each alone."""
    guest = 0 if booth.hypernetwork is None else _bytes_in([booth.hypernetwork])
    found = dict[LowMemory, int]()
    with torch.no_grad():
        base = _twin(booth.base)
        adapters = inject(base.adapted, space_of(base))
        bases, held = adapters.bases.tensors, held_by(base, adapters)
        for step in LADDER[LADDER.index(mode) : LADDER.index("offload")]:
            save_memory(base, step, recompute)
            works = pieces(base, adapters)
            peaks = [_peak(work, held) for _, work in works]
            found[step] = bytes_of(held) + guest + max(peaks)
        apart = [_bytes_in(together) + bytes_of(bases) + peak for (together, _), peak in zip(works, peaks, strict=True)]
        return found | {"offload": max(guest + bytes_of(bases), *apart)}


def _twin(base: Base) -> Base:
    """A base of the same networks, without numbers."""
    second = base.second
    if second is not None:
        second = replace(second, text_encoder=_hollow(second.text_encoder))
    networks = _hollow(base.vae), _hollow(base.text_encoder), base.tokenizer, _hollow(base.unet)
    return Base(*networks, base.scheduler, base.card, second)


def _hollow(network: Any) -> Any:
    """A network of the same configuration and precision."""
    cls, dtype = type(network), next(network.parameters()).dtype
    with torch.device("meta"):
        twin = cls.from_config(network.config) if hasattr(cls, "from_config") else cls(network.config)
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        if isinstance(module, Attention):
            module.forward = partial(_fused, module.forward)
    return twin


def _fused(attend: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _Fused():
        return attend(*args, **kwargs)


def _bytes_in(networks: Iterable[nn.Module]) -> int:
    return sum(bytes_of(tensors_of(network)) for network in networks)


def _peak(work: Callable[[], object], held: Iterable[Tensor]) -> int:
    with (peak := Peak(held)):
        work()
    return peak.most
