"""People without a finite fit: found, named and left out, and nobody else's numbers are changed by them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import NotFinite, UserError
from hyperdreambooth.files import load_tensors
from hyperdreambooth.fitting import preoptimize as fitting
from hyperdreambooth.fitting import shards
from hyperdreambooth.fitting.fit import Pictures
from hyperdreambooth.fitting.preoptimize import PreoptimizeReport, fit_people, load_people, preoptimize
from hyperdreambooth.fitting.shards import left_out_in
from hyperdreambooth.fitting.steps import Run, StepReport
from hyperdreambooth.lidb import Adapters
from tests.fitting.conftest import World, assert_same_fit
from tests.fitting.journalled import CONFIG, NAMES, damaged

SHARDS_OF_THREE = replace(CONFIG, shard=3)  # ann, ben, cem and dia, eva


def reports_of(
    world: World, folder: Path, pictures: Pictures, config: fitting.PreoptimizeConfig = SHARDS_OF_THREE
) -> Iterator[PreoptimizeReport]:
    return preoptimize(world.base, world.adapters, NAMES, pictures, folder, config)


def test_whoever_has_no_finite_fit_is_left_out_by_name(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reports = list(reports_of(world, tmp_path / "some", damaged(world, "ben")))
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "ben cannot be fitted and is left out: the loss of step 0 is nan, expected a finite number: "
        "--precision fp32 on a GPU in half precision, else a learning rate below 0.01"
    ]
    assert [(r.shard, r.step.step, r.people) for r in reports] == [
        (shard, step, 3 * shard) for shard in range(2) for step in range(1, 4)
    ]
    assert reports[-1].done == reports[-1].total == 5
    some = load_people(tmp_path / "some")
    assert some.names == ("ann", "cem", "dia", "eva") and list(some.left_out) == ["ben"]
    entries = json.loads((tmp_path / "some" / "manifest.json").read_text())["shards"]
    assert [(one["people"], list(one.get("left_out", ()))) for one in entries] == [(2, ["ben"]), (2, [])]
    assert not [*(tmp_path / "some").glob("*.run.*"), *(tmp_path / "some").glob("*left-out*")]


def test_the_others_get_what_they_would_have_got(world: World, tmp_path: Path) -> None:
    """To the last bit what they get without the person, and but for rounding what they get beside a sound one."""
    list(reports_of(world, tmp_path / "some", damaged(world, "ben")))
    list(reports_of(world, tmp_path / "all", world.pictures(5, views=2)))
    some, everybody = load_people(tmp_path / "some"), load_people(tmp_path / "all")
    run = fit_people(world.base, world.adapters, Pictures(world.pictures(5, views=2).latents[[0, 2]]), CONFIG)
    list(run)
    assert torch.equal(some.weights[:2], run.averages["weights"])
    assert torch.equal(some.weights[2:], everybody.weights[3:])  # of the other shard
    assert_same_fit(some.weights, everybody.weights[[0, 2, 3, 4]], some.start)


def test_interrupted_at_every_step_it_is_the_same(world: World, tmp_path: Path) -> None:
    pictures = damaged(world, "ben", "eva")
    expected = list(reports_of(world, tmp_path / "whole", pictures))
    got = list[PreoptimizeReport]()
    while some := list(islice(reports_of(world, tmp_path / "parts", pictures), 1)):
        got += some
    assert [(r.shard, r.people, r.step.step, r.step.loss) for r in got] == [
        (r.shard, r.people, r.step.step, r.step.loss) for r in expected
    ]
    whole = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == whole
    for name in whole:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("manifest", ["kept", "lost"])
def test_a_finished_folder_knows_who_is_left_out(manifest: str, world: World, tmp_path: Path) -> None:
    pictures = damaged(world, "ben")
    list(reports_of(world, tmp_path, pictures))
    before = (tmp_path / "manifest.json").read_bytes()
    if manifest == "lost":
        (tmp_path / "manifest.json").unlink()
    assert list(reports_of(world, tmp_path, pictures)) == []
    assert (tmp_path / "manifest.json").read_bytes() == before and list(left_out_in(tmp_path)) == ["ben"]


def blow_up(monkeypatch: pytest.MonkeyPatch, sound: Pictures, when: set[tuple[int, int]]) -> None:
    """Let the numbers of people, by their rows in the pictures, be infinite behind a step."""
    plain = fitting.fit_people

    class Blowing:
        def __init__(self, run: Run, people: list[int]) -> None:
            self.run, self.people = run, people

        def __getattr__(self, name: str) -> object:
            return getattr(self.run, name)

        def __iter__(self) -> Iterator[StepReport]:
            for report in self.run:
                yield report
                with torch.no_grad():
                    for row, person in enumerate(self.people):
                        if (report.step, person) in when:
                            self.run.parameters["weights"][row, 0] = float("inf")

    def blowing(base: Base, adapters: Adapters, pictures: Pictures, *settings: Any, **kept: Any) -> Any:
        run = plain(base, adapters, pictures, *settings, **kept)
        rows = [int((sound.latents - one).flatten(1).norm(dim=1).argmin()) for one in pictures.latents]
        return Blowing(run, rows) if kept else run  # who is tried alone is as they are

    monkeypatch.setattr(fitting, "fit_people", blowing)


def test_weights_that_blow_up_on_the_way_are_found(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one person at the second step; of another behind the last, where no loss tells of it."""
    sound = world.pictures(5, views=2)
    list(reports_of(world, tmp_path / "all", sound))
    blow_up(monkeypatch, sound, {(1, 1), (3, 3)})
    list(reports_of(world, tmp_path / "some", sound))
    some = load_people(tmp_path / "some")
    assert some.names == ("ann", "cem", "eva")
    assert "the loss of step 1 is nan" in some.left_out["ben"]
    assert "numbers after step 3 are not finite" in some.left_out["dia"]
    assert_same_fit(some.weights, load_people(tmp_path / "all").weights[[0, 2, 4]], some.start)


def test_of_one_person_alone_in_a_shard_nothing_is_left(world: World, tmp_path: Path) -> None:
    one = replace(CONFIG, shard=1)
    list(reports_of(world, tmp_path, damaged(world, "ben", "eva"), one))
    found = load_people(tmp_path)
    assert found.names == ("ann", "cem", "dia") and list(found.left_out) == ["ben", "eva"]
    assert load_tensors(tmp_path / "shard-00001.safetensors")[0]["weights"].shape == (0, *found.start.shape)
    assert list(reports_of(world, tmp_path, damaged(world, "ben", "eva"), one)) == []


def test_settings_under_which_nobody_has_a_finite_fit_end_the_work(world: World, tmp_path: Path) -> None:
    wild = replace(SHARDS_OF_THREE, fit=replace(CONFIG.fit, lr=float("inf")))
    with pytest.raises(NotFinite, match="the loss of step 1 is nan"):
        list(reports_of(world, tmp_path, world.pictures(5, views=2), wild))
    with pytest.raises(UserError, match="no finished person yet"):
        load_people(tmp_path)


@pytest.mark.parametrize("moment", ["before the record", "behind the record", "behind the people"])
def test_killed_around_leaving_somebody_out_it_goes_on_to_the_same_bits(
    moment: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eva, who blows up at the second step of her shard, when there is a checkpoint of everybody."""
    pictures = world.pictures(5, views=2)
    blow_up(monkeypatch, pictures, {(1, 4)})
    list(reports_of(world, tmp_path / "whole", pictures))
    assert load_people(tmp_path / "whole").names == tuple(NAMES[:4])
    happens = {
        "before the record": (shards, "write_text", True),
        "behind the record": (shards, "write_text", False),
        "behind the people": (shards, "save_people", False),
    }
    module, name, before = happens[moment]
    plain, count = getattr(module, name), {"write_text": 2, "save_people": 2}[name]  # the first are of shard 0

    def killed(*arguments: object) -> None:
        nonlocal count
        count -= 1
        if not (before and not count):
            plain(*arguments)
        if not count:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            list(reports_of(world, tmp_path / "killed", pictures))
    kept = {path.name for path in (tmp_path / "killed").iterdir()}
    assert ("shard-00001.left-out.json" in kept) is not before
    rest = [(report.shard, report.step.step) for report in reports_of(world, tmp_path / "killed", pictures)]
    assert (
        rest
        == {
            "before the record": [(1, 1), (1, 1), (1, 2), (1, 3)],  # it blows up again
            "behind the record": [(1, 1), (1, 2), (1, 3)],
            "behind the people": [],
        }[moment]
    )
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == names
    for file in names:
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
