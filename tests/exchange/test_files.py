"""Exports say whose and for what they are; a merged folder draws, in plain diffusers, what the person draws here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard

from hyperdreambooth.base.loading import load_base
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.errors import WorkError
from hyperdreambooth.exchange.cards import lora_metadata
from hyperdreambooth.exchange.merged import save_model
from hyperdreambooth.files import load_metadata, load_tensors
from hyperdreambooth.identity import LICENCE
from hyperdreambooth.lidb import About, save_kohya
from hyperdreambooth.pipeline import HyperDreamBooth
from tests.conftest import left_as_it_was
from tests.exchange.conftest import Hdb, person_of


def test_merged_draws_the_same_picture(hdb: Hdb, booth: HyperDreamBooth, alice: Path, tmp_path: Path) -> None:
    folder, person = tmp_path / "alice", booth.open(alice)
    got = hdb("export", alice, "--format", "model", "-o", folder)
    assert got["bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    config = DrawConfig(seed=3, steps=6, guidance=3.0, likeness=None)
    prompt = "a pencil sketch of a sks face"
    (ours,), (plain,) = (booth.draw(one, prompt.replace("sks", "[V]"), config) for one in (person, None))
    generator = torch.Generator().manual_seed(3)
    noise = booth.base.noise(1, generator)
    drawn = pipeline(
        prompt, latents=noise, generator=[generator], num_inference_steps=6, guidance_scale=3.0, output_type="pt"
    ).images[0]
    assert (drawn - ours).abs().max() < 1 / 255
    assert (drawn - plain).abs().max() > 20 / 255


def test_to_folder_is_another_word_for_a_merged_model(hdb: Hdb, alice: Path, tmp_path: Path) -> None:
    named = hdb("export", alice, "--to-folder", tmp_path / "a" / "alice")
    spelt = hdb("export", alice, "--format", "model", "-o", tmp_path / "b" / "alice")
    assert named["format"] == "model" and named["bytes"] == spelt["bytes"]
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert len(list(folder.rglob("*.safetensors"))) == 3
    for weights in (tmp_path / "a").rglob("*.safetensors"):
        assert weights.read_bytes() == (tmp_path / "b" / weights.relative_to(tmp_path / "a")).read_bytes()
    for more in (("--format", "model"), ("--format", "kohya"), ("-o", tmp_path / "c")):
        assert "expected it alone" in hdb("export", alice, "--to-folder", tmp_path / "c", *more, status=2)
    for less in (("--format", "model"), ("-o", tmp_path / "c"), ()):
        assert "expected both, or --to-folder" in hdb("export", alice, *less, status=2)
    assert not (tmp_path / "c").exists()


def test_a_merged_folder_is_a_base_of_its_own(booth: HyperDreamBooth, alice: Path, tmp_path: Path) -> None:
    with left_as_it_was(booth.base):
        save_model(tmp_path / "alice", booth, booth.open(alice), "alice", torch.float16)
    assert not booth.adapters.merged
    base = load_base(tmp_path / "alice", "cpu")
    assert base.name == "tiny + alice" and base.fingerprint != booth.fingerprint
    assert base.card.rare_token == booth.base.card.rare_token
    weights = load_tensors(tmp_path / "alice" / "unet" / "diffusion_pytorch_model.safetensors")[0]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_a_failure_leaves_the_base_bare(
    booth: HyperDreamBooth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StableDiffusionPipeline, "save_pretrained", fail)
    with left_as_it_was(booth.base), pytest.raises(WorkError, match="no room"):
        save_model(tmp_path / "alice", booth, person_of(booth), "alice")
    assert not booth.adapters.merged and not list(tmp_path.iterdir())


def test_a_loras_header_says_what_it_is(hdb: Hdb, booth: HyperDreamBooth, alice: Path, tmp_path: Path) -> None:
    path = tmp_path / "alice-lora.safetensors"
    hdb("export", alice, "--format", "kohya", "-o", path)
    said = load_metadata(path)
    assert said["modelspec.sai_model_spec"] == "1.0.0" and said["modelspec.title"] == "alice-lora"
    assert said["modelspec.trigger_phrase"] == "a photo of a sks face" and "sks" in said["modelspec.usage_hint"]
    assert said["modelspec.architecture"] == "tiny/lora" and said["modelspec.resolution"] == "16x16"
    assert said["modelspec.license"] == said["ss_training_comment"] == LICENCE
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_v2"]) == ("4", "4", "False")
    assert json.loads(said["ss_tag_frequency"]) == {"alice-lora": {"a photo of a sks face": 1}}
    assert "ss_base_model_version" not in said and said["hyperdreambooth_base"] == booth.fingerprint


@pytest.mark.parametrize(
    ("width", "predicts", "architecture", "version"),
    [
        (768, "epsilon", "stable-diffusion-v1", "sd_v1"),
        (768, "v_prediction", "stable-diffusion-v1", "sd_v1_v"),
        (1024, "epsilon", "stable-diffusion-v2-512", "sd_v2"),
        (1024, "v_prediction", "stable-diffusion-v2-768-v", "sd_v2_v"),
        (2048, "epsilon", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
        (2048, "v_prediction", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    ],
)
def test_stable_diffusions_versions_are_told_by_width_and_by_what_they_predict(
    width: int, predicts: str, architecture: str, version: str, booth: HyperDreamBooth
) -> None:
    config = SimpleNamespace(cross_attention_dim=width)
    base = SimpleNamespace(unet=SimpleNamespace(config=config), name="sd", picture_size=512, prediction_type=predicts)
    said = lora_metadata(person_of(booth), base, "alice")  # type: ignore[arg-type]
    assert said["modelspec.architecture"] == f"{architecture}/lora" and said["ss_base_model_version"] == version
    assert said["ss_v2"] == str(width == 1024) and said["modelspec.prediction_type"] == predicts.partition("_")[0]


@pytest.mark.parametrize(("layout", "library"), [("peft", "peft"), ("model", "diffusers")])
def test_folders_carry_a_model_card(layout: str, library: str, hdb: Hdb, alice: Path, tmp_path: Path) -> None:
    hdb("export", alice, "--format", layout, "-o", tmp_path / "alice")
    card = ModelCard.load(tmp_path / "alice" / "README.md")
    assert card.data.library_name == library and card.data.license == "other"
    assert card.data.instance_prompt == "a photo of a sks face" and "person" in card.data.tags
    assert LICENCE in card.text and "for the base tiny and no other" in card.text
    if layout == "peft":
        config = json.loads((tmp_path / "alice" / "unet" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "tiny"


def test_half_precision_halves_the_file(hdb: Hdb, booth: HyperDreamBooth, alice: Path, tmp_path: Path) -> None:
    sizes = [
        hdb("export", alice, "--format", "kohya", "-o", tmp_path / name, "--dtype", name)["bytes"]
        for name in ("fp32", "fp16")
    ]
    assert sizes[1] < 0.7 * sizes[0]
    with pytest.raises(WorkError, match="export in float32"):
        save_kohya(tmp_path / "x", booth.space, 1e6 * person_of(booth).weights, about=About(dtype=torch.float16))
    assert not (tmp_path / "x").exists()
