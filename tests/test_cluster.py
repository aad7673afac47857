"""Work scattered over two real Ray workers: killed ones, full disks, second drivers; and the bits of one process."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from hyperdreambooth import cluster
from hyperdreambooth.cluster import Cluster, scatter
from hyperdreambooth.errors import DiskFull, UserError, WorkError
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.scores import load_pictures
from hyperdreambooth.fitting.fit import Pictures
from hyperdreambooth.fitting.preoptimize import PreoptimizeReport, Schedule, load_people, preoptimize
from hyperdreambooth.fitting.shards import Shard
from tests.fitting.conftest import World, make_world
from tests.fitting.journalled import (
    CONFIG,
    END,
    NAMES,
    SECOND_STEP,
    journal,
    open_journalled,
    open_on_a_full_disk,
    times,
    wait_for_second_step,
    wait_to_be_killed,
)
from tests.test_cli import Hdb
from tests.works import open_counting, open_deadly, open_failing_once, open_full, open_meeting, open_wrong

TWO = Cluster(workers=2)
SHARDS = [f"shard-{number:05d}.safetensors" for number in range(3)]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Two workers on this machine, for all tests here; `scatter` uses what is joined already."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.QUIET.items():
            patch.setenv(name, value)
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everybody, fitted by this process, with one thread as workers have."""
    folder = tmp_path_factory.mktemp("whole")
    with one_thread():
        list(fitting(world, folder))
    return folder


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def hdb(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> Hdb:
    return Hdb(base_folder, capsys)


def fitting(world: World, folder: Path, schedule: Schedule | None = None) -> Iterator[PreoptimizeReport]:
    return preoptimize(world.base, world.adapters, NAMES, world.pictures(5, views=2), folder, CONFIG, schedule)


def scattered(folder: Path, **options: Any) -> Schedule:
    return partial(scatter, partial(open_journalled, folder, **options), cluster=TWO)


def assert_same_files(one: Path, other: Path) -> None:
    """Bit for bit; nothing of the work is left over."""
    for file in (*SHARDS, "start.safetensors", "plan.json", "manifest.json"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    assert not [*other.glob("*.run.safetensors"), *other.glob("*.lock"), *other.glob(".*")]


def test_every_task_is_done_by_one_worker_in_order(ray: Any, tmp_path: Path) -> None:
    """By more workers than there is room for, too: those that have to wait for room do not hold the others up."""
    news = list(scatter(partial(open_meeting, tmp_path, others=1), range(6), Cluster(workers=3)))
    for task in range(6):
        assert [part for number, part, _ in news if number == task] == [0, 1, 2]
        assert len({pid for number, _, pid in news if number == task}) == 1
    assert len(news) == 18 and len({pid for _, _, pid in news} - {os.getpid()}) == 2  # no task waited for the third
    assert list(scatter(open_counting, [], TWO)) == []


def test_a_task_that_kills_its_workers_ends_the_work(ray: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkError, match=r"3 workers died at the same task \(.*run again"):
        list(scatter(open_deadly, range(2), TWO))
    assert capfd.readouterr().out == ""  # where a command prints its JSON


def test_a_worker_that_fails_is_replaced(ray: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert sorted(scatter(partial(open_failing_once, tmp_path), range(4), TWO)) == [0, 1, 2, 3]
    (note,) = [record.getMessage() for record in caplog.records]
    assert note.startswith("a worker failed (RuntimeError: CUDA error: unspecified launch failure): another goes on")


def test_what_the_work_raises_is_raised_here(ray: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LookupError, match="nothing can be opened"):
        list(scatter(open_wrong, range(2), TWO))
    assert "a worker failed (LookupError: nothing can be opened)" in caplog.text
    with pytest.raises(DiskFull, match="free some space and run again"):
        list(scatter(open_full, range(2), TWO))  # one worker after the other


def test_a_mask_that_all_share_is_sent_once() -> None:
    latents, one = torch.randn(6, 2, 4, 8, 8), torch.rand(1, 1, 1, 8, 8)
    for masks, most in ((one.expand(6, 2, 1, 8, 8), 1), (one.repeat(6, 2, 1, 1, 1), 6 * 2), (None, 0)):
        shard = Shard(Path("people"), 0, tuple("abcdef"), Pictures(latents, masks), "base", "plan")
        sent = pickle.dumps(shard)
        back = pickle.loads(sent)
        assert len(sent) < 4 * (latents.numel() + most * 64) + 4000
        assert torch.equal(back.pictures.latents, latents) and back.names == shard.names
        assert (masks is None) == (back.pictures.masks is None)
        assert masks is None or torch.equal(back.pictures.masks, masks)


def test_a_gpu_that_is_not_there_is_named(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(UserError, match="no GPU, expected one for each worker"):
        list(scatter(open_counting, [0], Cluster(2, gpu=True)))


def test_a_cluster_that_is_not_there_is_named(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "nonsense"):
        with pytest.raises(UserError, match=rf"no Ray cluster at {address} \(.*check the address"):
            list(scatter(open_counting, [0], Cluster(1, address)))


def test_settings_without_sense_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="got 0 workers"):
        Cluster(0)
    with pytest.raises(UserError, match="ray://head:10001, expected auto or HOST:PORT"):
        Cluster(1, "ray://head:10001")
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"Ray is not installed.*pip install"):
        list(scatter(open_counting, [0], TWO))


def test_two_workers_fit_the_bits_of_one_process(ray: Any, world: World, whole: Path, tmp_path: Path) -> None:
    reports = list(fitting(world, tmp_path, scattered(tmp_path)))
    assert_same_files(whole, tmp_path)
    assert set(times(tmp_path).values()) == {1} and len({pid for _, _, pid in journal(tmp_path)} - {os.getpid()}) == 2
    assert {(r.shard, r.step.step) for r in reports} == {(shard, step) for shard in range(3) for step in range(1, 4)}
    assert reports[-1].done == reports[-1].total == 5
    assert sorted(load_people(tmp_path).names) == NAMES


def test_who_has_no_finite_fit_is_left_out_by_workers_too(
    ray: Any, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures, here, there = world.pictures(5, views=2), tmp_path / "here", tmp_path / "there"
    pictures.latents[2] = torch.nan
    with one_thread():
        list(preoptimize(world.base, world.adapters, NAMES, pictures, here, CONFIG))
    caplog.clear()
    list(preoptimize(world.base, world.adapters, NAMES, pictures, there, CONFIG, scattered(there)))
    assert [one.message.split(":")[0] for one in caplog.records] == [f"{NAMES[2]} cannot be fitted and is left out"]
    assert_same_files(here, there)
    people = load_people(there)
    assert set(people.left_out) == {NAMES[2]} and set(people.names) == {*NAMES} - {NAMES[2]}


def test_a_killed_workers_shard_is_redone_once_from_its_checkpoint(
    ray: Any, world: World, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reports = fitting(world, tmp_path, scattered(tmp_path, after=wait_to_be_killed))
    next(reports)
    victim = wait_for_second_step(tmp_path)
    (tmp_path / "go on").touch()
    os.kill(victim, signal.SIGKILL)
    assert len(list(reports)) >= 7
    assert_same_files(whole, tmp_path)
    # The step that was under way is the only one that was taken twice: the checkpoint held the one before.
    assert {key: count for key, count in times(tmp_path).items() if count != 1} == {SECOND_STEP: 2}
    assert (1, END, victim) not in journal(tmp_path)
    assert ["a worker died" in record.getMessage() for record in caplog.records] == [True]


DRIVER = """
import sys
sys.path[:0] = [{root!r}]
from functools import partial
from pathlib import Path
from hyperdreambooth.cluster import Cluster, scatter
from hyperdreambooth.fitting.preoptimize import preoptimize
from tests.fitting.journalled import CONFIG, NAMES, make_world, open_journalled, wait_to_be_killed
world, folder = make_world(), Path({folder!r})
opened = partial(open_journalled, folder, after=wait_to_be_killed)
schedule = partial(scatter, opened, cluster=Cluster(2, {address!r}))
list(preoptimize(world.base, world.adapters, NAMES, world.pictures(5, views=2), folder, CONFIG, schedule))
"""


def test_a_killed_driver_resumes_and_its_workers_are_not_in_the_way(
    ray: Any, world: World, whole: Path, tmp_path: Path
) -> None:
    address = ray.get_runtime_context().gcs_address
    code = DRIVER.format(root=str(Path(__file__).parents[1]), folder=str(tmp_path), address=address)
    driver = subprocess.Popen([sys.executable, "-c", code])
    wait_for_second_step(tmp_path)
    with pytest.raises(UserError, match="another process fits people into"):
        next(fitting(world, tmp_path))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    (tmp_path / "go on").touch()  # an old worker may live for a moment, and go on
    assert list(fitting(world, tmp_path, scattered(tmp_path)))
    assert_same_files(whole, tmp_path)
    steps = {key: count for key, count in times(tmp_path).items() if key[1] != END}
    assert set(steps) == {(shard, str(step)) for shard in range(3) for step in range(1, 4)}
    assert sum(steps.values()) <= 9 + 2  # a step of each old worker was under way, at most


def test_a_full_disk_on_one_worker_leaves_its_work_to_the_other(
    ray: Any, world: World, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    list(fitting(world, tmp_path, partial(scatter, partial(open_on_a_full_disk, tmp_path), cluster=TWO)))
    assert_same_files(whole, tmp_path)
    (note,) = [record.getMessage() for record in caplog.records]
    assert note.startswith("a worker is left out: no room to write") and ".run.safetensors" in note


def test_the_command_gives_the_same_people(ray: Any, hdb: Hdb, tmp_path: Path) -> None:
    def ask(name: str, *options: object) -> dict[str, Any]:
        command = ("preoptimize", "portraits:0-2", "-o", tmp_path / name, "--base", hdb.base, "--device", "cpu")
        return hdb.json(*command, "--views", 1, "--steps", 1, *options)

    here, there = ask("here"), ask("there", "--workers", 2)
    assert here["samples"] == there["samples"] == 3 * 4 and there["notes"] == []
    assert ask("there", "--workers", 2)["samples"] == 0
    one, other = load_people(tmp_path / "here"), load_people(tmp_path / "there")
    assert one.names == other.names and torch.allclose(one.weights, other.weights, atol=1e-3)
    manifest = json.loads((tmp_path / "there" / "manifest.json").read_text())
    assert [(entry["file"], entry["people"]) for entry in manifest["shards"]] == [(SHARDS[0], 3)]


HDB = "from hyperdreambooth.cli import main; main()"


@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_a_killed_evaluation_goes_on_and_draws_what_one_process_draws(
    victim: str, ray: Any, hdb: Hdb, tmp_path: Path
) -> None:
    """Without its driver it is the same command again that goes on; without a worker it does so by itself."""

    def command(name: str) -> list[object]:
        asked = ("evaluate", "portraits:15000-15002", "-o", tmp_path / name, "--methods", "no-hyper@1", "--people", 3)
        return [*asked, "--base", hdb.base, "--hypernetwork", "none", "--device", "cpu"]

    expected, run = hdb.json(*command("here")), RunFolder(tmp_path / "there")
    workers = ["--workers", 2, "--cluster", ray.get_runtime_context().gcs_address]
    words = [str(word) for word in (*command("there"), *workers, "--json")]
    driver = subprocess.Popen(
        [sys.executable, "-c", HDB, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not run.people():
        assert driver.poll() is None
        time.sleep(0.1)
    if victim == "driver":
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        got = hdb.json(*command("there"), *workers)
    else:
        busy = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::_Worker.do")]
        busy[0].kill()
        out, err = driver.communicate()
        got = json.loads(out)
        assert err.count("a worker died") == 1
    assert {key: got[key] for key in ("people", "made", "pictures")} == {
        key: expected[key] for key in ("people", "made", "pictures")
    }
    records = list(run.records())
    assert len(records) == len(set(records)) == len(run.people()) + len(run.pictures())  # nobody and nothing twice
    files = sorted(one.file for one in run.pictures())
    assert files == sorted(one.file for one in RunFolder(tmp_path / "here").pictures())
    apart = load_pictures([run.path / file for file in files]) - load_pictures([tmp_path / "here" / f for f in files])
    assert apart.abs().max() < 3 / 255
    assert not list(run.path.glob("evaluate.lock"))


def test_without_ray_the_command_fits_here_and_says_so(
    hdb: Hdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    command = ("preoptimize", "portraits:0-0", "-o", tmp_path / "out", "--base", hdb.base, "--steps", 1)
    got = hdb.json(*command, "--workers", 2)
    assert got["people"] == 1 and ["Ray is not installed" in note for note in got["notes"]] == [True]
    _, err = hdb(*command, "--workers", 2, "--cluster", "auto", status=2)
    assert "Ray is not installed" in err
    _, err = hdb(*command, "--cluster", "auto", status=2)
    assert "expected --workers too" in err
    _, err = hdb(*command, "--workers", 2, "--device", "cuda:1", status=2)
    assert "expected cpu or cuda" in err
    _, err = hdb("evaluate", "-o", tmp_path / "run", "--workers", 2, "--share", "0/2", status=2)
    assert "workers take all shares" in err
