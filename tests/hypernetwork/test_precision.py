"""What a training on a base in half precision computes in which."""

from __future__ import annotations

import pytest
import torch

from hyperdreambooth.hypernetwork.training import TrainConfig, _Loss
from tests.conftest import adapted_base
from tests.hypernetwork.conftest import World


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
