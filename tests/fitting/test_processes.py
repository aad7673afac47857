"""Two processes against one: real ones, that talk to each other."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from hyperdreambooth.errors import UserError
from hyperdreambooth.files import load_tensors
from hyperdreambooth.fitting.processes import ALONE, Processes
from tests.fitting.test_steps import CONFIGS, make_run

ROOT = Path(__file__).parents[2]
TOGETHER = """
import os
import sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = [{root!r}]
import torch
from hyperdreambooth.files import save_tensors
from hyperdreambooth.fitting.processes import Processes
from hyperdreambooth.hypernetwork.training import train
from tests.conftest import adapted_base
from tests.hypernetwork.conftest import World
from tests.hypernetwork.test_training import SHARED

processes, world, folder = Processes.started(), World(*adapted_base()), Path({folder!r})
config = replace(SHARED, **{{name: replace(fit, precision={precision!r}) for name, fit in SHARED.phases().items()}})
network = world.network()
portraits = world.people(12)
portraits = replace(portraits, numbers=portraits.numbers[:5])  # processes meet different numbers of those who have some
worlds = {{"portraits": portraits, "photographs": world.people(8, views=1, seed=1)}}
held_out = {{"portraits": world.people(4, seed=7)}}
reports = []
for report in train(network, world.base, world.adapters, worlds, held_out, folder, config, processes):
    reports.append(report)
    if len(reports) == {killed_after}:
        os._exit(9)
figures = {{name: [r.step.metrics.get(name, 0.0) for r in reports] for name in ("weight", "denoising")}}
figures |= {{"loss": [r.step.loss for r in reports], "samples": [r.step.samples for r in reports]}}
tensors = {{name: torch.tensor(values, dtype=torch.float64) for name, values in figures.items()}}
save_tensors(folder / f"seen-{{processes.index}}.safetensors", tensors | dict(network.named_parameters()))
"""


def launched(
    folder: Path, count: int, killed_after: int = 0, precision: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The training above by so many processes, which die at their n-th report where that is asked for."""
    script = folder / "train.py"
    folder.mkdir(exist_ok=True)
    words = {"root": str(ROOT), "folder": str(folder), "killed_after": killed_after, "precision": precision}
    script.write_text(TOGETHER.format(**words))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone"] if count > 1 else []
    return subprocess.run([sys.executable, *launch, str(script)], capture_output=True, text=True, timeout=300)


def trained(folder: Path, count: int, precision: str | None = None) -> list[dict[str, torch.Tensor]]:
    """What each of so many processes saw and ended with."""
    done = launched(folder, count, precision=precision)
    assert done.returncode == 0, done.stderr[-2000:]
    return [load_tensors(folder / f"seen-{index}.safetensors")[0] for index in range(count)]


def test_two_processes_train_as_one_does_and_only_one_writes(tmp_path: Path) -> None:
    alone = trained(tmp_path / "one", 1)[0]
    first, second = trained(tmp_path / "two", 2)
    assert launched(tmp_path / "killed", 2, killed_after=6).returncode != 0  # in the second step of the second phase
    assert not (tmp_path / "killed" / "seen-0.safetensors").exists()
    for resumed, whole in zip(trained(tmp_path / "killed", 2), (first, second), strict=True):
        assert len(resumed["loss"]) == 3  # the step whose report was the last is taken again
        torch.testing.assert_close(resumed["loss"], whole["loss"][-3:], rtol=1e-6, atol=1e-7)
        for name in whole.keys() - {"weight", "denoising", "loss", "samples"}:
            torch.testing.assert_close(resumed[name], whole[name], rtol=1e-5, atol=1e-6, msg=name)
    for name in alone:
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], alone[name], rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n} {text}"
        )
    torch.testing.assert_close(first["loss"], alone["loss"], rtol=1e-5, atol=1e-6)
    left = {path.name for path in (tmp_path / "two").iterdir()}
    assert left - {"seen-1.safetensors"} == {path.name for path in (tmp_path / "one").iterdir()}


def test_two_processes_train_as_one_does_in_bfloat16(tmp_path: Path) -> None:
    whole, alone = (trained(tmp_path / f"one {name}", 1, name)[0] for name in (None, "bf16"))
    first, second = trained(tmp_path / "two", 2, "bf16")
    apart = (alone["loss"] - whole["loss"]).abs()
    assert apart.min() > 0.0  # every step is rounded
    assert (first["loss"] - alone["loss"]).abs().max() < apart.max() < 0.02
    for name in alone:
        assert torch.equal(first[name], second[name]) and first[name].dtype != torch.bfloat16, name


RESTORED = """
import os
import sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from hyperdreambooth.errors import UserError
from hyperdreambooth.fitting.processes import Processes
from tests.fitting.test_steps import CONFIGS, make_run

processes, folder = Processes.started(), Path({folder!r})
try:
    said = f"goes on after {{make_run(CONFIGS[0], folder / str(processes.index), processes=processes).step}}"
except UserError as error:
    said = str(error)
(folder / f"said-{{processes.index}}").write_text(said)
processes.wait()
os._exit(0)  # torch's threads may abort a process that ends as others do
"""


@pytest.mark.parametrize("removed", [None, 0, 1])
def test_processes_that_would_go_on_from_different_steps_all_say_so(removed: int | None, tmp_path: Path) -> None:
    """Each on a disk of its own, as on two machines; one of the two checkpoints is lost."""
    for index in range(2):
        list(islice(make_run(CONFIGS[0], tmp_path / str(index)), 5))
        if index == removed:
            (tmp_path / str(index)).unlink()
    script = tmp_path / "restore.py"
    script.write_text(RESTORED.format(root=str(ROOT), folder=str(tmp_path)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [(tmp_path / f"said-{index}").read_text() for index in range(2)]
    first = 0 if removed == 0 else 5
    for index, words in enumerate(said):
        apart = f"1 of 2 processes have another step to go on from in {tmp_path / str(index)} than the first, whose is"
        assert words.startswith("goes on after 5" if removed is None else f"{apart} {first}: put the folder"), words


def test_shares_make_up_the_batch_and_an_uneven_one_is_refused() -> None:
    batch = torch.arange(6)
    shares = [Processes(index, 3).share(batch) for index in range(3)]
    assert torch.equal(torch.stack(shares, dim=1).flatten(), batch) and torch.equal(ALONE.share(batch), batch)
    Processes(0, 3).check_share(6, "people")
    with pytest.raises(UserError, match="6 people in a batch and 4 processes"):
        Processes(0, 4).check_share(6, "people")
