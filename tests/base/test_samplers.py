"""Samplers by name, against plain diffusers and against each other, on a tiny random model."""

from pathlib import Path
from typing import get_args

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline

from hyperdreambooth.base.model import Base
from hyperdreambooth.base.samplers import Sampler, sampler_of
from hyperdreambooth.errors import UserError
from hyperdreambooth.pipeline import HyperDreamBooth

PROMPT = "a photo of a sks face"
NAMES = {  # what the documentation of diffusers has under the names of other programs
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


def drawn(base: Base, steps: int, noise: torch.Tensor) -> torch.Tensor:
    states, added = base.encode_prompts([PROMPT]), torch.Generator().manual_seed(1)
    return base.sample(states, base.encode_prompts([""]), noise, steps, 2.0, generators=[added])


@pytest.fixture(scope="module")
def folder(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bases") / "tiny"
    tiny_base.save(path)
    return path


@pytest.mark.parametrize("name", [name for name in get_args(Sampler) if name != "own"])
def test_a_name_draws_what_the_plain_pipeline_draws_with_it(
    folder: Path, generator: torch.Generator, name: Sampler
) -> None:
    booth = HyperDreamBooth.load(folder, device="cpu", sampler=name)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    cls, settings = NAMES[name]
    pipeline.scheduler = getattr(diffusers, cls).from_config(pipeline.scheduler.config, **settings)
    noise = booth.base.noise(1, generator)
    settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent"}
    settings |= {"eta": 0.3} if name == "tcd" else {}  # its own default, where the pipeline's for all samplers is 0
    theirs = pipeline(PROMPT, latents=noise, generator=torch.Generator().manual_seed(1), **settings).images
    torch.testing.assert_close(drawn(booth.base, 4, noise), theirs, atol=1e-4, rtol=1e-4)


def test_samplers_without_noise_agree_in_many_steps(folder: Path, generator: torch.Generator) -> None:
    names: tuple[Sampler, ...] = ("ddim", "dpm++", "euler", "unipc")
    bases = [HyperDreamBooth.load(folder, device="cpu", sampler=name).base for name in names]
    noise = bases[0].noise(1, generator)
    first, *others = [drawn(base, 100, noise) for base in bases]
    few = drawn(bases[0], 3, noise)
    for other in others:
        assert (other - first).square().mean() < 0.1 * (few - first).square().mean()


def test_a_base_keeps_its_own(folder: Path) -> None:
    booth, other = HyperDreamBooth.load(folder, device="cpu"), HyperDreamBooth.load(folder, "cpu", sampler="euler")
    assert type(booth.base.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert booth.fingerprint == other.fingerprint  # a person of one is a person of the other
    assert torch.equal(booth.base.scheduler.alphas_cumprod, other.base.scheduler.alphas_cumprod)


def test_unknown_names_say_what_is_expected(tiny_base: Base) -> None:
    with pytest.raises(UserError, match=r"'plms', expected one of own, ddim"):
        sampler_of("plms", tiny_base.scheduler)  # type: ignore[arg-type]
