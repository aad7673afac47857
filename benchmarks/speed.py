"""Seconds, memory and ratios of the embedded base on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from hyperdreambooth import DrawConfig, HyperDreamBooth
from hyperdreambooth.embedded import DEMO_PHOTO
from hyperdreambooth.fitting.fit import Pictures
from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig, fit_people
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.personalization import read_face
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.view import View

PORTRAITS = 256
PHOTOGRAPH = (3000, 4000)  # pixels, as a telephone takes them
PEOPLE = 32
STEPS = 4  # of pre-optimisation, each way
_PEAK = """
import json, resource, sys
from hyperdreambooth.cli import main
try:
    main()
finally:
    print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), file=sys.stderr)
"""


def measure_speed(booth: HyperDreamBooth) -> dict[str, float]:
    """Seconds after imports, the peak memory of `hdb personalize`, and how much faster many people are at once."""
    work = booth.personalizing([DEMO_PHOTO])
    for _ in work:
        pass
    person = work.identities[0]
    result = {f"{phase} (s)": seconds for phase, seconds in work.seconds.items()}
    result["personalise (s)"] = sum(work.seconds.values())
    prompts = ["a watercolor of a [V] face"] * 8
    result["eight guided 25-step pictures (s)"] = seconds_of(lambda: booth.draw(person, prompts, DrawConfig()))
    result["portraits drawn per second"] = PORTRAITS / seconds_of(draw_portraits)
    result["photograph of 12 megapixels read, its face found (s)"] = seconds_of_a_photograph(booth.base.picture_size)
    result["peak memory of hdb personalize (GB)"] = peak_memory() / 1e9
    result |= people_at_once(booth)
    for name, value in result.items():
        Console().print(f"{name}: {value:.3g}")
    return result


def seconds_of_a_photograph(size: int) -> float:
    """Of a large JPEG until its face is cut out, at `size` pixels; the picture of a face is a fifth of it."""
    image = Image.new("RGB", PHOTOGRAPH, "grey")
    with tempfile.TemporaryDirectory() as folder, Image.open(DEMO_PHOTO) as portrait:
        image.paste(portrait.convert("RGB").resize((1500, 1500)), (750, 1000))
        image.save(file := Path(folder) / "photograph.jpg")
        return seconds_of(lambda: read_face(file, size))


def draw_portraits() -> None:
    """Some portraits of the size that the recipe draws."""
    views = [View.sample(np.random.RandomState(seed)) for seed in range(PORTRAITS)]
    render([Person(seed) for seed in range(PORTRAITS)], views, 64)


def people_at_once(booth: HyperDreamBooth) -> dict[str, float]:
    """Pre-optimisation of many people in one batch against one at a time, in one run."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(PEOPLE, 1, *booth.base.latent_shape, generator=generator)
    config = PreoptimizeConfig(fit=FitConfig(steps=STEPS, lr=1e-2))

    def fit(people: int) -> None:
        for _ in fit_people(booth.base, booth.adapters, Pictures(latents[:people]), config):
            pass

    def one_by_one() -> None:
        for _ in range(PEOPLE // 4):
            fit(1)

    fit(1)  # warm
    together, alone = seconds_of(lambda: fit(PEOPLE)), seconds_of(one_by_one) * 4
    return {
        "identity-steps per second, 32 at once": PEOPLE * STEPS / together,
        "identity-steps per second, one at a time": PEOPLE * STEPS / alone,
        "32 at once against one at a time (x)": alone / together,
    }


def peak_memory() -> int:
    """Bytes that a process of `hdb personalize` holds at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["hdb", "personalize", str(DEMO_PHOTO), "-o", str(Path(folder) / "person.safetensors")]
        code = f"import sys; sys.argv = {command!r}\n{_PEAK}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(json.loads(done.stderr.strip().splitlines()[-1])["peak_bytes"])


def seconds_of(work: Callable[[], object]) -> float:
    """Wall clock of a piece of work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
