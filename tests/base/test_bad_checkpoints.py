"""Files that are no base: each kind is told apart by name, in one line, and nothing pickled is ever read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperdreambooth.base.loading import load_base
from hyperdreambooth.errors import BadBase
from tests.base.checkpoints import CARD, random_pipeline, save_single_file, write_layout

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow Stable Diffusion 1: layout, folder, and one file with its card."""
    home = tmp_path_factory.mktemp("narrow")
    pipeline = random_pipeline(write_layout("sd1", home / "layout"))
    pipeline.save_pretrained(home / "folder")
    (home / "folder" / "hyperdreambooth.json").write_text(json.dumps(CARD))
    save_single_file(pipeline, home / "model.safetensors", torch.float16)
    (home / "model.hyperdreambooth.json").write_text(json.dumps(CARD | {"layout": "layout"}))
    return home


def refusal(name: str | Path) -> str:
    with pytest.raises(BadBase) as caught:
        load_base(name, device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def changed(home: Path, path: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """The single file with other tensors, and its card beside it."""
    save_file(change(load_file(home / "model.safetensors")), path)
    card = json.dumps(CARD | {"layout": str(home / "layout")})
    path.with_suffix(".hyperdreambooth.json").write_text(card)
    return path


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def with_channels(count: int) -> Callable[[Tensors], Tensors]:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    return lambda tensors: tensors | {name: torch.zeros(16, count, 3, 3)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("first_stage_model."), "without a VAE"),
        (without("cond_stage_model."), "without a text encoder"),
        (without("model.diffusion_model."), "without a U-Net"),
        (with_channels(9), "an inpainting model"),
        (with_channels(8), "an editing model"),
        (lambda _: {"lora_unet_mid_block.lora_up.weight": torch.zeros(2, 2)}, "a LoRA, which changes a base"),
        (lambda _: {"model.diffusion_model.joint_blocks.0.x.weight": torch.zeros(2, 2)}, "Stable Diffusion 3's kind"),
        (lambda _: {"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, "Flux's kind"),
        (lambda _: {"conditioner.embedders.0.model.ln_final.weight": torch.zeros(2)}, "SDXL's refiner"),
        (lambda _: {"down_blocks.0.transformer_blocks.0.a": torch.zeros(2)}, "one network in diffusers' layout"),
        (without("middle_block.0.in_layers.0"), "lacks weights of the unet"),
        (without("decoder.mid.block_1.norm1"), "lacks weights of the vae"),
        (without("layers.3.self_attn.q_proj"), "lacks text_encoder"),
        (renamed("input_blocks.1.0.in_layers.0", "input_blocks.1.0.strange"), "expected Stable Diffusion"),
        (lambda t: t | {"model.diffusion_model.middle_block.1.more.weight": torch.zeros(2)}, "tensors, its layout"),
        (lambda t: t | {"model.diffusion_model.out.2.bias": torch.zeros(5)}, "not of the layout"),
        (lambda t: t | {"model.diffusion_model.out.2.bias": torch.zeros(4, dtype=torch.int8)}, "holds I8 numbers"),
        (
            lambda t: t | {"model.diffusion_model.out.2.bias": torch.zeros(4).to(torch.float8_e4m3fn)},
            "holds F8_E4M3 numbers",
        ),
    ],
)
def test_single_files_that_are_no_base(
    home: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], words: str
) -> None:
    assert words in refusal(changed(home, tmp_path / "model.safetensors", change))


def test_a_checkpoint_of_other_sizes_is_refused_without_a_layout_of_its_own(home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "model.safetensors", tmp_path)
    assert "is not of the layout sd1" in refusal(tmp_path / "model.safetensors")


def test_a_truncated_file(home: Path, tmp_path: Path) -> None:
    whole = (home / "model.safetensors").read_bytes()
    for end in (0, 5, 1000, len(whole) // 2):
        (tmp_path / "model.safetensors").write_bytes(whole[:end])
        assert "expected a whole safetensors file" in refusal(tmp_path / "model.safetensors")


class _Trap:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("it-ran",)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
def test_pickles_are_refused_unread(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Trap()}, tmp_path / name)
    assert "pickled" in refusal(tmp_path / name)
    assert not (tmp_path / "it-ran").exists()


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    return Path(shutil.copytree(home / "folder", tmp_path / "base"))


def rewrite(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("model_index.json", {"transformer": ["diffusers", "FluxTransformer2DModel"]}, "FluxTransformer2DModel"),
        ("model_index.json", {"text_encoder_3": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
        ("model_index.json", {"requires_aesthetics_score": True}, "refiner"),
        ("unet/config.json", {"in_channels": 9}, "an inpainting model"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim 256"),
        ("unet/config.json", {"addition_embed_type": "image"}, "addition_embed_type 'image'"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "no text_encoder_2/config.json"),
        ("unet/config.json", {"cross_attention_dim": 64}, "cannot be opened"),
        ("text_encoder/config.json", {"hidden_size": 64}, "cannot be opened"),
    ],
)
def test_folders_that_are_no_base(folder: Path, file: str, values: dict[str, object], words: str) -> None:
    rewrite(folder / file, **values)
    assert words in refusal(folder)


def test_text_encoders_of_another_base(folder: Path, tmp_path: Path) -> None:
    other = write_layout("sd1", tmp_path / "layout")
    rewrite(other / "text_encoder" / "config.json", hidden_size=40)
    rewrite(other / "unet" / "config.json", cross_attention_dim=40)
    random_pipeline(other).save_pretrained(tmp_path / "other")
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(tmp_path / "other" / "text_encoder", folder / "text_encoder")
    assert "reads text of 32 numbers a token, its text encoders say 40" in refusal(folder)


def test_a_transformer_in_the_place_of_the_unet(folder: Path) -> None:
    (folder / "unet").rename(folder / "transformer")
    assert "a transformer in the place of the unet" in refusal(folder)


def test_packed_weights_in_a_folder(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(path).items()}, path)
    assert "holds I8 numbers" in refusal(folder)
