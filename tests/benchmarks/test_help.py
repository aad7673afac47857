"""Every benchmark says how it is used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import benchmarks

MODULES = [path.stem for path in sorted(Path(benchmarks.__path__[0]).glob("*.py")) if "typer.run(" in path.read_text()]


@pytest.mark.parametrize("name", MODULES)
def test_help_is_printed(name: str) -> None:
    app = typer.Typer()
    app.command()(import_module(f"benchmarks.{name}").main)
    got = CliRunner().invoke(app, ["--help"])
    assert got.exit_code == 0 and "--help" in got.output, got.exception
    if name == "tune_methods":
        assert "METHOD[@STEPS],KEY=VALUE[/VALUE]...,..." in got.output
