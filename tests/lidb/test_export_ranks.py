"""Exports hold the ranks that change something and no others, and still are the person in every program."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file

from hyperdreambooth.lidb import LoRALayout, read_lora, save_diffusers, save_kohya, save_peft
from hyperdreambooth.lidb.names import kohya_name
from tests.lidb.conftest import World, picture, pipeline_of

TOLERANCE = 1 / 255
SAVES = (save_kohya, save_diffusers, save_peft)
UP = 48  # sites of the U-Net's way up

Save = Callable[..., None]
Person = tuple[torch.Tensor, torch.Tensor | None]

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's


@pytest.fixture
def world(whole_world: World) -> World:
    """A copy, which adapters may change."""
    torch.manual_seed(0)  # of the decoder
    return deepcopy(whole_world)


def predicted(world: World) -> Person:
    """One rank on the rule's sites, none in the blocks between, four on the way up; the rest as fits begin."""
    weights, strong = world.space.start(4), world.persons(1, ranks=4)[0]
    weights[:192, :1], weights[-UP:] = strong[:192, :1], strong[-UP:]
    return weights, None


def relaxed(world: World) -> Person:
    """Four full-space ranks on the way up alone, as `--relax lora` without a hypernetwork."""
    layout = LoRALayout(world.space.sites[-UP:], 4)
    lora = 0.3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(1))
    before = LoRALayout(world.space.sites[:-UP], 4).size
    return torch.zeros_like(world.space.start()), torch.nn.functional.pad(lora, (before, 0))


def queries(world: World) -> Person:
    """One rank on the queries alone, as a LoRA of other programs may have it."""
    weights, strong = world.space.start(), world.persons(1)[0]
    of_queries = torch.tensor([site.path.endswith((".q_proj", ".to_q")) for site in world.space.sites])
    weights[of_queries] = 3 * strong[of_queries]
    return weights, None


def unchanged(world: World) -> Person:
    return world.space.start(2), None


def load(pipeline: StableDiffusionPipeline, path: Path) -> None:
    if path.is_dir():
        for model in ("unet", "text_encoder"):
            PeftModel.from_pretrained(getattr(pipeline, model), path / model)
    else:
        pipeline.load_lora_weights(path)
        assert {"unet", "text_encoder"} == set(pipeline.get_list_adapters())


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("person", [predicted, relaxed, queries, unchanged])
def test_it_draws_as_the_adapters_do(
    person: Callable[[World], Person], save: Save, world: World, tmp_path: Path
) -> None:
    weights, lora = person(world)
    pipeline = pipeline_of(world)
    plain, adapters = picture(pipeline, world), world.inject()
    with adapters.use(weights, lora):
        expected = picture(pipeline, world)
    adapters.eject()
    assert bool((expected - plain).abs().max() > 20 * TOLERANCE) is (person is not unchanged)
    save(tmp_path / "person", world.space, weights, lora)
    load(pipeline, tmp_path / "person")
    assert (picture(pipeline, world) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize(
    ("person", "held"),
    [(predicted, (4, 192 + UP)), (relaxed, (4, UP + 1)), (queries, (1, 12 + 32 + 1)), (unchanged, (1, 2))],
)
def test_it_comes_in_again(
    person: Callable[[World], Person], held: tuple[int, int], save: Save, world: World, tmp_path: Path
) -> None:
    (weights, lora), space = person(world), world.space
    save(tmp_path / "person", space, weights, lora)
    read = read_lora(tmp_path / "person", space.sites)
    assert (read.rank, read.sites) == held
    full = LoRALayout(space.sites, 4).split(torch.zeros(LoRALayout(space.sites, 4).size) if lora is None else lora)
    for index, ((down, up), (more_down, more_up)) in enumerate(zip(read.factors, full, strict=True)):
        torch.testing.assert_close(up @ down, space.delta(weights, index) + more_up @ more_down, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("save", SAVES)
def test_no_rank_is_empty(save: Save, world: World, tmp_path: Path) -> None:
    save(tmp_path / "person", world.space, *predicted(world))
    files = [tmp_path / "person"] if save is not save_peft else (tmp_path / "person").rglob("*.safetensors")
    tensors = {key: tensor for file in files for key, tensor in load_file(file).items() if not key.endswith(".alpha")}
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("base_model.model.text_model.")}
    for key, tensor in tensors.items():
        assert tensor.flatten(1).any(dim=1 if "down" in key or "lora_A" in key else 0).all(), key
    ranks = [1] * 192 + [0] * (len(world.space.sites) - 192 - UP) + [4] * UP
    numbers = sum(rank * (site.n_in + site.n_out) for rank, site in zip(ranks, world.space.sites, strict=True))
    assert sum(tensor.numel() for tensor in tensors.values()) == numbers


def test_kohya_has_one_alpha_and_the_very_delta(world: World, tmp_path: Path) -> None:
    weights, _ = predicted(world)
    save_kohya(tmp_path / "person", world.space, weights)
    tensors = load_file(tmp_path / "person")
    assert {float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")} == {4.0}
    for index, site in enumerate(world.space.sites):
        key = kohya_name(site)
        if 192 <= index < len(world.space.sites) - UP:
            assert f"{key}.lora_up.weight" not in tensors
            continue
        down, up = (tensors[f"{key}.lora_{side}.weight"].flatten(1) for side in ("down", "up"))
        delta = tensors[f"{key}.alpha"] / len(down) * (up @ down)
        torch.testing.assert_close(delta, world.space.delta(weights, index), atol=1e-5, rtol=1e-5)


def test_peft_is_told_the_ranks_of_layers_that_have_fewer(world: World, tmp_path: Path) -> None:
    save_peft(tmp_path, world.space, *predicted(world))
    unet, text = (
        json.loads((tmp_path / model / "adapter_config.json").read_text()) for model in ("unet", "text_encoder")
    )
    fewer = {site.path: 1 for site in world.space.sites[:192] if site.model == "unet"}
    assert unet["r"] == unet["lora_alpha"] == 4 and unet["rank_pattern"] == unet["alpha_pattern"] == fewer
    assert text["r"] == text["lora_alpha"] == 1 and text["rank_pattern"] == text["alpha_pattern"] == {}
