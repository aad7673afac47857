"""Every example runs as its own text says, on the tiny base."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from hyperdreambooth.identity import Identity

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch, base_folder: Path) -> None:
    monkeypatch.setattr("hyperdreambooth.base.loading.BASE", base_folder)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: Path) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_one_photo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, portrait_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "one_photo.py", portrait_file, tmp_path)
    person = Identity.open(tmp_path / "alice.safetensors")
    assert f"{person.numbers:,} numbers" in capsys.readouterr().out
    assert len(list(tmp_path.glob("alice-*.png"))) == 6


def test_two_people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, portrait_file: Path) -> None:
    run(monkeypatch, "two_people.py", portrait_file, portrait_file, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert min(image.size) > 3 * 192


def test_styles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "styles.py", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert min(image.size) > 4 * 128


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
