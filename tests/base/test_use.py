"""The whole way on narrow models of every kind: a photograph to an identity, its pictures and its exports."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperdreambooth.cli import run
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.exchange.lora import import_lora
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import save_diffusers, save_kohya, save_peft, to_lora
from hyperdreambooth.pipeline import HyperDreamBooth
from tests.base.checkpoints import SIZE
from tests.base.conftest import Model

PROMPT = "a photo of a [V] cat"


@pytest.mark.parametrize("save", [save_kohya, save_diffusers])
def test_an_export_draws_the_same_person_in_diffusers(model: Model, save: object, tmp_path: Path) -> None:
    booth = HyperDreamBooth.load(model.files["file"], device="cpu", hypernetwork=None)
    generator = torch.Generator().manual_seed(0)
    weights = 0.5 * torch.randn(len(booth.space.sites), 2, booth.space.width, generator=generator)
    config = DrawConfig(steps=2, guidance=4.0, likeness=None)
    noise = booth.base.noise(1, torch.Generator().manual_seed(0))
    with torch.no_grad(), booth.adapters.use(weights):
        states, empty = booth.base.encode_prompts([PROMPT]), booth.base.encode_prompts([""])
        drawn = booth.base.decode(booth.base.sample(states, empty, noise, config.steps, config.guidance))
    save(tmp_path / "person.safetensors", booth.space, weights)  # type: ignore[operator]

    def plain() -> torch.Tensor:
        asked = {"prompt": PROMPT.replace("[V]", "sks"), "latents": noise, "height": SIZE, "width": SIZE}
        images: torch.Tensor = model.pipeline(
            **asked, num_inference_steps=config.steps, guidance_scale=config.guidance, output_type="pt"
        ).images
        return images

    nobody = plain()
    model.pipeline.load_lora_weights(str(tmp_path / "person.safetensors"), adapter_name="person")
    try:
        expected = plain()
    finally:
        model.pipeline.unload_lora_weights()
    assert (expected - nobody).abs().max() > 0.1  # the person shows
    assert (drawn - expected).abs().max() < 1 / 255


def test_every_site_matters_but_one_layer_of_sdxl(model: Model) -> None:
    """The last layer of SDXL's first text encoder is not read: its states come from the one before."""
    booth = HyperDreamBooth.load(model.files["folder"], device="cpu", hypernetwork=None)
    weights = booth.space.start()[None].clone().requires_grad_()
    with booth.adapters.use(weights):
        states = booth.base.encode_prompts([PROMPT])
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))  # 2 x 2 in the middle
        booth.base.predict(latents, torch.tensor([500]), states).square().sum().backward()
    still = [s.name for s, g in zip(booth.space.sites, weights.grad[0].flatten(1), strict=True) if not g.any()]
    last = "text_encoder.text_model.encoder.layers.2.self_attn."
    expected = [f"{last}{p}_proj" for p in ("q", "k", "v", "out")] if model.kind == "sdxl" else []
    assert still == expected


def test_from_a_photograph_to_pictures_on_the_command_line(
    model: Model, portrait_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An identity made on the folder opens on the single file of the same weights, in any low-memory mode."""

    def hdb(*arguments: object) -> str:
        status = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.err

    alice = tmp_path / "alice.safetensors"
    how = ("--steps", 2, "--noises", 1, "--precision", "bf16", "--low-memory", "offload")
    said = hdb("personalize", portrait_file, "-o", alice, "--base", model.files["folder"], *how)
    assert "bf16" in said and "offload" in said and "cpu" in said
    hdb("generate", alice, "--prompt", PROMPT, "--steps", 2, "-o", tmp_path / "out", "--base", model.files["fp16-file"])
    (picture,) = (tmp_path / "out").glob("*.png")
    with Image.open(picture) as opened:
        assert opened.size == (SIZE, SIZE)
    hdb("export", alice, "--format", "kohya", "-o", tmp_path / "lora.safetensors", "--base", model.files["file"])
    hdb("export", alice, "--format", "peft", "-o", tmp_path / "peft", "--base", model.files["file"])
    parts = {folder.name for folder in (tmp_path / "peft").iterdir() if folder.is_dir()}
    assert parts == {"unet", "text_encoder"} | ({"text_encoder_2"} if model.kind == "sdxl" else set())


@pytest.mark.parametrize("save", [save_kohya, save_diffusers, save_peft])
def test_exports_come_in_again_on_every_site(model: Model, save: object, tmp_path: Path) -> None:
    booth = HyperDreamBooth.load(model.files["folder"], device="cpu", hypernetwork=None)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(len(booth.space.sites), 2, booth.space.width, generator=generator)
    save(tmp_path / "lora", booth.space, weights)  # type: ignore[operator]
    got = import_lora(booth, tmp_path / "lora").identity
    ours, theirs = to_lora(booth.space, got.weights, got.lora), to_lora(booth.space, weights)
    for (down, up), (other_down, other_up) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(up @ down, other_up @ other_down, atol=1e-4, rtol=1e-4)


def test_a_whole_model_draws_the_person_in_plain_diffusers(model: Model, tmp_path: Path) -> None:
    booth = HyperDreamBooth.load(model.files["folder"], device="cpu", hypernetwork=None)
    generator, alice = torch.Generator().manual_seed(0), tmp_path / "alice.safetensors"
    weights = 0.5 * torch.randn(len(booth.space.sites), 2, booth.space.width, generator=generator)
    person = Identity(weights, booth.space.info, booth.fingerprint, booth.base.name)
    person.save(alice, "fp32")
    files = ("-o", str(tmp_path / "model"), "--base", str(model.files["folder"]), "--dtype", "fp32")
    assert run(["export", str(alice), "--format", "model", *files]) == 0
    config = DrawConfig(steps=2, guidance=4.0, likeness=None)
    drawn, nobody = (booth.draw(one, PROMPT, config)[0] for one in (person, None))
    pipeline = type(model.pipeline).from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    noise = booth.base.noise(1, torch.Generator().manual_seed(0))
    asked = {"prompt": PROMPT.replace("[V]", "sks"), "latents": noise, "height": SIZE, "width": SIZE}
    theirs = pipeline(**asked, num_inference_steps=2, guidance_scale=4.0, output_type="pt").images[0]
    assert (drawn - nobody).abs().max() > 0.1  # the person shows
    assert (theirs - drawn).abs().max() < 1 / 255
    again = HyperDreamBooth.load(tmp_path / "model", device="cpu", hypernetwork=None)
    assert torch.allclose(again.draw(None, PROMPT.replace("[V]", "sks"), config)[0], drawn, atol=1 / 255)
