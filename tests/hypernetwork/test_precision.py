"""What a training on a base in half precision computes in which."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperdreambooth.hypernetwork.cost import Kept, PhaseCost, tensors_of, training_cost
from hyperdreambooth.hypernetwork.jitter import Jitter
from hyperdreambooth.hypernetwork.model import PRESETS
from hyperdreambooth.hypernetwork.training import TrainConfig, _Loss
from tests.conftest import adapted_base
from tests.hypernetwork.conftest import World

STILL = Jitter(zoom=0, shift=0, colour=0, blur=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_is_of_the_hypernetwork_and_leaves_out_a_base_in_bfloat16(dtype: torch.dtype) -> None:
    world = World(*adapted_base())
    world.base.to(dtype=dtype)
    network, people, seen = world.network(), world.people(4), dict[str, set[bool]]()
    parts = {"network": network.project, "unet": world.base.unet, "words": world.base.text_encoder}
    for name, part in parts.items():
        own = seen[name] = set()
        part.register_forward_pre_hook(lambda *_, own=own: own.add(torch.is_autocast_enabled("cpu")))
    normed = set()
    norm = world.base.unet.conv_norm_out
    norm.register_forward_hook(lambda _, given, got: normed.update([given[0].dtype, got.dtype]))
    config, generator = TrainConfig(both_batch=4, noises=1), torch.Generator().manual_seed(0)
    loss = _Loss(network, world.base, world.adapters, [people], config, "both", generator)
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = loss(0)
    value.backward()
    whole = dtype == torch.float32
    assert seen == {"network": {True}, "unet": {whole}, "words": {whole}}
    assert whole or normed == {torch.bfloat16}
    assert value.dtype == torch.float32 and network.head.weight.grad.isfinite().all()
    assert network.head.weight.grad.norm() > 0


def test_a_training_in_bfloat16_keeps_what_is_counted() -> None:
    """By phase, of a true step; in float32 it is a good deal more."""
    world, config = World(*adapted_base()), TrainConfig(weights_batch=32, both_batch=16, noises=2, jitter=STILL)
    counted = dict[str, dict[str, PhaseCost]]()
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        world.base.to(dtype=dtype)
        phases = {name: fit.on(dtype) for name, fit in config.phases().items()}
        config = replace(config, weights=phases["weights"], both=phases["both"])
        counted[precision] = training_cost(PRESETS["tiny"], world.base, world.adapters, config).phases
    network, people = world.network(), world.people(32)
    held = [t for one in (network, world.base.vae, *world.base.adapted.values()) for t in tensors_of(one)]
    for phase, cost in counted["bf16"].items():
        generator = torch.Generator().manual_seed(0)
        loss = _Loss(network, world.base, world.adapters, [people], config, phase, generator)
        kept = Kept(held)
        with kept:
            with torch.autocast("cpu", torch.bfloat16):
                value, _ = loss(0)
            value.backward()
        assert cost.kept_bytes == pytest.approx(kept.bytes, rel=0.1)
        assert cost.kept_bytes < 0.7 * counted["fp32"][phase].kept_bytes
