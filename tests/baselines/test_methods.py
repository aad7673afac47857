"""Every method by its name makes a person on a tiny base, and is what its name says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperdreambooth.base.model import Base
from hyperdreambooth.baselines import methods as module
from hyperdreambooth.baselines.dreambooth import DreamBooth, PriorConfig
from hyperdreambooth.baselines.e4t import E4T
from hyperdreambooth.baselines.methods import METHODS, LiDB, costly, method_of
from hyperdreambooth.baselines.work import Method
from hyperdreambooth.cli import using
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.errors import UserError
from hyperdreambooth.hypernetwork.model import PRESETS, build_hypernetwork
from hyperdreambooth.identity import Identity
from hyperdreambooth.personalization import FINETUNE
from hyperdreambooth.pipeline import HyperDreamBooth
from recipes.e4t import fresh_network
from tests.conftest import left_as_it_was

STEPLESS = ("only-hyper", "base")


@pytest.fixture(scope="module")
def booth(tiny_base: Base) -> Iterator[HyperDreamBooth]:
    """With a random hypernetwork."""
    with left_as_it_was(tiny_base):
        booth = HyperDreamBooth(tiny_base)
        network = build_hypernetwork(PRESETS["tiny"], booth.space, booth.fingerprint, tiny_base.name)
        booth.hypernetwork = network.eval().requires_grad_(False)
        yield booth
        booth.adapters.eject()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hyperdreambooth"


@pytest.fixture
def face() -> torch.Tensor:
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(5))


def keep_independent(booth: HyperDreamBooth, path: Path, seed: int = 1, independent: bool = True) -> None:
    sizes = replace(PRESETS["tiny"], independent=independent)
    network = build_hypernetwork(sizes, booth.space, booth.fingerprint, booth.base.name, seed)
    with torch.no_grad():
        network.head.weight.normal_(std=0.1)
    network.save(path, torch.float32)


def made(booth: HyperDreamBooth, method: Method, face: torch.Tensor) -> Any:
    work = method.personalizing(booth, [face])
    list(work)
    return work


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_person(
    name: str, booth: HyperDreamBooth, face: torch.Tensor, cache: Path, tmp_path: Path
) -> None:
    method = method_of(name if name in STEPLESS else f"{name}@2")
    if isinstance(method, DreamBooth):
        method = replace(method, prior=PriorConfig(pictures=2, drawing=DrawConfig(steps=2, likeness=None)))
    if isinstance(method, E4T):
        fresh_network(booth).save(tmp_path / "e4t", booth.fingerprint, booth.base.name)
        method = replace(method, network=tmp_path / "e4t")
    if name == "independent-layers":
        keep_independent(booth, cache / "independent.safetensors")
    method.check(booth)
    work = made(booth, method, face)
    (person,) = work.people
    assert person.how["method"] == name and method.iterations == (0 if name in STEPLESS else 2)
    assert (work.predicted is None) == (not isinstance(method, LiDB) or method.hypernetwork == "left out")
    assert method.save(person, tmp_path / "person") == (0 if name == "base" else (tmp_path / "person").stat().st_size)
    again = booth.open_person(tmp_path / "person")
    assert again.how == person.how


def test_a_missing_hypernetwork_is_told_to_those_who_would_use_one(
    booth: HyperDreamBooth, face: torch.Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def told(name: str) -> bool:
        caplog.clear()
        made(booth, method_of(name), face)
        return "there is no hypernetwork" in caplog.text

    assert not told("hyperdreambooth@1")
    monkeypatch.setattr(booth, "hypernetwork", None)
    assert told("hyperdreambooth@1") and told("one-noise@1")
    assert not told("no-hyper@1") and not told("lora-dreambooth@1")
    caplog.clear()
    booth.personalize(face, steps=1)
    assert caplog.text.count("there is no hypernetwork") == 1


def test_one_noise_is_one_sample_a_step_and_relaxed_4_has_four_ranks(
    booth: HyperDreamBooth, face: torch.Tensor
) -> None:
    assert made(booth, method_of("one-noise@3"), face).samples == 3
    assert made(booth, method_of("hyperdreambooth@3"), face).samples == 6
    (person,) = made(booth, method_of("relaxed-4@1"), face).people
    assert isinstance(person, Identity) and person.ranks == 4 and person.lora is None


def test_lora_dreambooth_on_the_rule_leaves_all_other_layers_alone(
    booth: HyperDreamBooth, face: torch.Tensor, tmp_path: Path
) -> None:
    rule = sum(site.n_in + site.n_out for site in booth.space.rule.sites)  # numbers of rank 1, which stand first
    for name, others in (("lora-dreambooth-rule", False), ("lora-dreambooth", True)):
        (person,) = made(booth, method_of(f"{name}@1"), face).people
        assert person.lora is not None and person.lora[:rule].any() and costly(name)
        assert bool(person.lora[rule:].any()) == others and (len(person.lora) == rule) == (not others)
        if not others:  # neither in the file, and the person with zeros in them is the same
            person.save(tmp_path / "person", "fp32")
            space, (read, quick) = booth.space, (booth.open(tmp_path / "person"), DrawConfig(steps=2, seed=3))
            zeros = {"weights": space.fill(read.weights), "lora": space.rule.fill_lora(person.lora, space)}
            filled = replace(read, **zeros, space=space.info, blocks=space.blocks)
            assert filled.lora is not None and len(filled.lora) > rule
            drawn = [booth.draw(one, "a [V] face", quick) for one in (read, filled)]
            assert torch.allclose(*drawn, atol=1e-5)


def test_the_rank_of_a_lora_can_be_asked_for_and_nothing_else_of_ours(
    booth: HyperDreamBooth, face: torch.Tensor
) -> None:
    sizes = []
    for rank in (None, 2):
        method = using._method("lora-dreambooth", 1, {"rank": rank, "relax": None})
        (person,) = made(booth, method, face).people
        assert person.how["rank"] == (rank or 1)
        sizes.append(len(person.lora))
    assert sizes[1] == 2 * sizes[0]
    with pytest.raises(UserError, match=r"got --noises for --method lora-dreambooth, expected .*, and --rank here"):
        using._method("lora-dreambooth", 1, {"rank": 2, "noises": 3})
    for name in ("dreambooth", "k-1"):
        with pytest.raises(UserError, match=f"got --rank for --method {name}, expected them for hyperdreambooth alone"):
            using._method(name, 1, {"rank": 2})


def test_independent_layers_takes_its_own_network_where_there_is_one(
    booth: HyperDreamBooth, face: torch.Tensor, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "package" / "independent.safetensors"
    method = replace(METHODS["independent-layers"], own=shipped)
    with pytest.raises(UserError, match=r"independent-layers needs the file .*: make it by the recipe's stage") as told:
        method.check(booth)
    assert "\n" not in str(told.value) and str(cache) in str(told.value)
    before = method.settings_on(booth)
    keep_independent(booth, cache / shipped.name)
    (kept,) = made(booth, method.with_steps(1), face).predicted
    assert method.settings_on(booth) != before
    keep_independent(booth, shipped, seed=2)  # the package's goes first
    (own,) = made(booth, method.with_steps(1), face).predicted
    (usual,) = made(booth, method_of("hyperdreambooth@1"), face).predicted
    assert len({str(one.weights.sum()) for one in (kept, own, usual)}) == 3
    keep_independent(booth, shipped, independent=False)
    with pytest.raises(UserError, match="whose layers know of each other"):
        method.personalizing(booth, [face])
    assert module.file_of(shipped) == shipped


def test_what_is_new_of_a_method_changes_no_word_of_the_others_settings(booth: HyperDreamBooth) -> None:
    """Runs that were begun before go on: their methods are compared by these words."""
    assert "own=" not in METHODS["k-1"].settings_on(booth)


def test_progress_counts_the_steps_of_everybody(booth: HyperDreamBooth, cache: Path, face: torch.Tensor) -> None:
    named: Any = method_of("textual-inversion@3")
    method = replace(named, at_once=2)
    work = method.personalizing(booth, [face, face.flip(-1), face.flip(-2)])
    told = [(report.done, report.total) for report in work if report.phase == FINETUNE]
    assert told == [(done, 6) for done in range(1, 7)] and len(work.people) == 3
