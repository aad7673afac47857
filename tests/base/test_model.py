"""The base against plain diffusers, on a tiny random model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline

from hyperdreambooth.base import model
from hyperdreambooth.base.build import PRESETS, build_base
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.model import Base, fingerprint_of

COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
PROMPTS = ["a photo of a sks face", "a pencil sketch of a sks face at the beach"]


def generators(*seeds: int) -> list[torch.Generator]:
    """Of the noise that is added on the way, one for each picture."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def quiet(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, saved in half precision."""
    path = tmp_path_factory.mktemp("bases") / "tiny"
    tiny_base.save(path)
    return path


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_draws_what_the_plain_pipeline_draws(folder: Path, generator: torch.Generator, guidance: float) -> None:
    base, pipeline = load_base(folder, device="cpu"), quiet(StableDiffusionPipeline.from_pretrained(folder))
    noise = base.noise(2, generator)
    states, nothing = base.encode_prompts(PROMPTS), base.encode_prompts([""])
    added = generators(1, 2)
    ours = base.decode(base.sample(states, nothing, noise, steps=6, guidance=guidance, generators=added))
    settings = {"num_inference_steps": 6, "guidance_scale": guidance, "output_type": "pt"}
    theirs = pipeline(PROMPTS, latents=noise, generator=generators(1, 2), **settings).images
    assert ours.shape == (2, 3, 16, 16) and ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_other_schedulers_draw_the_same(folder: Path, generator: torch.Generator, kind: type) -> None:
    base, pipeline = load_base(folder, device="cpu"), quiet(StableDiffusionPipeline.from_pretrained(folder))
    base.scheduler = pipeline.scheduler = kind(beta_schedule="scaled_linear", steps_offset=1)
    noise = base.noise(2, generator)
    ours = base.sample(base.encode_prompts(PROMPTS), base.encode_prompts([""]), noise, steps=4, guidance=2.0)
    theirs = pipeline(PROMPTS, latents=noise, num_inference_steps=4, guidance_scale=2.0, output_type="latent").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_guidance_is_brought_back_as_in_the_plain_pipeline(folder: Path, generator: torch.Generator) -> None:
    base, pipeline = load_base(folder, device="cpu"), quiet(StableDiffusionPipeline.from_pretrained(folder))
    noise, states = base.noise(2, generator), base.encode_prompts(["", *PROMPTS])
    rows, factors = torch.stack([states[:1].expand(2, -1, -1), states[1:]]), [-4.0, 5.0]
    plain, ours = (
        base.sample_mixed(rows, factors, noise, 4, generators=generators(1, 2), rescale=share) for share in (0.0, 0.7)
    )
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "guidance_rescale": 0.7, "output_type": "latent"}
    theirs = pipeline(PROMPTS, latents=noise, generator=generators(1, 2), **settings).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - plain).abs().max() > 0.01


def test_one_batch_equals_one_by_one(tiny_base: Base, generator: torch.Generator) -> None:
    noise, states = tiny_base.noise(2, generator), tiny_base.encode_prompts(PROMPTS)
    nothing = tiny_base.encode_prompts([""])
    together = tiny_base.sample(states, nothing, noise, steps=4, generators=generators(0, 1))
    alone = [
        tiny_base.sample(states[i : i + 1], nothing, noise[i : i + 1], steps=4, generators=generators(i))
        for i in range(2)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_samplings_share_nothing(tiny_base: Base, generator: torch.Generator) -> None:
    """One sampling runs in the middle of another and neither notices."""
    noise, states = tiny_base.noise(2, generator), tiny_base.encode_prompts(PROMPTS)
    expected = tiny_base.sample(states, states, noise, steps=4, generators=generators(0, 1))
    inner = []

    def progress(done: int, steps: int) -> None:
        if (done, steps) == (2, 4):
            inner.append(tiny_base.sample(states, states, noise, steps=4, generators=generators(0, 1)))

    outer = tiny_base.sample(states, states, noise, steps=4, progress=progress, generators=generators(0, 1))
    assert torch.equal(outer, expected) and torch.equal(inner[0], expected)


def test_sampled_latents_can_be_trained_on(tiny_base: Base, generator: torch.Generator) -> None:
    states = tiny_base.encode_prompts(PROMPTS)
    latents = tiny_base.sample(states, states, tiny_base.noise(2, generator), steps=1)
    factor = torch.ones(1, requires_grad=True)
    (latents * factor).square().sum().backward()  # an inference tensor could not be kept for this
    assert factor.grad is not None and not latents.requires_grad


def test_guidance_rows_are_unconditional_then_conditional(tiny_base: Base, generator: torch.Generator) -> None:
    states, nothing = tiny_base.encode_prompts(PROMPTS), tiny_base.encode_prompts(["", ""])
    seen = []
    hook = tiny_base.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    tiny_base.sample(states, nothing, tiny_base.noise(2, generator), steps=1)
    tiny_base.sample(states, nothing, tiny_base.noise(2, generator), steps=1, guidance=1.0)
    hook.remove()
    assert torch.equal(seen[0], torch.cat([nothing, states])) and torch.equal(seen[1], states)


def test_pictures_survive_the_mapping_to_and_from_the_vae(tiny_base: Base, generator: torch.Generator) -> None:
    pictures = torch.rand((3, 3, 16, 16), generator=generator)
    latents = tiny_base.encode_pictures(pictures)
    posterior = tiny_base.vae.encode(pictures * 2 - 1).latent_dist
    assert latents.shape == (3, *tiny_base.latent_shape)
    torch.testing.assert_close(latents, posterior.mean * tiny_base.vae.config.scaling_factor)
    spread = tiny_base.encode_pictures(pictures, generator) - latents
    assert not torch.equal(spread, torch.zeros_like(spread))
    decoded = tiny_base.decode(latents)
    expected = tiny_base.vae.decode(posterior.mean).sample.mul(0.5).add(0.5).clamp(0, 1)
    torch.testing.assert_close(decoded, expected)
    with pytest.raises(ValueError, match="expected"):
        tiny_base.encode_pictures(pictures[0])


def test_scaling_factor_is_applied_both_ways(fresh_base: Base, generator: torch.Generator) -> None:
    pictures = torch.rand((1, 3, 16, 16), generator=generator)
    before, drawn = fresh_base.encode_pictures(pictures), fresh_base.decode(fresh_base.encode_pictures(pictures))
    fresh_base.vae.register_to_config(scaling_factor=0.25)
    torch.testing.assert_close(fresh_base.encode_pictures(pictures), before * 0.25)
    torch.testing.assert_close(fresh_base.decode(before * 0.25), drawn)


def test_placeholder_is_the_rare_token(tiny_base: Base) -> None:
    states = tiny_base.encode_prompts(["a [V] face", "a [v] face", "a sks face", "a face"])
    assert states.shape == (4, 16, 32)
    assert torch.equal(states[0], states[2]) and torch.equal(states[1], states[2])
    assert not torch.equal(states[0], states[3])


def test_text_states_pass_gradients_to_the_text_encoder(fresh_base: Base) -> None:
    weight = fresh_base.text_encoder.get_parameter("encoder.layers.0.self_attn.q_proj.weight").requires_grad_()
    fresh_base.encode_prompts(PROMPTS).square().mean().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_unknown_words_are_named(tiny_base: Base) -> None:
    assert tiny_base.unknown_words("A photo of a [V] face, at the zoo in the Zoo; wearing hats!") == ["zoo", "hats"]
    assert tiny_base.unknown_words("a watercolor of a [V] face") == []


def test_noise_levels_keep_variance(tiny_base: Base) -> None:
    signal, sigma = tiny_base.noise_levels(torch.tensor([0, 500, 999]))
    torch.testing.assert_close(signal.square() + sigma.square(), torch.ones(3, 1, 1, 1))
    assert signal[0] > 0.999 and signal[2] < 1e-3


def test_fingerprint_tells_bases_apart_in_any_precision(tiny_base: Base, folder: Path) -> None:
    other = build_base(PRESETS["tiny"], ["a", "photo"], seed=1)
    assert load_base(folder, "cpu", torch.float16).fingerprint == tiny_base.fingerprint != other.fingerprint
    assert load_base(folder, "cpu").fingerprint == tiny_base.fingerprint
    assert load_base(folder, "cpu", torch.bfloat16).fingerprint == tiny_base.fingerprint
    assert len(tiny_base.fingerprint) == 16


def test_fingerprint_is_of_the_weights_before_any_cast_or_merge(
    fresh_base: Base, tiny_base: Base, generator: torch.Generator
) -> None:
    def change(base: Base) -> None:
        weight = base.unet.get_parameter("conv_in.weight")
        weight += torch.randn(weight.shape, generator=generator).to(weight) * weight.std() / 4

    change(fresh_base)  # as training does, before anybody has asked
    changed = fingerprint_of(fresh_base.text_encoder, fresh_base.unet)
    assert fresh_base.to(dtype=torch.bfloat16).fingerprint == changed != tiny_base.fingerprint
    change(fresh_base)  # as merging does
    assert fresh_base.fingerprint == changed != fingerprint_of(fresh_base.text_encoder, fresh_base.unet)


def test_fingerprint_survives_a_file_of_any_precision(fresh_base: Base, tiny_base: Base, tmp_path: Path) -> None:
    tiny = fresh_base.unet.get_parameter("conv_out.weight")
    tiny.view(-1)[::2] = -1e-30  # nothing in half precision, but for its sign
    expected = fingerprint_of(fresh_base.text_encoder, fresh_base.unet)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        fresh_base.save(tmp_path / str(dtype), dtype)
        assert load_base(tmp_path / str(dtype), "cpu").fingerprint == expected != tiny_base.fingerprint


def test_a_base_of_fewer_files_leaves_none_of_the_one_before(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_LARGEST_FILE", "100KB")
    tiny_base.save(tmp_path)
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    monkeypatch.undo()
    (tmp_path / "unet" / "notes.txt").write_text("mine")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "mine.safetensors").write_text("mine")
    tiny_base.save(tmp_path)
    left = {path.name for path in (tmp_path / "unet").iterdir()}
    assert left == {"config.json", "diffusion_pytorch_model.safetensors", "notes.txt"}
    assert (tmp_path / "lora" / "mine.safetensors").exists()
    assert load_base(tmp_path).fingerprint == tiny_base.fingerprint


def test_saved_folder_is_that_of_diffusers(tiny_base: Base, folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "float32"
    assert load_base(folder, "cpu").card == tiny_base.card
    weights = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt")]
    assert sorted(path.parent.name for path in weights) == ["text_encoder", "unet", "vae"]
    assert sum(path.stat().st_size for path in weights) < 1_200_000  # half precision


def test_saving_leaves_the_base_and_other_files_alone(
    tiny_base: Base, tmp_path: Path, generator_of: Callable[[int], torch.Generator]
) -> None:
    (tmp_path / "README.md").write_text("the card")
    noise, states = tiny_base.noise(1, generator_of(1)), tiny_base.encode_prompts([PROMPTS[0]])
    before = tiny_base.predict(noise, torch.tensor([9]), states)
    tiny_base.save(tmp_path)
    assert torch.equal(tiny_base.predict(noise, torch.tensor([9]), states), before)
    assert tiny_base.dtype == torch.float32 and (tmp_path / "README.md").read_text() == "the card"


def test_a_base_is_frozen_and_depends_on_its_seed_alone(tiny_base: Base) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = build_base(PRESETS["tiny"], ["a"], seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    for network in (again.vae, again.text_encoder, again.unet):
        assert not network.training and not any(p.requires_grad for p in network.parameters())
    for ours, theirs in zip(again.unet.parameters(), tiny_base.unet.parameters(), strict=True):
        assert torch.equal(ours, theirs)
