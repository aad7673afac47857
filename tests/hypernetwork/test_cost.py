"""Costs counted from shapes, against counts made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hyperdreambooth.hypernetwork.cost import Kept, count_flops, shapes_alone, training_cost
from hyperdreambooth.hypernetwork.loss import worn_loss
from hyperdreambooth.hypernetwork.model import PRESETS
from hyperdreambooth.hypernetwork.training import TrainConfig

TINY = PRESETS["tiny"]
CONFIG = TrainConfig(weights_batch=6, both_batch=4, noises=2)


def block(tokens: int, width: int) -> int:
    """FLOPs of a transformer block: four projections, two layers of four times the width, two products of attention."""
    return 2 * tokens * 12 * width**2 + 4 * tokens**2 * width


def tiny_encoder() -> tuple[int, int]:
    """FLOPs of the first convolution, and of all: 16 x 16 pictures, two halvings to 16 patches of width 32."""
    convolutions = [2 * 64 * 16 * 9 * n for n in (3, 16)] + [2 * 16 * 32 * 9 * n for n in (16, 32)]
    return convolutions[0], sum(convolutions) + block(16, 32) + 2 * (16 * 32) * 32


def tiny_decoder(sites: int, numbers: int) -> tuple[int, int]:
    """FLOPs of reading theta in one round, and of all: 17 features, three rounds of two blocks of width 32."""
    read = head = 2 * sites * numbers * 32
    return read, 2 * 17 * 32 * 32 + 3 * (read + 2 * block(17 + sites, 32) + head)


def test_a_tiny_training_costs_what_it_costs_by_hand(world) -> None:
    cost = training_cost(TINY, world.base, world.adapters, CONFIG)
    first, encoder = tiny_encoder()
    read, decoder = tiny_decoder(len(world.space.sites), world.space.width)
    assert cost.prediction_flops == encoder + decoder
    # Each product has two gradients, but for what nobody trains: the pictures, and the first round's theta.
    backward = 2 * (encoder + decoder) - first - read
    assert cost.phases["weights"].flops_per_step == 6 * (encoder + decoder + backward)
    parameters = sum(p.numel() for p in world.network().parameters())
    assert cost.parameters == cost.parameters_trained == parameters
    assert cost.training_bytes == 4 * parameters * 4  # gradient, two moments, average
    assert cost.phases["both"].kept_bytes > cost.phases["weights"].kept_bytes > 0


def test_more_noises_cost_as_much_as_torch_counts_on_real_tensors(world) -> None:
    """In the attention alone: in the blocks, torch counts the people of a batch (groups) too often."""
    people, sizes = world.people(4), replace(TINY, blocks=False)
    worn = people.numbers[:4, : len(world.space.rule.sites)].clone().requires_grad_()

    def real(noises: int) -> int:
        rows = torch.arange(4).repeat(noises)
        places, levels = (rows, torch.zeros_like(rows)), torch.zeros(4 * noises)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            noise = torch.zeros(4 * noises, *world.base.latent_shape)
            worn_loss(world.base, world.adapters, worn, people, places, levels, noise, "a face").mean().backward()
        return int(counter.get_total_flops())

    def counted(noises: int) -> int:
        cost = training_cost(sizes, world.base, world.adapters, replace(CONFIG, noises=noises, weights=None))
        return cost.phases["both"].flops_per_step

    assert counted(3) - counted(2) == real(3) - real(2) > 0


def test_a_pretrained_encoder_is_counted_and_not_fetched(world) -> None:
    cost = training_cost(PRESETS["vit-h"], world.base, world.adapters, TrainConfig(both=None, weights_batch=2))
    width, tokens, depth = 1280, 257, 32
    embeddings = 3 * 14**2 * width + width + tokens * width
    assert cost.parameters_of_encoder == embeddings + 4 * width + depth * (12 * width**2 + 13 * width)
    assert cost.parameters_trained == cost.parameters - cost.parameters_of_encoder
    encoder = 2 * 256 * 3 * 14**2 * width + depth * block(tokens, width)
    assert abs(encoder / 334.6e9 - 1) < 1e-3  # the figure that is printed of ViT-H/14
    sites, numbers, hidden = len(world.space.sites), world.space.width, 1024
    rounds = 3 * (4 * sites * numbers * hidden + 2 * block(tokens + sites, hidden))
    assert cost.prediction_flops == encoder + 2 * tokens * width * hidden + rounds


def test_a_pretrained_encoder_that_learns_is_counted_as_such(world) -> None:
    frozen, config = PRESETS["vit-h"], TrainConfig(both=None, weights_batch=2)
    sizes = replace(frozen, encoder=replace(frozen.encoder, trained=True))
    before, cost = (training_cost(one, world.base, world.adapters, config) for one in (frozen, sizes))
    assert cost.parameters_trained == cost.parameters > before.parameters_trained
    assert (
        cost.phases["weights"].flops_per_step > before.phases["weights"].flops_per_step + 2 * 2 * 330e9
    )  # backward of two pictures


def test_a_linear_layer_by_hand() -> None:
    layer, x = nn.Linear(8, 4), torch.zeros(3, 8)
    with shapes_alone() as mode:
        kept = Kept(map(mode.from_tensor, layer.parameters()))
        with kept:
            assert count_flops(lambda: functional.relu(layer(x)).sum().backward()) == 2 * (2 * 3 * 8 * 4)
    assert kept.bytes == 4 * (3 * 8 + 3 * 4)  # the layer's input, the result of relu; the weight is there anyway


@pytest.mark.parametrize("persons", [1, 4])
def test_convolutions_of_many_persons_cost_so_many_times_as_much(persons: int) -> None:
    x = torch.zeros(1, persons * 8, 10, 10, requires_grad=True)
    weight = torch.zeros(persons * 4, 8, 3, 3, requires_grad=True)

    def work() -> None:
        functional.conv2d(x, weight, stride=2, padding=1, groups=persons).sum().backward()

    assert count_flops(work) == persons * 3 * (2 * 5 * 5 * 4 * 8 * 9)
