"""The table of low-memory modes, on a narrow model."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import memory
from tests.base.checkpoints import SIZE, write_layout


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_every_mode_is_a_row_of_each_kind_of_work(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, output = write_layout(kind, tmp_path / "layout"), tmp_path / "memory.json"
    modes = ["checkpointing"] if kind == "sd1" else ["offload"]
    command = ["memory", "--layout", layout, "--size", SIZE, "--device", "cpu", "--a", 10, "--b", 6, "--modes", *modes]
    monkeypatch.setattr(sys, "argv", [str(word) for word in (*command, "--output", output)])
    memory.main()
    measured = json.loads(output.read_text())
    assert [(row["mode"], row["work"]) for row in measured] == [(mode, work) for mode in modes for work in memory.WORK]
    assert len({row["fingerprint"] for row in measured}) == 1
    assert all(1e8 < row["peak_bytes"] < 1e10 and row["seconds"][row["work"]] > 0 for row in measured)
    assert modes[0] in capsys.readouterr().out
