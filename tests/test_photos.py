"""`hdb personalize` on photographs: faces by number and by hand, several photographs, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperdreambooth.cli import run
from hyperdreambooth.cli.console import Job
from hyperdreambooth.cli.photos import read_photos, sheets_beside
from hyperdreambooth.faces import FaceBox, locate_face, read_picture
from hyperdreambooth.identity import Identity
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.sheet import save_png, to_image
from tests.faces.test_finding import on_grey, photographs, resized

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def couple(tmp_path: Path) -> Path:
    """A picture of two."""
    small, large = resized(photographs()[0], 140), photographs()[1]
    save_png(tmp_path / "couple.png", to_image(on_grey({(60, 20): small, (40, 220): large}, 340, 520)))
    return tmp_path / "couple.png"


@pytest.fixture
def drawing(tmp_path: Path) -> Path:
    """A drawing without a face."""
    image = Image.new("RGB", (120, 90), "white")
    image.paste("black", (20, 20, 60, 70))
    image.save(tmp_path / "drawing.png")
    return tmp_path / "drawing.png"


def read(photo: Path, **chosen: object) -> tuple[torch.Tensor, list[str]]:
    """The face of one photograph, (3, 32, 32), and what was said of it."""
    with Job() as job:
        (face,) = read_photos(job, [photo], sheets_beside(photo.with_name("me.safetensors"), 1), **chosen)  # type: ignore[arg-type]
    assert face.note is None  # it is said once
    return face.crop(32).picture, job.notes


def test_of_several_faces_the_picture_with_their_numbers_is_written(couple: Path) -> None:
    first, (note,) = read(couple)
    assert "2 faces were found" in note and "--face N" in note and "me-faces.png" in note
    with Image.open(couple.with_name("me-faces.png")) as image:
        assert image.size == (520, 340)
    couple.with_name("me-faces.png").unlink()
    same, silent = read(couple, numbers=[1])
    second, _ = read(couple, numbers=[2])
    assert silent == [] and torch.equal(first, same) and not torch.equal(first, second)
    assert not couple.with_name("me-faces.png").exists()  # who knows the number needs none


def test_a_picture_without_a_face_is_used_and_said(drawing: Path) -> None:
    _, (note,) = read(drawing)
    assert str(drawing) in note and "no face was found" in note and "--box LEFT,TOP,SIDE" in note


def test_a_box_is_in_pixels_of_the_file_however_large(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    Image.effect_noise((8192, 2000), 50).save(file)  # read at half of its size
    by_hand, notes = read(file, boxes=["4000,600,800"])
    expected = locate_face(read_picture(file), box=FaceBox(2000, 300, 400)).crop(32).picture
    assert torch.equal(by_hand, expected) and notes == []


def test_several_photographs_make_one_file(portrait_file: Path, base_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    save_png(other, to_image(1 - read_picture(portrait_file)))
    output = tmp_path / "alice.safetensors"
    common = ["-o", str(output), "--base", str(base_folder), "--steps", "2", "--dtype", "fp32"]
    assert run(["personalize", str(portrait_file), str(other), *common]) == 0
    person = Identity.open(output)
    expected = HyperDreamBooth.load(base_folder).personalize([portrait_file, other], steps=2)
    assert torch.equal(person.weights, expected.weights) and person.how == expected.how
    assert person.how["photographs"] == 2


def error_of(capsys: Capture, folder: Path, *arguments: object) -> str:
    """The one line of a command that must fail before the base is opened, leaving no identity."""
    output = folder / "me.safetensors"
    command = ["personalize", *map(str, arguments), "-o", str(output), "--base", str(folder / "no base")]
    capsys.readouterr()
    assert run(command) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if not line.startswith("note:")]
    assert out == "" and line.startswith("error: ") and not output.exists()
    return line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--face", 1), "no faces were found"),
        (("--box", "500,0,40"), "in a picture of 120 x 90 pixels"),
        (("--box", "1,2"), "expected LEFT,TOP,SIDE in pixels"),
        (("--box", "a,b,c"), "expected LEFT,TOP,SIDE in pixels"),
        (("--box", "0,0,nan"), "measure it again"),
        (("--face", 0), "--face"),
        (("--face", 1, "--box", "1,2,30"), "leave the other out"),
        (("--face", 1, "--face", 2), "2 times for 1 photographs"),
        (("--detector", "nowhere.onnx"), "YuNet"),
    ],
)
def test_wrong_choices_are_one_line(arguments: tuple[object, ...], words: str, drawing: Path, capsys: Capture) -> None:
    assert words in error_of(capsys, drawing.parent, drawing, *arguments)


def test_a_number_that_no_face_has_shows_the_numbers(couple: Path, capsys: Capture) -> None:
    line = error_of(capsys, couple.parent, couple, "--face", 7)
    assert "got face 7 where 2 faces were found" in line and "me-faces.png" in line
    assert couple.with_name("me-faces.png").is_file()


def test_the_photograph_is_not_overwritten_by_the_numbers(drawing: Path, capsys: Capture) -> None:
    photo = drawing.rename(drawing.with_name("me-faces.png"))
    assert "as input and as output" in error_of(capsys, drawing.parent, photo)
