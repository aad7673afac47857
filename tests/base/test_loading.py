"""Opening a base: what is missing or damaged is named, and nothing pickled is ever read."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler

from hyperdreambooth.base import loading
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import BadBase


@pytest.fixture(scope="module")
def saved(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bases") / "tiny"
    tiny_base.save(path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "base"))


@pytest.mark.parametrize(
    "name", ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"]
)
def test_missing_part_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadBase, match=name):
        load_base(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BadBase, match="vae has no weights"):
        load_base(folder)


def test_pickled_weights_are_refused(folder: Path, fresh_base: Base) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(fresh_base.unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(BadBase, match="pickled"):
        load_base(folder)


@pytest.mark.parametrize(
    "name",
    [
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
        "hyperdreambooth.json",
    ],
)
def test_damage_is_one_clear_line(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadBase, match="again") as caught:
        load_base(folder)
    assert "\n" not in str(caught.value) and name.split("/")[0] in str(caught.value)


def test_unknown_name_says_what_is_expected(tmp_path: Path) -> None:
    for name in ("nothing-here", tmp_path / "absent"):
        with pytest.raises(BadBase, match="'embedded' or a folder"):
            load_base(name)


def test_embedded_is_the_folder_in_the_package(folder: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BASE", folder)
    assert load_base().fingerprint == tiny_base.fingerprint


def test_schedulers_without_noise_levels_are_refused(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    with pytest.raises(BadBase, match="predicts"):
        load_base(folder)
    path.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(BadBase, match="names 'StableDiffusionPipeline'"):
        load_base(folder)


def test_samplers_with_noise_of_their_own_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one whose step takes no generator."""

    class Wild(DDIMScheduler):
        def step(self, output, timestep, sample, return_dict=True):  # type: ignore[no-untyped-def,override]
            return (sample + torch.randn_like(sample),)

    monkeypatch.setattr(diffusers, "WildScheduler", Wild, raising=False)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "WildScheduler"}))
    state = torch.get_rng_state()
    with pytest.raises(BadBase, match=r"Wild.*adds noise of its own"):
        load_base(folder)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDPMScheduler"},
        {"_class_name": "EulerAncestralDiscreteScheduler"},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++"},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
        {"_class_name": "DDIMScheduler"},
        {"_class_name": "PNDMScheduler"},
        {"_class_name": "EulerDiscreteScheduler"},
        {"_class_name": "HeunDiscreteScheduler"},
    ],
)
def test_samplers_that_follow_seeds_are_taken(folder: Path, config: dict[str, str]) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    base, seen = load_base(folder, device="cpu"), []
    states = base.encode_prompts(["a face"])

    def draw(seed: int, other: int) -> torch.Tensor:
        torch.manual_seed(other)
        noise = base.noise(1, generator := torch.Generator().manual_seed(seed))
        report = lambda done, steps: seen.append((done, steps))  # noqa: E731
        return base.sample(states, states, noise, 4, 3.0, report, [generator])

    first = draw(0, 0)
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))  # some take more steps than asked for
    assert torch.equal(draw(0, 1), first) and not torch.equal(draw(1, 0), first)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("a", "64", "int"),
        ("b", True, "int"),
        ("b", 0, "1 or more"),
        ("picture_size", None, "int"),
        ("scale", "1", "float"),
        ("closed_vocabulary", 1, "bool"),
        ("rare_token", None, "str"),
    ],
)
def test_a_card_of_wrong_types_is_refused(folder: Path, name: str, value: object, expected: str) -> None:
    path = folder / "hyperdreambooth.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(BadBase, match=f"{name} .*expected {expected}"):
        load_base(folder)


def test_a_base_of_unknown_picture_size_is_refused(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": None}))
    assert load_base(folder, device="cpu").picture_size == 16  # the card says it
    (folder / "hyperdreambooth.json").unlink()
    with pytest.raises(BadBase, match="sample_size None, expected a whole number"):
        load_base(folder)


def test_folder_without_a_card_is_taken_as_stable_diffusion(folder: Path) -> None:
    (folder / "hyperdreambooth.json").unlink()
    base = load_base(folder, device="cpu")
    assert (base.name, base.picture_size, base.rare_token, base.class_noun) == ("base", 16, "sks", "face")
    assert (base.card.a, base.card.b) == (100, 50) and base.unknown_words("a xyzzy") == []


def test_precision_is_the_one_asked_for(folder: Path) -> None:
    base = load_base(folder, device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for m in (base.vae, base.text_encoder, base.unet) for p in m.parameters()} == {torch.bfloat16}
    assert base.encode_pictures(torch.rand(1, 3, 16, 16)).dtype == torch.float32
