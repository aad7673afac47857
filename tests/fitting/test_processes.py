"""Two processes against one: real ones, that talk to each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hyperdreambooth.errors import UserError
from hyperdreambooth.files import load_tensors
from hyperdreambooth.fitting.processes import ALONE, Processes

ROOT = Path(__file__).parents[2]
TOGETHER = """
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
network = world.network()
portraits = world.people(12)
portraits = replace(portraits, numbers=portraits.numbers[:5])  # processes meet different numbers of those who have some
worlds = {{"portraits": portraits, "photographs": world.people(8, views=1, seed=1)}}
held_out = {{"portraits": world.people(4, seed=7)}}
reports = list(train(network, world.base, world.adapters, worlds, held_out, folder, SHARED, processes))
figures = {{name: [r.step.metrics.get(name, 0.0) for r in reports] for name in ("weight", "denoising")}}
figures |= {{"loss": [r.step.loss for r in reports], "samples": [r.step.samples for r in reports]}}
tensors = {{name: torch.tensor(values, dtype=torch.float64) for name, values in figures.items()}}
save_tensors(folder / f"seen-{{processes.index}}.safetensors", tensors | dict(network.named_parameters()))
"""


def trained(folder: Path, count: int) -> list[dict[str, torch.Tensor]]:
    """What each of so many processes saw and ended with."""
    script = folder / "train.py"
    folder.mkdir()
    script.write_text(TOGETHER.format(root=str(ROOT), folder=str(folder)))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone"] if count > 1 else []
    done = subprocess.run([sys.executable, *launch, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [load_tensors(folder / f"seen-{index}.safetensors")[0] for index in range(count)]


def test_two_processes_train_as_one_does_and_only_one_writes(tmp_path: Path) -> None:
    alone = trained(tmp_path / "one", 1)[0]
    first, second = trained(tmp_path / "two", 2)
    for name in alone:
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], alone[name], rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n} {text}"
        )
    torch.testing.assert_close(first["loss"], alone["loss"], rtol=1e-5, atol=1e-6)
    left = {path.name for path in (tmp_path / "two").iterdir()}
    assert left - {"seen-1.safetensors"} == {path.name for path in (tmp_path / "one").iterdir()}


def test_shares_make_up_the_batch_and_an_uneven_one_is_refused() -> None:
    batch = torch.arange(6)
    shares = [Processes(index, 3).share(batch) for index in range(3)]
    assert torch.equal(torch.stack(shares, dim=1).flatten(), batch) and torch.equal(ALONE.share(batch), batch)
    Processes(0, 3).check_share(6, "people")
    with pytest.raises(UserError, match="6 people in a batch and 4 processes"):
        Processes(0, 4).check_share(6, "people")
