from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import explained
from hyperdreambooth import HyperDreamBooth
from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError
from hyperdreambooth.fitting.fit import Objective
from hyperdreambooth.fitting.plan import PLAN_FILE
from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig, preoptimize
from hyperdreambooth.fitting.shards import MANIFEST_FILE
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.people import encode_people, read_people


@pytest.fixture(scope="module")
def booth(tiny_base: Base) -> Iterator[HyperDreamBooth]:
    booth = HyperDreamBooth(tiny_base)
    yield booth
    booth.adapters.eject()


@pytest.fixture(scope="module")
def folder(booth: HyperDreamBooth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people after two steps."""
    folder = tmp_path_factory.mktemp("fitted")
    people = read_people("portraits:3-6", booth.base.picture_size, 2, lambda _: None)
    config = PreoptimizeConfig(FitConfig(steps=2, lr=1e-2, average_last=0.5), Objective(noises=2, pull=1e-5), shard=3)
    pictures = encode_people(booth.base, people)
    assert len([*preoptimize(booth.base, booth.adapters, people.names, pictures, folder, config)]) == 4
    assert explained.config_of(json.loads((folder / PLAN_FILE).read_text())) == config
    return folder


def test_the_same_noises_give_the_same_numbers_and_others_do_not(
    booth: HyperDreamBooth, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = explained.fitted_again(booth, folder, 4)
    monkeypatch.setattr(
        explained, "replace", lambda thing, **new: replace(thing, **{**new} if "seed" not in new else {})
    )
    same = explained.fitted_again(booth, folder, 4)
    assert same.r2 > 0.999 and same.correlation > 0.999
    assert other.correlation < 0.999


def test_strangers_are_refused(booth: HyperDreamBooth, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected portraits"):
        explained.seeds_of(["img_001"])
    plan = json.loads((folder / PLAN_FILE).read_text())
    (tmp_path / PLAN_FILE).write_text(json.dumps({**plan, "base": "f" * 16}))
    for path in (*folder.glob("*.safetensors"), folder / MANIFEST_FILE):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="was fitted on base ffffffff"):
        explained.fitted_again(booth, tmp_path, 2)
    assert torch.tensor(explained.seeds_of(["portrait-3", "portrait-12"])).tolist() == [3, 12]
