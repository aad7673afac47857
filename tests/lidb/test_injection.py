"""Adapters against merged weights, many against one by one, and exact inverses."""

from __future__ import annotations

import copy
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.func import functional_call

from hyperdreambooth.errors import UserError
from hyperdreambooth.lidb import LiDBLinear, LiDBSpace, LoRALayout, Site, find_sites, inject
from hyperdreambooth.lidb.linear import Worn

if TYPE_CHECKING:
    from tests.lidb.conftest import World


def merged_by_hand(world: World, weights: torch.Tensor, lora: torch.Tensor | None = None) -> World:
    """A copy of the tiny world whose plain linear layers have W + dW."""
    other = copy.deepcopy(world)
    rank = 0 if lora is None else lora.numel() // LoRALayout(world.space.sites, 1).size
    factors = LoRALayout(world.space.sites, rank).split(lora) if lora is not None else None
    for index, site in enumerate(world.space.sites):
        layer = other.models[site.model].get_submodule(site.path)
        with torch.no_grad():
            layer.weight += world.space.delta(weights, index)
            if factors is not None:
                layer.weight += factors[index][1] @ factors[index][0]
    return other


def snapshot(world: World) -> list[tuple[str, int, torch.Tensor]]:
    return [
        (key, id(p), p.detach().clone())
        for m in world.models.values()
        for key, p in m.state_dict(keep_vars=True).items()
    ]


def assert_same_bits(before: list[tuple[str, int, torch.Tensor]], after: list[tuple[str, int, torch.Tensor]]) -> None:
    assert [entry[:2] for entry in before] == [entry[:2] for entry in after]
    assert all(torch.equal(p[2], q[2]) for p, q in zip(before, after, strict=True))


def random_lora(world: World, rank: int = 2) -> torch.Tensor:
    layout = LoRALayout(world.space.sites, rank)
    return 0.2 * torch.randn(layout.size, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def test_injecting_changes_no_key_and_no_output_bit(world: World) -> None:
    inputs, before, plain = world.inputs(), snapshot(world), world.draw(*world.inputs())
    adapters = world.inject()
    assert isinstance(world.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q, LiDBLinear)
    assert_same_bits(before, snapshot(world))
    assert torch.equal(world.draw(*inputs), plain)
    with adapters.use(world.space.start(2)):
        assert torch.equal(world.draw(*inputs), plain)


@torch.no_grad()
@pytest.mark.parametrize("ranks", [1, 3])
def test_adapters_equal_merged_weights(world: World, ranks: int) -> None:
    inputs, weights = world.inputs(), world.persons(1, ranks)[0]
    expected, plain = merged_by_hand(world, weights).draw(*inputs), world.draw(*inputs)
    with world.inject().use(weights):
        worn = world.draw(*inputs)
    assert torch.allclose(worn, expected, atol=2e-5)
    assert (worn - plain).abs().max() > 0.05


@torch.no_grad()
def test_adapters_with_lora_equal_merged_weights(world: World) -> None:
    inputs, weights, lora = world.inputs(), world.persons(1)[0], random_lora(world)
    expected = merged_by_hand(world, weights, lora).draw(*inputs)
    lora_only = merged_by_hand(world, torch.zeros_like(weights), lora).draw(*inputs)
    adapters = world.inject()
    with adapters.use(weights, lora):
        assert torch.allclose(world.draw(*inputs), expected, atol=2e-5)
    with adapters.use(None, lora):
        assert torch.allclose(world.draw(*inputs), lora_only, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("with_lora", [False, True])
def test_many_persons_in_a_batch_equal_one_by_one(world: World, with_lora: bool) -> None:
    """Four rows wear two persons tiled twice, as under guidance."""
    latents, timesteps, tokens = world.inputs(rows=4)
    persons = world.persons(2, ranks=2)
    lora = random_lora(world) if with_lora else None
    adapters = world.inject()
    with adapters.use(persons, lora):
        together = world.draw(latents, timesteps, tokens)
    for row in range(4):
        with adapters.use(persons[row % 2], lora):
            alone = world.draw(latents[row, None], timesteps[row, None], tokens[row, None])[0]
        assert torch.allclose(together[row], alone, atol=2e-5)


@torch.no_grad()
def test_an_outfit_worn_twice_is_what_use_wears(world: World) -> None:
    inputs, persons = world.inputs(), world.persons(4, ranks=2)
    lora = torch.stack([random_lora(world), random_lora(world) * 0] * 2)
    adapters = world.inject()
    bare = world.draw(*inputs)
    under = adapters.weights_with(persons[0])
    for weights, own, below in ((persons, lora, None), (persons, None, under), (None, lora, None), (None, None, under)):
        with adapters.use(weights, own, under=below):
            expected = world.draw(*inputs)
        outfit = adapters.outfit(weights, own, under=below)
        for _ in range(2):
            with adapters.wear(outfit):
                assert torch.allclose(world.draw(*inputs), expected, atol=2e-5)
            assert torch.equal(world.draw(*inputs), bare)


@torch.no_grad()
@pytest.mark.parametrize("with_lora", [False, True])
def test_what_is_worn_beside_adds_to_it(world: World, with_lora: bool) -> None:
    inputs, predicted, fresh = world.inputs(), world.persons(4), world.persons(4, ranks=2, seed=1)
    lora = torch.stack([random_lora(world)] * 4) if with_lora else None
    adapters = world.inject()
    with adapters.use(torch.cat([predicted, fresh], dim=-2), lora):
        expected = world.draw(*inputs)
    with adapters.use(fresh, lora, beside=adapters.outfit(predicted)):
        assert torch.allclose(world.draw(*inputs), expected, atol=2e-5)
    with adapters.use(fresh, beside=adapters.outfit(predicted, lora)):
        assert torch.allclose(world.draw(*inputs), expected, atol=2e-5)


@torch.no_grad()
def test_an_outfit_holds_no_ranks_that_change_nothing(world: World) -> None:
    persons = world.persons(2, ranks=3)
    persons[:, 0], persons[:, 1, 1:], persons[1, 1] = 0.0, 0.0, 0.0  # nobody at the first site, one rank at the second
    first, second, third, *_ = world.inject().outfit(persons)
    assert first == Worn()
    assert second.up is not None and second.up.shape[-1] == 1 and second.down is not None
    assert third.up is not None and third.up.shape[-1] == 3


@torch.no_grad()
def test_one_persons_weights_leave_the_others_rows_alone(world: World) -> None:
    inputs, persons, lora = world.inputs(), world.persons(4, ranks=2), torch.stack([random_lora(world)] * 4)
    changed, changed_lora = persons.clone(), lora.clone()
    changed[1], changed_lora[1] = 5 * persons[1] + 1, -lora[1]
    adapters = world.inject()
    with adapters.use(persons, lora):
        before = world.draw(*inputs)
    with adapters.use(changed, changed_lora):
        after = world.draw(*inputs)
    others = [0, 2, 3]
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[1], after[1], atol=0.05)


def test_gradient_equals_that_of_whole_matrices(world: World) -> None:
    """Against W + dW put into the plain model functionally, dW built by eq. 1 with autograd."""
    inputs, weights = world.inputs(), world.persons(1, ranks=2)[0].requires_grad_()
    lora = random_lora(world).requires_grad_()
    factors = LoRALayout(world.space.sites, 2).split(lora)
    changed: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "text_encoder": {}}
    for index, site in enumerate(world.space.sites):
        weight = world.models[site.model].get_submodule(site.path).weight.detach()
        down, up = factors[index]
        changed[site.model][f"{site.path}.weight"] = weight + world.space.delta(weights, index) + up @ down
    latents, timesteps, tokens = inputs
    states = functional_call(world.text_encoder, changed["text_encoder"], (tokens,)).last_hidden_state
    output = functional_call(world.unet, changed["unet"], (latents, timesteps, states)).sample
    expected = torch.autograd.grad(output.square().mean(), [weights, lora])

    with world.inject().use(weights, lora):
        got = torch.autograd.grad(world.draw(*inputs).square().mean(), [weights, lora])
    for one, other in zip(got, expected, strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(one, other, atol=1e-5 * float(other.abs().max()) + 1e-7)


@torch.no_grad()
def test_nested_use_restores_what_was_worn_even_after_an_error(world: World) -> None:
    inputs, (first, second) = world.inputs(), world.persons(2)
    adapters = world.inject()
    plain = world.draw(*inputs)
    with adapters.use(first):
        outer = world.draw(*inputs)
        with adapters.use(second):
            assert not torch.allclose(world.draw(*inputs), outer, atol=0.01)
        assert torch.equal(world.draw(*inputs), outer)
        with pytest.raises(TypeError), adapters.use(second):
            world.draw()
        assert torch.equal(world.draw(*inputs), outer)
        with adapters.use(None):
            assert torch.equal(world.draw(*inputs), plain)
    assert torch.equal(world.draw(*inputs), plain)


@torch.no_grad()
def test_eject_restores_every_bit(world: World) -> None:
    modules = {name: model.get_submodule(name) for model in world.models.values() for name, _ in model.named_modules()}
    before, plain = snapshot(world), world.draw(*world.inputs())
    adapters = world.inject()
    adapters.merge(world.persons(1)[0])
    adapters.eject()
    assert_same_bits(before, snapshot(world))
    assert torch.equal(world.draw(*world.inputs()), plain)
    after = {name: model.get_submodule(name) for model in world.models.values() for name, _ in model.named_modules()}
    assert all(after[name] is modules[name] for name in modules)
    assert not adapters.bases.tensors
    with pytest.raises(UserError, match="were ejected"), adapters.use(world.persons(1)[0]):
        pass
    world.inject()  # and again


@torch.no_grad()
def test_numbers_on_the_cpu_are_worn_where_the_models_are(world: World) -> None:
    adapters = world.inject()
    world.unet.to("meta"), world.text_encoder.to("meta")
    layer = world.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    for weights, lora in ((world.persons(2), None), (None, random_lora(world))):
        with adapters.use(weights, lora):
            assert layer.worn.down.is_meta and layer.worn.up.is_meta
    assert not any(one.is_meta for one in adapters.bases.tensors)  # mere shapes take no numbers away


def test_eject_keeps_a_move_made_while_injected(world: World) -> None:
    adapters = world.inject()
    world.unet.double()
    adapters.eject()
    assert {p.dtype for p in world.unet.parameters()} == {torch.float64}


def test_eject_keeps_parameters_replaced_while_injected(world: World) -> None:
    adapters = world.inject()
    loaded = {key: tensor + 1 for key, tensor in world.unet.state_dict().items()}
    world.unet.load_state_dict(loaded, assign=True)
    adapters.eject()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in world.unet.state_dict().items())


@torch.no_grad()
def test_merge_equals_adapters_and_unmerge_restores_every_bit(world: World) -> None:
    inputs, weights, lora = world.inputs(), world.persons(1, 2)[0], random_lora(world)
    before, expected = snapshot(world), merged_by_hand(world, weights, lora).draw(*inputs)
    adapters = world.inject()
    adapters.merge(weights, lora)
    assert torch.allclose(world.draw(*inputs), expected, atol=2e-5)
    with pytest.raises(UserError, match="unmerge"):
        adapters.merge(weights)
    adapters.unmerge()
    assert_same_bits(before, snapshot(world))
    adapters.unmerge()
    assert_same_bits(before, snapshot(world))


@torch.no_grad()
def test_a_prediction_may_be_merged_below_fresh_ranks(world: World) -> None:
    inputs, prediction, fresh = world.inputs(), world.persons(1)[0], world.persons(1, 3, seed=1)[0]
    adapters = world.inject()
    with adapters.use(world.space.stack([prediction, fresh])):
        expected = world.draw(*inputs)
    adapters.merge(prediction)
    with adapters.use(fresh):
        assert torch.allclose(world.draw(*inputs), expected, atol=2e-5)


@torch.no_grad()
def test_bases_follow_the_models_dtype_and_are_not_saved(world: World) -> None:
    inputs, weights = world.inputs(), world.persons(1)[0]
    adapters = world.inject()
    with adapters.use(weights):
        expected = world.draw(*inputs)
    world.unet.double(), world.text_encoder.double()
    with adapters.use(weights):
        drawn = world.draw(inputs[0].double(), *inputs[1:])
    assert drawn.dtype == torch.float64
    assert torch.allclose(drawn.float(), expected, atol=1e-4)
    assert not any("aux" in key for key in world.unet.state_dict())


@torch.no_grad()
def test_compiled_model_wears_persons(world: World) -> None:
    """Persons put on after compiling are drawn, not ignored as forward hooks are."""
    adapters = world.inject()
    block = world.unet.mid_block.attentions[0].transformer_blocks[0]
    compiled = torch.compile(block, backend="eager")
    hidden, states = torch.randn(4, 16, 32), torch.randn(4, 12, 16)
    for weights in (None, world.persons(2), world.persons(2, seed=5)):
        with adapters.use(weights):
            expected = block(hidden, encoder_hidden_states=states)
            drawn = compiled(hidden, encoder_hidden_states=states)
        assert torch.allclose(drawn, expected, atol=1e-6)


def test_layers_take_rows_without_positions() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(8, 6)})
    space = LiDBSpace((Site("unet.layer", "unet", "layer", 8, 6),), a=3, b=2)
    persons = torch.randn(2, 1, 1, 5)
    x = torch.randn(4, 8)
    with inject({"unet": model}, space).use(persons):
        y, deeper = model["layer"](x), model["layer"](x[:, None, None].expand(4, 3, 2, 8))
        with pytest.raises(ValueError, match="3 rows cannot wear 2 persons"):
            model["layer"](x[:3])
    for row in range(4):
        weight = model["layer"].weight + space.delta(persons[row % 2], 0)
        assert torch.allclose(y[row], weight @ x[row] + model["layer"].bias, atol=1e-5)
        assert torch.allclose(deeper[row], y[row].expand(3, 2, 6), atol=1e-5)


def test_fused_projections_are_refused(world: World) -> None:
    adapters = world.inject()
    adapters.eject()
    world.unet.fuse_qkv_projections()
    with pytest.raises(UserError, match="fused"):
        world.inject()
    with pytest.raises(UserError, match="fused"):
        find_sites(world.unet, None)


def test_fusing_after_injection_is_found_at_use(world: World) -> None:
    adapters = world.inject()
    world.unet.fuse_qkv_projections()
    with pytest.raises(UserError, match="unfuse_qkv_projections"), adapters.use(world.space.start()):
        pass


def test_wrong_use_is_refused_by_name(world: World) -> None:
    with pytest.raises(UserError, match="text_encoder, which was not given"):
        inject({"unet": world.unet}, world.space)
    with pytest.raises(UserError, match="is not in the model"):
        inject({"unet": world.text_encoder, "text_encoder": world.text_encoder}, world.space)
    adapters = world.inject()
    with pytest.raises(UserError, match="injected already"):
        world.inject()
    for wrong in (torch.zeros(3, 1, 11), torch.zeros(world.space.size()), world.persons(1)[..., :-1]):
        with pytest.raises(UserError, match="expected one person"), adapters.use(wrong):
            pass
    with pytest.raises(UserError, match="LoRA factors"), adapters.use(None, torch.zeros(7)):
        pass
    with pytest.raises(UserError, match="merge one person"):
        adapters.merge(world.persons(2))


def test_whether_the_models_show_nobody(world: World) -> None:
    adapters = world.inject()
    adapters.check_bare()
    adapters.merge(world.persons(1)[0])
    assert adapters.merged
    with pytest.raises(UserError, match="merged"):
        adapters.check_bare()
    adapters.unmerge()
    adapters.check_bare()
    adapters.eject()
    assert not adapters.merged
    with pytest.raises(UserError, match="ejected"):
        adapters.check_bare()


@torch.no_grad()
def test_one_thread_at_a_time_wears(world: World) -> None:
    """A second thread that wears somebody else in the meantime waits until the first is done."""
    adapters, (first, second) = world.inject(), world.persons(2)
    began, done = Event(), Event()

    def other() -> None:
        began.set()
        with adapters.use(second):
            done.set()

    thread = Thread(target=other)
    with adapters.use(first):
        before = world.draw(*world.inputs())
        thread.start()
        assert began.wait(10) and not done.wait(0.2)
        assert torch.equal(world.draw(*world.inputs()), before)
    thread.join(10)
    assert done.is_set()


@torch.no_grad()
def test_weights_with_a_person_draw_as_the_person_worn(world: World) -> None:
    """Alone, and under another: then what is drawn is both."""
    one, other = world.persons(2)
    inputs, lora, before = world.inputs(), random_lora(world), snapshot(world)
    alone = merged_by_hand(world, one, lora).draw(*inputs)
    both = merged_by_hand(world, world.space.stack([one, other]), lora).draw(*inputs)
    adapters = world.inject()
    under = adapters.weights_with(one, lora)
    assert_same_bits(before, snapshot(world))
    for weights, expected in ((None, alone), (other, both)):
        with adapters.use(weights, under=under):
            assert torch.allclose(world.draw(*inputs), expected, atol=2e-5)
    assert (alone - both).abs().max() > 0.05
    with pytest.raises(UserError, match="expected one"):
        adapters.weights_with(world.persons(2))
