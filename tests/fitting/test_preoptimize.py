"""Many people into a folder: interrupted, killed, cut into other shards, always the same numbers."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from hyperdreambooth.errors import BadFile, UserError
from hyperdreambooth.fitting.fit import Pictures
from hyperdreambooth.fitting.preoptimize import (
    PreoptimizeConfig,
    PreoptimizeReport,
    load_people,
    preoptimize,
)
from hyperdreambooth.fitting.shards import finished_in
from tests.fitting.conftest import World, assert_same_fit, make_world
from tests.fitting.journalled import CONFIG, NAMES


def everybody(world: World, folder: Path, config: PreoptimizeConfig = CONFIG) -> list[PreoptimizeReport]:
    return list(preoptimize(world.base, world.adapters, NAMES, world.pictures(5, views=2), folder, config))


def test_interrupted_at_every_step_nothing_is_lost_or_done_twice(world: World, tmp_path: Path) -> None:
    expected = everybody(world, tmp_path / "whole")
    got: list[PreoptimizeReport] = []
    while True:
        pictures = world.pictures(5, views=2)
        some = list(islice(preoptimize(world.base, world.adapters, NAMES, pictures, tmp_path / "parts", CONFIG), 2))
        got += some
        if len(some) < 2:
            break
    assert [(r.shard, r.people, r.step.step) for r in expected] == [
        (shard, 2 * shard, step) for shard in range(3) for step in range(1, 4)
    ]
    assert [(r.shard, r.people, r.step.step, r.step.loss) for r in got] == [
        (r.shard, r.people, r.step.step, r.step.loss) for r in expected
    ]
    whole, parts = load_people(tmp_path / "whole"), load_people(tmp_path / "parts")
    assert whole.names == parts.names == tuple(NAMES)
    assert torch.equal(whole.weights, parts.weights) and torch.equal(whole.start, world.space.start())
    assert whole.weights.shape == (5, *world.space.start().shape)
    assert not list((tmp_path / "parts").glob("*.run.safetensors"))


KILLED = """
import sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from tests.fitting.conftest import make_world
from tests.fitting.test_preoptimize import CONFIG, NAMES, preoptimize
world = make_world()
for report in preoptimize(world.base, world.adapters, NAMES, world.pictures(5, views=2), Path({folder!r}), CONFIG):
    print(report.shard, report.step.step, flush=True)
"""


def test_killed_in_the_second_shard_it_goes_on_to_the_same_bits(world: World, tmp_path: Path) -> None:
    everybody(world, tmp_path / "whole")
    code = KILLED.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "1 2":
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = load_people(tmp_path / "killed").names
    rest = everybody(world, tmp_path / "killed")
    assert finished[:2] == ("ann", "ben") and (rest[0].shard, rest[0].step.step) > (1, 1)
    assert torch.equal(load_people(tmp_path / "whole").weights, load_people(tmp_path / "killed").weights)


def test_the_size_of_a_shard_does_not_matter(world: World, tmp_path: Path) -> None:
    everybody(world, tmp_path / "two")
    everybody(world, tmp_path / "five", replace(CONFIG, shard=5))
    two, five = load_people(tmp_path / "two"), load_people(tmp_path / "five")
    assert_same_fit(two.weights, five.weights, two.start)


def test_a_folder_of_other_settings_is_refused(world: World, tmp_path: Path) -> None:
    everybody(world, tmp_path)
    with pytest.raises(UserError, match=r"begun with another config \(objective seed 0, here 1\),"):
        everybody(world, tmp_path, replace(CONFIG, objective=replace(CONFIG.objective, seed=1)))
    with pytest.raises(UserError, match=r"begun with another names \(5 of them, here 2\) and another latents,"):
        list(preoptimize(world.base, world.adapters, NAMES[:2], world.pictures(2), tmp_path, CONFIG))


@pytest.mark.parametrize(("first", "then"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_a_folder_begun_in_another_precision_is_refused(first: torch.dtype, then: torch.dtype, tmp_path: Path) -> None:
    world = make_world()
    world.base.to(dtype=first)
    everybody(world, tmp_path)
    assert everybody(world, tmp_path) == []
    world.base.to(dtype=then)
    with pytest.raises(UserError, match="begun with another precision, expected the same"):
        everybody(world, tmp_path)


def test_whatever_came_to_nothing_binds_nobody(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory was short for the first step: the next try is with fewer people together."""

    def short(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("hyperdreambooth.fitting.preoptimize.fit_people", short)
        with pytest.raises(torch.OutOfMemoryError):
            everybody(world, tmp_path, replace(CONFIG, shard=5))
    everybody(world, tmp_path)
    everybody(world, tmp_path / "fresh")
    assert torch.equal(load_people(tmp_path).weights, load_people(tmp_path / "fresh").weights)
    with pytest.raises(UserError, match=r"another config \(shard 2, here 5\)"):
        everybody(world, tmp_path, replace(CONFIG, shard=5))


def test_a_folder_of_other_pictures_is_refused(world: World, tmp_path: Path) -> None:
    pictures = world.pictures(5, views=2, masks=True)

    def begin(latents: torch.Tensor, masks: torch.Tensor | None) -> None:
        next(preoptimize(world.base, world.adapters, NAMES, Pictures(latents, masks), tmp_path, CONFIG))

    latents, masks = pictures.latents, pictures.masks
    assert masks is not None
    begin(latents, masks)
    begin(latents + 1e-3 * torch.randn(latents.shape), masks)  # as another machine rounds
    changed = latents.clone()
    changed[3, 1] = changed[2, 1]  # one view of one person
    with pytest.raises(UserError, match="begun with another latents,"):
        begin(changed, masks)
    with pytest.raises(UserError, match="begun with another latents and another masks,"):
        begin(latents[:, :1], masks[:, :1])
    for other in (masks.flip(0), None):
        with pytest.raises(UserError, match="begun with another masks,"):
            begin(latents, other)


@pytest.mark.parametrize("damage", ['{"format": ', "[]", "{}", '{"format": "hyperdreambooth-training-1"}'])
def test_a_damaged_plan_is_named(world: World, tmp_path: Path, damage: str) -> None:
    (tmp_path / "plan.json").write_text(damage)
    for use in (lambda: load_people(tmp_path), lambda: everybody(world, tmp_path)):
        with pytest.raises(UserError, match=r"plan\.json (cannot be read|holds).*expected"):
            use()


def test_a_folder_with_nobody_finished_says_so(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no plan\.json"):
        load_people(tmp_path)
    list(islice(preoptimize(world.base, world.adapters, NAMES, world.pictures(5), tmp_path, CONFIG), 1))
    with pytest.raises(UserError, match="no finished person yet"):
        load_people(tmp_path)


def test_what_changed_since_is_not_learnt_from(world: World, tmp_path: Path) -> None:
    everybody(world, tmp_path)
    file = tmp_path / "shard-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadFile, match=r"shard-00001.* has changed since it was finished: run hdb preoptimize again"):
        load_people(tmp_path)


def test_shards_beyond_the_hundred_thousandth_are_there(tmp_path: Path) -> None:
    for name in ("shard-99999", "shard-100000", "shard-00002", "shard-00003.run", "start"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [path.stem for path in finished_in(tmp_path)] == ["shard-00002", "shard-99999", "shard-100000"]


def test_every_person_has_one_name(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 different names for 3 people"):
        list(preoptimize(world.base, world.adapters, ["ann", "ben", "ann"], world.pictures(3), tmp_path, CONFIG))
