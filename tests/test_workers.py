"""What a command leaves on its own GPU while workers do its work; the workers are this process, and the GPU a name."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from hyperdreambooth.base.model import Base
from hyperdreambooth.cli.options import leave_to_workers
from hyperdreambooth.cluster import Cluster
from hyperdreambooth.hypernetwork.model import PRESETS, random_hypernetwork
from hyperdreambooth.pipeline import HyperDreamBooth
from tests.test_cli import Hdb


@pytest.fixture
def hdb(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> Hdb:
    return Hdb(base_folder, capsys)


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("training", ("preoptimize", "portraits:0-2", "--views", 1, "--steps", 1)),
        ("evaluating", ("evaluate", "portraits:15000-15001", "--methods", "no-hyper@1", "--people", 2)),
    ],
)
def test_a_command_leaves_the_gpu_to_its_workers_before_they_begin(
    module: str, command: tuple[object, ...], hdb: Hdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    quick_sampling: None,
) -> None:  # fmt: skip
    told = list[str]()

    def scatter(
        open_work: Callable[[], Callable[[object], Iterator[object]]], tasks: Sequence[object], cluster: Cluster
    ) -> Generator[object]:
        told.append("scattered")
        work = open_work()
        for task in tasks:
            yield from work(task)

    def leave(booth: HyperDreamBooth) -> None:
        told.append("left")
        leave_to_workers(booth)

    monkeypatch.setattr("hyperdreambooth.cluster.scatter", scatter)
    monkeypatch.setattr(f"hyperdreambooth.cli.{module}.leave_to_workers", leave)
    common = ("--base", hdb.base, "--device", "cpu")
    alone = hdb.json(*command, *common, "-o", tmp_path / "alone")
    assert told == []
    monkeypatch.setattr(f"hyperdreambooth.cli.{module}.crew_of", lambda *_: nullcontext(Cluster(2)))
    got = hdb.json(*command, *common, "-o", tmp_path / "out", "--workers", 2)
    assert told == ["left", "scattered"] and got["people"] == alone["people"]


def test_what_is_left_is_on_the_cpu(fresh_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    booth, moved, told = HyperDreamBooth(fresh_base), list[tuple[nn.Module, str]](), list[str]()
    booth.hypernetwork = random_hypernetwork(PRESETS["tiny"], booth.space, booth.fingerprint)
    to = nn.Module.to

    def moving(network: nn.Module, *given: object, **named: object) -> nn.Module:
        moved.append((network, str(named.get("device", *given))))
        return to(network, *given, **named)

    monkeypatch.setattr(nn.Module, "to", moving)
    monkeypatch.setattr(booth.adapters.bases, "to", lambda device: told.append(device))
    leave_to_workers(booth)
    assert told == ["cpu"]
    own = [booth.hypernetwork, fresh_base.vae, *fresh_base.adapted.values()]
    assert all((network, "cpu") in moved for network in own) and booth.base.device == torch.device("cpu")
