"""LoRA files of any layout come in as the change that diffusers and PEFT make of them; others are refused by name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from hyperdreambooth.errors import BadFile, UserError, WrongBase
from hyperdreambooth.lidb import LoRALayout, read_lora, save_diffusers, save_kohya, save_peft
from hyperdreambooth.lidb.lora import Factors, squared_distance, squared_norm
from hyperdreambooth.lidb.names import kohya_name
from tests.lidb.conftest import World, pipeline_of


def deltas(factors: list[Factors]) -> list[torch.Tensor]:
    return [up @ down for down, up in factors]


@pytest.mark.parametrize("save", [save_kohya, save_diffusers, save_peft])
@pytest.mark.parametrize("relaxed", [False, True])
def test_export_and_import_give_the_same_change(
    save: Callable[..., None], relaxed: bool, narrow_world: World, tmp_path: Path
) -> None:
    space, weights = narrow_world.space, narrow_world.persons(1, ranks=2)[0]
    layout = LoRALayout(space.sites, 3)
    lora = torch.randn(layout.size, generator=torch.Generator().manual_seed(1)) if relaxed else None
    save(tmp_path / "person", space, weights, lora)
    read = read_lora(tmp_path / "person", space.sites)
    assert (read.sites, read.rank, dict(read.left_out)) == (192, 5 if relaxed else 2, {})
    full = deltas(layout.split(lora)) if lora is not None else [torch.zeros(())] * 192
    for index, got in enumerate(deltas(read.factors)):
        torch.testing.assert_close(got, space.delta(weights, index) + full[index], atol=1e-5, rtol=1e-5)


@pytest.fixture
def trained(world: World) -> StableDiffusionPipeline:
    """A pipeline with a random LoRA of PEFT in it, on some of the layers, its alphas and ranks of several kinds."""
    pipeline = pipeline_of(world)
    common = {"init_lora_weights": False, "use_rslora": False}
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_out.0"], **common))
    pipeline.text_encoder.add_adapter(
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False, use_rslora=True)
    )
    return pipeline


def changes_of(pipeline: StableDiffusionPipeline, world: World) -> list[torch.Tensor]:
    """What PEFT adds to each site's weight."""
    found = []
    for site in world.space.sites:
        layer = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}[site.model].get_submodule(site.path)
        found.append(
            layer.get_delta_weight("default") if hasattr(layer, "lora_A") else torch.zeros(site.n_out, site.n_in)
        )
    return found


def test_what_diffusers_saves_is_what_peft_adds(trained: StableDiffusionPipeline, world: World, tmp_path: Path) -> None:
    """Ranks, alphas and the square root of rank-stabilised LoRA come from the settings in the file."""
    networks = {"unet": trained.unet, "text_encoder": trained.text_encoder}
    states = {f"{name}_lora_layers": get_peft_model_state_dict(network) for name, network in networks.items()}
    settings = {
        f"{name}_lora_adapter_metadata": network.peft_config["default"].to_dict() for name, network in networks.items()
    }
    StableDiffusionPipeline.save_lora_weights(tmp_path, **states, **settings)
    read = read_lora(tmp_path, world.space.sites)
    assert read.rank == 4 and 0 < read.sites < len(world.space.sites)
    for got, expected in zip(deltas(read.factors), changes_of(trained, world), strict=True):
        torch.testing.assert_close(got, expected.detach(), atol=1e-6, rtol=1e-5)


def test_kohyas_alpha_scales_as_in_diffusers(world: World, tmp_path: Path) -> None:
    """One alpha for all: diffusers 0.42 loses those of single layers in the U-Net."""
    path, other, weights = tmp_path / "a.safetensors", tmp_path / "b.safetensors", world.persons(1, ranks=2)[0]
    save_kohya(path, world.space, weights)
    tensors = load_file(path)
    half = {key: torch.tensor(3.0) if key.endswith("alpha") else tensor.half() for key, tensor in tensors.items()}
    save_file(half, other)
    read, pipeline = read_lora(other, world.space.sites), pipeline_of(world)
    pipeline.load_lora_weights(other, adapter_name="default")
    for index, (got, expected) in enumerate(zip(deltas(read.factors), changes_of(pipeline, world), strict=True)):
        torch.testing.assert_close(got, expected.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got, 1.5 * world.space.delta(weights, index), atol=1e-2, rtol=1e-2)


def test_every_layer_has_its_own_alpha(world: World, tmp_path: Path) -> None:
    path, other, weights = tmp_path / "a.safetensors", tmp_path / "b.safetensors", world.persons(1, ranks=2)[0]
    save_kohya(path, world.space, weights)
    tensors = load_file(path)
    for number, site in enumerate(world.space.sites):
        tensors[f"{kohya_name(site)}.alpha"] = torch.tensor(0.5 + number)
    save_file(tensors, other)
    for index, got in enumerate(deltas(read_lora(other, world.space.sites).factors)):
        expected = (0.5 + index) / 2 * world.space.delta(weights, index)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_layers_that_are_no_sites_are_named_or_left_out(world: World, tmp_path: Path) -> None:
    """Of a LoRA with convolutions, as LCM-LoRA has them, and with an output projection of the feed-forward layer."""
    path, weights = tmp_path / "a.safetensors", world.persons(1)[0]
    save_kohya(path, world.space, weights)
    tensors, others = load_file(path), {}
    for name, shapes in {
        "lora_unet_down_blocks_0_resnets_0_conv1": ((2, 16, 3, 3), (16, 2, 1, 1)),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2": ((2, 64), (16, 2)),
    }.items():
        down, up = (torch.randn(shape, generator=torch.Generator().manual_seed(len(name))) for shape in shapes)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
        others[name] = float((0.5 * up.flatten(1) @ down.flatten(1)).square().sum())
    path = tmp_path / "b.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"changes 2 layers .*resnets_0_conv1.* of its change.*--partial"):
        read_lora(path, world.space.sites)
    read = read_lora(path, world.space.sites, partial=True)
    whole = sum(others.values()) + sum(float(world.space.delta(weights, i).square().sum()) for i in range(read.sites))
    assert dict(read.left_out) == {name: pytest.approx(norm / whole, rel=1e-4) for name, norm in others.items()}


def test_ranks_that_differ_are_filled_up(world: World, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    sites = world.space.sites[:2]
    tensors = {}
    for rank, site in zip((1, 3), sites, strict=True):
        tensors[f"{site.name}.lora_A.weight"] = torch.ones(rank, site.n_in)
        tensors[f"{site.name}.lora_B.weight"] = torch.ones(site.n_out, rank)
    save_file(tensors, path)
    read = read_lora(path, world.space.sites)
    assert read.rank == 3 and all(down.shape[0] == up.shape[1] == 3 for down, up in read.factors)
    assert [float(delta.mean()) for delta in deltas(read.factors)[:3]] == [1, 3, 0]


def test_norms_need_no_product(generator: torch.Generator) -> None:
    (down, up), (other, over) = (
        (torch.randn(rank, 9, generator=generator), torch.randn(7, rank, generator=generator)) for rank in (2, 3)
    )
    assert float(squared_norm(down, up)) == pytest.approx(float((up @ down).square().sum()), rel=1e-6)
    apart = float((up @ down - over @ other).square().sum())
    assert float(squared_distance((down, up), (other, over))) == pytest.approx(apart, rel=1e-5)


def refused(path: Path, world: World, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        read_lora(path, world.space.sites)
    assert "\n" not in str(caught.value) and path.name.split(".")[0] in str(caught.value)


def test_bad_files(world: World, tmp_path: Path) -> None:
    path, space = tmp_path / "a.safetensors", world.space
    save_kohya(path, space, world.persons(1)[0])
    data, sound = path.read_bytes(), {key: tensor.clone() for key, tensor in load_file(path).items()}
    first = next(iter(sound)).split(".")[0]
    path.write_bytes(data[:-9])
    refused(path, world, BadFile, "truncated")
    path.write_bytes(pickle.dumps({"a": 1}))
    refused(path, world, BadFile, "pickled")
    refused(tmp_path / "nowhere.safetensors", world, BadFile, "check the path")

    def changed(**parts: torch.Tensor) -> dict[str, torch.Tensor]:
        return sound | {f"{first}.{part.replace('__', '.')}": tensor for part, tensor in parts.items()}

    for tensors, kind, words in (
        (changed(lora_up__weight=sound[f"{first}.lora_up.weight"] * float("nan")), BadFile, "not all finite"),
        (changed(alpha=torch.tensor(float("inf"))), BadFile, "not all finite"),
        (changed(alpha=torch.ones(2)), BadFile, "alpha of .* is no number"),
        (changed(lora_up__weight=torch.ones(16, 3)), BadFile, r"damaged \(factors"),
        (changed(lora_down__weight=torch.ones(1, 99)), WrongBase, "99 inputs and .* here"),
        (changed(hada_w1_a=torch.ones(2)), BadFile, "hada_w1_a.*LoHa"),
        (changed(dora_scale=torch.ones(2)), BadFile, "DoRA"),
        ({key: tensor for key, tensor in sound.items() if key != f"{first}.lora_up.weight"}, BadFile, "no up factor"),
        ({"lidb": torch.ones(1, 2, 3)}, BadFile, "holds no LoRA layer"),
        (
            {"lora_unet_input_blocks_1_1_proj_in.lora_down.weight": torch.ones(1, 4),
             "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": torch.ones(4, 1)},
            WrongBase, "changes no layer of this base.*Stable Diffusion XL",
        ),
    ):  # fmt: skip
        save_file(tensors, path)
        refused(path, world, kind, words)


def test_bad_folders(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    refused(folder, world, BadFile, "without adapter_config.json")
    save_peft(folder, world.space, world.persons(1)[0])
    weights, config = folder / "unet" / "adapter_model.safetensors", folder / "unet" / "adapter_config.json"
    settings = json.loads(config.read_text())
    for change, words in (
        ({"use_dora": True}, "is a DoRA"),
        ({"peft_type": "LOHA"}, "is a LOHA"),
        ({"lora_alpha": "much"}, "lora_alpha is no number"),
    ):
        config.write_text(json.dumps(settings | change))
        with pytest.raises(BadFile, match=words):
            read_lora(folder, world.space.sites)
    config.write_text("{")
    with pytest.raises(BadFile, match="no JSON"):
        read_lora(folder, world.space.sites)
    weights.rename(folder / "unet" / "adapter_model.bin")
    with pytest.raises(BadFile, match="pickled"):
        read_lora(folder, world.space.sites)


def test_a_layer_under_both_paths_of_peft_is_one_if_its_numbers_are(world: World, tmp_path: Path) -> None:
    save_peft(tmp_path, world.space, world.persons(1)[0])
    path = tmp_path / "text_encoder" / "adapter_model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    key = "base_model.model.text_model.encoder.layers.1.self_attn.k_proj.lora_B.weight"
    assert torch.equal(tensors[key], tensors[key.replace("text_model.", "")])
    assert read_lora(tmp_path, world.space.sites).sites == len(world.space.sites)
    only_older = {key: tensor for key, tensor in tensors.items() if ".text_model." in key}
    save_file(only_older, path)
    assert read_lora(tmp_path, world.space.sites).sites == len(world.space.sites)
    save_file(tensors | {key: 2 * tensors[key]}, path)
    with pytest.raises(BadFile, match="one layer under two names"):
        read_lora(tmp_path, world.space.sites)


def test_one_network_of_peft_is_enough(world: World, tmp_path: Path) -> None:
    weights = world.persons(1)[0]
    save_peft(tmp_path, world.space, weights)
    config = tmp_path / "unet" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"alpha_pattern": {"attn1.to_q": 5}}))
    read = read_lora(tmp_path / "unet", world.space.sites)
    for index, (site, got) in enumerate(zip(world.space.sites, deltas(read.factors), strict=True)):
        factor = 0 if site.model == "text_encoder" else 5 if site.name.endswith("attn1.to_q") else 1
        torch.testing.assert_close(got, factor * world.space.delta(weights, index), atol=1e-5, rtol=1e-5)
