"""A folder of shards after accidents: what was cut short is fitted again, what is another's is refused, once each."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from hyperdreambooth.errors import UserError, WrongBase
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.fitting.plan import plan_digest
from hyperdreambooth.fitting.preoptimize import PreoptimizeReport, fit_shard, load_people, preoptimize
from hyperdreambooth.fitting.shards import Manifest, Shard, ShardEntry, deal
from hyperdreambooth.fitting.steps import StepReport
from tests.fitting.conftest import World, make_world
from tests.fitting.journalled import CONFIG, NAMES

FILES = [f"shard-{number:05d}.safetensors" for number in range(3)]


def everybody(world: World, folder: Path, most: int | None = None) -> list[PreoptimizeReport]:
    """All reports, or the first so many."""
    pictures = world.pictures(5, views=2)
    return list(islice(preoptimize(world.base, world.adapters, NAMES, pictures, folder, CONFIG), most))


@pytest.fixture(scope="module")
def finished(session_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    everybody(session_world, folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished folder, to be damaged."""
    return shutil.copytree(finished, tmp_path / "people")


def test_the_manifest_has_every_shard(finished: Path) -> None:
    shards = json.loads((finished / "manifest.json").read_text())["shards"]
    assert [(one["file"], one["people"]) for one in shards] == [(FILES[0], 2), (FILES[1], 2), (FILES[2], 1)]
    for one in shards:
        data = (finished / one["file"]).read_bytes()
        assert (one["bytes"], one["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def not_finite(path: Path) -> None:
    tensors, metadata = load_tensors(path)
    save_tensors(path, {"weights": tensors["weights"] * float("nan")}, metadata)


def of_others(path: Path) -> None:
    shutil.copy(path.with_name(FILES[0]), path)


def narrower(path: Path) -> None:
    tensors, metadata = load_tensors(path)
    save_tensors(path, {"weights": tensors["weights"][..., 1:]}, metadata)


@pytest.mark.parametrize("manifest", ["kept", "lost", "damaged"])
@pytest.mark.parametrize("damage", [cut_short, not_finite, of_others, narrower])
def test_a_shard_that_is_not_sound_is_fitted_again_and_no_other(
    damage: object, manifest: str, world: World, finished: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    damage(folder / FILES[1])
    if manifest != "kept":
        (folder / "manifest.json").write_text('{"shards": [{"fi')
    if manifest == "lost":
        (folder / "manifest.json").unlink()
    assert {report.shard for report in everybody(world, folder)} == {1}
    notes = [record.getMessage() for record in caplog.records]
    assert [f"{FILES[1]} " in note for note in notes if "manifest" not in note] == [True]
    assert ["is made again" in note for note in notes if "manifest" in note] == [True] * (manifest == "damaged")
    for file in (*FILES, "manifest.json"):
        assert (folder / file).read_bytes() == (finished / file).read_bytes()
    assert everybody(world, folder) == []


def test_a_changed_bit_is_found(world: World, finished: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray((folder / FILES[1]).read_bytes())
    data[-4] ^= 1
    (folder / FILES[1]).write_bytes(data)
    assert {report.shard for report in everybody(world, folder)} == {1}
    assert ["is not what was written" in record.getMessage() for record in caplog.records] == [True]
    assert (folder / FILES[1]).read_bytes() == (finished / FILES[1]).read_bytes()


def test_a_folder_of_before_there_were_manifests_gets_one(world: World, finished: Path, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert everybody(world, folder) == []
    assert (folder / "manifest.json").read_bytes() == (finished / "manifest.json").read_bytes()


def test_a_checkpoint_of_other_settings_is_refused(world: World, tmp_path: Path) -> None:
    """Of the same shapes, so that nothing but its name for the settings tells it apart."""
    other, folder = tmp_path / "other", tmp_path / "people"
    pictures, config = world.pictures(5, views=2), replace(CONFIG, fit=replace(CONFIG.fit, lr=2e-2))
    list(islice(preoptimize(world.base, world.adapters, NAMES, pictures, other, config), 2))
    everybody(world, folder, 2)
    shutil.copy(other / "shard-00000.run.safetensors", folder)
    with pytest.raises(UserError, match=r"shard-00000\.run\.safetensors is of a run with other settings .*: remove it"):
        everybody(world, folder)
    (folder / "shard-00000.run.safetensors").unlink()
    assert len(everybody(world, folder)) == 9


def test_a_finished_shard_of_other_settings_is_refused(world: World, folder: Path, tmp_path: Path) -> None:
    """Of the same people and shapes; with the other folder's manifest too, and without any."""
    other, pictures = tmp_path / "other", world.pictures(5, views=2)
    config = replace(CONFIG, fit=replace(CONFIG.fit, lr=2e-2))
    list(preoptimize(world.base, world.adapters, NAMES, pictures, other, config))
    cut_short(folder / FILES[0])
    refused = rf"{FILES[1]} is of a run with other settings \(.*\): remove it, or [^\n]*$"
    for file in (FILES[1], "manifest.json"):
        shutil.copy(other / file, folder)
        before = contents(folder)
        with pytest.raises(UserError, match=refused):
            everybody(world, folder)
        with pytest.raises(UserError, match=rf"{FILES[0]} has changed since it was finished"):
            load_people(folder)
        assert contents(folder) == before
    (folder / "manifest.json").unlink()
    for use in (lambda: everybody(world, folder), lambda: load_people(folder)):
        with pytest.raises(UserError, match=refused):
            use()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_shard_of_other_settings_that_comes_before_its_fit_is_refused(
    world: World, finished: Path, tmp_path: Path
) -> None:
    """As of a worker that outlived its driver, into a folder that has another plan since."""
    everybody(world, tmp_path, 1)
    shard = deal(tmp_path, NAMES, world.pictures(5, views=2), 2, world.base.fingerprint)[1]
    shutil.copy(finished / FILES[1], tmp_path)
    work = partial(fit_shard, world.base, world.adapters, CONFIG)
    assert [type(news) for _, news in work(shard)] == [ShardEntry]
    with pytest.raises(UserError, match=rf"{FILES[1]} is of a run with other settings"):
        next(work(replace(shard, plan="another")))
    assert (tmp_path / FILES[1]).read_bytes() == (finished / FILES[1]).read_bytes()


@pytest.mark.parametrize("manifest", ["kept", "lost"])
def test_shards_that_do_not_say_of_which_plan_they_are_are_taken(manifest: str, world: World, tmp_path: Path) -> None:
    """As those of before they said it."""
    everybody(world, tmp_path, 4)
    tensors, metadata = load_tensors(tmp_path / FILES[0])
    assert metadata.pop("plan") == plan_digest(tmp_path)
    save_tensors(tmp_path / FILES[0], tensors, metadata)
    file = tmp_path / "manifest.json"
    file.unlink()
    if manifest == "kept":
        Manifest(tmp_path).add(ShardEntry.of(tmp_path / FILES[0], 2))
    assert load_people(tmp_path).names == tuple(NAMES[:2])
    assert {report.shard for report in everybody(world, tmp_path)} == {1, 2}
    assert load_people(tmp_path).names == tuple(NAMES)


def test_a_checkpoint_cut_short_begins_its_shard_anew(
    world: World, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    everybody(world, tmp_path, 5)
    cut_short(tmp_path / "shard-00001.run.safetensors")
    assert [(report.shard, report.step.step) for report in everybody(world, tmp_path)][:2] == [(1, 1), (1, 2)]
    assert ["that shard begins anew" in record.getMessage() for record in caplog.records] == [True]
    assert (tmp_path / FILES[1]).read_bytes() == (finished / FILES[1]).read_bytes()


def test_of_two_at_once_the_second_is_refused(world: World, finished: Path, tmp_path: Path) -> None:
    first = preoptimize(world.base, world.adapters, NAMES, world.pictures(5, views=2), tmp_path, CONFIG)
    next(first)
    with pytest.raises(UserError, match=r"another process fits people into .*, expected one at a time: wait for it"):
        everybody(world, tmp_path)
    first.close()
    assert len(everybody(world, tmp_path)) == 8
    assert (tmp_path / FILES[0]).read_bytes() == (finished / FILES[0]).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in finished.iterdir())


def test_what_killed_processes_left_is_gone_at_the_end(world: World, finished: Path, tmp_path: Path) -> None:
    everybody(world, tmp_path, 2)
    left = [tmp_path / ".fa4ad09335e5.part.safetensors", tmp_path / "shard-00000.lock"]
    for path in left:
        path.write_bytes(b"half")
    everybody(world, tmp_path, 2)
    assert left[0].exists()  # others may still be at work
    everybody(world, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in finished.iterdir())


def test_in_any_order_they_are_the_same_people(world: World, finished: Path, tmp_path: Path) -> None:
    def backwards(shards: Sequence[Shard]) -> Generator[tuple[int, StepReport | ShardEntry]]:
        for shard in reversed(shards):
            yield from fit_shard(world.base, world.adapters, CONFIG, shard)

    pictures = world.pictures(5, views=2)
    reports = list(preoptimize(world.base, world.adapters, NAMES, pictures, tmp_path, CONFIG, backwards))
    assert [report.people for report in reports] == [0] * 3 + [1] * 3 + [3] * 3
    assert reports[1].done == pytest.approx(2 / 3) and reports[-1].done == 5
    for file in (*FILES, "manifest.json"):
        assert (tmp_path / file).read_bytes() == (finished / file).read_bytes()
    assert load_people(tmp_path).names == tuple(NAMES)


def test_a_shard_travels_without_the_others(world: World, finished: Path) -> None:
    pictures = world.pictures(5, views=2, masks=True)
    for shard in deal(finished, NAMES, pictures, 2, world.base.fingerprint):
        sent, own = pickle.dumps(shard), (shard.pictures.latents, shard.pictures.masks)
        assert len(sent) < 1500 + sum(tensor.nbytes for tensor in own if tensor is not None)
        got = pickle.loads(sent)
        assert (got.number, got.names, got.output) == (shard.number, shard.names, shard.output)
        assert torch.equal(got.pictures.latents, shard.pictures.latents)
        assert torch.equal(got.pictures.masks, shard.pictures.masks)


def test_a_worker_with_another_base_or_without_the_folder_is_refused(world: World, tmp_path: Path) -> None:
    other = make_world()
    with torch.no_grad():
        next(other.base.unet.parameters()).add_(1.0)

    def elsewhere(at: World, folder: Path, shards: Sequence[Shard]) -> Generator[tuple[int, StepReport | ShardEntry]]:
        for shard in shards:
            yield from fit_shard(at.base, at.adapters, CONFIG, replace(shard, folder=folder))

    names, pictures, folder = NAMES, world.pictures(5, views=2), tmp_path / "people"
    with pytest.raises(WrongBase, match="put the same base on all machines"):
        list(
            preoptimize(world.base, world.adapters, names, pictures, folder, CONFIG, partial(elsewhere, other, folder))
        )
    nowhere = partial(elsewhere, world, tmp_path / "not shared")
    with pytest.raises(UserError, match=r"has no plan\.json on .*: put it on a disk that all machines share"):
        list(preoptimize(world.base, world.adapters, names, pictures, folder, CONFIG, nowhere))
    assert not list(tmp_path.rglob("shard-*")) and not (tmp_path / "not shared").exists()
