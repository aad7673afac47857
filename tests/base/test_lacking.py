"""Folders whose files hold other tensors than their configurations say: named, never opened with random numbers."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from hyperdreambooth.base.loading import load_base
from hyperdreambooth.errors import BadBase
from tests.base.conftest import Model

FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(model.files["folder"], tmp_path / "base"))


def rewrite(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize("part", FILES)
def test_a_tensor_that_is_not_there_is_named(part: str, folder: Path) -> None:
    path = folder / FILES[part]
    if not path.exists():
        pytest.skip("has one text encoder")
    name = sorted(load_file(path))[-1]
    rewrite(path, without(name))
    with pytest.raises(BadBase, match=rf"{part} lacks \S*{name}, expected"):
        load_base(folder, device="cpu")


@pytest.mark.parametrize("part", FILES)
def test_a_tensor_too_many_is_named(part: str, folder: Path) -> None:
    path = folder / FILES[part]
    if not path.exists():
        pytest.skip("has one text encoder")
    extra = {f"mid_block.{number}.attn1.to_qkv.weight": torch.ones(3) for number in range(3)}
    rewrite(path, lambda tensors: tensors | extra)
    with pytest.raises(BadBase, match=rf"{part} holds, .*mid_block\.0\.attn1\.to_qkv\.weight and 2 others"):
        load_base(folder, device="cpu")


def test_a_network_of_another_kind_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")
    bert = BertModel(
        BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    )
    bert.save_pretrained(folder / "text_encoder")
    with pytest.raises(BadBase, match=r"text_encoder .*expected Stable Diffusion"):
        load_base(folder, device="cpu")


def test_a_whole_clip_in_the_place_of_its_text_encoder_opens(model: Model, folder: Path) -> None:
    extra = {name: torch.ones(3) for name in ("vision_model.embeddings.class_embedding", "logit_scale")}
    rewrite(folder / FILES["text_encoder"], lambda tensors: tensors | extra | {"text_projection.weight": torch.ones(3)})
    sound = load_base(model.files["folder"], device="cpu")
    assert load_base(folder, device="cpu").fingerprint == sound.fingerprint


def test_names_of_earlier_libraries_still_open(model: Model, folder: Path) -> None:
    """Text encoders with a prefix and position ids, as transformers saved them, and the VAE's first attention."""
    words = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def prefixed(tensors: Tensors) -> Tensors:
        own = {name if name.startswith("text_") else f"text_model.{name}": value for name, value in tensors.items()}
        return own | {"text_model.embeddings.position_ids": torch.arange(77).unsqueeze(0)}

    def renamed(tensors: Tensors) -> Tensors:
        for new, old in words.items():
            tensors = {name.replace(new, old): value for name, value in tensors.items()}
        return tensors

    for part in ("text_encoder", "text_encoder_2"):
        if (folder / part).exists():
            rewrite(folder / FILES[part], prefixed)
    rewrite(folder / FILES["vae"], renamed)
    assert any(".proj_attn." in name for name in load_file(folder / FILES["vae"]))
    base, sound = load_base(folder, device="cpu"), load_base(model.files["folder"], device="cpu")
    assert base.fingerprint == sound.fingerprint
    for ours, theirs in zip(base.vae.parameters(), sound.vae.parameters(), strict=True):
        assert torch.equal(ours, theirs)
