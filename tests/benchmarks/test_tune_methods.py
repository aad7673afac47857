from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer

from benchmarks.tune_methods import SEARCH, SET, booth_of, main, people_of, variants
from hyperdreambooth.baselines.dreambooth import DreamBooth
from hyperdreambooth.baselines.methods import METHODS, LiDB
from hyperdreambooth.baselines.textual_inversion import TextualInversion
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.protocol import Evaluation
from hyperdreambooth.progress import log


def test_settings_reach_every_kind_of_method() -> None:
    found = variants(["dreambooth@30,lr=1e-4/3e-4,prior=0/0.3", "lora-dreambooth,lr=0.5,likeness=none", "e4t,noises=2"])
    names = [f"dreambooth@30-lr{rate}-prior{prior}" for rate in ("1e-4", "3e-4") for prior in ("0", "0.3")]
    assert list(found) == [*names, "lora-dreambooth-lr0.5-likenessnone", "e4t-noises2"]
    alone, tuned, lora = found[names[0]], found[names[3]], found["lora-dreambooth-lr0.5-likenessnone"]
    assert isinstance(alone, DreamBooth) and alone.prior is None and alone.fit.steps == 30
    assert isinstance(tuned, DreamBooth) and tuned.prior is not None
    assert (tuned.fit.lr, tuned.prior.weight) == (3e-4, 0.3)
    assert isinstance(lora, LiDB) and lora.config.lr == 0.5
    assert lora.drawing.likeness is None and lora.config.steps == 1000
    assert METHODS["lora-dreambooth"] != lora


def test_the_schedule_is_a_setting() -> None:
    cosine, constant = variants(["textual-inversion@20,lr=1e-3,schedule=cosine/constant"]).values()
    assert isinstance(cosine, TextualInversion) and isinstance(constant, TextualInversion)
    assert (cosine.fit.schedule, cosine.fit.lr, cosine.fit.steps) == ("cosine", 1e-3, 20)
    assert constant.fit.schedule == "constant"


def test_the_class_and_the_text_encoder_are_settings_too() -> None:
    (method,) = variants(["dreambooth,class=a portrait of a face,text-encoder=yes"]).values()
    assert isinstance(method, DreamBooth) and method.prior is not None
    assert method.prior.prompt == "a portrait of a face" and method.text_encoder


def test_the_search_is_the_same_for_every_method_and_holds_what_is_in_use() -> None:
    """Of the methods that are searched: the same number of settings, of which one is the method as it is."""
    for setting in SEARCH:
        name, tried = setting.partition(",")[0], variants([setting])
        assert len(tried) == 6
        if name in ("hyperdreambooth", "no-hyper"):  # whose rate follows from where the fresh ranks live
            assert any(replace(method.config, lr=None) == METHODS[name].config for method in tried.values())
        else:
            assert METHODS[name] in tried.values(), name


@pytest.mark.parametrize(
    "setting",
    [
        "dreambooth,lr=fast",
        "e4t,prior=1",
        "dreambooth,text-encoder=2",
        "magic,lr=1e-3",
        "e4t,lr",
        "e4t,a=1",
        "e4t,schedule=wild",
    ],
)
def test_what_is_wrong_is_said(setting: str) -> None:
    with pytest.raises(UserError, match="expected"):
        variants([setting])


@pytest.fixture
def as_before() -> Iterator[None]:
    """What a benchmark sets for its process is as it was afterwards."""
    level = log.level
    yield
    log.setLevel(level)
    torch.set_flush_denormal(False)


def test_a_folder_of_other_people_is_refused_in_a_line(tmp_path: Path, as_before: None) -> None:
    booth = booth_of(None)
    Evaluation(booth, people_of(2, booth.base.picture_size), SET, tmp_path)
    with pytest.raises(typer.BadParameter, match=r"begun with another people \(2 of them, here 1\)"):
        main(["no-hyper@1"], people=1, out=tmp_path, bases=None)


def test_bases_of_other_sizes() -> None:
    usual, small = booth_of(None), booth_of("6x3")
    assert usual.hypernetwork is not None and small.hypernetwork is None
    assert (small.space.a, small.space.b) == (6, 3) and small.fingerprint == usual.fingerprint
    assert small.space.rule.size() * (usual.space.a + usual.space.b) == usual.space.rule.size() * 9
    for wrong in ("6", "ax3", "0x3"):
        with pytest.raises(UserError, match="expected AxB"):
            booth_of(wrong)
