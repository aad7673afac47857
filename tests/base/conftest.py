"""Narrow random models of each kind of Stable Diffusion, with their files; made once."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.base.checkpoints import CARD, KINDS, random_pipeline, save_single_file, write_layout


@dataclass
class Model:
    """A narrow random model: diffusers' own pipeline of it, and its files by format."""

    kind: str
    pipeline: DiffusionPipeline
    layout: Path
    files: dict[str, Path]


@pytest.fixture(scope="package", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of Stable Diffusion 1, 2 and XL in turn."""
    home = tmp_path_factory.mktemp(request.param)
    layout = write_layout(request.param, home / "layout")
    pipeline = random_pipeline(layout)
    files = {name: home / name for name in ("folder", "fp16-folder", "variant-folder")}
    pipeline.save_pretrained(files["folder"])
    halved = random_pipeline(layout).to(dtype=torch.float16)
    halved.save_pretrained(files["fp16-folder"])
    halved.save_pretrained(files["variant-folder"], variant="fp16")
    for folder in files.values():
        (folder / "hyperdreambooth.json").write_text(json.dumps(CARD | {"name": "narrow"}))
    for name, dtype in (("file", torch.float32), ("fp16-file", torch.float16), ("average-file", torch.float16)):
        files[name] = save_single_file(pipeline, home / f"{name}.safetensors", dtype, average=name == "average-file")
        (home / f"{name}.hyperdreambooth.json").write_text(json.dumps(CARD | {"layout": "layout"}))
    return Model(request.param, pipeline, layout, files)
